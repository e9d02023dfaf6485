//! What people do about a step, and what is on record about it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::message::Json;

/// What to do about a step: `reset_for_retry` with `reset_by`, `resolve_manually` with `resolved_by`, or
/// `complete_manually` with `completed_by` and `completion_data`, each with a `reason`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct StepManualAction {
    /// What to do. Absent in the older form, which resolves with `resolution_data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action_type: Option<ActionType>,
    /// Why.
    pub reason: String,
    /// Who resets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_by: Option<String>,
    /// Who resolves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved_by: Option<String>,
    /// Who completes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_by: Option<String>,
    /// With `complete_manually`: the step's result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_data: Option<CompletionData>,
    /// In the older form: what stands in for the step's result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = serde_json::Value)]
    pub resolution_data: Option<Json>,
}

/// What can be done about a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActionType {
    /// Try a failed step again, counting its attempts anew.
    ResetForRetry,
    /// Take the step for settled, without a result.
    ResolveManually,
    /// Take the step for complete, with the result given.
    CompleteManually,
}

/// A result given by hand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CompletionData {
    /// What the handler would have returned.
    pub result: Json,
    /// Kept for the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = serde_json::Value)]
    pub metadata: Option<Json>,
}

/// A change of a step's state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepAuditResponse {
    /// The record.
    pub audit_uuid: Uuid,
    /// The step.
    pub workflow_step_uuid: Uuid,
    /// The change.
    pub transition_uuid: Uuid,
    /// The step's task.
    pub task_uuid: Uuid,
    /// When it happened.
    pub recorded_at: Timestamp,
    /// The worker that reported it, where its id is a UUID.
    pub worker_uuid: Option<Uuid>,
    /// The worker that reported it. Ours.
    #[serde(default)]
    pub worker_id: Option<String>,
    /// Groups the task's messages.
    pub correlation_id: Option<Uuid>,
    /// Whether the step had succeeded, or was resolved.
    pub success: bool,
    /// How long the attempt ran.
    pub execution_time_ms: Option<i64>,
    /// The step's result, with the change that brought it.
    #[schema(value_type = serde_json::Value)]
    pub result: Option<Json>,
    /// The step's name.
    pub step_name: String,
    /// The state before; absent where the step was made.
    pub from_state: Option<String>,
    /// The state after.
    pub to_state: String,
    /// The attempt it was about. Ours.
    #[serde(default)]
    pub attempt: Option<i32>,
    /// Why, where that is not plain; who decided and why, where it was a person. Ours.
    #[serde(default)]
    pub reason: Option<String>,
}

/// What `GET /v1/tasks/{task_uuid}/events` sends: the task, or one of its steps, changed its state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskEvent {
    /// The step; absent where the task itself changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_uuid: Option<Uuid>,
    /// The step's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_name: Option<String>,
    /// The state before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_state: Option<String>,
    /// The state after.
    pub to_state: String,
    /// The attempt it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i32>,
    /// Why, where that is not plain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The worker that reported it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<String>,
    /// When it happened.
    pub at: Timestamp,
}
