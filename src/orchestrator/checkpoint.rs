//! What happens to a step of which part is done. Pure, like `advance`.

use super::advance::{Effect, Note, Outcome, Turn};
use super::task::{StepState, TaskState};
use crate::message::StepExecutionRequest;

impl Turn<'_> {
    /// Remembers how far a step has come, for every request that is made of it from here on.
    pub(super) fn checkpoint(&mut self, request: &StepExecutionRequest) -> Outcome {
        let Some(step) = self.task.find(&request.step_name, request.step_uuid) else {
            return Outcome::Unknown;
        };
        let Some((done, reached)) = request.part.checked_sub(1).zip(request.checkpoint.as_ref()) else {
            return Outcome::Refused;
        };
        if let Some(late) = self.too_late(step, request.attempt, done) {
            // A worker that did not hear so goes on in vain, part by part.
            if self.task.steps[step].state.is_finished() {
                let cancelled = self.task.state == TaskState::Cancelled;
                self.effects.push(if cancelled { Effect::BroadcastCancel } else { Effect::Stop { step } });
            }
            return late;
        }
        self.reopen(step, "replayed");
        let due_at = self.due_at(step, self.timing.now);
        let run = &mut self.task.steps[step];
        run.attempts = request.attempt.saturating_sub(1);
        run.part = request.part;
        run.checkpoint = Some(reached.clone());
        let reason = format!("checkpoint {}: {} items processed", request.part, reached.items_processed);
        let note = Note { attempt: Some(request.attempt), reason: Some(reason), ..Note::default() };
        self.change(step, StepState::InProgress, note);
        self.task.steps[step].due_at = Some(due_at);
        Outcome::Applied
    }
}
