//! What a person decides about a step: that it is tried again, or how it ends.

use uuid::Uuid;

use super::advance::{Effect, Note, Outcome, Turn};
use super::record;
use super::task::{StepState, TaskState};
use crate::message::Json;

/// A person's decision about a step.
#[derive(Debug, Clone, PartialEq)]
pub struct ByHand {
    /// The step.
    pub step_uuid: Uuid,
    /// What becomes of it.
    pub decision: Decision,
    /// Who decided.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// What becomes of a step.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Its attempts are counted anew, and the first of them is sent.
    Retry,
    /// It is settled: what depends on it may run, and is given this in place of its result.
    Resolve(Json),
    /// It is complete, with this result.
    Complete {
        /// What the handler would have returned.
        result: Json,
        /// Kept for the record.
        metadata: Option<Json>,
    },
}

impl Turn<'_> {
    /// A cancelled task stays as it is, and so does a step that succeeded, or whose effects are undone; a decision
    /// is completed only with the steps it calls for.
    pub(super) fn by_hand(&mut self, wish: &ByHand) -> Outcome {
        let Some(step) = self.task.steps.iter().position(|step| step.exists && step.uuid == wish.step_uuid)
        else {
            return Outcome::Unknown;
        };
        let state = self.task.steps[step].state;
        let over = self.task.state.is_terminal() && self.task.state != TaskState::Error;
        if over || state.satisfies() || self.undone(step) {
            return Outcome::Refused;
        }
        if let Decision::Complete { result, .. } = &wish.decision
            && self.task.check_output(step, result).is_err()
        {
            return Outcome::Refused;
        }
        let reason = format!("by {}: {}", wish.by, wish.reason);
        let (to, output, metadata) = match &wish.decision {
            Decision::Retry if state != StepState::Error => return Outcome::Refused,
            Decision::Retry => {
                self.replays = self.task.steps[step].replays + 1;
                self.reopen(step, &reason);
                self.send(step, false);
                return Outcome::Applied;
            }
            Decision::Resolve(output) => (StepState::ResolvedManually, output, None),
            Decision::Complete { result, metadata } => (StepState::Complete, result, metadata.as_ref()),
        };
        let result = record::of_decision(self.task, step, &wish.by, &wish.reason, metadata);
        if state.is_open() {
            self.effects.push(Effect::Stop { step });
        }
        let run = &mut self.task.steps[step];
        run.state = to;
        run.output = Some(output.clone());
        run.error = None;
        run.due_at = None;
        run.sent_again = 0;
        run.next_retry_at = None;
        run.completed_at = Some(self.timing.now);
        let note = Note {
            attempt: Some(run.attempts).filter(|attempts| *attempts > 0),
            reason: Some(reason.clone()),
            result: Some(result),
            ..Note::default()
        };
        self.effects.push(Effect::Step { step, from: Some(state), to, note });
        if self.task.plan.step(step).kind.calls_for_steps() {
            self.call_for(step);
        }
        // What failed first, and what compensations wait for, is not undone by counting on.
        self.task.recount();
        let steps = self.task.steps.iter().enumerate();
        let ready =
            steps.filter(|(_, run)| run.exists && run.state == StepState::Pending && run.waits_for == 0);
        let ready: Vec<usize> = ready.map(|(step, _)| step).collect();
        // A task that cannot go on yet stays failed, so that nothing is undone between two decisions.
        let tally = &self.task.tally;
        let goes_on = !ready.is_empty() || tally.open > 0 || tally.satisfied == tally.created;
        if self.task.state == TaskState::Error && goes_on {
            self.enter(TaskState::StepsInProcess, Some(reason));
        }
        for step in ready {
            self.begin(step);
        }
        Outcome::Applied
    }
}
