//! Rows on their way into the store.

use std::sync::Arc;

use uuid::Uuid;

use crate::broker::Message;
use crate::message::Json;
use crate::orchestrator::stale::Finding;
use crate::orchestrator::task::StepRun;
use crate::template::Template;

/// Everything one transaction writes.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// The transaction's time, in milliseconds since 1970.
    pub(crate) now: i64,
    pub(crate) templates: Vec<(Uuid, Arc<Template>)>,
    pub(crate) new_tasks: Vec<TaskRow>,
    pub(crate) task_states: Vec<TaskStateRow>,
    pub(crate) new_steps: Vec<StepRow>,
    pub(crate) steps: Vec<StepRow>,
    pub(crate) transitions: Vec<TransitionRow>,
    pub(crate) findings: Vec<FindingRow>,
    /// Each with its priority.
    pub(crate) outbox: Vec<(i32, Message)>,
    /// Outbox rows that the broker has confirmed.
    pub(crate) sent: Vec<i64>,
}

impl Batch {
    /// Whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.new_tasks.is_empty()
            && self.task_states.is_empty()
            && self.new_steps.is_empty()
            && self.steps.is_empty()
            && self.transitions.is_empty()
            && self.findings.is_empty()
            && self.outbox.is_empty()
            && self.sent.is_empty()
    }
}

#[derive(Debug)]
pub(crate) struct TaskRow {
    pub(crate) task_uuid: Uuid,
    pub(crate) template_id: Uuid,
    pub(crate) template: Arc<Template>,
    pub(crate) state: &'static str,
    pub(crate) identity: Uuid,
    pub(crate) context: Json,
    pub(crate) initiator: String,
    pub(crate) source_system: String,
    pub(crate) reason: String,
    pub(crate) priority: Option<i32>,
    pub(crate) options: Option<String>,
    pub(crate) tags: String,
    pub(crate) correlation_id: String,
    pub(crate) trace: Option<String>,
    pub(crate) parent_correlation_id: Option<Uuid>,
    pub(crate) requested_at: Option<i64>,
    pub(crate) completed_at: Option<i64>,
    pub(crate) stale_at: Option<i64>,
}

#[derive(Debug)]
pub(crate) struct TaskStateRow {
    pub(crate) task_uuid: Uuid,
    pub(crate) state: &'static str,
    pub(crate) completed_at: Option<i64>,
    pub(crate) stale_at: Option<i64>,
}

/// A task somebody has to look at.
#[derive(Debug)]
pub(crate) struct FindingRow {
    pub(crate) task_uuid: Uuid,
    pub(crate) finding: Finding,
}

#[derive(Debug)]
pub(crate) struct StepRow {
    pub(crate) task_uuid: Uuid,
    pub(crate) position: usize,
    pub(crate) name: String,
    pub(crate) max_attempts: u32,
    pub(crate) run: StepRun,
    /// Whether `run.output` is new.
    pub(crate) output: bool,
}

#[derive(Debug)]
pub(crate) struct TransitionRow {
    pub(crate) task_uuid: Uuid,
    pub(crate) step_uuid: Option<Uuid>,
    pub(crate) from_state: Option<&'static str>,
    pub(crate) to_state: &'static str,
    pub(crate) attempt: Option<u32>,
    pub(crate) reason: Option<String>,
    pub(crate) worker_id: Option<String>,
    pub(crate) duration_ms: Option<u64>,
    /// The result that caused it, without its data.
    pub(crate) result: Option<Json>,
}
