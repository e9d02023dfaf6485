//! Task templates: YAML in any of the accepted formats becomes one validated [`Template`].

use std::time::Duration;

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
    /// What runs it, and with which settings.
    pub handler: HandlerSpec,
    /// Steps whose results it waits for.
    pub dependencies: Vec<String>,
    /// `Some(step)`: this step undoes `step`. It runs only when the task fails after `step` completed,
    /// and after the undoing of everything that came after `step`.
    pub compensates: Option<String>,
    /// How often it may run.
    pub max_attempts: u32,
    /// How failures are retried.
    pub retry: RetryPolicy,
    /// How long one execution may take.
    pub timeout: Option<Duration>,
}
