//! A namespace that is served, and the metrics of its steps: looked up once, not for every step.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::config::MetricsConfig;
use crate::handler::HandlerRegistry;
use crate::ops::metrics::{Histogram, IntCounter, IntGauge, METRICS, seconds};

pub(super) struct Served {
    pub(super) name: String,
    pub(super) in_flight: IntGauge,
    /// `None` where the settings want no times.
    pub(super) stages: Option<Stages>,
    /// Of each name that has a handler, once its step has run.
    steps: HashMap<String, OnceLock<OfStep>>,
    pub(super) pace: Pace,
}

/// Whether the handlers of a namespace have been quick of late, all in all: those that compute, or block their thread, run
/// beside each other in tasks of their own.
#[derive(Default)]
pub(super) struct Pace(AtomicU32);

impl Pace {
    /// A handler that holds its thread for longer than this is not quick.
    const QUICK: Duration = Duration::from_micros(100);
    /// One that does so for longer than this shows that all before it meant nothing.
    const SLOW: Duration = Duration::from_millis(10);
    /// So many quick ones make a namespace quick.
    const TRUSTED: u32 = 20;
    /// One that was not weighs as much as so many that were: a thread that was kept waiting makes a quick one look slow.
    const SETBACK: u32 = 20;

    /// Notes for how long a handler that is not done held its thread: others are not to wait for its end to be spared.
    pub(super) fn note_unfinished(&self, held: Duration) {
        if held > Self::SLOW {
            self.note(held);
        }
    }

    /// Notes for how long a handler held its thread, all in all.
    pub(super) fn note(&self, polled: Duration) {
        let trust = self.0.load(Ordering::Relaxed);
        let trust = match polled {
            polled if polled > Self::SLOW => 0,
            polled if polled > Self::QUICK => trust.saturating_sub(Self::SETBACK),
            _ => (trust + 1).min(Self::TRUSTED + 2 * Self::SETBACK),
        };
        // What another thread notes at the same time may be lost.
        self.0.store(trust, Ordering::Relaxed);
    }

    pub(super) fn is_quick(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= Self::TRUSTED
    }
}

/// The worker's part of a step's time.
pub(super) struct Stages {
    pub(super) prefetch_wait: Histogram,
    pub(super) run: Histogram,
    pub(super) confirm: Histogram,
}

struct OfStep {
    completed: IntCounter,
    /// `None` where the settings want no times.
    seconds: Option<Histogram>,
}

impl Served {
    pub(super) fn new(name: String, registry: &HandlerRegistry, settings: &MetricsConfig) -> Self {
        let stage = |stage| METRICS.stage_seconds.with_label_values(&[&*name, stage]);
        let stages = settings.step_timing_enabled.then(|| Stages {
            prefetch_wait: stage("prefetch_wait"),
            run: stage("run"),
            confirm: stage("confirm"),
        });
        let steps =
            registry.steps(&name).into_iter().map(|step| (step.to_owned(), OnceLock::new())).collect();
        Self {
            in_flight: METRICS.in_flight.with_label_values(&[&*name]),
            stages,
            steps,
            pace: Pace::default(),
            name,
        }
    }

    /// Notes how long a step's handler ran, where the settings want that.
    pub(super) fn ran(&self, step: &str, time: Duration) {
        self.of(step, |metrics| metrics.seconds.iter().for_each(|times| times.observe(seconds(time))));
    }

    /// Counts a step that is done.
    pub(super) fn completed(&self, step: &str) {
        self.of(step, |metrics| metrics.completed.inc());
    }

    fn of(&self, step: &str, note: impl FnOnce(&OfStep)) {
        match self.steps.get(step) {
            Some(known) => note(known.get_or_init(|| self.look_up(step))),
            // Its handler was found by the template's callable.
            None => note(&self.look_up(step)),
        }
    }

    fn look_up(&self, step: &str) -> OfStep {
        let labels = [&*self.name, step];
        OfStep {
            completed: METRICS.steps.with_label_values(&[&*self.name, step, "completed"]),
            seconds: self.stages.is_some().then(|| METRICS.step_seconds.with_label_values(&labels)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(polled: impl IntoIterator<Item = Duration>) -> Pace {
        let pace = Pace::default();
        polled.into_iter().for_each(|polled| pace.note(polled));
        pace
    }

    fn quick(times: usize) -> impl Iterator<Item = Duration> {
        std::iter::repeat_n(Pace::QUICK, times)
    }

    #[test]
    fn a_namespace_is_quick_once_enough_of_its_handlers_have_been() {
        assert!(!after(quick(19)).is_quick());
        assert!(after(quick(20)).is_quick());
    }

    #[test]
    fn a_thread_kept_waiting_now_and_then_is_no_slow_handler() {
        let late = || [Pace::QUICK + Duration::from_nanos(1), Pace::SLOW];
        assert!(after(quick(1_000).chain(late())).is_quick());
        assert!(!after(quick(1_000).chain(late()).chain(late())).is_quick());
        assert!(after(quick(1_000).chain(late()).chain(late()).chain(quick(20))).is_quick());
        let often = std::iter::repeat_with(|| quick(9).chain(late().into_iter().take(1))).take(1_000);
        assert!(!after(often.flatten()).is_quick(), "one in ten is slow");
    }

    #[test]
    fn one_that_blocks_ends_it() {
        let blocking = [Pace::SLOW + Duration::from_nanos(1)];
        assert!(!after(quick(1_000).chain(blocking).chain(quick(19))).is_quick());
        assert!(after(quick(1_000).chain(blocking).chain(quick(20))).is_quick());
    }
}
