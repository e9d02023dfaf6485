//! What a worker's answer does to a step, each attempt's once. Pure, like `advance`.

use super::advance::{DeadLetter, Effect, Note, Outcome, Turn};
use super::record;
use super::stale::{MAX_RETRIES_EXCEEDED, WORKER_UNAVAILABLE};
use super::task::{StepState, TaskState};
use crate::message::{
    ErrorType, ResultStatus, StepExecutionError, StepExecutionRequest, StepExecutionResult,
};
use crate::outcome::{DELIVERY_LIMIT, DeadReason};

impl Turn<'_> {
    pub(super) fn result(&mut self, result: &StepExecutionResult) -> Outcome {
        let Some(step) = self.task.find(&result.step_name, result.step_uuid) else { return Outcome::Unknown };
        if result.attempt == 0 {
            return Outcome::Refused;
        }
        if let Some(refused) = self.refused(step, result) {
            let outcome = self.result(&refused);
            if outcome == Outcome::Applied {
                // The worker knows of no failure, so it has parked nothing.
                let reason = DeadReason::PermanentError.as_str();
                self.effects.push(Effect::Park { step, attempt: result.attempt, reason });
            }
            return outcome;
        }
        let to = match result.status {
            ResultStatus::Completed if result.success => StepState::Complete,
            ResultStatus::Cancelled => StepState::Cancelled,
            ResultStatus::Completed | ResultStatus::Failed => StepState::Error,
        };
        // A success of an attempt that was retried meanwhile counts: a step that succeeded is not run again
        // if we can help it, and the later attempt's answer will find it complete.
        let any_attempt_will_do = to == StepState::Complete && self.task.steps[step].state.is_open();
        if !any_attempt_will_do && let Some(late) = self.too_late(step, result.attempt, result.part) {
            return late;
        }
        self.reopen(step, "replayed");
        let now = self.timing.now;
        let run = &mut self.task.steps[step];
        run.attempts = run.attempts.max(result.attempt);
        run.last_attempted_at = Some(result.metadata.started_at.map_or(now, |at| at.as_millisecond()));
        run.completed_at = Some(now);
        run.error = result.error.clone();
        if to == StepState::Complete {
            run.output = Some(result.data.clone());
            run.error = None;
        } else {
            run.last_failure_at = Some(now);
        }
        let note = Note {
            attempt: Some(result.attempt),
            reason: result.error.as_ref().map(|error| error.message.clone()),
            worker_id: Some(result.metadata.worker_id.clone()).filter(|id| !id.is_empty()),
            duration_ms: Some(result.duration_ms),
            result: Some(record::of_result(result)),
        };
        if to == StepState::Error {
            let definition = self.task.plan.step(step);
            let retryable =
                definition.retry.retryable && result.error.as_ref().is_some_and(|error| error.retryable);
            let spent = retryable && result.attempt >= definition.max_attempts;
            self.fail(step, note, spent.then_some(MAX_RETRIES_EXCEEDED));
        } else {
            self.change(step, to, note);
        }
        Outcome::Applied
    }

    /// The failure that a success is whose output the step's kind does not allow.
    fn refused(&self, step: usize, result: &StepExecutionResult) -> Option<StepExecutionResult> {
        let success = result.success && result.status == ResultStatus::Completed;
        let message = self.task.check_output(step, &result.data).err().filter(|_| success)?;
        Some(StepExecutionResult {
            success: false,
            status: ResultStatus::Failed,
            error: Some(StepExecutionError {
                message,
                error_type: ErrorType::ResultRefused.to_string(),
                code: Some("INVALID_OUTCOME".to_owned()),
                retryable: false,
                details: None,
            }),
            ..result.clone()
        })
    }

    pub(super) fn retry(&mut self, request: &StepExecutionRequest) -> Outcome {
        let Some(step) = self.task.find(&request.step_name, request.step_uuid) else {
            return Outcome::Unknown;
        };
        let Some(failed) = request.attempt.checked_sub(1).filter(|attempt| *attempt > 0) else {
            return Outcome::Refused;
        };
        if let Some(late) = self.too_late(step, failed, request.part) {
            return late;
        }
        self.reopen(step, "replayed");
        let now = self.timing.now;
        let millis = |at: Option<jiff::Timestamp>| at.map_or(now, |at| at.as_millisecond());
        let not_before = millis(request.not_before);
        let due_at = self.due_at(step, not_before.max(now));
        let run = &mut self.task.steps[step];
        run.attempts = failed;
        run.part = request.part;
        run.checkpoint = request.checkpoint.clone().or(run.checkpoint.take());
        run.last_attempted_at = Some(millis(request.previous_attempt_at));
        run.last_failure_at = run.last_attempted_at;
        run.error = request.previous_error.clone();
        let reason = run.error.as_ref().map(|error| error.message.clone());
        let result = Some(record::of_failure(self.task, step));
        let note = Note { attempt: Some(failed), reason, result, ..Note::default() };
        self.change(step, StepState::WaitingForRetry, note);
        let run = &mut self.task.steps[step];
        run.next_retry_at = Some(not_before);
        run.due_at = Some(due_at);
        Outcome::Applied
    }

    pub(super) fn dead_letter(&mut self, letter: &DeadLetter) -> Outcome {
        let Some(step) = self.task.find(&letter.step_name, letter.step_uuid) else { return Outcome::Unknown };
        if let Some(late) = self.too_late(step, letter.attempt, letter.part) {
            return late;
        }
        self.reopen(step, "replayed");
        let run = &mut self.task.steps[step];
        run.attempts = letter.attempt;
        run.error = Some(letter.error.clone());
        run.last_failure_at = Some(self.timing.now);
        run.completed_at = Some(self.timing.now);
        let reason = format!("dead letter ({}): {}", letter.reason, letter.error.message);
        let result = Some(record::of_failure(self.task, step));
        let note = Note { attempt: Some(letter.attempt), reason: Some(reason), result, ..Note::default() };
        let finding = match letter.reason.as_str() {
            DELIVERY_LIMIT => Some(WORKER_UNAVAILABLE),
            reason if reason == DeadReason::RetriesExhausted.as_str() => Some(MAX_RETRIES_EXCEEDED),
            _ => None,
        };
        self.fail(step, note, finding);
        Outcome::Applied
    }

    /// What an answer about this part of `attempt` is if the step no longer waits for it.
    pub(super) fn too_late(&self, step: usize, attempt: u32, part: u32) -> Option<Outcome> {
        let run = &self.task.steps[step];
        match run.state {
            _ if self.replays < run.replays => Some(Outcome::Stale),
            _ if self.replays > run.replays => self.not_to_be_reopened(step),
            StepState::Pending => Some(Outcome::Refused),
            StepState::Complete | StepState::Error | StepState::WaitingForRetry
                if attempt == run.attempts =>
            {
                Some(Outcome::Duplicate)
            }
            state if state.is_finished() || attempt <= run.attempts => Some(Outcome::Stale),
            // An attempt that nobody has told of before counts from its own checkpoint.
            _ if attempt == run.attempts + 1 && part < run.part => Some(Outcome::Stale),
            _ => None,
        }
    }

    /// What an answer from a new life of a step is if the step must not begin one.
    fn not_to_be_reopened(&self, step: usize) -> Option<Outcome> {
        let plan = &self.task.plan;
        // What went on without it would not take its result into account any more.
        let begun = |child: &usize| self.task.steps[*child].state != StepState::Pending;
        let too_late = plan.goes_on_without(step) && plan.children(step).iter().any(begun);
        let undone = too_late || self.undone(step);
        let goes_on = self.task.state == TaskState::Error || !self.task.state.is_terminal();
        match self.task.steps[step].state {
            state if state.is_open() => None,
            StepState::Error if goes_on && !undone => None,
            state if state.satisfies() => Some(Outcome::Stale),
            _ => Some(Outcome::Refused),
        }
    }

    /// Whether what the step does is being or was undone.
    pub(super) fn undone(&self, step: usize) -> bool {
        self.task.tally.compensating && self.task.plan.target(step).is_none()
    }

    /// Begins a step's next life, if the event is from there.
    pub(super) fn reopen(&mut self, step: usize, why: &str) {
        let run = &mut self.task.steps[step];
        if self.replays <= run.replays {
            return;
        }
        run.replays = self.replays;
        run.attempts = 0;
        run.part = 0;
        run.completed_at = None;
        let reason = Some(why.to_owned());
        if run.state == StepState::Error {
            self.change(step, StepState::Enqueued, Note { reason: reason.clone(), ..Note::default() });
            // What failed first, and what compensations wait for, is not undone by counting on.
            self.task.recount();
        }
        if self.task.state == TaskState::Error {
            self.enter(TaskState::StepsInProcess, reason);
        }
    }
}
