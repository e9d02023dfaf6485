//! Steps: how ready one is, and what came of it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::checkpoint::Checkpoint;
use crate::message::{Json, StepExecutionError};

/// How ready a step is to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepReadinessStatus {
    /// The step.
    pub workflow_step_uuid: Uuid,
    /// Its task.
    pub task_uuid: Uuid,
    /// The same for this step in every task of the template.
    pub named_step_uuid: Uuid,
    /// Its name within the template.
    pub name: String,
    /// Its state.
    pub current_state: String,
    /// Whether every step it waits for is complete.
    pub dependencies_satisfied: bool,
    /// Whether it may be tried again, should its next attempt fail.
    pub retry_eligible: bool,
    /// Whether it is pending and nothing holds it back.
    pub ready_for_execution: bool,
    /// When an attempt last failed.
    #[serde(default)]
    pub last_failure_at: Option<Timestamp>,
    /// When it is tried again.
    #[serde(default)]
    pub next_retry_at: Option<Timestamp>,
    /// How many steps it waits for.
    pub total_parents: i32,
    /// How many of these are complete.
    pub completed_parents: i32,
    /// Attempts begun.
    pub attempts: i32,
    /// Attempts it may have.
    pub max_attempts: i32,
    /// The delay before the next attempt, where one is due.
    #[serde(default)]
    pub backoff_request_seconds: Option<i32>,
    /// When an attempt last began or ended.
    #[serde(default)]
    pub last_attempted_at: Option<Timestamp>,
}

/// A step, with its result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepResponse {
    /// The step.
    pub step_uuid: Uuid,
    /// Its task.
    pub task_uuid: Uuid,
    /// Its name within the template.
    pub name: String,
    /// When its task was accepted.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was finished.
    #[serde(default)]
    pub completed_at: Option<Timestamp>,
    /// The whole step execution result, with what the handler returned under `result` and `data`.
    #[serde(default)]
    #[schema(value_type = serde_json::Value)]
    pub results: Option<Json>,
    /// Why its last attempt failed. Ours: the public API shows errors only inside `results`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<StepExecutionError>,
    /// How far it has come, by the last checkpoint that its handler reported. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint>,
    /// Its state.
    pub current_state: String,
    /// Whether every step it waits for is complete.
    pub dependencies_satisfied: bool,
    /// Whether it may be tried again, should its next attempt fail.
    pub retry_eligible: bool,
    /// Whether it is pending and nothing holds it back.
    pub ready_for_execution: bool,
    /// How many steps it waits for.
    pub total_parents: i32,
    /// How many of these are complete.
    pub completed_parents: i32,
    /// Attempts begun.
    pub attempts: i32,
    /// Attempts it may have.
    pub max_attempts: i32,
    /// When an attempt last failed.
    #[serde(default)]
    pub last_failure_at: Option<Timestamp>,
    /// When it is tried again.
    #[serde(default)]
    pub next_retry_at: Option<Timestamp>,
    /// When an attempt last began or ended.
    #[serde(default)]
    pub last_attempted_at: Option<Timestamp>,
}

impl StepResponse {
    /// What the step's handler returned, once it has.
    pub fn output(&self) -> Option<Json> {
        #[derive(Deserialize)]
        struct Output {
            success: bool,
            result: Json,
        }
        let output: Output = self.results.as_ref()?.parse().ok()?;
        output.success.then_some(output.result)
    }
}
