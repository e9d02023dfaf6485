//! The orchestrator's HTTP API as data: what clients send and get. Shared by server and command line.
//!
//! Names and shapes are those of the public orchestration API; what we add to them is said at the field.

mod health;
mod step;
mod task;
mod template;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use health::{HealthCheck, HealthInfo, HealthResponse};
pub use step::{StepReadinessStatus, StepResponse};
pub use task::{
    Pagination, TASK_STATES, TaskListResponse, TaskQuery, TaskRequest, TaskResponse, is_finished,
};
pub use template::{NamespaceSummary, StepDefinition, TemplateDetail, TemplateListResponse, TemplateSummary};

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorResponse {
    /// The reason.
    pub error: ErrorDetail,
    /// With `CONFLICT`: the task there is already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_uuid: Option<Uuid>,
    /// With `SERVICE_UNAVAILABLE` from `/health/ready`: what was looked at.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checks: BTreeMap<String, HealthCheck>,
}

/// A reason for programs and one for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// `BAD_REQUEST`, `INVALID_UUID`, `JSON_ERROR`, `NOT_FOUND`, `METHOD_NOT_ALLOWED`, `TIMEOUT`, `CONFLICT`,
    /// `DATABASE_ERROR` or `SERVICE_UNAVAILABLE`.
    pub code: String,
    /// What is wrong, and what to do.
    pub message: String,
}
