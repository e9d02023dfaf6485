//! The messages between orchestrator and workers: what goes over the wire, and nothing else.
//!
//! Bodies are JSON. A worker answers each [`StepExecutionRequest`] with a [`StepExecutionResult`], with a
//! retry (which *is* the next attempt's request), or with a dead letter (the request as it came, and the
//! reason in headers). Integers are exact up to 2^53 as JSON numbers; larger ones travel as decimal strings.

mod json;
mod wire;

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::de::{self, DeserializeOwned, MapAccess, SeqAccess};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::batch::Batch;
use crate::checkpoint::Checkpoint;
pub use crate::control::ControlMessage;
use crate::error::sentence;
use crate::retry::RetryPolicy;
use crate::template::BatchConfig;
pub use json::Json;

/// The version of the message contract this build speaks. Fields may be added under the same version.
pub const PROTOCOL_VERSION: u32 = 1;

/// What a `correlation_id` may have: it is an AMQP property of every answer, and those end here.
pub const CORRELATION_ID_BYTES: usize = 255;

/// Names of the AMQP headers we set. Never `x-…`: brokers own that prefix and change its meaning between versions.
pub mod header {
    /// Attempt number the message belongs to, 1-based.
    pub const ATTEMPT: &str = "tasker-attempt";
    /// Why a dead letter is one; see [`DeadReason`](crate::outcome::DeadReason).
    pub const REASON: &str = "tasker-reason";
    /// The error text of a dead letter, shortened to fit a frame.
    pub const ERROR: &str = "tasker-error";
    /// The error's type of a dead letter.
    pub const ERROR_TYPE: &str = "tasker-error-type";
    /// The error's stable code of a dead letter, where the handler gave one.
    pub const ERROR_CODE: &str = "tasker-error-code";
    /// When the step was first requested (RFC 3339).
    pub const FIRST_AT: &str = "tasker-first-at";
    /// When the step last failed (RFC 3339).
    pub const LAST_AT: &str = "tasker-last-at";
    /// The worker that wrote the message.
    pub const WORKER_ID: &str = "tasker-worker-id";
    /// The id of the dead letter that a request was made from; repeated in all that follows from it.
    pub const REPLAYED_FROM: &str = "tasker-replayed-from";
    /// How often the step's dead letters were replayed; beside the one above.
    pub const REPLAYS: &str = "tasker-replays";
    /// W3C trace context.
    pub const TRACEPARENT: &str = "traceparent";
    /// What other tracing systems want passed on with it.
    pub const TRACESTATE: &str = "tracestate";
}

/// Asks a worker to run one attempt of one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "wire::Request")]
pub struct StepExecutionRequest {
    /// The version of the contract: [`PROTOCOL_VERSION`].
    pub protocol_version: u32,
    /// The task this step belongs to.
    pub task_uuid: Uuid,
    /// The step; the same over all its attempts.
    pub step_uuid: Uuid,
    /// The namespace, which is also the queue.
    pub namespace: String,
    /// Name of the task's template.
    pub task_name: String,
    /// Version of the task's template.
    pub task_version: String,
    /// Name of the step within its template.
    pub step_name: String,
    /// What the template says about the handler.
    pub handler: HandlerSpec,
    /// Which execution this is, from 1.
    pub attempt: u32,
    /// Which part of its work this asks for, from 0: how many checkpoints the step has reported. The next attempt after a
    /// failure counts on.
    #[serde(default, skip_serializing_if = "is_first")]
    pub part: u32,
    /// Where the step goes on, once it has reported that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint>,
    /// How many executions the step may have.
    pub max_attempts: u32,
    /// How long one execution may take; the worker's default where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// How failures of this step are retried.
    pub retry: RetryPolicy,
    /// The task's context, as submitted.
    pub task_data: Json,
    /// The results of **all transitive ancestors** of this step.
    pub sequence_data: Vec<StepOutput>,
    /// Groups the messages of one task, and of tasks submitted together.
    pub correlation_id: String,
    /// When the step was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// On a retry: what the previous attempt failed with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_error: Option<StepExecutionError>,
    /// On a retry: when the previous attempt failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_attempt_at: Option<Timestamp>,
    /// On a retry: the time before which the step must not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Of a batchable step and the instances of its batch worker: how the template divides the work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_config: Option<BatchConfig>,
    /// Of an instance of a batch worker: its part of the work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<Batch>,
}

impl StepExecutionRequest {
    /// Reads a request and checks the fields the topology depends on.
    ///
    /// # Errors
    /// A sentence naming the field, for JSON that is broken, incomplete or of a later protocol.
    pub fn decode(body: &[u8]) -> Result<Self, serde_json::Error> {
        decode(body)
    }

    /// The request's body.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// The step's name in its template: an instance of a batch worker has the worker's name and a number.
    pub fn template_step(&self) -> &str {
        match (&self.batch, self.step_name.rsplit_once('_')) {
            (Some(_), Some((worker, _))) => worker,
            _ => &self.step_name,
        }
    }

    /// The id of the message of this `kind` about this part of this attempt: the same however often it is published.
    pub fn message_id(&self, kind: &str) -> String {
        message_id(self.step_uuid, self.attempt, self.part, kind)
    }
}

/// The id of the message of this `kind` about one part of one attempt of one step.
pub fn message_id(step_uuid: Uuid, attempt: u32, part: u32, kind: &str) -> String {
    match part {
        0 => format!("{step_uuid}:{attempt}:{kind}"),
        part => format!("{step_uuid}:{attempt}.{part}:{kind}"),
    }
}

/// A message's id with how often its step was replayed: a replay counts its attempts from 1 again.
pub fn replayed_message_id(message_id: String, replays: u32) -> String {
    if replays == 0 { message_id } else { format!("{message_id}:{replays}") }
}

/// The handler a template names for a step, and its settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HandlerSpec {
    /// The handler's name, in any of the spellings templates use.
    #[serde(default)]
    pub callable: String,
    /// Settings for the handler, free-form.
    #[serde(default = "Json::empty_object")]
    pub initialization: Json,
}

/// One earlier step and what it returned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepOutput {
    /// The step's name.
    pub step_name: String,
    /// What its handler returned.
    pub result: Json,
}

/// What became of one attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepExecutionResult {
    /// The version of the contract: [`PROTOCOL_VERSION`].
    #[serde(default = "current_version")]
    pub protocol_version: u32,
    /// The task.
    pub task_uuid: Uuid,
    /// The step.
    pub step_uuid: Uuid,
    /// The step's namespace.
    pub namespace: String,
    /// The step's name.
    pub step_name: String,
    /// Which execution this is the result of, from 1.
    #[serde(default = "first_attempt")]
    pub attempt: u32,
    /// Which part of its work was the last, as in the request.
    #[serde(default, skip_serializing_if = "is_first")]
    pub part: u32,
    /// Whether the handler succeeded.
    pub success: bool,
    /// The same, and whether the step was cancelled.
    pub status: ResultStatus,
    /// What the handler returned; `null` on failure.
    #[serde(default, alias = "result")]
    pub data: Json,
    /// What went wrong, on failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<StepExecutionError>,
    /// Where, when and how dearly it ran.
    #[serde(default)]
    pub metadata: ExecutionMetadata,
    /// Wall-clock time of the execution.
    #[serde(default)]
    pub duration_ms: u64,
}

impl StepExecutionResult {
    /// Reads a result.
    ///
    /// # Errors
    /// A sentence naming the field, for JSON that is broken or incomplete.
    pub fn decode(body: &[u8]) -> Result<Self, serde_json::Error> {
        decode(body)
    }

    /// The result's body.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}

/// How an attempt ended for good. A retried attempt has no result: its retry message reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResultStatus {
    /// The handler returned a value.
    Completed,
    /// The step failed and will not be tried again by the worker.
    #[serde(alias = "error")]
    Failed,
    /// The task was cancelled.
    Cancelled,
}

impl ResultStatus {
    /// The status as it stands in messages and routing keys.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct StepExecutionError {
    /// What happened, in a sentence.
    pub message: String,
    /// One of the names of [`ErrorType`] when written by this worker.
    #[serde(default = "unexpected")]
    pub error_type: String,
    /// The handler's own stable code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Whether another attempt could succeed.
    #[serde(default)]
    pub retryable: bool,
    /// Anything else the handler wants to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = serde_json::Value)]
    pub details: Option<Json>,
}

/// The closed list of error types this worker writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ErrorType {
    /// The handler said: try again.
    RetryableError,
    /// The handler said: never try again.
    PermanentError,
    /// The task's context, or an earlier result, is not what the handler needs.
    ValidationError,
    /// A result the handler asked for is not among the step's ancestors.
    DependencyError,
    /// The step ran longer than it may.
    TimeoutError,
    /// No handler is registered for the step.
    HandlerNotFound,
    /// The handler panicked.
    HandlerPanicked,
    /// The handler returned a value that cannot be sent.
    ResultRefused,
    /// The request cannot be understood.
    MessageRefused,
    /// The task was cancelled.
    Cancelled,
    /// Any other error that a handler passed on with `?`.
    UnexpectedError,
}

impl fmt::Display for ErrorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Where, when and how dearly an attempt ran.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExecutionMetadata {
    /// When the attempt ended.
    #[serde(default)]
    pub executed_at: Timestamp,
    /// When the handler was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// The language of the worker: `rust`.
    #[serde(default)]
    pub execution_environment: String,
    /// Resident memory of the worker process when the attempt ended.
    #[serde(default)]
    pub memory_usage_kb: Option<u64>,
    /// Time the handler's future was being polled.
    #[serde(default)]
    pub cpu_time_ms: Option<u64>,
    /// The worker.
    #[serde(default)]
    pub worker_id: String,
    /// The worker's host.
    #[serde(default)]
    pub worker_hostname: String,
    /// The worker's version.
    #[serde(default)]
    pub worker_version: String,
    /// From the request's creation to its arrival here: waiting in the broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker_wait_ms: Option<u64>,
    /// From its arrival to the handler's call: waiting for a free slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_wait_ms: Option<u64>,
}

/// Whether `namespace` may be a queue's name: `[A-Za-z0-9_-]{1,64}`.
pub fn is_namespace(namespace: &str) -> bool {
    (1..=64).contains(&namespace.len())
        && namespace.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// What a body says, or one line about why it says nothing: it may come from anywhere.
pub(crate) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(body).map_err(|error| de::Error::custom(sentence(&error.to_string())))
}

/// A message's body.
pub(crate) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // Room for most of them, so that few are moved while they grow.
    let mut body = Vec::with_capacity(1_024);
    serde_json::to_writer(&mut body, message).expect("messages have string keys only and always encode");
    // An answer stays in memory for a while.
    body.shrink_to_fit();
    body
}

fn current_version() -> u32 {
    PROTOCOL_VERSION
}

fn first_attempt() -> u32 {
    1
}

fn is_first(part: &u32) -> bool {
    *part == 0
}

fn unexpected() -> String {
    ErrorType::UnexpectedError.to_string()
}
