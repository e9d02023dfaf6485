//! `POST /v1/templates`: a worker brings its workflow along.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::Api;
use super::error::{ApiError, TextBody};
use super::templates::detail;
use crate::api::{ErrorResponse, TemplateDetail};
use crate::orchestrator::RegisterError;

/// Registers a template. The body is the template itself, YAML or JSON, in any of the accepted formats.
#[utoipa::path(post, path = "/v1/templates", tag = "templates", security(("api_key" = ["templates:register"])),
    request_body(content = String, content_type = "application/yaml"),
    responses(
        (status = 200, description = "It was registered before", body = TemplateDetail),
        (status = 201, description = "It is registered", body = TemplateDetail),
        (status = 409, description = "Another definition has this version", body = ErrorResponse),
        (status = 422, description = "It is no template; every reason why", body = ErrorResponse),
    ),
)]
pub(super) async fn register(
    State(api): State<Api>,
    TextBody(text): TextBody,
) -> Result<(StatusCode, Json<TemplateDetail>), ApiError> {
    let (template, new) = api.orchestrator.register(&text).await.map_err(|error| match error {
        RegisterError::Mistakes(_) | RegisterError::Invalid(_) => {
            ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "INVALID_TEMPLATE", error)
        }
        RegisterError::Differs { .. } => ApiError::new(StatusCode::CONFLICT, "CONFLICT", error),
        RegisterError::Store(error) => api.store_failed(&error),
    })?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(detail(&template))))
}
