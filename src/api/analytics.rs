//! Analytics: how much is done, how fast, and what is slow.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Over which time.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PerformanceQuery {
    /// The last so many hours; 24 where absent.
    #[param(minimum = 1, maximum = 8760)]
    pub hours: Option<u32>,
}

/// How much was done, and how fast. Of the tasks accepted in the period; averages over the newest 10,000 of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PerformanceMetrics {
    /// Tasks accepted in the period.
    pub total_tasks: i64,
    /// Those that are unfinished.
    pub active_tasks: i64,
    /// Those that completed or were resolved by hand.
    pub completed_tasks: i64,
    /// Those that failed.
    pub failed_tasks: i64,
    /// Completed tasks of all tasks, 0 to 1.
    pub completion_rate: f64,
    /// Failed tasks of all tasks, 0 to 1.
    pub error_rate: f64,
    /// From acceptance to completion.
    pub average_task_duration_seconds: f64,
    /// From the beginning of a step's last attempt to its completion.
    pub average_step_duration_seconds: f64,
    /// Tasks accepted per hour.
    pub tasks_per_hour: f64,
    /// Steps completed per hour, as far as the averages' tasks tell.
    pub steps_per_hour: f64,
    /// 1 less the error rate.
    pub system_health_score: f64,
    /// The period's beginning.
    pub analysis_period_start: Timestamp,
    /// Its end: now.
    pub calculated_at: Timestamp,
}

/// What to look for.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct BottleneckQuery {
    /// At most this many of each; 10 where absent.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u32>,
    /// Only what ran at least so often; 5 where absent.
    #[param(minimum = 0)]
    pub min_executions: Option<u32>,
}

/// What is slow or fails, among the newest 10,000 tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BottleneckAnalysis {
    /// Steps, the slowest first.
    pub slow_steps: Vec<SlowStep>,
    /// Templates, the slowest first.
    pub slow_tasks: Vec<SlowTask>,
    /// How busy the store is.
    pub resource_utilization: ResourceUtilization,
    /// What to do about it.
    pub recommendations: Vec<String>,
}

/// A step, over its executions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SlowStep {
    /// Its namespace.
    pub namespace_name: String,
    /// Its template.
    pub task_name: String,
    /// Its template's version.
    pub version: String,
    /// Its name.
    pub step_name: String,
    /// From the beginning of its last attempt to its end.
    pub average_duration_seconds: f64,
    /// The longest of these.
    pub max_duration_seconds: f64,
    /// In how many tasks it ended.
    pub execution_count: i64,
    /// In how many of them it failed for good.
    pub error_count: i64,
    /// The same, 0 to 1.
    pub error_rate: f64,
    /// When it last ended.
    pub last_executed_at: Option<Timestamp>,
}

/// A template, over its tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SlowTask {
    /// Its namespace.
    pub namespace_name: String,
    /// Its name.
    pub task_name: String,
    /// Its version.
    pub version: String,
    /// From acceptance to end.
    pub average_duration_seconds: f64,
    /// The longest of these.
    pub max_duration_seconds: f64,
    /// How many of its tasks ended.
    pub execution_count: i64,
    /// How many steps these have.
    pub average_step_count: f64,
    /// How many of them failed.
    pub error_count: i64,
    /// The same, 0 to 1.
    pub error_rate: f64,
    /// When one last ended.
    pub last_executed_at: Option<Timestamp>,
}

/// How busy the store is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResourceUtilization {
    /// Reading connections in use, 0 to 1.
    pub database_pool_utilization: f64,
    /// `<state>_tasks` and `total_tasks` over all tasks, `<state>_steps` and `total_steps` over those of the
    /// newest 10,000 tasks.
    pub system_health: BTreeMap<String, i64>,
}
