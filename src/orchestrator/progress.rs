//! How far a task is, told from its template and the states of its steps.

use std::collections::HashMap;

use uuid::Uuid;

use super::task::StepState;
use crate::template::{BatchConfig, FailureStrategy, StepKind, StepTemplate, Template};

/// How many of a task's steps are doing what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) total: i64,
    pub(crate) pending: i64,
    pub(crate) in_progress: i64,
    pub(crate) completed: i64,
    pub(crate) failed: i64,
    pub(crate) ready: i64,
    retrying: i64,
    passed_over: i64,
}

impl Progress {
    /// Counts `steps` steps that are in `state`.
    pub(crate) fn count(&mut self, state: &str, steps: i64) {
        self.total += steps;
        match StepState::parse(state) {
            Some(StepState::Pending) => self.pending += steps,
            Some(StepState::Error) => self.failed += steps,
            Some(state) if state.satisfies() => self.completed += steps,
            Some(state) if state.is_open() => {
                self.in_progress += steps;
                self.retrying += if state == StepState::WaitingForRetry { steps } else { 0 };
            }
            _ => {}
        }
    }

    /// Adds a step on top of the counts, by what its name says.
    pub(crate) fn look_at(&mut self, steps: &Steps<'_>, name: &str, task_is_over: bool) {
        self.ready += i64::from(!task_is_over && steps.readiness(name).ready);
        self.passed_over += i64::from(steps.is_passed_over(name));
    }

    /// Steps whose failure is the task's.
    fn failing(&self) -> i64 {
        self.failed - self.passed_over
    }

    /// The first that applies; a failure hides everything else, so that nobody waits for a task that
    /// cannot finish.
    pub(crate) fn execution_status(&self) -> &'static str {
        if self.failing() > 0 {
            "blocked_by_failures"
        } else if self.ready > 0 {
            "has_ready_steps"
        } else if self.in_progress > 0 {
            "processing"
        } else if self.completed + self.passed_over == self.total && self.total > 0 {
            "all_complete"
        } else {
            "waiting_for_dependencies"
        }
    }

    /// What follows from the execution status.
    pub(crate) fn recommended_action(&self) -> &'static str {
        match self.execution_status() {
            "blocked_by_failures" => "handle_failures",
            "has_ready_steps" => "execute_ready_steps",
            "processing" => "wait_for_completion",
            "all_complete" => "finalize_task",
            _ => "wait_for_dependencies",
        }
    }

    /// Completed steps of all steps, 0 to 100 with two decimals; a batch that failed and is passed over is done.
    pub(crate) fn completion_percentage(&self) -> f64 {
        if self.total == 0 {
            return 0.0;
        }
        ((self.completed + self.passed_over) as f64 * 10_000.0 / self.total as f64).round() / 100.0
    }

    /// Whether somebody has to look.
    pub(crate) fn health_status(&self) -> &'static str {
        if self.failing() > 0 {
            "blocked"
        } else if self.retrying > 0 {
            "recovering"
        } else if self.total > 0 {
            "healthy"
        } else {
            "unknown"
        }
    }
}

/// How ready one step is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Readiness {
    pub(crate) parents: i32,
    pub(crate) completed_parents: i32,
    pub(crate) dependencies_satisfied: bool,
    pub(crate) ready: bool,
    pub(crate) retryable: bool,
}

/// The steps of one task: what its template says of them, and their states by name.
pub(crate) struct Steps<'a> {
    defined: HashMap<&'a str, &'a StepTemplate>,
    states: HashMap<&'a str, &'a str>,
    /// The instances of each batch worker.
    instances: HashMap<&'a str, Vec<&'a str>>,
    /// Who asked for the instances of a batch worker.
    batchables: HashMap<&'a str, (&'a str, &'a BatchConfig)>,
}

impl<'a> Steps<'a> {
    pub(crate) fn new(template: &'a Template, states: HashMap<&'a str, &'a str>) -> Self {
        let defined: HashMap<&str, &StepTemplate> =
            template.steps.iter().map(|step| (step.name.as_str(), step)).collect();
        let mut instances: HashMap<&str, Vec<&str>> = HashMap::new();
        for name in states.keys().filter(|name| !defined.contains_key(*name)) {
            instances.entry(blueprint(name)).or_default().push(*name);
        }
        let mut batchables = HashMap::new();
        for step in &template.steps {
            let StepKind::Batchable(config) = &step.kind else { continue };
            for worker in template.steps.iter().filter(|worker| worker.kind == StepKind::BatchWorker) {
                let named = config.worker_template.as_deref() == Some(&worker.name);
                if named || worker.dependencies.contains(&step.name) {
                    batchables.insert(worker.name.as_str(), (step.name.as_str(), config));
                }
            }
        }
        Self { defined, states, instances, batchables }
    }

    /// How ready a step is. It waits for those of its dependencies that were created, and in place of a batch
    /// worker for its instances and for the step that asked for them.
    ///
    /// A step that undoes another waits for that one, and is never ready by itself: it runs only when the
    /// task fails.
    pub(crate) fn readiness(&self, name: &str) -> Readiness {
        let Some(step) = self.template_step(name) else { return Readiness::default() };
        let parents = self.parents(name);
        let completed = parents.iter().filter(|parent| self.lets_go(parent)).count();
        let all_completed = completed == parents.len();
        let pending = self.states.get(name) == Some(&StepState::Pending.as_str());
        Readiness {
            parents: i32::try_from(parents.len()).unwrap_or(i32::MAX),
            completed_parents: i32::try_from(completed).unwrap_or(i32::MAX),
            dependencies_satisfied: all_completed,
            ready: all_completed && pending && step.compensates.is_none(),
            retryable: step.retry.retryable,
        }
    }

    /// What a step waits for.
    pub(crate) fn parents(&self, name: &str) -> Vec<&'a str> {
        let Some(step) = self.template_step(name) else { return Vec::new() };
        let mut parents = Vec::new();
        for on in &step.dependencies {
            match self.batchables.get(on.as_str()) {
                Some((batchable, _)) => {
                    parents.push(*batchable);
                    parents.extend(self.instances.get(on.as_str()).into_iter().flatten());
                }
                None => parents.extend(self.existing(on)),
            }
        }
        let undone = step.compensates.as_ref().map(|on| format!("{on}{}", &name[step.name.len()..]));
        parents.extend(undone.and_then(|undone| self.existing(&undone)));
        parents
    }

    fn existing(&self, name: &str) -> Option<&'a str> {
        self.states.get_key_value(name).map(|(name, _)| *name)
    }

    fn template_step(&self, name: &str) -> Option<&'a StepTemplate> {
        self.defined.get(name).or_else(|| self.defined.get(blueprint(name))).copied()
    }

    /// The names of the steps there are.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.states.keys().copied()
    }

    fn state(&self, name: &str) -> Option<StepState> {
        self.states.get(name).and_then(|state| StepState::parse(state))
    }

    fn lets_go(&self, name: &str) -> bool {
        self.state(name).is_some_and(StepState::satisfies) || self.is_passed_over(name)
    }

    /// Whether a step failed that is one of many batches, of which the others count.
    fn is_passed_over(&self, name: &str) -> bool {
        let failed = self.state(name).is_some_and(|state| state.is_finished() && !state.satisfies());
        let batch = self.batchables.get(blueprint(name)).filter(|_| !self.defined.contains_key(name));
        let goes_on = |(_, config): &(&str, &BatchConfig)| {
            config.failure_strategy == FailureStrategy::ContinueOnFailure
        };
        failed && batch.is_some_and(goes_on)
    }
}

/// The name of the batch worker that an instance of this name would be one of.
fn blueprint(name: &str) -> &str {
    name.rsplit_once('_').map_or(name, |(worker, _)| worker)
}

/// The id of a step as such, the same in every task of its template.
pub(crate) fn named_step_uuid(template: &Template, step_name: &str) -> Uuid {
    let Template { namespace, name, version, .. } = template;
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{namespace}/{name}/{version}/{step_name}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(states: &[&str], ready: i64) -> Progress {
        let mut progress = Progress { ready, ..Progress::default() };
        states.iter().for_each(|state| progress.count(state, 1));
        progress
    }

    #[test]
    fn a_failure_comes_before_ready_steps_and_these_before_running_ones() {
        for (states, ready, status, action, health) in [
            (
                &["error", "pending", "in_progress"][..],
                1,
                "blocked_by_failures",
                "handle_failures",
                "blocked",
            ),
            (&["pending", "in_progress"], 1, "has_ready_steps", "execute_ready_steps", "healthy"),
            (&["pending", "enqueued"], 0, "processing", "wait_for_completion", "healthy"),
            (&["pending", "waiting_for_retry"], 0, "processing", "wait_for_completion", "recovering"),
            (&["complete", "resolved_manually"], 0, "all_complete", "finalize_task", "healthy"),
            (&["complete", "pending"], 0, "waiting_for_dependencies", "wait_for_dependencies", "healthy"),
            (&[], 0, "waiting_for_dependencies", "wait_for_dependencies", "unknown"),
        ] {
            let progress = progress(states, ready);
            assert_eq!(progress.execution_status(), status, "{states:?}");
            assert_eq!(progress.recommended_action(), action, "{states:?}");
            assert_eq!(progress.health_status(), health, "{states:?}");
        }
    }

    #[test]
    fn every_step_is_counted_once_and_cancelled_ones_only_in_the_total() {
        let counts = progress(
            &["pending", "enqueued", "in_progress", "waiting_for_retry", "complete", "error", "cancelled"],
            0,
        );
        assert_eq!(
            (counts.total, counts.pending, counts.in_progress, counts.completed, counts.failed),
            (7, 1, 3, 1, 1)
        );
    }

    #[test]
    fn the_percentage_has_two_decimals() {
        assert_eq!(progress(&["complete", "pending", "pending"], 0).completion_percentage(), 33.33);
        assert_eq!(progress(&["complete"], 0).completion_percentage(), 100.0);
        assert_eq!(progress(&[], 0).completion_percentage(), 0.0);
    }
}
