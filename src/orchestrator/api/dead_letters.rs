//! `/v1/dlq`: tasks somebody has to look at.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::Api;
use super::error::{ApiError, JsonBody, Search, Segments, task_uuid, uuid, within};
use crate::api::{
    DlqEntry, DlqInvestigationQueueEntry, DlqQuery, DlqStats, ErrorResponse, LimitQuery, StalenessMonitoring,
    UpdateInvestigationRequest, UpdateInvestigationResponse,
};
use crate::orchestrator::now;
use crate::orchestrator::queries::dead_letters as queries;

/// The most entries one answer has.
const MOST: u32 = 1_000;

/// Lists entries, newest first.
#[utoipa::path(get, path = "/v1/dlq", tag = "dead letters", security(("api_key" = ["dlq:read"])), params(DlqQuery), responses(
    (status = 200, description = "The entries", body = [DlqEntry]),
))]
pub(super) async fn list(
    State(api): State<Api>,
    Search(query): Search<DlqQuery>,
) -> Result<Json<Vec<DlqEntry>>, ApiError> {
    let limit = within("limit", query.limit, 50, 1..=MOST)?;
    let readers = api.orchestrator.store().readers();
    Ok(Json(queries::list(readers, &query, limit, query.offset.unwrap_or(0)).await?))
}

/// Shows a task's latest entry.
#[utoipa::path(get, path = "/v1/dlq/task/{task_uuid}", tag = "dead letters", security(("api_key" = ["dlq:read"])),
    params(("task_uuid" = Uuid, Path)),
    responses((status = 200, description = "The entry", body = DlqEntry)),
)]
pub(super) async fn of_task(
    State(api): State<Api>,
    Segments(task): Segments<String>,
) -> Result<Json<DlqEntry>, ApiError> {
    let task_uuid = task_uuid(&task)?;
    let mut reader = api.orchestrator.store().readers().acquire().await?;
    let entry = queries::latest(&mut reader, task_uuid).await?;
    entry.map(Json).ok_or_else(|| {
        ApiError::not_found(format_args!("task {task_uuid} is not in the dead-letter queue, and never was"))
    })
}

/// Writes down what looking into an entry came to.
#[utoipa::path(patch, path = "/v1/dlq/entry/{dlq_entry_uuid}", tag = "dead letters", security(("api_key" = ["dlq:update"])),
    params(("dlq_entry_uuid" = Uuid, Path)), request_body = UpdateInvestigationRequest,
    responses(
        (status = 200, description = "It is written down", body = UpdateInvestigationResponse),
        (status = 409, description = "The task has another pending entry", body = ErrorResponse),
    ),
)]
pub(super) async fn update(
    State(api): State<Api>,
    Segments(entry): Segments<String>,
    JsonBody(update): JsonBody<UpdateInvestigationRequest>,
) -> Result<Json<UpdateInvestigationResponse>, ApiError> {
    let dlq_entry_uuid = uuid(&entry, "an entry's UUID")?;
    let found =
        api.orchestrator.store().investigate(dlq_entry_uuid, &update, now()).await.map_err(|error| {
            if error.as_database_error().is_some_and(|error| error.is_unique_violation()) {
                let message = "another entry of this task is pending already; decide about that one";
                return ApiError::new(StatusCode::CONFLICT, "CONFLICT", message);
            }
            error.into()
        })?;
    if !found {
        return Err(ApiError::not_found(format_args!(
            "there is no entry {dlq_entry_uuid}; GET /v1/dlq lists them"
        )));
    }
    let message = "the entry was updated".to_owned();
    Ok(Json(UpdateInvestigationResponse { dlq_entry_uuid, message, success: true }))
}

/// Counts the entries by their reason.
#[utoipa::path(get, path = "/v1/dlq/stats", tag = "dead letters", security(("api_key" = ["dlq:stats"])), responses(
    (status = 200, description = "The counts", body = [DlqStats]),
))]
pub(super) async fn stats(State(api): State<Api>) -> Result<Json<Vec<DlqStats>>, ApiError> {
    Ok(Json(queries::stats(api.orchestrator.store().readers()).await?))
}

/// Lists the entries nobody has decided about, the most urgent first.
#[utoipa::path(get, path = "/v1/dlq/investigation-queue", tag = "dead letters", security(("api_key" = ["dlq:read"])), params(LimitQuery), responses(
    (status = 200, description = "The entries", body = [DlqInvestigationQueueEntry]),
))]
pub(super) async fn queue(
    State(api): State<Api>,
    Search(query): Search<LimitQuery>,
) -> Result<Json<Vec<DlqInvestigationQueueEntry>>, ApiError> {
    let limit = within("limit", query.limit, 100, 1..=MOST)?;
    Ok(Json(queries::queue(api.orchestrator.store().readers(), now(), limit).await?))
}

/// Lists unfinished tasks by how near they are to being stale.
#[utoipa::path(get, path = "/v1/dlq/staleness", tag = "dead letters", security(("api_key" = ["dlq:read"])), params(LimitQuery), responses(
    (status = 200, description = "The tasks that may become stale", body = [StalenessMonitoring]),
))]
pub(super) async fn staleness(
    State(api): State<Api>,
    Search(query): Search<LimitQuery>,
) -> Result<Json<Vec<StalenessMonitoring>>, ApiError> {
    let limit = within("limit", query.limit, 100, 1..=MOST)?;
    Ok(Json(queries::staleness(api.orchestrator.store().readers(), now(), limit).await?))
}
