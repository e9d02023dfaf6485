//! What a handler is given: one step to run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::batch::Batch;
use crate::checkpoint::Checkpoint;
use crate::message::{ErrorType, HandlerSpec, Json, PROTOCOL_VERSION, StepExecutionRequest, StepOutput};
use crate::outcome::{StepError, StepResult};
use crate::retry::RetryPolicy;
use crate::template::BatchConfig;

/// One step to run, with the task's context read as `C`.
#[derive(Debug, Clone)]
pub struct Step<C = serde_json::Value> {
    /// The task's context, as submitted.
    pub context: C,
    request: Arc<StepExecutionRequest>,
    cancelled: CancellationToken,
    deadline: Option<Instant>,
}

impl<C> Step<C> {
    /// What the step named `step_name` returned. Any ancestor can be asked, not only direct dependencies.
    ///
    /// # Errors
    /// Permanent, naming both steps: when `step_name` is no ancestor of this step, or its result does not fit `T`.
    pub fn result_of<T: DeserializeOwned>(&self, step_name: &str) -> StepResult<T> {
        self.find(step_name)?.ok_or_else(|| {
            let known = self.request.sequence_data.iter().map(|o| o.step_name.as_str()).collect::<Vec<_>>();
            StepError::new(
                ErrorType::DependencyError,
                false,
                format_args!(
                    "step {:?} needs the result of {step_name:?}, which is not among its ancestors ({})",
                    self.name(),
                    if known.is_empty() { "it has none".to_owned() } else { known.join(", ") },
                ),
            )
            .code("MISSING_DEPENDENCY")
        })
    }

    /// What the step named `step_name` returned, if it is an ancestor of this one.
    ///
    /// # Errors
    /// Permanent, naming both steps: when the result does not fit `T`.
    pub fn find_result_of<T: DeserializeOwned>(&self, step_name: &str) -> StepResult<Option<T>> {
        self.find(step_name)
    }

    fn find<T: DeserializeOwned>(&self, step_name: &str) -> StepResult<Option<T>> {
        let output = self.request.sequence_data.iter().find(|o| o.step_name == step_name);
        output.map(|output| self.read(output)).transpose()
    }

    fn read<T: DeserializeOwned>(&self, output: &StepOutput) -> StepResult<T> {
        output.result.parse().map_err(|error| {
            let (name, of) = (self.name(), &output.step_name);
            let text = format_args!("step {name:?} cannot read the result of {of:?}: {error}");
            StepError::validation(text).code("INVALID_DEPENDENCY")
        })
    }

    /// What the instances of the batch worker named `worker` returned, in the order of their batches. Those that
    /// failed are left out, where the template lets the others go on.
    ///
    /// # Errors
    /// Permanent, naming both steps: when a result does not fit `T`.
    pub fn results_of<T: DeserializeOwned>(&self, worker: &str) -> StepResult<Vec<T>> {
        let number =
            |output: &StepOutput| output.step_name.strip_prefix(worker)?.strip_prefix('_')?.parse().ok();
        let outputs = self.request.sequence_data.iter();
        let mut outputs: Vec<(u32, &StepOutput)> =
            outputs.filter_map(|output| Some((number(output)?, output))).collect();
        outputs.sort_by_key(|(number, _)| *number);
        outputs.into_iter().map(|(_, output)| self.read(output)).collect()
    }

    /// A handler setting from the template (`initialization`), or `None` where the template has none.
    ///
    /// # Errors
    /// Permanent, naming step and setting: when the value does not fit `T`.
    pub fn setting<T: DeserializeOwned>(&self, name: &str) -> StepResult<Option<T>> {
        let invalid = |error: serde_json::Error| {
            StepError::validation(format_args!("step {:?}, handler setting {name:?}: {error}", self.name()))
                .code("INVALID_SETTING")
        };
        let settings: Option<serde_json::Map<String, serde_json::Value>> =
            self.request.handler.initialization.parse().map_err(invalid)?;
        match settings.and_then(|mut settings| settings.remove(name)) {
            None | Some(serde_json::Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value).map(Some).map_err(invalid),
        }
    }

    /// The part of the work that this instance of a batch worker does, its cursors read as `T`.
    ///
    /// # Errors
    /// Permanent: when the step is no instance of a batch worker, or its cursors do not fit `T`.
    pub fn batch<T: DeserializeOwned>(&self) -> StepResult<Batch<T>> {
        let refused = |problem: &dyn std::fmt::Display| {
            let text = format_args!("step {:?} cannot read its batch: {problem}", self.name());
            StepError::validation(text).code("INVALID_BATCH")
        };
        let batch = self.request.batch.clone();
        let batch = batch.ok_or_else(|| refused(&"it is no instance of a batch worker"))?;
        let cursor = |cursor| serde_json::from_value(cursor).map_err(|error| refused(&error));
        Ok(Batch { id: batch.id, start: cursor(batch.start)?, end: cursor(batch.end)?, size: batch.size })
    }

    /// Where the step goes on, if it has [reported](StepError::checkpoint) that: its cursor read as `T`, its results as `A`.
    ///
    /// # Errors
    /// Permanent: when the checkpoint does not fit `T` and `A`.
    pub fn checkpoint<T: DeserializeOwned, A: DeserializeOwned>(
        &self,
    ) -> StepResult<Option<Checkpoint<T, A>>> {
        let Some(checkpoint) = &self.request.checkpoint else { return Ok(None) };
        let refused = |problem| {
            let text = format_args!("step {:?} cannot read its checkpoint: {problem}", self.name());
            StepError::validation(text).code("INVALID_CHECKPOINT")
        };
        Ok(Some(Checkpoint {
            cursor: checkpoint.cursor.parse().map_err(refused)?,
            items_processed: checkpoint.items_processed,
            accumulated_results: checkpoint.accumulated_results.parse().map_err(refused)?,
        }))
    }

    /// How the template divides the work of this batchable step or batch worker; the defaults where it does not say.
    pub fn batch_config(&self) -> BatchConfig {
        self.request.batch_config.clone().unwrap_or_default()
    }

    /// The step's name; of an instance of a batch worker, with its number.
    pub fn name(&self) -> &str {
        &self.request.step_name
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.request.namespace
    }

    /// The task.
    pub fn task_uuid(&self) -> Uuid {
        self.request.task_uuid
    }

    /// The step: the same over all attempts.
    pub fn step_uuid(&self) -> Uuid {
        self.request.step_uuid
    }

    /// Which execution this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.request.attempt
    }

    /// How many executions the step may have.
    pub fn max_attempts(&self) -> u32 {
        self.request.max_attempts
    }

    /// A key for outside effects that must happen once: the same over all attempts and redeliveries of
    /// this step, different for every other step.
    pub fn idempotency_key(&self) -> String {
        self.request.step_uuid.to_string()
    }

    /// Groups everything that belongs to the task.
    pub fn correlation_id(&self) -> &str {
        &self.request.correlation_id
    }

    /// The whole request, for what has no method of its own.
    pub fn request(&self) -> &StepExecutionRequest {
        &self.request
    }

    /// Completes when the step should stop: its task was cancelled, or the worker shuts down.
    ///
    /// A handler that returns soon after saves the step from being cut off. Cancel-safe.
    pub async fn cancelled(&self) {
        self.cancelled.cancelled().await;
    }

    /// Whether the step should stop, for handlers that block.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.is_cancelled()
    }

    /// When the step is cut off for having run too long.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(crate) fn new(
        context: C,
        request: Arc<StepExecutionRequest>,
        cancelled: CancellationToken,
        deadline: Option<Instant>,
    ) -> Self {
        Self { context, request, cancelled, deadline }
    }
}

/// For tests of handlers: a step without a broker.
impl<C: Serialize + DeserializeOwned> Step<C> {
    /// A first attempt with this context, which goes through JSON as it would on its way through the broker.
    ///
    /// ```
    /// use serde_json::json;
    /// use tasker_worker_rust::{Step, StepResult};
    ///
    /// async fn greet(step: Step) -> StepResult<String> {
    ///     let name: String = step.result_of("find_name")?;
    ///     Ok(format!("{} {name}", step.context["greeting"].as_str().unwrap_or("Hi")))
    /// }
    ///
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let step = Step::for_test(json!({ "greeting": "Hello" })).with_result("find_name", "Ada");
    /// assert_eq!(greet(step).await.unwrap(), "Hello Ada");
    /// # });
    /// ```
    ///
    /// # Panics
    /// When the context does not survive the round trip.
    pub fn for_test(context: C) -> Self {
        let task_data = Json::encode(&context).expect("the context encodes as JSON");
        let context = task_data.parse().expect("the context reads back from its own JSON");
        let task_uuid = Uuid::new_v4();
        let request = StepExecutionRequest {
            protocol_version: PROTOCOL_VERSION,
            task_uuid,
            step_uuid: Uuid::new_v4(),
            namespace: "test".to_owned(),
            task_name: "test".to_owned(),
            task_version: "1.0.0".to_owned(),
            step_name: "step_under_test".to_owned(),
            handler: HandlerSpec::default(),
            attempt: 1,
            part: 0,
            checkpoint: None,
            max_attempts: 3,
            timeout_ms: None,
            retry: RetryPolicy::default(),
            task_data,
            sequence_data: Vec::new(),
            correlation_id: task_uuid.to_string(),
            created_at: Some(Timestamp::now()),
            previous_error: None,
            previous_attempt_at: None,
            not_before: None,
            batch_config: None,
            batch: None,
        };
        Self::new(context, Arc::new(request), CancellationToken::new(), None)
    }

    /// Adds an ancestor's result.
    ///
    /// # Panics
    /// When the result does not encode as JSON.
    #[must_use]
    pub fn with_result(mut self, step_name: &str, result: impl Serialize) -> Self {
        let result = Json::encode(&result).expect("the result encodes as JSON");
        let outputs = &mut Arc::make_mut(&mut self.request).sequence_data;
        outputs.push(StepOutput { step_name: step_name.to_owned(), result });
        self
    }

    /// Sets the handler's settings, as a template's `initialization` would.
    #[must_use]
    pub fn with_settings(mut self, settings: serde_json::Value) -> Self {
        Arc::make_mut(&mut self.request).handler.initialization = settings.into();
        self
    }

    /// Makes this an instance of a batch worker, with this part of the work.
    #[must_use]
    pub fn with_batch(mut self, batch: Batch) -> Self {
        Arc::make_mut(&mut self.request).batch = Some(batch);
        self
    }

    /// Makes this go on from a checkpoint.
    ///
    /// # Panics
    /// When the checkpoint does not encode as JSON.
    #[must_use]
    pub fn with_checkpoint<T: Serialize, A: Serialize>(mut self, checkpoint: Checkpoint<T, A>) -> Self {
        let request = Arc::make_mut(&mut self.request);
        request.part += 1;
        request.checkpoint = Some(checkpoint.encode().expect("the checkpoint encodes as JSON"));
        self
    }

    /// Makes this the given attempt.
    #[must_use]
    pub fn with_attempt(mut self, attempt: u32) -> Self {
        Arc::make_mut(&mut self.request).attempt = attempt;
        self
    }

    /// Gives the step a deadline, this far from now.
    #[must_use]
    pub fn with_deadline(mut self, limit: Duration) -> Self {
        self.deadline = Some(Instant::now() + limit);
        self
    }

    /// Cancels the step, as a cancelled task would.
    pub fn cancel(&self) {
        self.cancelled.cancel();
    }
}
