//! `/health` and `/metrics`: what probes and operators ask.

use std::collections::BTreeMap;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, header};

use super::Api;
use super::error::ApiError;
use crate::api::{ErrorResponse, HealthCheck, HealthInfo, HealthResponse};
use crate::broker::{BrokerStatus, ConsumerState};
use crate::clock;
use crate::ops::metrics::{CONTENT_TYPE, METRICS};
use crate::orchestrator::Health;

const HEALTHY: &str = "healthy";
const DEGRADED: &str = "degraded";
const UNHEALTHY: &str = "unhealthy";

/// Messages waiting to be sent beyond which somebody should look.
const MANY_UNSENT: i64 = 10_000;

/// The share of reading connections in use from which requests may have to wait.
const FULL: f64 = 0.99;

/// The process answers.
#[utoipa::path(get, path = "/health", tag = "health", security(()), responses(
    (status = 200, description = "It answers", body = HealthResponse),
))]
pub(super) async fn healthy() -> Json<HealthResponse> {
    Json(bare(HEALTHY))
}

/// The process answers; looks at nothing, so that no outage elsewhere gets it restarted.
#[utoipa::path(get, path = "/health/live", tag = "health", security(()), responses(
    (status = 200, description = "It answers", body = HealthResponse),
))]
pub(super) async fn live() -> Json<HealthResponse> {
    Json(bare("alive"))
}

/// 200 while tasks can be accepted, 503 otherwise. Without the broker they can: what has to be sent waits
/// in the store, and people can still look at their tasks.
#[utoipa::path(get, path = "/health/ready", tag = "health", security(()), responses(
    (status = 200, description = "Tasks can be accepted", body = HealthResponse),
    (status = 503, description = "They cannot; what was looked at", body = ErrorResponse),
))]
pub(super) async fn ready(State(api): State<Api>) -> Result<Json<HealthResponse>, ApiError> {
    let checks = checks(&api).await;
    let failing = |(name, check): (&String, &HealthCheck)| {
        (check.status == UNHEALTHY).then(|| format!("{name}: {}", check.message.as_deref().unwrap_or("?")))
    };
    let failures: Vec<String> = checks.iter().filter_map(failing).collect();
    if failures.is_empty() {
        return Ok(Json(HealthResponse { checks, info: Some(info(&api)), ..bare("ready") }));
    }
    Err(ApiError::unavailable(format_args!("not ready: {}", failures.join("; ")), checks))
}

/// The same, always answered with 200: for people.
#[utoipa::path(get, path = "/health/detailed", tag = "health", security(()), responses(
    (status = 200, description = "What was looked at", body = HealthResponse),
))]
pub(super) async fn detailed(State(api): State<Api>) -> Json<HealthResponse> {
    let checks = checks(&api).await;
    let status = if checks.values().all(|check| check.status == HEALTHY) { HEALTHY } else { DEGRADED };
    Json(HealthResponse { checks, info: Some(info(&api)), ..bare(status) })
}

/// Every metric, in Prometheus's text format.
#[utoipa::path(get, path = "/metrics", tag = "health", security(()), responses(
    (status = 200, description = "The metrics", body = String, content_type = "text/plain"),
))]
pub(super) async fn metrics() -> ([(HeaderName, &'static str); 1], String) {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], METRICS.render())
}

fn bare(status: &str) -> HealthResponse {
    HealthResponse { status: status.to_owned(), timestamp: clock::now(), checks: BTreeMap::new(), info: None }
}

async fn checks(api: &Api) -> BTreeMap<String, HealthCheck> {
    let Health {
        store_problem,
        broker,
        topology_problem,
        consumer,
        stopping,
        writer_gone,
        saturation_percent,
    } = api.orchestrator.health();
    let broker = match broker {
        BrokerStatus::Connected => None,
        BrokerStatus::Connecting(why) => Some(format!("not connected: {why}")),
        BrokerStatus::Blocked(why) => Some(format!("takes no messages: {why}")),
        BrokerStatus::Closed => Some("closed".to_owned()),
    };
    let consumer = match consumer {
        Some(ConsumerState::Consuming) => None,
        Some(ConsumerState::Connecting(why)) => Some(why),
        Some(state) => Some(state.as_str().to_owned()),
        None => Some("the queues are not in place yet".to_owned()),
    };
    let broken = api.orchestrator.catalog().problems();
    let unsent = METRICS.outbox_depth.get();
    let busy = pool_utilization(api);
    let problem = |is: bool, text: String| is.then_some(text);
    let checks = [
        ("broker", check(broker, DEGRADED)),
        ("queues", check(topology_problem, DEGRADED)),
        ("results", check(consumer, DEGRADED)),
        ("templates", check(problem(!broken.is_empty(), broken.join("; ")), DEGRADED)),
        ("web_database", readable(api).await),
        ("orchestration_database", check(store_problem.clone(), UNHEALTHY)),
        (
            "circuit_breaker",
            check(store_problem.map(|_| "open: the store takes no changes".to_owned()), DEGRADED),
        ),
        ("orchestration_system", check(problem(stopping, "shutting down".to_owned()), UNHEALTHY)),
        ("command_processor", check(problem(writer_gone, "it has ended".to_owned()), UNHEALTHY)),
        (
            "pool_utilization",
            check(problem(busy > FULL, "every reading connection is in use".to_owned()), DEGRADED),
        ),
        (
            "queue_depth",
            check(problem(unsent > MANY_UNSENT, format!("{unsent} messages wait to be sent")), DEGRADED),
        ),
        (
            "channel_saturation",
            check(problem(saturation_percent >= 80, format!("{saturation_percent} % full")), DEGRADED),
        ),
    ];
    checks.into_iter().map(|(name, check)| (name.to_owned(), check)).collect()
}

/// A part without a problem is healthy; one with a problem is as bad as `otherwise` says.
fn check(problem: Option<String>, otherwise: &str) -> HealthCheck {
    let status = if problem.is_none() { HEALTHY } else { otherwise };
    HealthCheck { status: status.to_owned(), message: problem, duration_ms: 0 }
}

/// Whether the store answers, which is tried now. One that does not answer at all ends in the request's time
/// limit.
async fn readable(api: &Api) -> HealthCheck {
    let started = Instant::now();
    let answer = sqlx::query("SELECT 1 FROM tasks LIMIT 1").execute(api.orchestrator.store().readers()).await;
    let problem = answer.err().map(|error| {
        tracing::warn!(%error, "The store cannot be read");
        "it cannot be read; the orchestrator's log has the reason".to_owned()
    });
    HealthCheck { duration_ms: started.elapsed().as_millis() as u64, ..check(problem, UNHEALTHY) }
}

/// Reading connections in use, 0 to 1.
pub(super) fn pool_utilization(api: &Api) -> f64 {
    let readers = api.orchestrator.store().readers();
    let in_use = (readers.size() as usize).saturating_sub(readers.num_idle());
    in_use as f64 / f64::from(readers.options().get_max_connections().max(1))
}

fn info(api: &Api) -> HealthInfo {
    let Health { store_problem, stopping, .. } = api.orchestrator.health();
    HealthInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        environment: api.orchestrator.environment().to_owned(),
        operational_state: if stopping { "shutting_down" } else { "running" }.to_owned(),
        web_database_pool_size: api.orchestrator.store().readers().size(),
        orchestration_database_pool_size: 1,
        circuit_breaker_state: if store_problem.is_some() { "open" } else { "closed" }.to_owned(),
        pool_utilization: Some(pool_utilization(api)),
        templates: api.orchestrator.catalog().all().len(),
    }
}
