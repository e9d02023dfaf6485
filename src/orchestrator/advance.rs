//! What happens to a task when something is heard about it: a pure function, without clock or I/O.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::by_hand::ByHand;
use super::stale::Finding;
use super::task::{StepState, Task, TaskState, lets_go};
use crate::message::{Json, StepExecutionError, StepExecutionRequest, StepExecutionResult};

/// Something heard about a task.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It was accepted.
    Submitted,
    /// A worker answered a request for good.
    Result(Box<StepExecutionResult>),
    /// A worker put off a step: this is the next attempt's request.
    Retry(Box<StepExecutionRequest>),
    /// A worker did part of a step: this is the request for the rest.
    Checkpoint(Box<StepExecutionRequest>),
    /// A request went to the dead letters.
    DeadLetter(Box<DeadLetter>),
    /// One of those above, about a request that was made from a dead letter.
    Replayed {
        /// How often the step was replayed by then.
        replays: u32,
        /// What was heard.
        event: Box<Event>,
    },
    /// A caller wants it stopped.
    Cancel,
    /// A person decided about one of its steps.
    ByHand(Box<ByHand>),
    /// A step's answer should have come by now.
    Overdue {
        /// The step's name.
        step_name: String,
        /// The step.
        step_uuid: Uuid,
    },
    /// It should have come further by now.
    Stale,
}

/// A request that will not be answered any more.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// The step.
    pub step_uuid: Uuid,
    /// The step's name.
    pub step_name: String,
    /// The attempt the request was for.
    pub attempt: u32,
    /// The part of it.
    pub part: u32,
    /// What is recorded as the step's error.
    pub error: StepExecutionError,
    /// Why it is a dead letter.
    pub reason: String,
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It changed the task.
    Applied,
    /// It had been applied before.
    Duplicate,
    /// It came too late: the step went on without it.
    Stale,
    /// It speaks of a step the task does not have.
    Unknown,
    /// It makes no sense at this point.
    Refused,
}

impl Outcome {
    /// The outcome as a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Duplicate => "duplicate",
            Self::Stale => "stale",
            Self::Unknown => "unknown",
            Self::Refused => "refused",
        }
    }
}

/// What has to be recorded or sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send the request for this attempt of a step.
    Send {
        /// The step's place.
        step: usize,
        /// The attempt.
        attempt: u32,
        /// Whether it was sent before.
        again: bool,
    },
    /// A step changed its state.
    Step {
        /// The step's place.
        step: usize,
        /// `None`: it was made just now.
        from: Option<StepState>,
        /// The new state.
        to: StepState,
        /// What is recorded with it.
        note: Note,
    },
    /// The task changed its state.
    Task {
        /// `None`: it was made just now.
        from: Option<TaskState>,
        /// The new state.
        to: TaskState,
        /// Why, where that is not plain.
        reason: Option<String>,
    },
    /// Tell all workers that the task is cancelled.
    BroadcastCancel,
    /// Tell all workers to stop what they run of a step, whose answer counts no more.
    Stop {
        /// The step's place.
        step: usize,
    },
    /// Put a step's request where dead letters are parked, for replay.
    Park {
        /// The step's place.
        step: usize,
        /// The attempt it was for.
        attempt: u32,
        /// Why.
        reason: &'static str,
    },
    /// Record the task for somebody to look at.
    Record(Box<Finding>),
    /// Store anew when the task is stale.
    Deadline,
}

/// What is recorded with a step's change of state.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Note {
    /// The attempt it is about.
    pub attempt: Option<u32>,
    /// Why, where that is not plain.
    pub reason: Option<String>,
    /// The worker that reported it.
    pub worker_id: Option<String>,
    /// How long the attempt ran.
    pub duration_ms: Option<u64>,
    /// The result that caused it, without its data.
    pub result: Option<Json>,
}

/// The time, and how long answers may take.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Now, in milliseconds since 1970.
    pub now: i64,
    /// How long a step may run whose template gives no timeout.
    pub default_timeout: Duration,
    /// How much longer than its timeout an answer may take.
    pub overdue_after: Duration,
    /// How often a request is sent again before it is given up.
    pub resends: u32,
}

/// What an event led to.
#[derive(Debug, Clone, PartialEq)]
pub struct Advance {
    /// What became of it.
    pub outcome: Outcome,
    /// What has to be done, in order. Where the event was not applied, nothing but to stop what runs in vain.
    pub effects: Vec<Effect>,
}

/// Applies one event to a task. Each attempt of a step is applied once, whatever is heard how often and in
/// whichever order. A replay begins the attempts of a failed step anew and reopens its task, unless what
/// completed is being or was undone.
pub fn advance(task: &mut Task, event: &Event, timing: &Timing) -> Advance {
    let (replays, event) = match event {
        Event::Replayed { replays, event } => (*replays, &**event),
        event => (0, event),
    };
    let mut turn = Turn { task, timing, replays, effects: Vec::new() };
    let outcome = match event {
        Event::Submitted => turn.submitted(),
        Event::Result(result) => turn.result(result),
        Event::Retry(request) => turn.retry(request),
        Event::Checkpoint(request) => turn.checkpoint(request),
        Event::DeadLetter(letter) => turn.dead_letter(letter),
        Event::Replayed { .. } => Outcome::Refused,
        Event::Cancel => turn.cancel(),
        Event::ByHand(decision) => turn.by_hand(decision),
        Event::Overdue { step_name, step_uuid } => turn.overdue(step_name, *step_uuid),
        Event::Stale => turn.stale(),
    };
    if outcome == Outcome::Applied {
        turn.evaluate();
    }
    Advance { outcome, effects: turn.effects }
}

pub(super) struct Turn<'a> {
    pub(super) task: &'a mut Task,
    pub(super) timing: &'a Timing,
    /// In which life of the step the event happened.
    pub(super) replays: u32,
    pub(super) effects: Vec<Effect>,
}

impl Turn<'_> {
    fn submitted(&mut self) -> Outcome {
        if self.task.state != TaskState::Pending {
            return Outcome::Refused;
        }
        self.task.created_at = self.timing.now;
        self.effects.push(Effect::Task { from: None, to: TaskState::Pending, reason: None });
        for step in 0..self.task.steps.len() {
            if self.task.steps[step].exists && self.task.steps[step].waits_for == 0 {
                self.enqueue(step);
            }
        }
        Outcome::Applied
    }

    fn cancel(&mut self) -> Outcome {
        if self.task.state.is_terminal() {
            return Outcome::Stale;
        }
        // Before the steps, so that none of them is started by the end of another.
        self.enter(TaskState::Cancelled, None);
        for step in 0..self.task.steps.len() {
            let run = &mut self.task.steps[step];
            if run.exists && !run.state.is_finished() {
                run.completed_at = Some(self.timing.now);
                self.change(step, StepState::Cancelled, Note::default());
            }
        }
        self.effects.push(Effect::BroadcastCancel);
        Outcome::Applied
    }

    pub(super) fn enqueue(&mut self, step: usize) {
        let attempt = self.task.steps[step].attempts + 1;
        self.change(step, StepState::Enqueued, Note { attempt: Some(attempt), ..Note::default() });
        self.send(step, false);
    }

    pub(super) fn send(&mut self, step: usize, again: bool) {
        let due_at = self.due_at(step, self.timing.now);
        let run = &mut self.task.steps[step];
        run.enqueued_at = Some(self.timing.now);
        run.sent_at = None;
        run.due_at = Some(due_at);
        run.sent_again += u32::from(again);
        let attempt = run.attempts + 1;
        self.effects.push(Effect::Send { step, attempt, again });
    }

    pub(super) fn due_at(&self, step: usize, from: i64) -> i64 {
        let timeout = self.task.plan.step(step).timeout.unwrap_or(self.timing.default_timeout);
        let patience = (timeout.saturating_add(self.timing.overdue_after)).as_millis();
        from.saturating_add(i64::try_from(patience).unwrap_or(i64::MAX))
    }

    /// Moves a step to another state, and lets go what waited for it.
    pub(super) fn change(&mut self, step: usize, to: StepState, note: Note) {
        let plan = Arc::clone(&self.task.plan);
        let forward = plan.target(step).is_none();
        let run = &mut self.task.steps[step];
        let from = std::mem::replace(&mut run.state, to);
        run.due_at = None;
        run.next_retry_at = None;
        run.sent_again = 0;
        self.task.tally.leave(&plan, step, from);
        self.task.tally.enter(&plan, step, to);
        self.effects.push(Effect::Step { step, from: Some(from), to, note });
        if forward && lets_go(&plan, step, to) {
            for child in plan.children(step) {
                if self.task.steps[*child].exists {
                    self.release(*child);
                }
            }
            if plan.step(step).kind.calls_for_steps() {
                self.grow(step);
            }
        } else if !forward && to.is_finished() {
            // A compensation that failed holds up no other: each undoes what it can.
            for earlier in self.task.released_by(step) {
                self.release(earlier);
            }
        }
        if let Some(division) = plan.division_of(step).filter(|_| to.is_finished()) {
            self.begin_instances(division);
        }
    }

    fn release(&mut self, step: usize) {
        self.task.steps[step].waits_for -= 1;
        self.begin(step);
    }

    /// Makes what a decision or a batchable step called for.
    fn grow(&mut self, step: usize) {
        for new in self.call_for(step) {
            self.begin(new);
        }
    }

    /// The same, before any of it begins.
    pub(super) fn call_for(&mut self, step: usize) -> Vec<usize> {
        let new = self.task.grow(step);
        for new in &new {
            let reason = Some(format!("called for by {:?}", self.task.plan.step(step).name));
            let note = Note { reason, ..Note::default() };
            self.effects.push(Effect::Step { step: *new, from: None, to: StepState::Pending, note });
        }
        new
    }

    /// Requests a step that waits for nothing any more.
    pub(super) fn begin(&mut self, step: usize) {
        let run = &self.task.steps[step];
        if run.waits_for > 0 || run.state != StepState::Pending || self.task.state.is_terminal() {
            return;
        }
        match self.task.plan.division_of(step) {
            Some(division) => self.begin_instances(division),
            None => self.enqueue(step),
        }
    }

    fn begin_instances(&mut self, division: usize) {
        while !self.task.state.is_terminal()
            && let Some(next) = self.task.next_instance(division)
        {
            self.enqueue(next);
        }
    }

    /// The task's state, from its counters alone.
    fn evaluate(&mut self) {
        if self.task.state.is_terminal() {
            return;
        }
        let tally = &self.task.tally;
        if tally.open == 0 && !tally.compensating {
            if tally.satisfied == tally.created {
                return self.enter(TaskState::Complete, None);
            }
            self.compensate();
        }
        let tally = &self.task.tally;
        match (tally.open, tally.compensating) {
            (0, _) => self.enter(TaskState::Error, self.failure()),
            (_, true) => self.enter(TaskState::BlockedByFailures, self.failure()),
            (open, false) if open == tally.retrying => self.enter(TaskState::WaitingForRetry, None),
            _ => self.enter(TaskState::StepsInProcess, None),
        }
    }

    /// Makes the compensations of what completed, and starts those that wait for no other.
    fn compensate(&mut self) {
        let called_for: Vec<usize> = (0..self.task.steps.len())
            .filter(|step| self.task.plan.target(*step).is_some_and(|t| self.task.steps[t].state.satisfies()))
            .collect();
        for step in &called_for {
            self.task.steps[*step].exists = true;
            self.task.tally.compensating = true;
            let note = Note { reason: self.failure(), ..Note::default() };
            self.effects.push(Effect::Step { step: *step, from: None, to: StepState::Pending, note });
        }
        self.task.count_compensations();
        for step in called_for {
            if self.task.steps[step].waits_for == 0 {
                self.enqueue(step);
            }
        }
    }

    fn failure(&self) -> Option<String> {
        let failed = self.task.tally.failed?;
        Some(format!("step {:?} failed", self.task.plan.step(failed).name))
    }

    pub(super) fn enter(&mut self, to: TaskState, reason: Option<String>) {
        let from = std::mem::replace(&mut self.task.state, to);
        if from != to {
            self.effects.push(Effect::Task { from: Some(from), to, reason });
        }
    }
}
