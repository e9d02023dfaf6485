//! A task and its steps in memory: states, counters, and how both come back from the store.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::dag::Plan;
use crate::checkpoint::Checkpoint;
use crate::message::{Json, StepExecutionError};
use crate::trace::TraceContext;

macro_rules! states {
    ($(#[doc = $doc:literal])+ $name:ident { $($(#[doc = $help:literal])+ $state:ident = $text:literal,)+ }) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[doc = $help])+ $state,)+ }

        impl $name {
            /// Every state.
            pub const ALL: &[Self] = &[$(Self::$state),+];

            /// The state as it stands in the store and in the API.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$state => $text),+ }
            }

            /// The state of this name.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$state),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

states! {
    /// Where a task stands. States this orchestrator passes through within one transaction are never
    /// stored; they are here because clients know them.
    TaskState {
        /// Accepted.
        Pending = "pending",
        /// Its steps are being made.
        Initializing = "initializing",
        /// Its first requests are being written.
        EnqueuingSteps = "enqueuing_steps",
        /// At least one step is with the workers.
        StepsInProcess = "steps_in_process",
        /// A result is being looked at.
        EvaluatingResults = "evaluating_results",
        /// No step can run yet.
        WaitingForDependencies = "waiting_for_dependencies",
        /// Every step that could run waits for its retry.
        WaitingForRetry = "waiting_for_retry",
        /// A step failed for good, and what completed is being undone.
        BlockedByFailures = "blocked_by_failures",
        /// Every step completed.
        Complete = "complete",
        /// A step failed for good, and there is nothing left to do.
        Error = "error",
        /// Cancelled by a caller.
        Cancelled = "cancelled",
        /// Settled by hand.
        ResolvedManually = "resolved_manually",
    }
}

states! {
    /// Where a step stands. As with tasks, some states exist for clients' sake.
    StepState {
        /// Waiting for its dependencies.
        Pending = "pending",
        /// Requested; it waits in the broker or runs in a worker.
        Enqueued = "enqueued",
        /// Running, and told of a checkpoint.
        InProgress = "in_progress",
        /// Ran; its result is on the way.
        EnqueuedForOrchestration = "enqueued_for_orchestration",
        /// Failed; its result is on the way.
        EnqueuedAsErrorForOrchestration = "enqueued_as_error_for_orchestration",
        /// Failed; its next attempt waits in the broker.
        WaitingForRetry = "waiting_for_retry",
        /// Done.
        Complete = "complete",
        /// Failed for good.
        Error = "error",
        /// Cancelled with its task.
        Cancelled = "cancelled",
        /// Settled by hand; as good as done.
        ResolvedManually = "resolved_manually",
    }
}

impl TaskState {
    /// Whether nothing will happen any more.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Complete | Self::Error | Self::Cancelled | Self::ResolvedManually)
    }
}

impl StepState {
    /// Whether an answer from a worker is awaited.
    pub fn is_open(self) -> bool {
        matches!(
            self,
            Self::Enqueued
                | Self::InProgress
                | Self::EnqueuedForOrchestration
                | Self::EnqueuedAsErrorForOrchestration
                | Self::WaitingForRetry
        )
    }

    /// Whether steps that depend on it may run.
    pub fn satisfies(self) -> bool {
        matches!(self, Self::Complete | Self::ResolvedManually)
    }

    /// Whether no answer will change it any more.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Complete | Self::Error | Self::Cancelled | Self::ResolvedManually)
    }
}

/// A task that runs. Its steps stand in the order of its template.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its id.
    pub uuid: Uuid,
    /// The template it started with, whatever became of the template since.
    pub plan: Arc<Plan>,
    /// Where it stands.
    pub state: TaskState,
    /// Its context, as submitted.
    pub context: Json,
    /// Groups its messages.
    pub correlation_id: String,
    /// Requests of tasks with a higher one are written first.
    pub priority: i32,
    /// When it was accepted, in milliseconds since 1970.
    pub created_at: i64,
    /// Whether it was found stale and goes on all the same.
    pub recorded: bool,
    /// Its caller's place in a trace.
    pub trace: Option<TraceContext>,
    /// One for each step of the plan.
    pub steps: Vec<StepRun>,
    pub(super) tally: Tally,
}

/// One step of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRun {
    /// Its id, the same over all attempts.
    pub uuid: Uuid,
    /// `false` for a compensation, or a step behind a decision, that was not called for, and for batch workers,
    /// of which only instances run.
    pub exists: bool,
    /// Where it stands.
    pub state: StepState,
    /// Executions that have begun, as far as we were told. An open step's request is for the next one.
    pub attempts: u32,
    /// The part of the next one that its request is for: how many checkpoints have been reported since the last replay.
    pub part: u32,
    /// Where it goes on, by the last of them.
    pub checkpoint: Option<Checkpoint>,
    /// How often it was replayed from the dead letters. Each time its attempts are counted anew.
    pub replays: u32,
    /// What its handler returned.
    pub output: Option<Json>,
    /// What its last attempt failed with.
    pub error: Option<StepExecutionError>,
    /// When its request was last written; this and all times in milliseconds since 1970.
    pub enqueued_at: Option<i64>,
    /// When the broker confirmed that request, as far as we were told.
    pub sent_at: Option<i64>,
    /// When its result arrived here.
    pub received_at: Option<i64>,
    /// When its answer is overdue.
    pub due_at: Option<i64>,
    /// How often the request of its current attempt was sent again.
    pub sent_again: u32,
    /// The time before which its retry does not run.
    pub next_retry_at: Option<i64>,
    /// When its last attempt that we know of began.
    pub last_attempted_at: Option<i64>,
    /// When its last failed attempt ended.
    pub last_failure_at: Option<i64>,
    /// When it finished.
    pub completed_at: Option<i64>,
    /// Steps it still waits for.
    pub(super) waits_for: usize,
}

impl StepRun {
    pub(super) fn new(uuid: Uuid) -> Self {
        Self {
            uuid,
            exists: false,
            state: StepState::Pending,
            attempts: 0,
            part: 0,
            checkpoint: None,
            replays: 0,
            output: None,
            error: None,
            enqueued_at: None,
            sent_at: None,
            received_at: None,
            due_at: None,
            sent_again: 0,
            next_retry_at: None,
            last_attempted_at: None,
            last_failure_at: None,
            completed_at: None,
            waits_for: 0,
        }
    }
}

/// Counters that say what a task's state is without looking at its steps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Steps whose answer is awaited.
    pub(super) open: usize,
    /// Those of them that wait for a retry.
    pub(super) retrying: usize,
    /// Steps there are, compensations left out.
    pub(super) created: usize,
    /// Those of them that what depends on them waits for no longer.
    pub(super) satisfied: usize,
    /// The first of the steps that failed the task, in the order of the template, compensations left out.
    pub(super) failed: Option<usize>,
    /// Whether what completed is being undone.
    pub(super) compensating: bool,
    /// For each batchable step that has asked for them, how far its batches are.
    pub(super) divisions: Vec<DivisionTally>,
}

/// Counters of the instances of one batch worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DivisionTally {
    /// They begin in their order, so that this is also the next one's number.
    pub(super) begun: usize,
    pub(super) open: usize,
    pub(super) failed: usize,
}

impl Tally {
    pub(super) fn leave(&mut self, plan: &Plan, step: usize, state: StepState) {
        self.open -= usize::from(state.is_open());
        self.retrying -= usize::from(state == StepState::WaitingForRetry);
        if let Some(division) = plan.division_of(step) {
            let division = &mut self.divisions[division];
            division.begun -= usize::from(state != StepState::Pending);
            division.open -= usize::from(state.is_open());
            division.failed -= usize::from(state == StepState::Error);
        }
    }

    pub(super) fn enter(&mut self, plan: &Plan, step: usize, state: StepState) {
        self.open += usize::from(state.is_open());
        self.retrying += usize::from(state == StepState::WaitingForRetry);
        if let Some(division) = plan.division_of(step) {
            let division = &mut self.divisions[division];
            division.begun += usize::from(state != StepState::Pending);
            division.open += usize::from(state.is_open());
            division.failed += usize::from(state == StepState::Error);
        }
        if plan.target(step).is_some() {
            return;
        }
        if lets_go(plan, step, state) {
            self.satisfied += 1;
        } else if state.is_finished() {
            self.failed = Some(self.failed.map_or(step, |failed| failed.min(step)));
        }
    }
}

/// Whether what depends on a step in this state waits for it no longer.
pub(super) fn lets_go(plan: &Plan, step: usize, state: StepState) -> bool {
    state.satisfies() || state.is_finished() && plan.goes_on_without(step)
}

impl Task {
    /// A task before its first step. `uuids` names its steps, also those that exist only once they are called for.
    pub fn new(
        uuid: Uuid,
        plan: Arc<Plan>,
        context: Json,
        correlation_id: String,
        priority: i32,
        mut uuids: impl FnMut() -> Uuid,
    ) -> Self {
        let steps = (0..plan.len()).map(|_| StepRun::new(uuids())).collect();
        let mut task = Self {
            uuid,
            plan,
            state: TaskState::Pending,
            context,
            correlation_id,
            priority,
            created_at: 0,
            recorded: false,
            trace: None,
            steps,
            tally: Tally::default(),
        };
        task.begin();
        task.recount();
        task
    }

    /// Works all counters out from the steps' states.
    pub fn recount(&mut self) {
        let mut tally = Tally::default();
        tally.divisions.resize_with(self.plan.divisions().len(), DivisionTally::default);
        for step in (0..self.steps.len()).filter(|step| self.steps[*step].exists) {
            let forward = self.plan.target(step).is_none();
            tally.enter(&self.plan, step, self.steps[step].state);
            tally.compensating |= !forward;
            tally.created += usize::from(forward);
        }
        self.tally = tally;
        for step in 0..self.steps.len() {
            self.steps[step].waits_for = if self.steps[step].exists { self.open_parents(step) } else { 0 };
        }
        self.count_compensations();
    }

    /// How many of the steps that a step waits for are not done.
    pub(super) fn open_parents(&self, step: usize) -> usize {
        let open = |parent: &&usize| {
            let run = &self.steps[**parent];
            run.exists && !lets_go(&self.plan, **parent, run.state)
        };
        self.plan.parents(step).iter().filter(open).count()
    }

    /// The steps whose results a step is given.
    pub fn inputs(&self, step: usize) -> Vec<usize> {
        let mut inputs = self.plan.inputs(step, |input| self.steps[input].exists);
        inputs.retain(|input| self.steps[*input].state.satisfies());
        inputs
    }

    /// A compensation waits for those of everything that came after the step it undoes.
    pub(super) fn count_compensations(&mut self) {
        for later in 0..self.steps.len() {
            if !self.steps[later].exists || self.steps[later].state.is_finished() {
                continue;
            }
            for earlier in self.released_by(later) {
                self.steps[earlier].waits_for += 1;
            }
        }
    }

    /// The existing compensations that wait for this one.
    pub(super) fn released_by(&self, compensation: usize) -> Vec<usize> {
        let Some(target) = self.plan.target(compensation) else { return Vec::new() };
        let undone_after = self.plan.ancestors(target);
        let compensations = undone_after.iter().flat_map(|step| self.plan.compensations(*step));
        compensations.copied().filter(|step| self.steps[*step].exists).collect()
    }

    /// The existing step of this name and id.
    pub(super) fn find(&self, name: &str, uuid: Uuid) -> Option<usize> {
        self.plan.find(name).filter(|step| self.steps[*step].exists && self.steps[*step].uuid == uuid)
    }
}
