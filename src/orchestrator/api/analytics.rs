//! `/v1/analytics`: how much is done, how fast, and what is slow.

use axum::Json;
use axum::extract::State;

use super::Api;
use super::error::{ApiError, Search, within};
use super::health::pool_utilization;
use crate::api::{
    BottleneckAnalysis, BottleneckQuery, PerformanceMetrics, PerformanceQuery, ResourceUtilization,
};
use crate::orchestrator::now;
use crate::orchestrator::queries::analytics as queries;

/// Failures above this share are worth a recommendation.
const MANY_FAILURES: f64 = 0.1;

/// Shows how much was done, and how fast.
#[utoipa::path(get, path = "/v1/analytics/performance", tag = "analytics", security(("api_key" = ["system:analytics_read"])), params(PerformanceQuery), responses(
    (status = 200, description = "The figures", body = PerformanceMetrics),
))]
pub(super) async fn performance(
    State(api): State<Api>,
    Search(query): Search<PerformanceQuery>,
) -> Result<Json<PerformanceMetrics>, ApiError> {
    let hours = within("hours", query.hours, 24, 1..=8_760)?;
    Ok(Json(queries::performance(api.orchestrator.store().readers(), now(), hours).await?))
}

/// Shows what is slow or fails.
#[utoipa::path(get, path = "/v1/analytics/bottlenecks", tag = "analytics", security(("api_key" = ["system:analytics_read"])), params(BottleneckQuery), responses(
    (status = 200, description = "The slowest steps and templates", body = BottleneckAnalysis),
))]
pub(super) async fn bottlenecks(
    State(api): State<Api>,
    Search(query): Search<BottleneckQuery>,
) -> Result<Json<BottleneckAnalysis>, ApiError> {
    let limit = within("limit", query.limit, 10, 1..=1_000)?;
    let at_least = query.min_executions.unwrap_or(5);
    let readers = api.orchestrator.store().readers();
    let slow_steps = queries::slow_steps(readers, limit, at_least).await?;
    let slow_tasks = queries::slow_tasks(readers, limit, at_least).await?;
    let system_health = queries::counts(readers).await?;
    let mut recommendations: Vec<String> = Vec::new();
    for step in slow_steps.iter().filter(|step| step.error_rate > MANY_FAILURES) {
        recommendations.push(format!(
            "step {:?} of {}/{} failed in {:.0} % of {} tasks: look at its errors",
            step.step_name,
            step.namespace_name,
            step.task_name,
            step.error_rate * 100.0,
            step.execution_count
        ));
    }
    if let Some(step) = slow_steps.first().filter(|step| step.average_duration_seconds > 1.0) {
        recommendations.push(format!(
            "step {:?} of {}/{} is the slowest, with {:.1} s on average: run more workers for it, or divide it",
            step.step_name, step.namespace_name, step.task_name, step.average_duration_seconds
        ));
    }
    Ok(Json(BottleneckAnalysis {
        slow_steps,
        slow_tasks,
        resource_utilization: ResourceUtilization {
            database_pool_utilization: pool_utilization(&api),
            system_health,
        },
        recommendations,
    }))
}
