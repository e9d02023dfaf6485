//! `/v1/tasks`: submit, list, look at, wait for and cancel tasks.

use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use serde::Deserialize;
use utoipa::IntoParams;
use uuid::Uuid;

use super::error::{ApiError, JsonBody, Search, Segments, task_uuid, within};
use super::{Api, templates};
use crate::api::{
    ErrorResponse, TASK_STATES, TaskListResponse, TaskQuery, TaskRequest, TaskResponse, TaskSummaryResponse,
    TaskTiming,
};
use crate::ops::spans::{self, Kind, Span};
use crate::orchestrator::{CancelError, SubmitError, queries};
use crate::trace::TraceContext;

/// The route of one task.
pub(super) const ONE: &str = "/v1/tasks/{task_uuid}";

/// What metrics call that route when the client asked to wait.
pub(super) const WAITING: &str = "/v1/tasks/{task_uuid}?wait";

/// The longest wait of one request.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

type Created = (StatusCode, [(HeaderName, String); 1], Json<TaskResponse>);

/// Accepts a task.
#[utoipa::path(post, path = "/v1/tasks", tag = "tasks", security(("api_key" = ["tasks:create"])), request_body = TaskRequest, responses(
    (status = 201, description = "The task, with its steps' ids", body = TaskResponse),
    (status = 404, description = "There is no such template", body = ErrorResponse),
    (status = 409, description = "The task there is already", body = ErrorResponse),
    (status = 422, description = "The context does not fit the template's input_schema", body = ErrorResponse),
))]
pub(super) async fn submit(
    State(api): State<Api>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<TaskRequest>,
) -> Result<Created, ApiError> {
    let caller = caller(&headers);
    let span = spans::enabled().then(|| {
        let context = caller.as_ref().map_or_else(spans::root, TraceContext::child);
        Span::new(context, caller.as_ref().map(|caller| caller.span_id), Kind::Server, "POST /v1/tasks")
            .with("http.request.method", "POST")
            .with("http.route", "/v1/tasks")
    });
    let trace = span.as_ref().map(|span| span.context().clone()).or(caller);
    let answer = accept(&api, request, trace).await;
    if let Some(mut span) = span {
        let status = answer.as_ref().map_or_else(ApiError::status, |(status, ..)| *status);
        if status.is_server_error() {
            span.failed(status.to_string());
        }
        span.with("http.response.status_code", status.as_u16()).end();
    }
    answer
}

/// The caller's place in a trace. Of several there is no telling which is meant.
fn caller(headers: &HeaderMap) -> Option<TraceContext> {
    let mut parents = headers.get_all("traceparent").iter();
    let parent = parents.next().filter(|_| parents.next().is_none())?.to_str().ok()?;
    let states: Vec<&str> =
        headers.get_all("tracestate").iter().filter_map(|state| state.to_str().ok()).collect();
    TraceContext::parse(parent, Some(&states.join(",")))
}

async fn accept(api: &Api, request: TaskRequest, trace: Option<TraceContext>) -> Result<Created, ApiError> {
    let task_uuid = api.orchestrator.submit_within(request, trace).await.map_err(|error| match error {
        SubmitError::UnknownTemplate { namespace, name, version } => {
            templates::unknown(api.orchestrator.catalog(), &namespace, &name, &version)
        }
        SubmitError::Duplicate { task_uuid } => ApiError::duplicate(task_uuid),
        SubmitError::Invalid(problem) => ApiError::bad_request(problem),
        SubmitError::Context(_) => ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "INVALID_CONTEXT", error),
        SubmitError::Store(error) => api.store_failed(&error),
    })?;
    let mut task = read(api, task_uuid).await?;
    task.step_count = Some(task.steps.len());
    task.step_mapping =
        Some(task.steps.iter().map(|step| (step.name.clone(), step.workflow_step_uuid)).collect());
    let location = [(header::LOCATION, format!("/v1/tasks/{task_uuid}"))];
    Ok((StatusCode::CREATED, location, Json(task)))
}

/// Lists tasks, newest first.
#[utoipa::path(get, path = "/v1/tasks", tag = "tasks", security(("api_key" = ["tasks:list"])), params(TaskQuery), responses(
    (status = 200, description = "A page of tasks, without their steps", body = TaskListResponse),
))]
pub(super) async fn list(
    State(api): State<Api>,
    Search(mut query): Search<TaskQuery>,
) -> Result<Json<TaskListResponse>, ApiError> {
    let page = within("page", query.page, 1, 1..=u32::MAX)?;
    let per_page = within("per_page", query.per_page, 25, 1..=100)?;
    query.status = query.status.as_deref().map(task_state).transpose()?;
    Ok(Json(queries::tasks(api.orchestrator.store().readers(), &query, page, per_page).await?))
}

/// A state in any of the spellings clients of the public API use.
fn task_state(word: &str) -> Result<String, ApiError> {
    let state = match word.to_ascii_lowercase().as_str() {
        "in_progress" => "steps_in_process".to_owned(),
        "completed" => "complete".to_owned(),
        state => state.to_owned(),
    };
    if TASK_STATES.contains(&state.as_str()) {
        return Ok(state);
    }
    let states = TASK_STATES.join(", ");
    Err(ApiError::bad_request(format_args!(
        "status {word:?} is no state of a task; expected one of {states}"
    )))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Waiting {
    /// Wait up to this many seconds, 60 at most, for the task to finish; then it is answered as it is.
    #[param(minimum = 0)]
    wait: Option<f64>,
}

impl Waiting {
    /// `None` for what is no time. Not a number and infinity are none either.
    fn duration(&self) -> Option<Duration> {
        let wait = Duration::try_from_secs_f64(self.wait.unwrap_or(0.0)).ok()?;
        Some(wait.min(LONGEST_WAIT))
    }
}

/// How long a request may take on top of the usual limit.
pub(super) fn requested_wait(method: &Method, route: &str, uri: &Uri) -> Duration {
    if method != Method::GET || route != ONE {
        return Duration::ZERO;
    }
    let waiting = Query::<Waiting>::try_from_uri(uri).ok();
    waiting.and_then(|Query(waiting)| waiting.duration()).unwrap_or_default()
}

/// Looks at a task, or waits for its end.
#[utoipa::path(get, path = ONE, tag = "tasks", security(("api_key" = ["tasks:read"])), params(("task_uuid" = Uuid, Path), Waiting), responses(
    (status = 200, description = "The task, and how ready each of its steps is", body = TaskResponse),
))]
pub(super) async fn one(
    State(api): State<Api>,
    Segments(segment): Segments<String>,
    Search(waiting): Search<Waiting>,
) -> Result<Json<TaskResponse>, ApiError> {
    let task_uuid = task_uuid(&segment)?;
    let wait = waiting
        .duration()
        .ok_or_else(|| ApiError::bad_request("wait is no time; expected seconds, 0 to 60"))?;
    if !wait.is_zero() {
        // The end of the wait is no failure: the task is answered as it is by then.
        if let Ok(end) = tokio::time::timeout(wait, api.orchestrator.finished(task_uuid)).await {
            end.map_err(|error| api.store_failed(&error))?.ok_or_else(|| ApiError::no_task(task_uuid))?;
        }
    }
    Ok(Json(read(&api, task_uuid).await?))
}

/// Cancels an unfinished task.
#[utoipa::path(delete, path = ONE, tag = "tasks", security(("api_key" = ["tasks:cancel"])), params(("task_uuid" = Uuid, Path)), responses(
    (status = 200, description = "The cancelled task", body = TaskResponse),
))]
pub(super) async fn cancel(
    State(api): State<Api>,
    Segments(segment): Segments<String>,
) -> Result<Json<TaskResponse>, ApiError> {
    let task_uuid = task_uuid(&segment)?;
    api.orchestrator.cancel(task_uuid).await.map_err(|error| match error {
        CancelError::NotFound => ApiError::no_task(task_uuid),
        CancelError::Finished(state) => ApiError::bad_request(format_args!(
            "task {task_uuid} is finished (its state is {state}); only unfinished tasks can be cancelled"
        )),
        CancelError::Store(error) => api.store_failed(&error),
    })?;
    Ok(Json(read(&api, task_uuid).await?))
}

/// Shows a task at a glance.
#[utoipa::path(get, path = "/v1/tasks/{task_uuid}/summary", tag = "tasks", security(("api_key" = ["tasks:read"])),
    params(("task_uuid" = Uuid, Path)),
    responses((status = 200, description = "The task, its template's steps and its own", body = TaskSummaryResponse)),
)]
pub(super) async fn summary(
    State(api): State<Api>,
    Segments(segment): Segments<String>,
) -> Result<Json<TaskSummaryResponse>, ApiError> {
    let task_uuid = task_uuid(&segment)?;
    let summary = queries::summary::summary(api.orchestrator.store().readers(), task_uuid).await?;
    summary.map(Json).ok_or_else(|| ApiError::no_task(task_uuid))
}

/// Shows where a task's time went.
#[utoipa::path(get, path = "/v1/tasks/{task_uuid}/timing", tag = "tasks", security(("api_key" = ["tasks:read"])),
    params(("task_uuid" = Uuid, Path)),
    responses((status = 200, description = "The stages of its steps, and what its end waited for", body = TaskTiming)),
)]
pub(super) async fn timing(
    State(api): State<Api>,
    Segments(segment): Segments<String>,
) -> Result<Json<TaskTiming>, ApiError> {
    let task_uuid = task_uuid(&segment)?;
    let timing = queries::timing::timing(api.orchestrator.store().readers(), task_uuid).await?;
    timing.map(Json).ok_or_else(|| ApiError::no_task(task_uuid))
}

async fn read(api: &Api, task_uuid: Uuid) -> Result<TaskResponse, ApiError> {
    let task = queries::task(api.orchestrator.store().readers(), task_uuid).await?;
    task.ok_or_else(|| ApiError::no_task(task_uuid))
}
