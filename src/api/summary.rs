//! All there is to know about a task at a glance.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{DlqReason, DlqStatus};

/// A task, its template's steps and its own, in one answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskSummaryResponse {
    /// The task, without its context.
    pub task: TaskSummary,
    /// What it was made from.
    pub template: SummaryTemplate,
    /// Its steps, in the template's order.
    pub steps: Vec<StepSummary>,
    /// Whether somebody has to look at it.
    pub dlq: DlqSummary,
    /// Where there is more.
    pub links: SummaryLinks,
}

/// A task, without its context.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskSummary {
    /// The task.
    pub task_uuid: Uuid,
    /// Its template's name.
    pub name: String,
    /// Its template's namespace.
    pub namespace: String,
    /// Its template's version.
    pub version: String,
    /// Its state.
    pub status: String,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was finished.
    pub completed_at: Option<Timestamp>,
    /// Who asked for it.
    pub initiator: String,
    /// From which system.
    pub source_system: String,
    /// Why.
    pub reason: String,
    /// Groups its messages.
    pub correlation_id: Uuid,
    /// How many steps it has.
    pub total_steps: i64,
    /// Steps not begun.
    pub pending_steps: i64,
    /// Steps begun and not finished.
    pub in_progress_steps: i64,
    /// Steps that succeeded, or were resolved by hand.
    pub completed_steps: i64,
    /// Steps that failed for good.
    pub failed_steps: i64,
    /// Completed steps of all steps, 0 to 100 with two decimals.
    pub completion_percentage: f64,
    /// As in a task.
    pub health_status: String,
    /// As in a task.
    pub execution_status: String,
    /// As in a task.
    pub recommended_action: Option<String>,
}

/// The template a task was made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SummaryTemplate {
    /// Its steps.
    pub steps: Vec<SummaryStepTemplate>,
}

/// A step of a template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SummaryStepTemplate {
    /// Its name.
    pub name: String,
    /// Its kind, such as `standard`.
    pub step_type: String,
    /// What runs it.
    pub handler: String,
    /// The steps it waits for.
    pub dependencies: Vec<String>,
    /// Whether a failure that another attempt may mend is tried again.
    pub retryable: bool,
    /// How often it may run.
    pub max_attempts: i32,
}

/// A step of a task, without its result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepSummary {
    /// The step.
    pub step_uuid: Uuid,
    /// Its name.
    pub name: String,
    /// Its state.
    pub current_state: String,
    /// When it was made.
    pub created_at: Option<Timestamp>,
    /// When it was finished.
    pub completed_at: Option<Timestamp>,
    /// When an attempt last began or ended.
    pub last_attempted_at: Option<Timestamp>,
    /// Attempts begun.
    pub attempts: i32,
    /// Attempts it may have.
    pub max_attempts: i32,
    /// Whether every step it waits for is complete.
    pub dependencies_satisfied: bool,
    /// Whether it may be tried again, should its next attempt fail.
    pub retry_eligible: bool,
    /// Why its last attempt failed.
    pub error: Option<StepErrorSummary>,
}

/// Why a step failed, without the text, which may be private.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepErrorSummary {
    /// The error's type.
    pub error_type: Option<String>,
    /// Whether another attempt could succeed.
    pub retryable: bool,
    /// The HTTP status behind it, where its details have a `status_code`.
    pub status_code: Option<i32>,
}

/// Whether somebody has to look at a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DlqSummary {
    /// Whether an entry waits to be looked into.
    pub in_dlq: bool,
    /// The latest entry's reason.
    pub dlq_reason: Option<DlqReason>,
    /// How far looking into it is.
    pub resolution_status: Option<DlqStatus>,
}

/// Where there is more about a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SummaryLinks {
    /// The whole task.
    pub task: String,
    /// Its steps with their results.
    pub steps: String,
    /// Its entry in the dead-letter queue.
    pub dlq: String,
}
