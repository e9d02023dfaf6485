//! What happened to a task: every change of its state and of its steps'.

use sqlx::{FromRow, SqlitePool};
use uuid::Uuid;

use super::rows::{self, OutcomeRow};
use super::{Result, uuid};
use crate::api::{StepAuditResponse, TaskEvent};
use crate::orchestrator::task::StepState;

/// Changes read in one go.
const CHANGES: i64 = 500;

#[derive(FromRow)]
struct ChangeRow {
    transition_id: i64,
    step_uuid: Option<String>,
    name: Option<String>,
    from_state: Option<String>,
    to_state: String,
    attempt: Option<i32>,
    reason: Option<String>,
    worker_id: Option<String>,
    duration_ms: Option<i64>,
    result: Option<String>,
    at: i64,
}

/// Everything on record about one step, newest first; `None` where the task has no such step.
pub(crate) async fn audit(
    readers: &SqlitePool,
    task_uuid: Uuid,
    step_uuid: Uuid,
) -> Result<Vec<StepAuditResponse>> {
    let mut snapshot = readers.begin().await?;
    let (correlation_id, name, output): (String, String, Option<String>) = sqlx::query_as(
        "SELECT tasks.correlation_id, steps.name, steps.output FROM steps JOIN tasks ON tasks.task_uuid = steps.task_uuid \
         WHERE steps.step_uuid = ?",
    )
    .bind(step_uuid.to_string())
    .fetch_one(&mut *snapshot)
    .await?;
    let changes: Vec<ChangeRow> = sqlx::query_as(
        "SELECT transition_id, step_uuid, NULL AS name, from_state, to_state, attempt, reason, worker_id, \
         duration_ms, result, at FROM transitions WHERE step_uuid = ? ORDER BY transition_id DESC",
    )
    .bind(step_uuid.to_string())
    .fetch_all(&mut *snapshot)
    .await?;
    let record = |change: ChangeRow| {
        let state = StepState::parse(&change.to_state);
        let success = state.is_some_and(StepState::satisfies);
        // Once it has succeeded, it does so no more: its output is of that change.
        let output = output.clone().filter(|_| success);
        let result = OutcomeRow { output, result: change.result, error: None, checkpoint: None }.results()?;
        let audit_uuid = Uuid::new_v5(&step_uuid, format!("transition {}", change.transition_id).as_bytes());
        Ok(StepAuditResponse {
            audit_uuid,
            workflow_step_uuid: step_uuid,
            transition_uuid: audit_uuid,
            task_uuid,
            recorded_at: rows::time(change.at)?,
            worker_uuid: change.worker_id.as_deref().and_then(|id| Uuid::try_parse(id).ok()),
            worker_id: change.worker_id,
            correlation_id: Uuid::try_parse(&correlation_id).ok(),
            success,
            execution_time_ms: change.duration_ms,
            result,
            step_name: name.clone(),
            from_state: change.from_state,
            to_state: change.to_state,
            attempt: change.attempt,
            reason: change.reason,
        })
    };
    changes.into_iter().map(record).collect()
}

/// What happened to a task after this transition, in order, each with its id; not always everything.
pub(crate) async fn events(
    readers: &SqlitePool,
    task_uuid: Uuid,
    after: i64,
) -> Result<Vec<(i64, TaskEvent)>> {
    let changes: Vec<ChangeRow> = sqlx::query_as(
        "SELECT transition_id, transitions.step_uuid, steps.name, from_state, to_state, attempt, reason, \
         worker_id, duration_ms, NULL AS result, at FROM transitions LEFT JOIN steps ON steps.step_uuid = transitions.step_uuid \
         WHERE transitions.task_uuid = ? AND transition_id > ? ORDER BY transition_id LIMIT ?",
    )
    .bind(task_uuid.to_string())
    .bind(after)
    .bind(CHANGES)
    .fetch_all(readers)
    .await?;
    let event = |change: ChangeRow| {
        let event = TaskEvent {
            step_uuid: change.step_uuid.as_deref().map(uuid).transpose()?,
            step_name: change.name,
            from_state: change.from_state,
            to_state: change.to_state,
            attempt: change.attempt,
            reason: change.reason,
            worker_id: change.worker_id,
            at: rows::time(change.at)?,
        };
        Ok((change.transition_id, event))
    };
    changes.into_iter().map(event).collect()
}
