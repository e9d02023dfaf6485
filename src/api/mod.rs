//! The orchestrator's HTTP API as data: what clients send and get. Shared by server and command line.
//!
//! Names and shapes are those of the public orchestration API; what we add to them is said at the field.

mod action;
mod analytics;
mod dead_letter;
mod health;
mod step;
mod summary;
mod task;
mod template;
mod timing;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::SchemaType;
use utoipa::openapi::{ObjectBuilder, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

use crate::message::Json;

pub use action::{ActionType, CompletionData, StepAuditResponse, StepManualAction, TaskEvent};
pub use analytics::{
    BottleneckAnalysis, BottleneckQuery, PerformanceMetrics, PerformanceQuery, ResourceUtilization, SlowStep,
    SlowTask,
};
pub use dead_letter::{
    DlqEntry, DlqInvestigationQueueEntry, DlqQuery, DlqReason, DlqStats, DlqStatus, LimitQuery,
    StalenessMonitoring, UpdateInvestigationRequest, UpdateInvestigationResponse,
};
pub use health::{HealthCheck, HealthInfo, HealthResponse};
pub use step::{StepReadinessStatus, StepResponse};
pub use summary::{
    DlqSummary, StepErrorSummary, StepSummary, SummaryLinks, SummaryStepTemplate, SummaryTemplate,
    TaskSummary, TaskSummaryResponse,
};
pub use task::{
    PRIORITIES, Pagination, TASK_STATES, TaskListResponse, TaskQuery, TaskRequest, TaskResponse, is_finished,
};
pub use template::{
    HandlerInfo, HandlerNamespace, NamespaceSummary, StepDefinition, TemplateDetail, TemplateListResponse,
    TemplateSummary,
};
pub use timing::{StepTiming, TaskTiming};

impl PartialSchema for Json {
    fn schema() -> RefOr<Schema> {
        let any = SchemaType::AnyValue;
        ObjectBuilder::new().schema_type(any).description(Some("Any JSON value.")).into()
    }
}

impl ToSchema for Json {}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// `BAD_REQUEST`, `INVALID_UUID`, `JSON_ERROR`, `UNAUTHORIZED`, `AUTHENTICATION_FAILED`, `FORBIDDEN`, `NOT_FOUND`,
    /// `METHOD_NOT_ALLOWED`, `TIMEOUT`, `CONFLICT`, `RATE_LIMITED`, `DATABASE_ERROR` or `SERVICE_UNAVAILABLE`.
    pub code: String,
    /// What is wrong, and what to do.
    pub message: String,
}
