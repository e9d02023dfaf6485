//! Where a task's time went.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Where a task's time went. Ours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskTiming {
    /// The task.
    pub task_uuid: Uuid,
    /// From its acceptance to its end; absent while it has none.
    #[serde(default)]
    pub total_ms: Option<i64>,
    /// Its steps that were requested, in the order of their first requests.
    pub steps: Vec<StepTiming>,
    /// The steps that the task's end waited for, in order: each began when the one before it was applied.
    pub critical_path: Vec<String>,
}

/// The stages of a step's last attempt, in order. A stage that is not over, or was not measured, is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepTiming {
    /// The step's name.
    pub name: String,
    /// Its state.
    pub state: String,
    /// Attempts begun.
    pub attempts: i32,
    /// From the task's acceptance to the decision that the step can run. The orchestrator's clock.
    pub begins_after_ms: i64,
    /// Until the broker had confirmed the request. The orchestrator's clock.
    #[serde(default)]
    pub enqueued_ms: Option<i64>,
    /// The attempts before the last one, what that one did before its last checkpoint, and the waits between. Clocks of orchestrator and workers.
    #[serde(default)]
    pub retries_ms: Option<i64>,
    /// Until the request arrived at a worker. From the orchestrator's clock to the worker's.
    #[serde(default)]
    pub broker_wait_ms: Option<i64>,
    /// Until the handler was called: the wait for a free slot. The worker's clock.
    #[serde(default)]
    pub prefetch_wait_ms: Option<i64>,
    /// Until the handler had answered. The worker's clock.
    #[serde(default)]
    pub run_ms: Option<i64>,
    /// Until the result, published and confirmed, had arrived at the orchestrator. From the worker's clock to the
    /// orchestrator's.
    #[serde(default)]
    pub confirm_ms: Option<i64>,
    /// Until the result was applied. The orchestrator's clock.
    #[serde(default)]
    pub apply_ms: Option<i64>,
    /// What was negative and counts as nothing: clocks differ, or a worker was faster than the confirmation.
    pub clamped_ms: i64,
}

impl StepTiming {
    /// The stages by their names, in order.
    pub fn stages(&self) -> [(&'static str, Option<i64>); 7] {
        [
            ("enqueued", self.enqueued_ms),
            ("retries", self.retries_ms),
            ("broker wait", self.broker_wait_ms),
            ("prefetch wait", self.prefetch_wait_ms),
            ("run", self.run_ms),
            ("confirm", self.confirm_ms),
            ("apply", self.apply_ms),
        ]
    }
}
