//! How far a task is, told from its template and the states of its steps.

use std::collections::HashMap;

use uuid::Uuid;

use super::task::StepState;
use crate::template::Template;

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

    /// The first that applies; a failure hides everything else, so that nobody waits for a task that
    /// cannot finish.
    pub(crate) fn execution_status(&self) -> &'static str {
        if self.failed > 0 {
            "blocked_by_failures"
        } else if self.ready > 0 {
            "has_ready_steps"
        } else if self.in_progress > 0 {
            "processing"
        } else if self.completed == self.total && self.total > 0 {
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

    /// Completed steps of all steps, 0 to 100 with two decimals.
    pub(crate) fn completion_percentage(&self) -> f64 {
        if self.total == 0 {
            return 0.0;
        }
        (self.completed as f64 * 10_000.0 / self.total as f64).round() / 100.0
    }

    /// Whether somebody has to look.
    pub(crate) fn health_status(&self) -> &'static str {
        if self.failed > 0 {
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

/// How ready the step called `name` is, when the steps of its task are in these `states`.
///
/// A step that undoes another waits for that one, and is never ready by itself: it runs only when the
/// task fails.
pub(crate) fn readiness(template: &Template, states: &HashMap<&str, &str>, name: &str) -> Readiness {
    let Some(step) = template.steps.iter().find(|step| step.name == name) else {
        return Readiness::default();
    };
    let state_of = |name: &str| states.get(name).copied().unwrap_or_default();
    let complete = |name: &&String| StepState::parse(state_of(name)).is_some_and(StepState::satisfies);
    let parents = || step.dependencies.iter().chain(&step.compensates);
    let (all, completed) = (parents().count(), parents().filter(complete).count());
    Readiness {
        parents: i32::try_from(all).unwrap_or(i32::MAX),
        completed_parents: i32::try_from(completed).unwrap_or(i32::MAX),
        dependencies_satisfied: completed == all,
        ready: completed == all && step.compensates.is_none() && state_of(name) == "pending",
        retryable: step.retry.retryable,
    }
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
