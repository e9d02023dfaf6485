//! A task at a glance.

use sqlx::SqlitePool;
use uuid::Uuid;

use super::rows::{parse, time};
use super::{Result, dead_letters, task_steps, uuid};
use crate::api::{
    DlqStatus, DlqSummary, StepErrorSummary, StepSummary, SummaryLinks, SummaryStepTemplate, SummaryTemplate,
    TaskSummary, TaskSummaryResponse,
};
use crate::message::{Json, StepExecutionError};
use crate::template::StepTemplate;

/// A task, its template's steps and its own; `None` where there is no such task.
pub(crate) async fn summary(readers: &SqlitePool, task_uuid: Uuid) -> Result<Option<TaskSummaryResponse>> {
    let mut snapshot = readers.begin().await?;
    let Some(found) = task_steps(&mut snapshot, task_uuid).await? else { return Ok(None) };
    let errors: Vec<Option<String>> =
        sqlx::query_scalar("SELECT error FROM steps WHERE task_uuid = ? ORDER BY position")
            .bind(task_uuid.to_string())
            .fetch_all(&mut *snapshot)
            .await?;
    let entry = dead_letters::latest(&mut snapshot, task_uuid).await?;
    let states = found.states();
    let mut steps = Vec::with_capacity(found.steps.len());
    for (row, error) in found.steps.iter().zip(errors) {
        let readiness = found.readiness(&states, row);
        steps.push(StepSummary {
            step_uuid: uuid(&row.step_uuid)?,
            name: row.name.clone(),
            current_state: row.state.clone(),
            created_at: Some(time(row.created_at)?),
            completed_at: row.completed_at.map(time).transpose()?,
            last_attempted_at: row.last_attempted_at.map(time).transpose()?,
            attempts: row.attempts,
            max_attempts: row.max_attempts,
            dependencies_satisfied: readiness.dependencies_satisfied,
            retry_eligible: row.may_be_retried(readiness),
            error: error.as_deref().map(parse).transpose()?.map(brief),
        });
    }
    let task = found.response()?;
    let link = format!("/v1/tasks/{task_uuid}");
    Ok(Some(TaskSummaryResponse {
        template: SummaryTemplate { steps: found.template.steps.iter().map(definition).collect() },
        steps,
        dlq: DlqSummary {
            in_dlq: entry.as_ref().is_some_and(|entry| entry.resolution_status == DlqStatus::Pending),
            dlq_reason: entry.as_ref().map(|entry| entry.dlq_reason),
            resolution_status: entry.as_ref().map(|entry| entry.resolution_status),
        },
        links: SummaryLinks {
            steps: format!("{link}/workflow_steps"),
            task: link,
            dlq: format!("/v1/dlq/task/{task_uuid}"),
        },
        task: TaskSummary {
            task_uuid: task.task_uuid,
            name: task.name,
            namespace: task.namespace,
            version: task.version,
            status: task.status,
            created_at: task.created_at,
            updated_at: task.updated_at,
            completed_at: task.completed_at,
            initiator: task.initiator,
            source_system: task.source_system,
            reason: task.reason,
            correlation_id: task.correlation_id,
            total_steps: task.total_steps,
            pending_steps: task.pending_steps,
            in_progress_steps: task.in_progress_steps,
            completed_steps: task.completed_steps,
            failed_steps: task.failed_steps,
            completion_percentage: task.completion_percentage,
            health_status: task.health_status,
            execution_status: task.execution_status,
            recommended_action: Some(task.recommended_action),
        },
    }))
}

fn definition(step: &StepTemplate) -> SummaryStepTemplate {
    SummaryStepTemplate {
        name: step.name.clone(),
        step_type: step.kind.as_str().to_owned(),
        handler: step.handler.callable.clone(),
        dependencies: step.dependencies.clone(),
        retryable: step.retry.retryable,
        max_attempts: i32::try_from(step.max_attempts).unwrap_or(i32::MAX),
    }
}

fn brief(error: StepExecutionError) -> StepErrorSummary {
    let details: Option<serde_json::Value> =
        error.details.as_ref().and_then(|details: &Json| details.parse().ok());
    let status_code = details.as_ref().and_then(|details| details.get("status_code")?.as_i64());
    StepErrorSummary {
        error_type: Some(error.error_type),
        retryable: error.retryable,
        status_code: status_code.and_then(|code| i32::try_from(code).ok()),
    }
}
