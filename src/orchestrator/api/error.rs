//! Every way to refuse a request, in one shape: `{"error": {"code", "message"}}`.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::{DeserializeOwned, IgnoredAny};
use uuid::Uuid;

use super::Api;
use crate::api::{ErrorDetail, ErrorResponse, HealthCheck};
use crate::ops::metrics::METRICS;

/// A refusal.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    body: Box<ErrorResponse>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &str, message: impl Display) -> Self {
        let error = ErrorDetail { code: code.to_owned(), message: message.to_string() };
        Self { status, body: Box::new(ErrorResponse { error, task_uuid: None, checks: BTreeMap::new() }) }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn bad_request(message: impl Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", message)
    }

    pub(super) fn not_found(message: impl Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", message)
    }

    pub(super) fn no_task(task_uuid: Uuid) -> Self {
        Self::not_found(format_args!("there is no task {task_uuid}; GET /v1/tasks lists them"))
    }

    /// The same task was submitted before.
    pub(super) fn duplicate(task_uuid: Uuid) -> Self {
        let message = format_args!(
            "this template has a task with the same context (or idempotency key) already: {task_uuid}; \
             to run it again, submit it with another idempotency_key"
        );
        let mut error = Self::new(StatusCode::CONFLICT, "CONFLICT", message);
        error.body.task_uuid = Some(task_uuid);
        error
    }

    /// The store failed. What it said is for the log, not for clients.
    pub(super) fn store(error: impl Display) -> Self {
        METRICS.store_errors.inc();
        tracing::error!(%error, "The store failed, and an API request with it");
        let message =
            "the store failed; try again, and look into the orchestrator's log for this x-request-id";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "DATABASE_ERROR", message)
    }

    pub(super) fn unavailable(message: impl Display, checks: BTreeMap<String, HealthCheck>) -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "SERVICE_UNAVAILABLE", message);
        error.body.checks = checks;
        error
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::PoolClosed => Self::unavailable("the store is closed", BTreeMap::new()),
            error => Self::store(error),
        }
    }
}

/// A JSON body, whatever content type the client says it has.
pub(super) struct JsonBody<T>(pub(super) T);

async fn body(request: Request, api: &Api) -> Result<Bytes, ApiError> {
    Bytes::from_request(request, api).await.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "PAYLOAD_TOO_LARGE",
            format_args!(
                "the request body is larger than {} bytes; send less, or raise orchestrator.max_body_bytes",
                api.max_body_bytes
            ),
        ),
        _ => ApiError::bad_request(rejection.body_text()),
    })
}

/// A body of text.
pub(super) struct TextBody(pub(super) String);

impl FromRequest<Api> for TextBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Api) -> Result<Self, ApiError> {
        let text = String::from_utf8(body(request, api).await?.into());
        text.map(Self)
            .map_err(|error| ApiError::bad_request(format_args!("the request body is no text: {error}")))
    }
}

impl<T: DeserializeOwned> FromRequest<Api> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Api) -> Result<Self, ApiError> {
        let bytes = body(request, api).await?;
        let Json(value) = Json::from_bytes(&bytes).map_err(|rejection| {
            // What does not fit may stand before what is no JSON at all.
            let (status, what) = match serde_json::from_slice::<IgnoredAny>(&bytes) {
                Ok(_) => (StatusCode::UNPROCESSABLE_ENTITY, "the request body does not fit"),
                Err(_) => (StatusCode::BAD_REQUEST, "the request body is not JSON"),
            };
            ApiError::new(status, "JSON_ERROR", format_args!("{what}: {}", cause(&rejection)))
        })?;
        Ok(Self(value))
    }
}

/// The query of the request's address.
pub(super) struct Search<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Search<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(rejection) => {
                Err(ApiError::bad_request(format_args!("the query does not fit: {}", cause(&rejection))))
            }
        }
    }
}

/// The variable parts of the request's path.
pub(super) struct Segments<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Segments<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(segments)) => Ok(Self(segments)),
            Err(rejection) => Err(ApiError::bad_request(rejection.body_text())),
        }
    }
}

/// The task a path names.
pub(super) fn task_uuid(segment: &str) -> Result<Uuid, ApiError> {
    uuid(segment, "a task's UUID")
}

/// The UUID in a path, of what the text says.
pub(super) fn uuid(segment: &str, what: &str) -> Result<Uuid, ApiError> {
    Uuid::try_parse(segment).map_err(|error| {
        let message = format_args!("{segment:?} is not {what}: {error}");
        ApiError::new(StatusCode::BAD_REQUEST, "INVALID_UUID", message)
    })
}

/// A number of the query that has to be within limits.
pub(super) fn within(
    name: &str,
    given: Option<u32>,
    otherwise: u32,
    limits: RangeInclusive<u32>,
) -> Result<u32, ApiError> {
    let number = given.unwrap_or(otherwise);
    if limits.contains(&number) {
        return Ok(number);
    }
    let (least, most) = (limits.start(), limits.end());
    Err(ApiError::bad_request(format_args!("{name} is {number}; expected {least} to {most}")))
}

/// What axum's rejection was made of: the field and the complaint, without axum's own sentence.
fn cause(rejection: &dyn std::error::Error) -> String {
    rejection.source().map_or_else(|| rejection.to_string(), ToString::to_string)
}
