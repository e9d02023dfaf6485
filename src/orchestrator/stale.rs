//! Tasks that take longer than they may, steps that nobody answers for, and steps whose attempts are spent. Pure,
//! like `advance`.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::advance::{Effect, Note, Outcome, Turn};
use super::record;
use super::task::{StepState, Task, TaskState};
use crate::message::{ErrorType, Json, StepExecutionError};

/// The reason of a dead letter whose request was sent again and again without an answer.
pub(super) const UNANSWERED: &str = "unanswered";

/// No worker answered for a step, or its workers kept dying.
pub(super) const WORKER_UNAVAILABLE: &str = "worker_unavailable";

/// A step's last attempt failed, and another might not have.
pub(super) const MAX_RETRIES_EXCEEDED: &str = "max_retries_exceeded";

/// Why a task is recorded for somebody to look at.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// `staleness_timeout`, `worker_unavailable` or `max_retries_exceeded`.
    pub reason: &'static str,
    /// Where the task stood.
    pub state: TaskState,
    /// The task and its steps as they stood.
    pub snapshot: Json,
    /// What led to it.
    pub metadata: Json,
}

/// A limit of the task's template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit {
    /// When it is passed if nothing happens, in milliseconds since 1970.
    pub(super) at: i64,
    since: i64,
    name: &'static str,
}

/// The limit that the task passes first.
pub(super) fn limit(task: &Task) -> Option<Limit> {
    let lifecycle = task.plan.template().lifecycle.as_ref()?;
    if task.recorded || !(lifecycle.records || lifecycle.fails) {
        return None;
    }
    let steps = || task.steps.iter().filter(|step| step.exists);
    let waiting = steps().any(|step| step.state == StepState::Pending);
    let ends = steps().flat_map(|step| [step.completed_at, step.last_failure_at]).flatten();
    let quiet = ends.max().unwrap_or(task.created_at).max(task.created_at);
    let dependencies =
        (quiet, "max_waiting_for_dependencies_minutes", lifecycle.max_waiting_for_dependencies);
    let none = (quiet, "", None);
    let by_state = match task.state {
        TaskState::WaitingForRetry => {
            [(quiet, "max_waiting_for_retry_minutes", lifecycle.max_waiting_for_retry), none]
        }
        TaskState::WaitingForDependencies => [dependencies, none],
        TaskState::StepsInProcess => [
            (quiet, "max_steps_in_process_minutes", lifecycle.max_steps_in_process),
            if waiting { dependencies } else { none },
        ],
        // What is being undone is left to its end.
        _ => return None,
    };
    // Somebody looked at a task that was replayed; it is not stale for being old.
    let age = lifecycle.max_duration.filter(|_| steps().all(|step| step.replays == 0));
    let age = (task.created_at, "max_duration_minutes", age);
    let limits = by_state.into_iter().chain([age]).filter_map(|(since, name, longest)| {
        let longest = i64::try_from(longest?.as_millis()).unwrap_or(i64::MAX);
        Some(Limit { at: since.saturating_add(longest), since, name })
    });
    limits.min_by_key(|limit| limit.at)
}

impl Turn<'_> {
    /// Does what the template wants done with a stale task; a task that is not gets its new deadline stored.
    pub(super) fn stale(&mut self) -> Outcome {
        if self.task.state.is_terminal() {
            return Outcome::Stale;
        }
        self.effects.push(Effect::Deadline);
        let Some(limit) = limit(self.task).filter(|limit| limit.at <= self.timing.now) else {
            return Outcome::Applied;
        };
        let Some(lifecycle) = self.task.plan.template().lifecycle.clone() else { return Outcome::Applied };
        let minutes = (self.timing.now - limit.since) / 60_000;
        let text = format!("the task is stale: {minutes} min are more than {} allows", limit.name);
        if lifecycle.records {
            let metadata = json!({
                "limit": limit.name,
                "limit_minutes": (limit.at - limit.since) / 60_000,
                "minutes": minutes,
                "failed": lifecycle.fails,
            });
            self.record("staleness_timeout", metadata);
        }
        if lifecycle.fails {
            for step in 0..self.task.steps.len() {
                let run = &self.task.steps[step];
                if run.exists && run.state.is_open() {
                    self.give_up(step, run.attempts, "STALE", text.clone());
                }
            }
        } else {
            self.task.recorded = true;
        }
        Outcome::Applied
    }

    /// Has a request that is overdue sent again, or gives its step up.
    pub(super) fn overdue(&mut self, step_name: &str, step_uuid: Uuid) -> Outcome {
        let Some(step) = self.task.find(step_name, step_uuid) else { return Outcome::Unknown };
        let run = &self.task.steps[step];
        if run.due_at.is_none_or(|due_at| due_at > self.timing.now) {
            return Outcome::Stale;
        }
        if run.sent_again >= self.timing.resends {
            self.unanswered(step);
            return Outcome::Applied;
        }
        if run.state == StepState::WaitingForRetry {
            let attempt = Some(run.attempts + 1);
            let reason = Some("the retry was overdue, and was sent again".to_owned());
            self.change(step, StepState::Enqueued, Note { attempt, reason, ..Note::default() });
        }
        self.send(step, true);
        Outcome::Applied
    }

    /// Parks the request of a step whose answer has been overdue too often.
    fn unanswered(&mut self, step: usize) {
        let run = &self.task.steps[step];
        let (attempt, sent_again) = (run.attempts + 1, run.sent_again);
        let name = self.task.plan.step(step).name.clone();
        let text = format!(
            "no worker answered for attempt {attempt}, although it was sent again {sent_again} times"
        );
        let metadata = json!({ "step": name, "attempt": attempt, "sent_again": sent_again });
        self.record(WORKER_UNAVAILABLE, metadata);
        self.give_up(step, attempt, "UNANSWERED", text);
        self.effects.push(Effect::Park { step, attempt, reason: UNANSWERED });
    }

    fn give_up(&mut self, step: usize, attempts: u32, code: &str, message: String) {
        let now = self.timing.now;
        let run = &mut self.task.steps[step];
        run.attempts = attempts;
        run.last_failure_at = Some(now);
        run.completed_at = Some(now);
        run.error = Some(StepExecutionError {
            message: message.clone(),
            error_type: ErrorType::TimeoutError.to_string(),
            code: Some(code.to_owned()),
            retryable: false,
            details: None,
        });
        let result = Some(record::of_failure(self.task, step));
        let note = Note { attempt: Some(attempts), reason: Some(message), result, ..Note::default() };
        self.effects.push(Effect::Stop { step });
        self.change(step, StepState::Error, note);
    }

    /// Fails a step for good. What somebody should look at is recorded where the task fails by it: by the first step,
    /// and by the first that was to undo another.
    pub(super) fn fail(&mut self, step: usize, note: Note, finding: Option<&'static str>) {
        let plan = Arc::clone(&self.task.plan);
        let undoes = plan.target(step).is_some();
        let failed = |task: &Task| {
            if undoes {
                let mut steps = task.steps.iter().enumerate();
                steps.any(|(step, run)| run.state == StepState::Error && plan.target(step).is_some())
            } else {
                task.tally.failed.is_some()
            }
        };
        let before = finding.is_some() && failed(self.task);
        self.change(step, StepState::Error, note);
        if let Some(finding) = finding.filter(|_| !before && failed(self.task)) {
            let definition = plan.step(step);
            let attempts = self.task.steps[step].attempts;
            let metadata = json!({
                "step": definition.name,
                "attempts": attempts,
                "max_attempts": definition.max_attempts,
            });
            self.record(finding, metadata);
        }
    }

    fn record(&mut self, reason: &'static str, metadata: serde_json::Value) {
        let snapshot = Json::from(snapshot(self.task));
        let finding = Finding { reason, state: self.task.state, snapshot, metadata: Json::from(metadata) };
        self.effects.push(Effect::Record(Box::new(finding)));
    }
}

fn snapshot(task: &Task) -> serde_json::Value {
    let time = |at: Option<i64>| at.and_then(|at| Timestamp::from_millisecond(at).ok());
    let template = task.plan.template();
    let steps = (0..task.steps.len()).filter(|step| task.steps[*step].exists).map(|step| {
        let run = &task.steps[step];
        json!({
            "step_uuid": run.uuid,
            "name": task.plan.step(step).name,
            "state": run.state,
            "attempts": run.attempts,
            "enqueued_at": time(run.enqueued_at),
            "next_retry_at": time(run.next_retry_at),
            "completed_at": time(run.completed_at),
            "error": run.error,
        })
    });
    json!({
        "task_uuid": task.uuid,
        "namespace": template.namespace,
        "name": template.name,
        "version": template.version,
        "state": task.state,
        "created_at": time(Some(task.created_at)),
        "steps": steps.collect::<Vec<_>>(),
    })
}
