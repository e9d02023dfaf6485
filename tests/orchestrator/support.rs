//! Templates, a toy worker, and waiting with a deadline.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tasker_worker_rust::Config;
use tasker_worker_rust::api::TaskRequest;
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::broker::topology::{Names, dead_key, result_key, retry_key};
use tasker_worker_rust::broker::{Broker, Disposition, Message, Properties, Source};
use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::message::{
    HandlerSpec, Json, ResultStatus, StepExecutionError, StepExecutionRequest, StepExecutionResult, header,
};
use tasker_worker_rust::orchestrator::Orchestrator;
use tasker_worker_rust::orchestrator::task::TaskState;
use tasker_worker_rust::retry::RetryPolicy;
use tasker_worker_rust::template::{IdentityStrategy, StepKind, StepTemplate, Template};
use tokio::sync::watch;
use uuid::Uuid;

/// Nothing takes this long; what does is lost.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The shortest delay of the tests' ladder.
const RUNG: Duration = Duration::from_millis(50);

pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {DEADLINE:?} for {what}"),
    }
}

/// Asks again and again until the answer is yes.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    within(what, async {
        while !ask().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// A template of steps and their dependencies; `~a` undoes `a`.
pub(crate) fn template<S: AsRef<str>>(namespace: &str, steps: &[(S, Vec<S>)]) -> Template {
    Template {
        namespace: namespace.to_owned(),
        name: "order".to_owned(),
        version: "1.0.0".to_owned(),
        description: None,
        input_schema: None,
        identity_strategy: IdentityStrategy::default(),
        lifecycle: None,
        steps: steps
            .iter()
            .map(|(name, dependencies)| StepTemplate {
                name: name.as_ref().to_owned(),
                description: None,
                kind: StepKind::Standard,
                handler: HandlerSpec::default(),
                dependencies: dependencies.iter().map(|d| d.as_ref().to_owned()).collect(),
                compensates: name.as_ref().strip_prefix('~').map(str::to_owned),
                max_attempts: 3,
                retry: RetryPolicy::default(),
                timeout: Some(Duration::from_secs(60)),
            })
            .collect(),
    }
}

/// a, then b, then c.
pub(crate) fn linear() -> Template {
    template("shop", &[("a", vec![]), ("b", vec!["a"]), ("c", vec!["b"])])
}

pub(crate) fn failure(message: &str) -> StepExecutionError {
    StepExecutionError {
        message: message.to_owned(),
        error_type: "PermanentError".to_owned(),
        code: None,
        retryable: false,
        details: None,
    }
}

pub(crate) fn config(database_url: &str) -> Config {
    let mut config = Config::default();
    config.orchestrator.database_url = database_url.to_owned();
    config.broker.delay_ladder.first_ms = RUNG.as_millis() as u64;
    config.broker.delay_ladder.rungs = 3;
    config
}

pub(crate) fn sqlite(directory: &Path) -> String {
    format!("sqlite:{}", directory.join("tasker.sqlite").display())
}

pub(crate) async fn start(config: &Config, broker: &MemoryBroker, template: Template) -> Orchestrator {
    let catalog = Catalog::from_templates(vec![template]);
    Orchestrator::start(config, broker.connect(), catalog).await.expect("the store opens")
}

pub(crate) fn task(context: Value) -> TaskRequest {
    TaskRequest { version: Some("1.0.0".to_owned()), ..TaskRequest::new("shop", "order", context) }
}

pub(crate) async fn finished(orchestrator: &Orchestrator, task_uuid: Uuid) -> TaskState {
    let end = within("a task's end", orchestrator.finished(task_uuid)).await;
    end.expect("the store can be read").expect("the task is known")
}

/// One text column of the store.
pub(crate) async fn texts(orchestrator: &Orchestrator, sql: &'static str) -> Vec<String> {
    let rows = sqlx::query_scalar(sql).fetch_all(orchestrator.store().readers()).await;
    rows.expect("the query fits the schema")
}

/// What the toy worker does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Succeed(Value),
    Fail(&'static str),
    Retry,
    /// Refuse the message itself.
    Reject,
    /// Take it and say nothing, as a broker that lost the answer would.
    Silence,
    /// A dead letter without a result.
    DeadLetter,
}

/// Runs every step of namespace `shop` and remembers what it ran.
pub(crate) struct Toy {
    pub(crate) broker: Arc<MemoryBroker>,
    ran: watch::Receiver<Vec<StepExecutionRequest>>,
    worker: tokio::task::JoinHandle<()>,
}

impl Drop for Toy {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

impl Toy {
    /// A worker that answers by `answer`, each answer published `copies` times.
    pub(crate) fn start(
        broker: &MemoryBroker,
        copies: usize,
        answer: impl Fn(&StepExecutionRequest) -> Answer + Send + 'static,
    ) -> Self {
        let broker = broker.connect();
        let (sender, ran) = watch::channel(Vec::new());
        let worker = tokio::spawn({
            let broker = Arc::clone(&broker);
            async move {
                let queue = Source::Queue(Names::default().step_queue("shop"));
                let mut deliveries = broker.subscribe(queue, 100);
                while let Some(delivery) = deliveries.recv().await {
                    let request = StepExecutionRequest::decode(&delivery.body).expect("a sound request");
                    let answer = answer(&request);
                    sender.send_modify(|ran| ran.push(request.clone()));
                    if matches!(answer, Answer::Reject) {
                        delivery.acker.settle(Disposition::Reject).ok();
                        continue;
                    }
                    for _ in 0..copies {
                        publish_answer(&*broker, &request, &answer).await;
                    }
                    delivery.acker.settle(Disposition::Ack).ok();
                }
            }
        });
        Self { broker, ran, worker }
    }

    /// A worker whose every step succeeds, returning its own name.
    pub(crate) fn succeeding(broker: &MemoryBroker) -> Self {
        Self::start(broker, 1, |request| Answer::Succeed(json!(request.step_name)))
    }

    pub(crate) fn ran(&self) -> Vec<StepExecutionRequest> {
        self.ran.borrow().clone()
    }

    /// The steps that ran, in order, each with its attempt.
    pub(crate) fn names(&self) -> Vec<String> {
        self.ran().iter().map(|request| format!("{}:{}", request.step_name, request.attempt)).collect()
    }

    pub(crate) async fn has_run(&self, count: usize) {
        let mut ran = self.ran.clone();
        within("the worker", ran.wait_for(|ran| ran.len() >= count)).await.expect("the worker lives");
    }
}

pub(crate) fn result_of(request: &StepExecutionRequest, answer: Result<Value, &str>) -> StepExecutionResult {
    let status = if answer.is_ok() { ResultStatus::Completed } else { ResultStatus::Failed };
    StepExecutionResult {
        protocol_version: 1,
        task_uuid: request.task_uuid,
        step_uuid: request.step_uuid,
        namespace: request.namespace.clone(),
        step_name: request.step_name.clone(),
        attempt: request.attempt,
        part: request.part,
        success: answer.is_ok(),
        status,
        data: answer.clone().map_or_else(|_| Json::null(), Json::from),
        error: answer.err().map(failure),
        metadata: Default::default(),
        duration_ms: 7,
    }
}

pub(crate) async fn publish_answer(broker: &dyn Broker, request: &StepExecutionRequest, answer: &Answer) {
    let names = Names::default();
    let mut properties =
        Properties { message_id: Some(request.message_id("answer")), ..Properties::default() };
    let (exchange, routing_key, body) = match answer {
        Answer::Succeed(value) => {
            let result = result_of(request, Ok(value.clone()));
            (names.results(), result_key("shop", "completed"), result.encode())
        }
        Answer::Fail(message) => {
            let result = result_of(request, Err(message));
            (names.results(), result_key("shop", "failed"), result.encode())
        }
        Answer::Retry => {
            let mut next = request.clone();
            next.attempt += 1;
            next.previous_error = Some(failure("busy"));
            next.previous_attempt_at = Some(jiff::Timestamp::now());
            next.not_before = Some(jiff::Timestamp::now() + RUNG);
            (names.retries(), retry_key("shop", RUNG), next.encode())
        }
        Answer::DeadLetter => {
            properties.headers.set(header::REASON, "retries_exhausted");
            properties.headers.set(header::ERROR, "it never worked");
            properties.headers.set(header::ERROR_TYPE, "RetryableError");
            (names.dead_letters(), dead_key("shop", "retries_exhausted"), request.encode())
        }
        Answer::Reject | Answer::Silence => return,
    };
    let message = Message { exchange, routing_key, body: body.into(), properties };
    let publisher = broker.publisher();
    until("a confirm", async || publisher.publish(message.clone()).await.is_ok()).await;
}
