//! The OpenAPI document: made of the routes and types that serve the API, and completed for all of them at once.

use axum::extract::State;
use axum::http::{HeaderName, header};
use bytes::Bytes;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::{ContentBuilder, Info, OpenApi, Paths, Ref, ResponseBuilder};
use utoipa_axum::router::UtoipaMethodRouter;

use super::Api;

/// Shows this document.
#[utoipa::path(get, path = "/api-docs/openapi.json", tag = "health", responses(
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

/// What every operation has: an id of its own, and refusals of one shape.
pub(super) fn complete(mut document: OpenApi) -> OpenApi {
    document.info = Info::new("tasker-worker-rust orchestrator", env!("CARGO_PKG_VERSION"));
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
            operation.responses.responses.insert("default".to_owned(), refused.clone().into());
        }
    }
    document
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    let operations = [
        ("get", &mut item.get),
        ("post", &mut item.post),
        ("patch", &mut item.patch),
        ("delete", &mut item.delete),
    ];
    operations.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}
