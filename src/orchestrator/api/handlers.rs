//! `/v1/handlers`: templates, under the name and in the shape they had before.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;

use super::error::{ApiError, Segments};
use super::{Api, templates};
use crate::api::{HandlerInfo, HandlerNamespace};
use crate::template::Template;

/// Lists the namespaces that have templates.
#[utoipa::path(get, path = "/v1/handlers", tag = "templates", security(("api_key" = ["system:handlers_read"])), responses(
    (status = 200, description = "The namespaces", body = [HandlerNamespace]),
))]
pub(super) async fn namespaces(State(api): State<Api>) -> Json<Vec<HandlerNamespace>> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for template in api.orchestrator.catalog().all() {
        *counts.entry(template.namespace.clone()).or_default() += 1;
    }
    let namespace = |(name, handler_count)| HandlerNamespace { name, description: None, handler_count };
    Json(counts.into_iter().map(namespace).collect())
}

/// Lists a namespace's templates.
#[utoipa::path(get, path = "/v1/handlers/{namespace}", tag = "templates", security(("api_key" = ["system:handlers_read"])),
    params(("namespace" = String, Path)),
    responses((status = 200, description = "The templates", body = [HandlerInfo])),
)]
pub(super) async fn list(
    State(api): State<Api>,
    Segments(namespace): Segments<String>,
) -> Json<Vec<HandlerInfo>> {
    let all = api.orchestrator.catalog().all();
    Json(
        all.iter()
            .filter(|template| template.namespace == namespace)
            .map(|template| info(template))
            .collect(),
    )
}

/// Shows a template's latest version.
#[utoipa::path(get, path = "/v1/handlers/{namespace}/{name}", tag = "templates", security(("api_key" = ["system:handlers_read"])),
    params(("namespace" = String, Path), ("name" = String, Path)),
    responses((status = 200, description = "The template", body = HandlerInfo)),
)]
pub(super) async fn one(
    State(api): State<Api>,
    Segments((namespace, name)): Segments<(String, String)>,
) -> Result<Json<HandlerInfo>, ApiError> {
    let catalog = api.orchestrator.catalog();
    let all = catalog.all();
    // The catalogue keeps the latest version last.
    let latest = all.iter().rfind(|template| template.namespace == namespace && template.name == name);
    latest
        .map(|template| Json(info(template)))
        .ok_or_else(|| templates::unknown(catalog, &namespace, &name, ""))
}

fn info(template: &Template) -> HandlerInfo {
    HandlerInfo {
        name: template.name.clone(),
        namespace: template.namespace.clone(),
        version: template.version.clone(),
        description: template.description.clone(),
        step_templates: template.steps.iter().map(|step| step.name.clone()).collect(),
    }
}
