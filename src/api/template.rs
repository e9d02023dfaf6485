//! Templates: what tasks can be made from.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The templates tasks can be made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TemplateListResponse {
    /// The namespaces that have templates.
    pub namespaces: Vec<NamespaceSummary>,
    /// The templates.
    pub templates: Vec<TemplateSummary>,
    /// How many templates there are.
    pub total_count: usize,
}

/// A namespace, in a list of templates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NamespaceSummary {
    /// Its name.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub description: Option<String>,
    /// How many templates it has.
    pub template_count: usize,
}

/// A template, in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TemplateSummary {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its version.
    pub version: String,
    /// For people.
    #[serde(default)]
    pub description: Option<String>,
    /// How many steps it has.
    pub step_count: usize,
}

/// A template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TemplateDetail {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its version.
    pub version: String,
    /// For people.
    #[serde(default)]
    pub description: Option<String>,
    /// What holds for the whole template: `input_schema`, the JSON Schema of a task's context, where it has one.
    pub configuration: serde_json::Value,
    /// Its steps, in the file's order.
    pub steps: Vec<StepDefinition>,
}

/// A step of a template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepDefinition {
    /// Its name.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub description: Option<String>,
    /// Whether a failure that another attempt may mend is tried again.
    pub default_retryable: bool,
    /// How often it may run.
    pub default_max_attempts: i32,
    /// What runs it. Ours.
    #[serde(default)]
    pub handler: String,
    /// The steps it waits for. Ours.
    #[serde(default)]
    pub dependencies: Vec<String>,
    /// The step it undoes. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compensates: Option<String>,
    /// How long one execution may take. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<f64>,
}

/// A namespace, in the older list of handlers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HandlerNamespace {
    /// Its name.
    pub name: String,
    /// For people.
    #[serde(default)]
    pub description: Option<String>,
    /// How many templates it has, whatever their versions.
    pub handler_count: usize,
}

/// A template under its older name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HandlerInfo {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its version.
    pub version: String,
    /// For people.
    #[serde(default)]
    pub description: Option<String>,
    /// The names of its steps.
    pub step_templates: Vec<String>,
}
