//! `/v1/tasks/{task_uuid}/workflow_steps`: the steps of a task, their results, and what people do about them.

use axum::Json;
use axum::extract::State;
use uuid::Uuid;

use super::Api;
use super::error::{ApiError, JsonBody, Segments, task_uuid};
use crate::api::{ActionType, StepAuditResponse, StepManualAction, StepResponse};
use crate::orchestrator::by_hand::{ByHand, Decision};
use crate::orchestrator::queries::{self, Found};

/// Lists the steps of a task, with their results.
#[utoipa::path(get, path = "/v1/tasks/{task_uuid}/workflow_steps", tag = "steps", security(("api_key" = ["steps:read"])),
    params(("task_uuid" = Uuid, Path)),
    responses((status = 200, description = "The steps, in the template's order", body = [StepResponse])),
)]
pub(super) async fn list(
    State(api): State<Api>,
    Segments(task): Segments<String>,
) -> Result<Json<Vec<StepResponse>>, ApiError> {
    let task_uuid = task_uuid(&task)?;
    let steps = queries::steps(api.orchestrator.store().readers(), task_uuid).await?;
    steps.map(Json).ok_or_else(|| ApiError::no_task(task_uuid))
}

/// Shows a step, named by its id or, which people know, by its name.
#[utoipa::path(get, path = "/v1/tasks/{task_uuid}/workflow_steps/{step_uuid}", tag = "steps", security(("api_key" = ["steps:read"])),
    params(("task_uuid" = Uuid, Path), ("step_uuid" = String, Path, description = "Its id or its name")),
    responses((status = 200, description = "The step", body = StepResponse)),
)]
pub(super) async fn one(
    State(api): State<Api>,
    Segments((task, step)): Segments<(String, String)>,
) -> Result<Json<StepResponse>, ApiError> {
    find(&api, task_uuid(&task)?, &step).await.map(Json)
}

/// Tries a failed step again, or settles a step by hand. The task goes on from there.
#[utoipa::path(patch, path = "/v1/tasks/{task_uuid}/workflow_steps/{step_uuid}", tag = "steps", security(("api_key" = ["steps:resolve"])),
    params(("task_uuid" = Uuid, Path), ("step_uuid" = String, Path, description = "Its id or its name")),
    request_body = StepManualAction,
    responses((status = 200, description = "The step after it", body = StepResponse)),
)]
pub(super) async fn act(
    State(api): State<Api>,
    Segments((task, step)): Segments<(String, String)>,
    JsonBody(action): JsonBody<StepManualAction>,
) -> Result<Json<StepResponse>, ApiError> {
    let task_uuid = task_uuid(&task)?;
    let before = find(&api, task_uuid, &step).await?;
    let decision = decision(action, before.step_uuid).map_err(ApiError::bad_request)?;
    let applied =
        api.orchestrator.act(task_uuid, decision).await.map_err(|error| api.store_failed(&error))?;
    if !applied {
        return Err(ApiError::bad_request(format_args!(
            "step {:?} is {}: only a failed step can be reset, and only one that has not succeeded resolved or \
             completed, unless its task is cancelled or what it did was undone; a decision and a batchable step are \
             completed with an outcome that fits their template",
            before.name, before.current_state
        )));
    }
    find(&api, task_uuid, &step).await.map(Json)
}

/// Shows all changes of a step's state, newest first.
#[utoipa::path(get, path = "/v1/tasks/{task_uuid}/workflow_steps/{step_uuid}/audit", tag = "steps", security(("api_key" = ["steps:read"])),
    params(("task_uuid" = Uuid, Path), ("step_uuid" = String, Path, description = "Its id or its name")),
    responses((status = 200, description = "The changes", body = [StepAuditResponse])),
)]
pub(super) async fn audit(
    State(api): State<Api>,
    Segments((task, step)): Segments<(String, String)>,
) -> Result<Json<Vec<StepAuditResponse>>, ApiError> {
    let task_uuid = task_uuid(&task)?;
    let step = find(&api, task_uuid, &step).await?;
    let readers = api.orchestrator.store().readers();
    Ok(Json(queries::history::audit(readers, task_uuid, step.step_uuid).await?))
}

async fn find(api: &Api, task_uuid: Uuid, step: &str) -> Result<StepResponse, ApiError> {
    match queries::step(api.orchestrator.store().readers(), task_uuid, step).await? {
        Found::Step(step) => Ok(*step),
        Found::NoStep(names) => Err(ApiError::not_found(format_args!(
            "task {task_uuid} has no step {step:?}; its steps are {}",
            names.join(", ")
        ))),
        Found::NoTask => Err(ApiError::no_task(task_uuid)),
    }
}

/// What an action comes to, with everything it needs.
fn decision(action: StepManualAction, step_uuid: Uuid) -> Result<ByHand, String> {
    let StepManualAction { action_type, reason, reset_by, resolved_by, completed_by, .. } = action;
    let (field, by, decision) = match action_type {
        Some(ActionType::ResetForRetry) => ("reset_by", reset_by, Decision::Retry),
        Some(ActionType::ResolveManually) => {
            ("resolved_by", resolved_by, Decision::Resolve(action.resolution_data.unwrap_or_default()))
        }
        Some(ActionType::CompleteManually) => {
            let data = action.completion_data.ok_or(
                "complete_manually needs completion_data, with the step's result in it; \
                 resolve_manually needs none",
            )?;
            let decision = Decision::Complete { result: data.result, metadata: data.metadata };
            ("completed_by", completed_by, decision)
        }
        None => {
            let data = action.resolution_data.ok_or(
                "action_type is missing; expected reset_for_retry, resolve_manually or complete_manually",
            )?;
            ("resolved_by", resolved_by, Decision::Resolve(data))
        }
    };
    let by = by.filter(|by| !by.trim().is_empty()).ok_or(format!("{field} is missing; say who decided"))?;
    Ok(ByHand { step_uuid, decision, by, reason })
}
