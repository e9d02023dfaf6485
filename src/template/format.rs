//! The current format: what a template's file may hold. Written, these types are that format, and its JSON Schema
//! is made from them. A file of another format is read into them, too; what is not said is `None`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value as JsonValue};

use super::fields::At;
use super::{FailureStrategy, IdentityStrategy};
use crate::retry::Backoff;

/// A task template: a workflow's steps, and what each waits for.
///
/// Written, it is the current format. What is `None` though a template needs it has been noted as a mistake.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "TaskTemplate")]
#[serde(deny_unknown_fields)]
pub(super) struct RawTemplate {
    /// Its name within the namespace.
    #[schemars(required, length(min = 1, max = 255))]
    pub(super) name: Option<At<String>>,
    /// Its namespace: the queue its steps are sent to.
    #[schemars(required, regex(pattern = "^[A-Za-z0-9_-]{1,64}$"))]
    pub(super) namespace_name: Option<At<String>>,
    /// Its version, such as 1.0.0.
    #[schemars(required, regex(pattern = r"^\d+\.\d+\.\d+([-+].+)?$"))]
    pub(super) version: Option<At<String>>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
    /// Without effect here: author, tags and the like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) metadata: Option<JsonValue>,
    /// Without effect here: steps name their handlers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) task_handler: Option<JsonValue>,
    /// Without effect here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) system_dependencies: Option<JsonValue>,
    /// Without effect here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) domain_events: Option<JsonValue>,
    /// JSON Schema that a task's context must satisfy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) input_schema: Option<At<Map<String, JsonValue>>>,
    /// What makes two submissions the same task; strict where it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) identity_strategy: Option<IdentityStrategy>,
    /// When a task has waited for too long, and what becomes of it then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lifecycle: Option<RawLifecycle>,
    /// The steps.
    #[schemars(length(min = 1))]
    pub(super) steps: Vec<RawStep>,
    /// What differs between environments, by their names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(default)]
    pub(super) environments: BTreeMap<String, Environment>,
}

/// Limits of a task's time, in minutes; none where they are missing.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "Lifecycle")]
#[serde(deny_unknown_fields)]
pub(super) struct RawLifecycle {
    /// From its start to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 43_200))]
    pub(super) max_duration_minutes: Option<u32>,
    /// In waiting_for_dependencies.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 43_200))]
    pub(super) max_waiting_for_dependencies_minutes: Option<u32>,
    /// In waiting_for_retry.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 43_200))]
    pub(super) max_waiting_for_retry_minutes: Option<u32>,
    /// In steps_in_process.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 43_200))]
    pub(super) max_steps_in_process_minutes: Option<u32>,
    /// What becomes of a task that passed a limit; dlq where it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) staleness_action: Option<StalenessAction>,
    /// Whether a task that passed a limit fails, whatever staleness_action says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) auto_fail_on_timeout: Option<bool>,
    /// Whether a task that passed a limit is recorded for somebody to look at, whatever staleness_action says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) auto_dlq_on_timeout: Option<bool>,
}

/// What becomes of a task that passed a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum StalenessAction {
    /// It is recorded for somebody to look at, and fails.
    #[default]
    Dlq,
    /// It fails.
    Error,
    /// Nothing.
    None,
}

/// What one environment changes.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Environment {
    /// Its changes to steps: first those to ALL, then those to single ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub(super) steps: Vec<Override>,
}

/// A step.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
#[schemars(rename = "Step")]
#[serde(deny_unknown_fields)]
pub(super) struct RawStep {
    /// Its name within the template.
    #[schemars(length(min = 1, max = 255))]
    pub(super) name: At<String>,
    /// What becomes of its result; standard where it is missing.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<At<Kind>>,
    #[serde(flatten)]
    pub(super) settings: Settings,
    /// The steps whose results it waits for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub(super) dependencies: Vec<At<String>>,
    /// The step it undoes: it runs only when the task fails after that one completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) compensates: Option<At<String>>,
    /// How a batchable step's work is divided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) batch_config: Option<RawBatch>,
    /// Without effect here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) system_dependency: Option<JsonValue>,
    /// Without effect here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) publishes_events: Option<JsonValue>,
    /// Without effect here: for tools that generate types.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) result_schema: Option<JsonValue>,
    /// Without effect here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) composition: Option<JsonValue>,
    /// Without effect here; a step's limits are under retry and timeout_seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lifecycle: Option<JsonValue>,
    /// Without effect here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) metadata: Option<JsonValue>,
}

/// What an environment may change of a step.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub(super) struct Settings {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
    /// What runs it.
    #[serde(skip_serializing_if = "RawHandler::is_empty")]
    #[schemars(default)]
    pub(super) handler: RawHandler,
    /// How often it may run, and when it runs again.
    #[serde(skip_serializing_if = "RawRetry::is_empty")]
    #[schemars(default)]
    pub(super) retry: RawRetry,
    /// How long one execution may take; fractions count.
    #[serde(serialize_with = "whole_if_possible", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.001, max = 2_592_000))]
    pub(super) timeout_seconds: Option<f64>,
}

/// An environment's changes to a step. What is not said stays as it is.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Override")]
#[serde(deny_unknown_fields)]
pub(super) struct Override {
    /// The step's name, or ALL for every step.
    pub(super) name: At<String>,
    #[serde(flatten)]
    pub(super) settings: Settings,
}

/// What runs a step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Handler")]
#[serde(deny_unknown_fields)]
pub(super) struct RawHandler {
    /// Its name, in any spelling; the step's name where it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) callable: Option<String>,
    /// Settings for it, free-form.
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schemars(default)]
    pub(super) initialization: Map<String, JsonValue>,
    /// Without effect here: a handler has one method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) method: Option<JsonValue>,
    /// Without effect here: handlers are found by namespace and step, then by callable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resolver: Option<JsonValue>,
}

/// How often a step may run, and when it runs again.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
#[schemars(rename = "Retry")]
#[serde(deny_unknown_fields)]
pub(super) struct RawRetry {
    /// false: the first failure is final.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retryable: Option<bool>,
    /// Runs, the first included; 3 where it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub(super) max_attempts: Option<u32>,
    /// How the delay grows from run to run; exponential where it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) backoff: Option<Backoff>,
    /// The first delay, in milliseconds; 1000 where it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 86_400_000))]
    pub(super) backoff_base_ms: Option<At<u32>>,
    /// The longest delay, in milliseconds; 30000 where it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 86_400_000))]
    pub(super) max_backoff_ms: Option<At<u32>>,
}

/// What becomes of a step's result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "StepType")]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// The steps behind it get it.
    #[default]
    Standard,
    /// It names which of the steps behind it are created.
    Decision,
    /// It waits for those of its dependencies that were created.
    DeferredConvergence,
    /// It says how many batch workers are created, and what each does.
    Batchable,
    /// The blueprint of the instances a batchable step asks for.
    BatchWorker,
}

/// How a batchable step's work is divided.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
#[schemars(rename = "BatchConfig")]
#[serde(deny_unknown_fields)]
pub(super) struct RawBatch {
    /// Items per batch; 1000 where it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub(super) batch_size: Option<u32>,
    /// Batches that run at once; 10 where it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000))]
    pub(super) parallelism: Option<u32>,
    /// Items after which a batch worker reports how far it is; its handler's choice where it is missing or 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) checkpoint_interval: Option<u32>,
    /// The item's field that cursors count by; id where it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cursor_field: Option<String>,
    /// The batch worker whose instances do the work; where it is missing, the only one that depends on the
    /// step, or else the one its result names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) worker_template: Option<At<String>>,
    /// What a failed batch means for the others; continue_on_failure where it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) failure_strategy: Option<FailureStrategy>,
    #[serde(skip)]
    pub(super) line: Option<u64>,
}

fn whole_if_possible<S: Serializer>(seconds: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    match seconds {
        // Below 2^53, see LONGEST_TIMEOUT_SECONDS.
        Some(seconds) if seconds.fract() == 0.0 => serializer.serialize_u64(*seconds as u64),
        Some(seconds) => serializer.serialize_f64(*seconds),
        None => serializer.serialize_none(),
    }
}

impl RawHandler {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl RawRetry {
    fn is_empty(&self) -> bool {
        let Self { retryable, max_attempts, backoff, backoff_base_ms, max_backoff_ms } = self;
        let delays = backoff_base_ms.is_some() || max_backoff_ms.is_some();
        !delays && retryable.is_none() && max_attempts.is_none() && backoff.is_none()
    }
}
