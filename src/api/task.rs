//! Tasks: asking for one, how far it is, lists of them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::StepReadinessStatus;
use crate::message::Json;

/// Every state of a task.
pub const TASK_STATES: [&str; 12] = [
    "pending",
    "initializing",
    "enqueuing_steps",
    "steps_in_process",
    "evaluating_results",
    "waiting_for_dependencies",
    "waiting_for_retry",
    "blocked_by_failures",
    "complete",
    "error",
    "cancelled",
    "resolved_manually",
];

/// Whether a task in `state` will never change by itself again.
pub fn is_finished(state: &str) -> bool {
    matches!(state, "complete" | "error" | "cancelled" | "resolved_manually")
}

/// The lowest and the highest priority.
pub const PRIORITIES: std::ops::RangeInclusive<i32> = -100..=100;

/// Asks for a task. Unknown fields are ignored; only `name` and `namespace` have to be given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskRequest {
    /// The template's name.
    #[schema(min_length = 1, max_length = 255)]
    pub name: String,
    /// The template's namespace.
    #[schema(min_length = 1, max_length = 64)]
    pub namespace: String,
    /// The template's version. The API takes the latest where absent, and passes it on filled in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The task's context, kept byte for byte.
    #[serde(default = "Json::empty_object")]
    pub context: Json,
    /// Who asks.
    #[serde(default = "unknown")]
    pub initiator: String,
    /// From which system.
    #[serde(default = "unknown")]
    pub source_system: String,
    /// Why.
    #[serde(default = "not_given")]
    pub reason: String,
    /// Free words to find the task by.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Free-form options, kept for the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<serde_json::Value>,
    /// Tasks with a higher priority have their steps sent first; -100 to 100.
    #[schema(minimum = -100, maximum = 100)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Groups the task's messages; made up where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<Uuid>,
    /// The correlation id of what caused this task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_correlation_id: Option<Uuid>,
    /// Two requests with the same key for the same template are one task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// When the caller asked, which may be long before the request arrived; now where absent. A time without
    /// a zone is taken as UTC.
    #[serde(default, deserialize_with = "zoned_or_utc", skip_serializing_if = "Option::is_none")]
    pub requested_at: Option<Timestamp>,
}

impl TaskRequest {
    /// Asks for a task of the template's latest version, from nobody in particular.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>, context: impl Into<Json>) -> Self {
        Self {
            name: name.into(),
            namespace: namespace.into(),
            version: None,
            context: context.into(),
            initiator: unknown(),
            source_system: unknown(),
            reason: not_given(),
            tags: Vec::new(),
            options: None,
            priority: None,
            correlation_id: None,
            parent_correlation_id: None,
            idempotency_key: None,
            requested_at: None,
        }
    }
}

fn zoned_or_utc<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let utc = |_| text.parse::<DateTime>()?.to_zoned(TimeZone::UTC).map(|time| time.timestamp());
    text.parse().or_else(utc).map(Some).map_err(D::Error::custom)
}

fn unknown() -> String {
    "unknown".to_owned()
}

fn not_given() -> String {
    "not given".to_owned()
}

/// A task: as it was asked for, and how far it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskResponse {
    /// The task.
    pub task_uuid: Uuid,
    /// Its template's name.
    pub name: String,
    /// Its template's namespace.
    pub namespace: String,
    /// Its template's version.
    pub version: String,
    /// One of [`TASK_STATES`].
    pub status: String,
    /// When the caller asked for it. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_at: Option<Timestamp>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was finished.
    #[serde(default)]
    pub completed_at: Option<Timestamp>,
    /// Its context, as submitted.
    pub context: Json,
    /// Who asked for it.
    pub initiator: String,
    /// From which system.
    pub source_system: String,
    /// Why.
    pub reason: String,
    /// Tasks with a higher priority have their steps sent first.
    #[serde(default)]
    pub priority: Option<i32>,
    /// Free words to find the task by.
    #[serde(default)]
    pub tags: Option<Vec<String>>,
    /// Groups the task's messages.
    pub correlation_id: Uuid,
    /// The correlation id of what caused this task.
    #[serde(default)]
    pub parent_correlation_id: Option<Uuid>,
    /// How many steps it has.
    pub total_steps: i64,
    /// Steps not begun.
    pub pending_steps: i64,
    /// Steps begun and not finished: sent to the workers, running, or waiting to be tried again.
    pub in_progress_steps: i64,
    /// Steps that succeeded, or were resolved by hand.
    pub completed_steps: i64,
    /// Steps that failed for good.
    pub failed_steps: i64,
    /// Pending steps that nothing holds back.
    pub ready_steps: i64,
    /// `blocked_by_failures`, `has_ready_steps`, `processing`, `all_complete` or `waiting_for_dependencies`:
    /// the first that applies.
    pub execution_status: String,
    /// What follows from `execution_status`.
    pub recommended_action: String,
    /// Completed steps of all steps, 0 to 100 with two decimals.
    pub completion_percentage: f64,
    /// `blocked` (a step failed for good), `recovering` (a step failed and is tried again), `healthy`, or
    /// `unknown` where there are no steps.
    pub health_status: String,
    /// How ready each step is; empty in lists.
    #[serde(default)]
    pub steps: Vec<StepReadinessStatus>,
    /// In the answer to a submission only: how many steps the task has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_count: Option<usize>,
    /// In the answer to a submission only: the steps' ids by their names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_mapping: Option<BTreeMap<String, Uuid>>,
}

impl TaskResponse {
    /// Whether the task will never change by itself again.
    pub fn is_finished(&self) -> bool {
        is_finished(&self.status)
    }
}

/// Which tasks to list. Without filters: all, newest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TaskQuery {
    /// From 1; the first where absent.
    #[param(minimum = 1)]
    pub page: Option<u32>,
    /// 1 to 100; 25 where absent.
    #[param(minimum = 1, maximum = 100)]
    pub per_page: Option<u32>,
    /// Only this namespace.
    pub namespace: Option<String>,
    /// Only tasks in this state, one of [`TASK_STATES`].
    pub status: Option<String>,
    /// Only tasks this one asked for.
    pub initiator: Option<String>,
    /// Only tasks from this system.
    pub source_system: Option<String>,
}

/// One page of tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskListResponse {
    /// Newest first, without their steps.
    pub tasks: Vec<TaskResponse>,
    /// Where in the list this page is.
    pub pagination: Pagination,
}

/// Where in a list a page is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pagination {
    /// The page, from 1.
    pub page: u32,
    /// How many entries a page has.
    pub per_page: u32,
    /// Entries on all pages; of more than 100,000, this many.
    pub total_count: i64,
    /// Whether there are more than that; left out where there are not. Ours: the public API counts them all, however
    /// long it takes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub total_is_more: bool,
    /// How many pages these entries fill.
    pub total_pages: u32,
    /// Whether there are later pages.
    pub has_next: bool,
    /// Whether there are earlier pages.
    pub has_previous: bool,
}

impl Pagination {
    /// Entries are counted up to here: a list of all tasks there ever were must not read them all.
    pub const COUNTED: i64 = 100_000;

    /// Of `page`, when there are `total_count` entries as far as they were counted.
    pub fn new(page: u32, per_page: u32, total_count: i64, has_next: bool) -> Self {
        let (total_count, total_is_more) = (total_count.min(Self::COUNTED), total_count > Self::COUNTED);
        let total_pages = u64::try_from(total_count).unwrap_or(0).div_ceil(u64::from(per_page.max(1)));
        let total_pages = u32::try_from(total_pages).unwrap_or(u32::MAX);
        Self { page, per_page, total_count, total_is_more, total_pages, has_next, has_previous: page > 1 }
    }
}
