//! Tasks somebody has to look at: those in the dead-letter queue, and those about to be.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::message::Json;

/// Why a task is in the dead-letter queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum DlqReason {
    /// It stayed in its state for longer than its template allows.
    #[serde(alias = "staleness_timeout")]
    StalenessTimeout,
    /// A step failed on its last attempt.
    #[serde(alias = "max_retries_exceeded")]
    MaxRetriesExceeded,
    /// Its steps wait for each other. Never made here: such templates are refused.
    #[serde(alias = "dependency_cycle_detected")]
    DependencyCycleDetected,
    /// No worker answered for a step, or its workers kept dying.
    #[serde(alias = "worker_unavailable")]
    WorkerUnavailable,
    /// Somebody put it there.
    #[serde(alias = "manual_dlq")]
    ManualDlq,
}

/// How far looking into an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum DlqStatus {
    /// Nobody has decided yet.
    #[serde(alias = "pending")]
    Pending,
    /// Somebody mended it.
    #[serde(alias = "manually_resolved")]
    ManuallyResolved,
    /// Nothing can be done.
    #[serde(alias = "permanently_failed")]
    PermanentlyFailed,
    /// It is not wanted any more.
    #[serde(alias = "cancelled")]
    Cancelled,
}

/// A task in the dead-letter queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DlqEntry {
    /// The entry.
    pub dlq_entry_uuid: Uuid,
    /// Its task.
    pub task_uuid: Uuid,
    /// The task's state when it was put there.
    pub original_state: String,
    /// Why it was put there.
    pub dlq_reason: DlqReason,
    /// When it was put there.
    pub dlq_timestamp: Timestamp,
    /// How far looking into it is.
    pub resolution_status: DlqStatus,
    /// When that was decided.
    pub resolution_timestamp: Option<Timestamp>,
    /// What was found out.
    pub resolution_notes: Option<String>,
    /// Who decided.
    pub resolved_by: Option<String>,
    /// The task and its steps, as they were when it was put there.
    pub task_snapshot: Json,
    /// Anything else.
    #[schema(value_type = serde_json::Value)]
    pub metadata: Option<Json>,
    /// When the entry was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// Which entries to list, newest first.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DlqQuery {
    /// Only these. `manually_resolved` is taken for `ManuallyResolved`, and so on.
    pub resolution_status: Option<DlqStatus>,
    /// At most this many; 50 where absent.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u32>,
    /// Leave out this many.
    #[param(minimum = 0)]
    pub offset: Option<u32>,
}

/// How many entries to list.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LimitQuery {
    /// At most this many; 100 where absent.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u32>,
}

/// What looking into an entry came to. What is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct UpdateInvestigationRequest {
    /// How far it is.
    #[serde(default)]
    pub resolution_status: Option<DlqStatus>,
    /// What was found out.
    #[serde(default)]
    pub resolution_notes: Option<String>,
    /// Who decided.
    #[serde(default)]
    pub resolved_by: Option<String>,
    /// Anything else; takes the place of what was there.
    #[serde(default)]
    #[schema(value_type = serde_json::Value)]
    pub metadata: Option<Json>,
}

/// An entry was changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UpdateInvestigationResponse {
    /// The entry.
    pub dlq_entry_uuid: Uuid,
    /// For people.
    pub message: String,
    /// Always `true`: a refusal is an error.
    pub success: bool,
}

/// The entries of one reason, counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DlqStats {
    /// The reason.
    pub dlq_reason: DlqReason,
    /// All entries of that reason.
    pub total_entries: i64,
    /// Those nobody has decided about.
    pub pending: i64,
    /// Those somebody mended.
    pub manually_resolved: i64,
    /// Those nothing can be done about.
    pub permanent_failures: i64,
    /// Those that are not wanted any more.
    pub cancelled: i64,
    /// When the oldest was made.
    pub oldest_entry: Option<Timestamp>,
    /// When the newest was made.
    pub newest_entry: Option<Timestamp>,
    /// How long a decision took.
    pub avg_resolution_time_minutes: Option<f64>,
}

/// An entry that waits to be looked into.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DlqInvestigationQueueEntry {
    /// The entry.
    pub dlq_entry_uuid: Uuid,
    /// Its task.
    pub task_uuid: Uuid,
    /// The task's state when it was put there.
    pub original_state: String,
    /// Why it was put there.
    pub dlq_reason: DlqReason,
    /// When it was put there.
    pub dlq_timestamp: Timestamp,
    /// How long it waits.
    pub minutes_in_dlq: f64,
    /// The task's namespace.
    pub namespace_name: Option<String>,
    /// The task's template.
    pub task_name: Option<String>,
    /// The task's state now.
    pub current_state: Option<String>,
    /// How long the task has been in that state.
    pub time_in_state_minutes: Option<f64>,
    /// `minutes_in_dlq`, and an hour for each point of the task's priority. The highest is first.
    pub priority_score: f64,
}

/// How long an unfinished task has been in its state, and how long it may be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StalenessMonitoring {
    /// The task.
    pub task_uuid: Uuid,
    /// Its namespace.
    pub namespace_name: Option<String>,
    /// Its template.
    pub task_name: Option<String>,
    /// Its state.
    pub current_state: String,
    /// How long it has been in that state.
    pub time_in_state_minutes: f64,
    /// How long ago it was accepted.
    pub task_age_minutes: f64,
    /// How long it may be in that state.
    pub staleness_threshold_minutes: f64,
    /// `healthy` (below 80 % of the threshold), `warning` or `stale` (100 % and more).
    pub health_status: String,
    /// The task's priority.
    pub priority: i32,
}
