//! Which of a template's steps a task has: those that decisions called for, and the instances of batch workers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use uuid::Uuid;

use super::dag::Plan;
use super::task::{StepRun, Task};
use crate::batch::{Batch, Batches};
use crate::decision::Decision;
use crate::message::Json;
use crate::template::{FailureStrategy, StepKind};

/// Steps that one decision may create.
const MOST_BRANCHES: usize = 100;

/// Batches that one step may ask for.
const MOST_BATCHES: usize = 10_000;

/// Whether a step is part of its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Exists,
    /// Depends on a result that has not come yet.
    Open,
    Never,
}

impl Task {
    /// Whether a step of this kind may return this.
    ///
    /// # Errors
    /// A sentence that says what it may return.
    pub fn check_output(&self, step: usize, output: &Json) -> Result<(), String> {
        match self.plan.step(step).kind {
            StepKind::Decision => self.chosen(step, output).map(drop),
            StepKind::Batchable(_) => self.divided(step, output).map(drop),
            _ => Ok(()),
        }
    }

    /// Makes the steps that a decision's or a batchable step's result calls for, and tells which these are. They
    /// have the same ids whenever that is worked out.
    pub(super) fn grow(&mut self, step: usize) -> Vec<usize> {
        if self.plan.batch_config(step).is_some() {
            self.divide(step);
        }
        let fates = self.fates();
        let new =
            (0..self.steps.len()).filter(|step| fates[*step] == Fate::Exists && !self.steps[*step].exists);
        let new: Vec<usize> = new.collect();
        for step in &new {
            self.steps[*step].exists = true;
            self.steps[*step].uuid = Uuid::new_v5(&self.uuid, self.plan.step(*step).name.as_bytes());
        }
        for step in &new {
            self.steps[*step].waits_for = self.open_parents(*step);
        }
        self.tally.created += new.len();
        new
    }

    /// Which steps exist from the beginning.
    pub(super) fn begin(&mut self) {
        for (step, fate) in self.fates().into_iter().enumerate() {
            self.steps[step].exists = fate == Fate::Exists;
        }
    }

    /// Puts the stored steps back, those included that were made while the task ran.
    ///
    /// # Errors
    /// A sentence, when the template has no such step.
    pub fn restore(&mut self, mut stored: HashMap<String, StepRun>) -> Result<(), String> {
        let own = self.steps.len();
        self.put_back(0, &mut stored);
        for step in 0..own {
            if self.plan.batch_config(step).is_some() && self.steps[step].state.satisfies() {
                self.divide(step);
            }
        }
        self.put_back(own, &mut stored);
        if let Some(name) = stored.keys().next() {
            return Err(format!("task {} has a step {name:?}, and its template has none", self.uuid));
        }
        self.recount();
        Ok(())
    }

    fn put_back(&mut self, from: usize, stored: &mut HashMap<String, StepRun>) {
        for step in from..self.steps.len() {
            if let Some(run) = stored.remove(&self.plan.step(step).name) {
                self.steps[step] = run;
            }
        }
    }

    /// Adds the places of a batchable step's instances.
    fn divide(&mut self, step: usize) {
        let output = self.steps[step].output.clone().unwrap_or_default();
        // What was settled by hand may have no result: then there are no batches.
        let (worker, batches) = self.divided(step, &output).unwrap_or_default();
        if let Ok(plan) = self.plan.divided(step, worker, batches, without_batches(&output)) {
            self.plan = Arc::new(plan);
            let name = |step: usize| self.plan.step(step).name.as_bytes();
            for step in self.steps.len()..self.plan.len() {
                self.steps.push(StepRun::new(Uuid::new_v5(&self.uuid, name(step))));
            }
            self.tally.divisions.resize_with(self.plan.divisions().len(), Default::default);
        }
    }

    /// From the results so far, what became of every step but compensations.
    fn fates(&self) -> Vec<Fate> {
        let plan = &self.plan;
        let mut fates = vec![Fate::Never; self.steps.len()];
        let mut chosen: HashMap<usize, Vec<usize>> = HashMap::new();
        for step in plan.order() {
            let deferred = plan.step(step).kind == StepKind::DeferredConvergence;
            let parents =
                plan.parents(step).iter().map(|parent| match (fates[*parent], chosen.get(parent)) {
                    (Fate::Exists, Some(_)) if deferred => Fate::Exists,
                    (Fate::Exists, Some(_)) if !self.steps[*parent].state.satisfies() => Fate::Open,
                    (Fate::Exists, Some(steps)) if !steps.contains(&plan.blueprint(step)) => Fate::Never,
                    (fate, _) => fate,
                });
            fates[step] = if deferred { any_of(parents) } else { all_of(parents) };
            if plan.is_blueprint(step) && fates[step] == Fate::Exists {
                let mut batchable = plan.parents(step).iter().filter(|p| plan.batch_config(**p).is_some());
                let divided = batchable.all(|parent| self.steps[*parent].state.satisfies());
                fates[step] = if divided { Fate::Never } else { Fate::Open };
            }
            if plan.step(step).kind == StepKind::Decision {
                let output = self.steps[step].output.clone().unwrap_or_default();
                chosen.insert(step, self.chosen(step, &output).unwrap_or_default());
            }
        }
        fates
    }

    /// The steps that a decision's result names.
    fn chosen(&self, step: usize, output: &Json) -> Result<Vec<usize>, String> {
        let name = &self.plan.step(step).name;
        let decision: Decision = output
            .parse()
            .map_err(|error| format!("decision {name:?} did not return a decision_point_outcome: {error}"))?;
        let names = decision.step_names();
        if names.len() > MOST_BRANCHES {
            let count = names.len();
            return Err(format!(
                "decision {name:?} names {count} steps; at most {MOST_BRANCHES} are allowed"
            ));
        }
        let behind = self.plan.children(step);
        let find = |wanted: &String| {
            self.plan.find(wanted).filter(|step| behind.contains(step)).ok_or_else(|| {
                let known = behind.iter().map(|step| self.plan.step(*step).name.as_str());
                let known = known.take(MOST_BRANCHES).collect::<Vec<_>>().join(", ");
                format!("decision {name:?} names {wanted:?}, which is no step behind it; there are: {known}")
            })
        };
        names.iter().map(find).collect()
    }

    /// The batch worker that a batchable step's result names, and its batches.
    fn divided(&self, step: usize, output: &Json) -> Result<(Option<usize>, Vec<Batch>), String> {
        let plan = &self.plan;
        let name = &plan.step(step).name;
        let outcome: Batches = output
            .parse()
            .map_err(|error| format!("step {name:?} did not return a batch_processing_outcome: {error}"))?;
        let batches = outcome.batches().to_vec();
        let count = batches.len();
        if count != outcome.worker_count() {
            let said = outcome.worker_count();
            return Err(format!(
                "step {name:?}: worker_count is {said}, and there are {count} cursor_configs"
            ));
        }
        if count > MOST_BATCHES {
            return Err(format!(
                "step {name:?} asks for {count} batches; at most {MOST_BATCHES} are allowed, so make them larger"
            ));
        }
        if count == 0 {
            return Ok((None, batches));
        }
        let workers = || plan.children(step).iter().copied().filter(|step| plan.is_blueprint(*step));
        let wanted = outcome.worker().or(plan.batch_config(step).and_then(|c| c.worker_template.as_deref()));
        let worker = match wanted {
            Some(wanted) => workers().find(|worker| plan.step(*worker).name == wanted),
            None => workers().next().filter(|_| workers().count() == 1),
        };
        let worker = worker.ok_or_else(|| {
            let known =
                workers().map(|worker| plan.step(worker).name.as_str()).collect::<Vec<_>>().join(", ");
            let wanted = wanted.map_or_else(|| "no batch worker".to_owned(), |wanted| format!("{wanted:?}"));
            format!(
                "step {name:?} names {wanted}; it has to name a batch worker behind it; there are: {known}"
            )
        })?;
        plan.divided(step, Some(worker), batches.clone(), Json::null())?;
        Ok((Some(worker), batches))
    }

    /// The instance of a batch worker that may begin now: no more than its template's `parallelism` run at once, and
    /// none begins after a failure where the first one counts.
    pub(super) fn next_instance(&self, division: usize) -> Option<usize> {
        let (tally, division) = (&self.tally.divisions[division], &self.plan.divisions()[division]);
        let config = self.plan.batch_config(division.batchable)?;
        let failed = config.failure_strategy == FailureStrategy::FailFast && tally.failed > 0;
        let over = tally.begun == division.batches.len() || tally.open >= config.parallelism as usize;
        let next = division.first + tally.begun;
        (!failed && !over && self.steps[next].waits_for == 0).then_some(next)
    }
}

impl Plan {
    /// Whether what waits for a step goes on when it failed: it is one of many batches, and the others count.
    pub(super) fn goes_on_without(&self, step: usize) -> bool {
        self.division_of(step).is_some()
            && self
                .batch(step)
                .is_some_and(|(config, _)| config.failure_strategy == FailureStrategy::ContinueOnFailure)
    }
}

/// What a batchable step returned beside its batches.
fn without_batches(output: &Json) -> Json {
    let fields = output.parse::<BTreeMap<String, Json>>();
    let rest = fields.map(|fields| fields.into_iter().filter(|(name, _)| name != Batches::FIELD));
    let rest: BTreeMap<String, Json> = rest.map(Iterator::collect).unwrap_or_default();
    Json::encode(&rest).expect("texts and JSON always encode")
}

/// What waits for all of these.
fn all_of(parents: impl Iterator<Item = Fate>) -> Fate {
    parents.fold(Fate::Exists, |all, parent| match (all, parent) {
        (Fate::Never, _) | (_, Fate::Never) => Fate::Never,
        (Fate::Open, _) | (_, Fate::Open) => Fate::Open,
        _ => Fate::Exists,
    })
}

/// What waits for those of these that exist. Without any dependency there is nothing that could be missing.
fn any_of(parents: impl Iterator<Item = Fate>) -> Fate {
    let any = parents.reduce(|any, parent| match (any, parent) {
        (Fate::Open, _) | (_, Fate::Open) => Fate::Open,
        (Fate::Never, Fate::Never) => Fate::Never,
        _ => Fate::Exists,
    });
    any.unwrap_or(Fate::Exists)
}
