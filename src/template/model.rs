//! What a template is once it has been read.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::message::HandlerSpec;
use crate::retry::RetryPolicy;

/// A workflow's definition. What a value of this type says has been checked: names are unique, every
/// dependency exists, and there is no cycle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Template {
    /// Its namespace: the queue its steps are sent to.
    pub namespace: String,
    /// Its name within the namespace.
    pub name: String,
    /// Its version, `x.y.z`.
    pub version: String,
    /// For people.
    pub description: Option<String>,
    /// JSON Schema of a task's context.
    pub input_schema: Option<serde_json::Value>,
    /// What makes two submissions the same task.
    #[serde(default, skip_serializing_if = "is_default")]
    pub identity_strategy: IdentityStrategy,
    /// How long a task may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<Lifecycle>,
    /// The steps, in the file's order.
    pub steps: Vec<StepTemplate>,
}

/// One step of a workflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepTemplate {
    /// Its name within the template.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// What becomes of its result.
    #[serde(default, rename = "type", skip_serializing_if = "is_default")]
    pub kind: StepKind,
    /// What runs it, and with which settings.
    pub handler: HandlerSpec,
    /// Steps whose results it waits for.
    pub dependencies: Vec<String>,
    /// `Some(step)`: this step undoes `step`. It runs only when the task fails after `step` completed,
    /// and after the undoing of everything that came after `step`.
    pub compensates: Option<String>,
    /// How often it may run, the first time included.
    pub max_attempts: u32,
    /// How failures are retried.
    pub retry: RetryPolicy,
    /// How long one execution may take.
    pub timeout: Option<Duration>,
}

/// What becomes of a step's result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// The steps behind it get it.
    #[default]
    Standard,
    /// It names which of the steps behind it are created; the others never exist.
    Decision,
    /// Waits for those of its dependencies that were created.
    DeferredConvergence,
    /// It says how many instances of a batch worker are created, and what part of the work each does.
    Batchable(BatchConfig),
    /// Never runs itself: the blueprint of the instances that a batchable step asks for.
    BatchWorker,
}

impl StepKind {
    /// Whether its result says which further steps its task has.
    pub fn calls_for_steps(&self) -> bool {
        matches!(self, Self::Decision | Self::Batchable(_))
    }

    /// As templates write it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Decision => "decision",
            Self::DeferredConvergence => "deferred_convergence",
            Self::Batchable(_) => "batchable",
            Self::BatchWorker => "batch_worker",
        }
    }
}

/// How a batchable step's work is divided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct BatchConfig {
    /// Items per batch.
    pub batch_size: u32,
    /// Instances that run at once.
    pub parallelism: u32,
    /// Items after which a batch worker reports a [checkpoint](crate::Checkpoint), where it reports any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_interval: Option<u32>,
    /// The item's field that cursors count by.
    pub cursor_field: String,
    /// The batch worker whose instances do the work; where absent, the step's result names it.
    pub worker_template: Option<String>,
    /// What a failed instance means for the others.
    pub failure_strategy: FailureStrategy,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            batch_size: 1_000,
            parallelism: 10,
            checkpoint_interval: None,
            cursor_field: "id".to_owned(),
            worker_template: None,
            failure_strategy: FailureStrategy::default(),
        }
    }
}

/// What a failed batch means for the others of its step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureStrategy {
    /// They go on, and so does what waits for all of them, with those that succeeded.
    #[default]
    ContinueOnFailure,
    /// None begins any more; the task fails once those that run have ended.
    FailFast,
    /// They go on; the task fails once they have ended, and the failed one can be replayed.
    Isolate,
}

/// What makes two submissions the same task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IdentityStrategy {
    /// The same idempotency key, or without one the same context.
    #[default]
    Strict,
    /// The same idempotency key, which must be given.
    CallerProvided,
    /// Nothing, unless an idempotency key is given.
    AlwaysUnique,
}

/// Limits of a task's time. One that passes any of them is stale.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifecycle {
    /// From its acceptance to its end.
    pub max_duration: Option<Duration>,
    /// While steps wait for others: from the last time one ended.
    pub max_waiting_for_dependencies: Option<Duration>,
    /// While every step that could run waits for its retry: from the last failure.
    pub max_waiting_for_retry: Option<Duration>,
    /// While steps are with the workers: from the last time one ended.
    pub max_steps_in_process: Option<Duration>,
    /// Whether a stale task is recorded for somebody to look at.
    pub records: bool,
    /// Whether a stale task fails.
    pub fails: bool,
}

impl Template {
    /// The step of this name.
    pub fn step(&self, name: &str) -> Option<&StepTemplate> {
        self.steps.iter().find(|step| step.name == name)
    }

    /// The definition as JSON: what a task keeps, so that it ends as it began whatever happens to the file.
    /// Reads back as an equal template.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a template has string keys only and always encodes")
    }

    /// 32 hexadecimal digits that are equal for equal definitions, on every machine and in every build with
    /// the same fields. Tells definitions apart; proves nothing about who wrote them.
    pub fn definition_hash(&self) -> String {
        // FNV-1a, 128 bits.
        let hash =
            self.to_json().bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash: u128, byte| {
                (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
            });
        format!("{hash:032x}")
    }
}

/// What says nothing is not written, so that the definitions of earlier builds keep their hash.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
