//! A namespace that is served, and the metrics of its steps: looked up once, not for every step.

use std::collections::HashMap;
use std::sync::OnceLock;
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
        Self { in_flight: METRICS.in_flight.with_label_values(&[&*name]), stages, steps, name }
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
