//! The HTTP API.

mod analytics;
mod auth;
mod dead_letters;
mod document;
mod error;
mod events;
mod handlers;
mod health;
mod holders;
mod keys;
mod rate;
mod register;
mod steps;
mod tasks;
mod templates;
mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tracing::Instrument;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use self::auth::Guard;
use self::document::alias;
use self::error::ApiError;
use super::Orchestrator;
use crate::Error;
use crate::config::OrchestratorConfig;
use crate::ops::metrics::{METRICS, seconds};

/// Ties a request to its answer and to its log lines.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What every route can use.
#[derive(Debug, Clone)]
struct Api {
    orchestrator: Orchestrator,
    max_body_bytes: usize,
    request_timeout: Duration,
    /// The OpenAPI document.
    document: Bytes,
}

impl Api {
    /// The store failed, or was closed because the orchestrator stops.
    fn store_failed(&self, error: &Error) -> ApiError {
        if self.orchestrator.health().stopping {
            let message = "the orchestrator is shutting down; ask again once it is back";
            return ApiError::unavailable(message, BTreeMap::new());
        }
        ApiError::store(error)
    }
}

/// The orchestrator's API: tasks, steps, templates, health, and metrics unless they have an address of their own.
///
/// # Errors
/// When the files of keys cannot be used.
pub fn router(orchestrator: Orchestrator, config: &OrchestratorConfig) -> Result<Router, Error> {
    let routes = match config.health_address {
        Some(_) => routes(),
        None => routes().merge(operations()),
    };
    serving(routes, orchestrator, config)
}

/// Health and metrics, for an address of their own.
///
/// # Errors
/// See [`router`].
pub fn operations_router(orchestrator: Orchestrator, config: &OrchestratorConfig) -> Result<Router, Error> {
    serving(health().merge(operations()), orchestrator, config)
}

fn serving(
    routes: OpenApiRouter<Api>,
    orchestrator: Orchestrator,
    config: &OrchestratorConfig,
) -> Result<Router, Error> {
    let (router, document) = routes.split_for_parts();
    let document = document::complete(document);
    let guard = Guard::new(config, &document)?;
    let api = Api {
        orchestrator,
        max_body_bytes: config.max_body_bytes,
        request_timeout: Duration::from_millis(config.request_timeout_ms),
        document: document.to_json().expect("a document always encodes").into(),
    };
    Ok(router
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(api.max_body_bytes))
        .layer(from_fn_with_state(Arc::new(guard), auth::guard))
        .layer(from_fn_with_state(api.request_timeout, observe))
        .with_state(api))
}

/// The routes of the API, each with its part of the document.
fn routes() -> OpenApiRouter<Api> {
    health()
        .routes(routes!(tasks::list, tasks::submit))
        .routes(routes!(tasks::one, tasks::cancel))
        .routes(routes!(tasks::summary))
        .routes(routes!(tasks::timing))
        .routes(routes!(events::events))
        .routes(routes!(steps::list))
        .routes(routes!(steps::one, steps::act))
        .routes(routes!(steps::audit))
        .routes(routes!(templates::list, register::register))
        .routes(routes!(templates::one))
        .routes(routes!(handlers::namespaces))
        .routes(routes!(handlers::list))
        .routes(routes!(handlers::one))
        .routes(routes!(dead_letters::list))
        .routes(routes!(dead_letters::of_task))
        .routes(routes!(dead_letters::update))
        .routes(routes!(dead_letters::stats))
        .routes(routes!(dead_letters::queue))
        .routes(routes!(dead_letters::staleness))
        .routes(routes!(analytics::performance))
        .routes(routes!(analytics::bottlenecks))
        .routes(routes!(document::document))
}

/// What probes ask.
fn health() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(health::healthy))
        .routes(routes!(health::live))
        .routes(alias("/live", routes!(health::live)))
        .routes(routes!(health::ready))
        .routes(alias("/ready", routes!(health::ready)))
}

/// What operators ask.
fn operations() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(health::detailed)).routes(routes!(health::metrics))
}

async fn unknown_route(uri: Uri) -> ApiError {
    ApiError::not_found(format_args!("there is nothing at {}; the API is under /v1", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "METHOD_NOT_ALLOWED",
        format_args!("{} does not answer to {method}", uri.path()),
    )
}

/// Wraps every request: its id, its time limit, its metric and its log line.
async fn observe(
    State(limit): State<Duration>,
    route: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    let method = request.method().clone();
    let request_id = request_id(request.headers());
    // A long poll takes long because the client asked it to: it has that time on top, and a metric of its own.
    let wait = tasks::requested_wait(&method, route, request.uri());
    let route = if wait.is_zero() { route } else { tasks::WAITING };

    let id = request_id.to_str().unwrap_or_default();
    let span = tracing::info_span!("api_request", request_id = id, %method, route);
    let answer = tokio::time::timeout(limit + wait, next.run(request)).instrument(span.clone()).await;
    let mut response = answer.unwrap_or_else(|_| timed_out(limit).into_response());

    let duration = started.elapsed();
    let status = response.status();
    let labels = [method_label(&method), route, status.as_str()];
    METRICS.api_seconds.with_label_values(&labels).observe(seconds(duration));
    span.in_scope(|| {
        let (status, duration_ms) = (status.as_u16(), duration.as_millis() as u64);
        tracing::debug!(status, duration_ms, "Answered an API request");
    });
    response.headers_mut().insert(REQUEST_ID, request_id);
    response
}

/// The client's id where it can be repeated as it is, one of our own otherwise.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let usable =
        |id: &&HeaderValue| (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
    headers.get(REQUEST_ID).filter(usable).cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&Uuid::new_v4().to_string()).expect("a UUID is a legal header value")
    })
}

fn timed_out(limit: Duration) -> ApiError {
    ApiError::new(
        StatusCode::REQUEST_TIMEOUT,
        "TIMEOUT",
        format_args!(
            "the request took longer than {limit:?}; try again, or raise orchestrator.request_timeout_ms"
        ),
    )
}

/// Clients may send any word as a method; a label takes only the known ones.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PATCH" => "PATCH",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}
