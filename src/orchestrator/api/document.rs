//! The OpenAPI document: made of the routes and types that serve the API, and completed for all of them at once.

use axum::extract::State;
use axum::http::{HeaderName, header};
use bytes::Bytes;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    Components, ContentBuilder, Info, OpenApi, Paths, Ref, ResponseBuilder, SecurityRequirement,
};
use utoipa_axum::router::UtoipaMethodRouter;

use super::Api;

/// Shows this document.
#[utoipa::path(get, path = "/api-docs/openapi.json", tag = "health", security(()), responses(
    (status = 200, description = "OpenAPI 3.1", body = serde_json::Value),
))]
pub(super) async fn document(State(api): State<Api>) -> ([(HeaderName, &'static str); 1], Bytes) {
    ([(header::CONTENT_TYPE, "application/json")], api.document)
}

/// The same routes under another path.
pub(super) fn alias(
    path: &str,
    (schemas, paths, methods): UtoipaMethodRouter<Api>,
) -> UtoipaMethodRouter<Api> {
    let mut renamed = Paths::new();
    for item in paths.paths.into_values() {
        renamed.paths.insert(path.to_owned(), item);
    }
    (schemas, renamed, methods)
}

/// What every operation has: an id of its own, refusals of one shape, and, where it wants a key with a permission,
/// a token with the same permission instead.
pub(super) fn complete(mut document: OpenApi) -> OpenApi {
    document.info = Info::new("tasker-worker-rust orchestrator", env!("CARGO_PKG_VERSION"));
    let schemes = document.components.get_or_insert_with(Components::new);
    schemes.add_security_scheme(
        "api_key",
        SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key"))),
    );
    let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
    schemes.add_security_scheme("token", SecurityScheme::Http(token));
    let refused = ResponseBuilder::new()
        .description("Refused, or failed: `code` is for programs, `message` for people")
        .content(
            "application/json",
            ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorResponse"))).build(),
        )
        .build();
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations(item) {
            let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
            let words: Vec<&str> = [method].into_iter().chain(words).collect();
            operation.operation_id = Some(words.join("_"));
            if let Some(permission) = permission(operation) {
                let token = SecurityRequirement::new("token", [permission]);
                operation.security.get_or_insert_default().push(token);
            }
            operation.responses.responses.insert("default".to_owned(), refused.clone().into());
        }
    }
    document
}

/// The permission an operation asks for; `None` where everybody may.
pub(super) fn permission(operation: &Operation) -> Option<String> {
    let wanted =
        serde_json::to_value(operation.security.as_ref()?).expect("requirements are texts and always encode");
    Some(wanted[0]["api_key"][0].as_str()?.to_owned())
}

pub(super) fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    let operations = [
        ("get", &mut item.get),
        ("post", &mut item.post),
        ("patch", &mut item.patch),
        ("delete", &mut item.delete),
    ];
    operations.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}
