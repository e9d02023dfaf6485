//! Rows of the store, and the API's answers made of them.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use serde_json::value::RawValue;
use sqlx::FromRow;
use uuid::Uuid;

use super::Result;
use crate::api::{StepReadinessStatus, StepResponse, TaskResponse, is_finished};
use crate::message::Json;
use crate::orchestrator::progress::{Progress, Readiness, Steps, named_step_uuid};
use crate::orchestrator::task::StepState;
use crate::template::Template;

#[derive(FromRow)]
pub(super) struct TaskRow {
    pub(super) task_uuid: String,
    pub(super) template_id: String,
    namespace: String,
    name: String,
    version: String,
    pub(super) state: String,
    context: String,
    initiator: String,
    source_system: String,
    reason: String,
    priority: Option<i32>,
    tags: String,
    correlation_id: String,
    parent_correlation_id: Option<String>,
    requested_at: Option<i64>,
    pub(super) created_at: i64,
    updated_at: i64,
    pub(super) completed_at: Option<i64>,
}

impl TaskRow {
    pub(super) fn response(
        &self,
        progress: Progress,
        steps: Vec<StepReadinessStatus>,
    ) -> Result<TaskResponse> {
        Ok(TaskResponse {
            task_uuid: uuid(&self.task_uuid)?,
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            version: self.version.clone(),
            status: self.state.clone(),
            requested_at: self.requested_at.map(time).transpose()?,
            created_at: time(self.created_at)?,
            updated_at: time(self.updated_at)?,
            completed_at: self.completed_at.map(time).transpose()?,
            context: parse(&self.context)?,
            initiator: self.initiator.clone(),
            source_system: self.source_system.clone(),
            reason: self.reason.clone(),
            priority: self.priority,
            tags: parse(&self.tags)?,
            correlation_id: uuid(&self.correlation_id)?,
            parent_correlation_id: self.parent_correlation_id.as_deref().map(uuid).transpose()?,
            total_steps: progress.total,
            pending_steps: progress.pending,
            in_progress_steps: progress.in_progress,
            completed_steps: progress.completed,
            failed_steps: progress.failed,
            ready_steps: progress.ready,
            execution_status: progress.execution_status().to_owned(),
            recommended_action: progress.recommended_action().to_owned(),
            completion_percentage: progress.completion_percentage(),
            health_status: progress.health_status().to_owned(),
            steps,
            step_count: None,
            step_mapping: None,
        })
    }
}

#[derive(FromRow)]
pub(super) struct StepRow {
    pub(super) step_uuid: String,
    pub(super) name: String,
    pub(super) state: String,
    pub(super) attempts: i32,
    pub(super) max_attempts: i32,
    next_retry_at: Option<i64>,
    pub(super) last_attempted_at: Option<i64>,
    last_failure_at: Option<i64>,
    pub(super) created_at: i64,
    updated_at: i64,
    pub(super) completed_at: Option<i64>,
}

impl StepRow {
    pub(super) fn may_be_retried(&self, readiness: Readiness) -> bool {
        let over = StepState::parse(&self.state).is_none_or(StepState::is_finished);
        !over && readiness.retryable && self.attempts < self.max_attempts
    }

    /// How long the step waits between its failure and its next attempt, rounded up.
    fn backoff_seconds(&self) -> Option<i32> {
        let wait_ms = self.next_retry_at?.checked_sub(self.last_failure_at?)?.max(0);
        i32::try_from(wait_ms.unsigned_abs().div_ceil(1_000)).ok()
    }
}

/// What a step left behind. `result` is a result message without its data, which is `output`.
#[derive(FromRow)]
pub(super) struct OutcomeRow {
    pub(super) output: Option<String>,
    pub(super) result: Option<String>,
    pub(super) error: Option<String>,
    pub(super) checkpoint: Option<String>,
}

impl OutcomeRow {
    /// The result message with the handler's value under both its names.
    pub(super) fn results(&self) -> Result<Option<Json>> {
        let Some(result) = &self.result else {
            return Ok(None);
        };
        let mut fields: BTreeMap<String, Box<RawValue>> = parse(result)?;
        let output: Box<RawValue> = parse(self.output.as_deref().unwrap_or("null"))?;
        fields.insert("data".to_owned(), output.clone());
        fields.insert("result".to_owned(), output);
        Json::encode(&fields).map(Some).map_err(damaged)
    }
}

/// A task and the states of its steps, as they were at one moment.
pub(super) struct TaskSteps {
    pub(super) task: TaskRow,
    pub(super) template: Template,
    pub(super) steps: Vec<StepRow>,
}

impl TaskSteps {
    /// The steps by their names.
    pub(super) fn states(&self) -> Steps<'_> {
        let states: HashMap<&str, &str> =
            self.steps.iter().map(|step| (step.name.as_str(), step.state.as_str())).collect();
        Steps::new(&self.template, states)
    }

    pub(super) fn readiness(&self, states: &Steps<'_>, step: &StepRow) -> Readiness {
        let mut readiness = states.readiness(&step.name);
        readiness.ready &= !is_finished(&self.task.state);
        readiness
    }

    pub(super) fn response(&self) -> Result<TaskResponse> {
        let states = self.states();
        let mut progress = Progress::default();
        let mut steps = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let readiness = self.readiness(&states, step);
            progress.count(&step.state, 1);
            progress.look_at(&states, &step.name, is_finished(&self.task.state));
            steps.push(StepReadinessStatus {
                workflow_step_uuid: uuid(&step.step_uuid)?,
                task_uuid: uuid(&self.task.task_uuid)?,
                named_step_uuid: named_step_uuid(&self.template, &step.name),
                name: step.name.clone(),
                current_state: step.state.clone(),
                dependencies_satisfied: readiness.dependencies_satisfied,
                retry_eligible: step.may_be_retried(readiness),
                ready_for_execution: readiness.ready,
                last_failure_at: step.last_failure_at.map(time).transpose()?,
                next_retry_at: step.next_retry_at.map(time).transpose()?,
                total_parents: readiness.parents,
                completed_parents: readiness.completed_parents,
                attempts: step.attempts,
                max_attempts: step.max_attempts,
                backoff_request_seconds: step.backoff_seconds(),
                last_attempted_at: step.last_attempted_at.map(time).transpose()?,
            });
        }
        self.task.response(progress, steps)
    }

    pub(super) fn step_response(
        &self,
        states: &Steps<'_>,
        step: &StepRow,
        outcome: OutcomeRow,
    ) -> Result<StepResponse> {
        let readiness = self.readiness(states, step);
        Ok(StepResponse {
            step_uuid: uuid(&step.step_uuid)?,
            task_uuid: uuid(&self.task.task_uuid)?,
            name: step.name.clone(),
            created_at: time(step.created_at)?,
            updated_at: time(step.updated_at)?,
            completed_at: step.completed_at.map(time).transpose()?,
            results: outcome.results()?,
            error: outcome.error.as_deref().map(parse).transpose()?,
            checkpoint: outcome.checkpoint.as_deref().map(parse).transpose()?,
            current_state: step.state.clone(),
            dependencies_satisfied: readiness.dependencies_satisfied,
            retry_eligible: step.may_be_retried(readiness),
            ready_for_execution: readiness.ready,
            total_parents: readiness.parents,
            completed_parents: readiness.completed_parents,
            attempts: step.attempts,
            max_attempts: step.max_attempts,
            last_failure_at: step.last_failure_at.map(time).transpose()?,
            next_retry_at: step.next_retry_at.map(time).transpose()?,
            last_attempted_at: step.last_attempted_at.map(time).transpose()?,
        })
    }
}

/// Reads a stored document.
pub(super) fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(damaged)
}

pub(super) fn uuid(text: &str) -> Result<Uuid> {
    Uuid::try_parse(text).map_err(damaged)
}

pub(super) fn time(millis: i64) -> Result<Timestamp> {
    Timestamp::from_millisecond(millis).map_err(damaged)
}

/// A row that no version of this program wrote.
fn damaged(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}
