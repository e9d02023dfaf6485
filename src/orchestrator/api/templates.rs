//! `/v1/templates`: what tasks can be made from.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use super::error::{ApiError, Search, Segments};
use crate::api::{NamespaceSummary, StepDefinition, TemplateDetail, TemplateListResponse, TemplateSummary};
use crate::catalog::Catalog;
use crate::orchestrator::versions::versions;
use crate::template::{StepTemplate, Template};

/// More names than this are no help in an error text.
const NAMES_SHOWN: usize = 20;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct InNamespace {
    /// Only this namespace.
    namespace: Option<String>,
}

/// Lists the templates.
#[utoipa::path(get, path = "/v1/templates", tag = "templates", security(("api_key" = ["templates:read"])), params(InNamespace), responses(
    (status = 200, description = "The templates and their namespaces", body = TemplateListResponse),
))]
pub(super) async fn list(
    State(api): State<Api>,
    Search(query): Search<InNamespace>,
) -> Json<TemplateListResponse> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut templates = Vec::new();
    for template in api.orchestrator.catalog().all() {
        if query.namespace.as_ref().is_some_and(|wanted| *wanted != template.namespace) {
            continue;
        }
        *counts.entry(template.namespace.clone()).or_default() += 1;
        templates.push(TemplateSummary {
            name: template.name.clone(),
            namespace: template.namespace.clone(),
            version: template.version.clone(),
            description: template.description.clone(),
            step_count: template.steps.len(),
        });
    }
    let namespaces = counts
        .into_iter()
        .map(|(name, template_count)| NamespaceSummary { name, description: None, template_count })
        .collect();
    Json(TemplateListResponse { namespaces, total_count: templates.len(), templates })
}

/// Shows a template.
#[utoipa::path(get, path = "/v1/templates/{namespace}/{name}/{version}", tag = "templates", security(("api_key" = ["templates:read"])),
    params(("namespace" = String, Path), ("name" = String, Path), ("version" = String, Path)),
    responses((status = 200, description = "The template", body = TemplateDetail)),
)]
pub(super) async fn one(
    State(api): State<Api>,
    Segments((namespace, name, version)): Segments<(String, String, String)>,
) -> Result<Json<TemplateDetail>, ApiError> {
    let catalog = api.orchestrator.catalog();
    match catalog.get(&namespace, &name, &version) {
        Some(template) => Ok(Json(detail(&template))),
        None => Err(unknown(catalog, &namespace, &name, &version)),
    }
}

pub(super) fn detail(template: &Template) -> TemplateDetail {
    let mut configuration = serde_json::Map::new();
    if let Some(schema) = &template.input_schema {
        configuration.insert("input_schema".to_owned(), schema.clone());
    }
    TemplateDetail {
        name: template.name.clone(),
        namespace: template.namespace.clone(),
        version: template.version.clone(),
        description: template.description.clone(),
        configuration: configuration.into(),
        steps: template.steps.iter().map(definition).collect(),
    }
}

fn definition(step: &StepTemplate) -> StepDefinition {
    StepDefinition {
        name: step.name.clone(),
        description: step.description.clone(),
        default_retryable: step.retry.retryable,
        default_max_attempts: i32::try_from(step.max_attempts).unwrap_or(i32::MAX),
        handler: step.handler.callable.clone(),
        dependencies: step.dependencies.clone(),
        compensates: step.compensates.clone(),
        timeout_seconds: step.timeout.map(|limit| limit.as_secs_f64()),
    }
}

/// Says what there is instead of a template there is not.
pub(super) fn unknown(catalog: &Catalog, namespace: &str, name: &str, version: &str) -> ApiError {
    let all = catalog.all();
    let versions = versions(catalog, namespace, name);
    let namespaces: BTreeSet<&str> = all.iter().map(|template| template.namespace.as_str()).collect();
    let names: BTreeSet<&str> =
        all.iter().filter(|t| t.namespace == namespace).map(|template| template.name.as_str()).collect();
    ApiError::not_found(if all.is_empty() {
        format!(
            "there is no template {namespace}/{name}: none is loaded; look into orchestrator.template_directory"
        )
    } else if names.is_empty() {
        format!("there is no namespace {namespace:?}; {}", instead(namespace, &namespaces))
    } else if versions.is_empty() {
        format!("namespace {namespace:?} has no template {name:?}; {}", instead(name, &names))
    } else {
        format!("template {namespace}/{name} has no version {version:?}; it has {}", versions.join(", "))
    })
}

/// The nearest of the names there are, and all of them.
fn instead(wanted: &str, present: &BTreeSet<&str>) -> String {
    let likeness = |name: &&str| strsim::jaro_winkler(wanted, name);
    let nearest = present.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let shown = present.iter().take(NAMES_SHOWN).copied().collect::<Vec<_>>().join(", ");
    let more = if present.len() > NAMES_SHOWN { ", …" } else { "" };
    match nearest.filter(|name| likeness(name) > 0.8) {
        Some(nearest) => format!("did you mean {nearest:?}? There are {shown}{more}"),
        None => format!("there are {shown}{more}"),
    }
}
