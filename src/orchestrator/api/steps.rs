//! `/v1/tasks/{task_uuid}/workflow_steps`: the steps of a task and their results.

use axum::Json;
use axum::extract::State;

use super::Api;
use super::error::{ApiError, Segments, task_uuid};
use crate::api::StepResponse;
use crate::orchestrator::queries::{self, Found};

pub(super) async fn list(
    State(api): State<Api>,
    Segments(task): Segments<String>,
) -> Result<Json<Vec<StepResponse>>, ApiError> {
    let task_uuid = task_uuid(&task)?;
    let steps = queries::steps(api.orchestrator.store().readers(), task_uuid).await?;
    steps.map(Json).ok_or_else(|| ApiError::no_task(task_uuid))
}

/// The step may be named by its id or, which people know, by its name.
pub(super) async fn one(
    State(api): State<Api>,
    Segments((task, step)): Segments<(String, String)>,
) -> Result<Json<StepResponse>, ApiError> {
    let task_uuid = task_uuid(&task)?;
    match queries::step(api.orchestrator.store().readers(), task_uuid, &step).await? {
        Found::Step(step) => Ok(Json(*step)),
        Found::NoStep(names) => Err(ApiError::not_found(format_args!(
            "task {task_uuid} has no step {step:?}; its steps are {}",
            names.join(", ")
        ))),
        Found::NoTask => Err(ApiError::no_task(task_uuid)),
    }
}
