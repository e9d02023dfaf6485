//! Health: whether the orchestrator can do its work.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whether the orchestrator can do its work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HealthResponse {
    /// `healthy`, `degraded`, `alive` or `ready`.
    pub status: String,
    /// When this was found out.
    pub timestamp: Timestamp,
    /// What was looked at; absent from the answers that look at nothing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checks: BTreeMap<String, HealthCheck>,
    /// What is running; absent from the answers that look at nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info: Option<HealthInfo>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HealthCheck {
    /// `healthy`, `degraded` (it goes on, but somebody should look) or `unhealthy`.
    pub status: String,
    /// What is the matter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How long looking took.
    pub duration_ms: u64,
}

/// What is running.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HealthInfo {
    /// The program's version.
    pub version: String,
    /// The installation's name, such as `production`.
    pub environment: String,
    /// `running` or `shutting_down`.
    pub operational_state: String,
    /// Connections for reading the store.
    pub web_database_pool_size: u32,
    /// Connections for writing it.
    pub orchestration_database_pool_size: u32,
    /// `closed`, or `open` while the store takes no changes.
    pub circuit_breaker_state: String,
    /// Reading connections in use, 0 to 1.
    #[serde(default)]
    pub pool_utilization: Option<f64>,
    /// How many templates can be used. Ours.
    pub templates: usize,
}
