//! A namespace that is served, and the metrics of its steps: looked up once, not for every step.

use prometheus::{Histogram, IntGauge};

use crate::config::MetricsConfig;
use crate::ops::metrics::METRICS;

pub(super) struct Served {
    pub(super) name: String,
    pub(super) in_flight: IntGauge,
    /// `None` where the settings want no times.
    pub(super) stages: Option<Stages>,
}

/// The worker's part of a step's time.
pub(super) struct Stages {
    pub(super) prefetch_wait: Histogram,
    pub(super) run: Histogram,
    pub(super) confirm: Histogram,
}

impl Served {
    pub(super) fn new(name: String, settings: &MetricsConfig) -> Self {
        let stage = |stage| METRICS.stage_seconds.with_label_values(&[&*name, stage]);
        let stages = settings.step_timing_enabled.then(|| Stages {
            prefetch_wait: stage("prefetch_wait"),
            run: stage("run"),
            confirm: stage("confirm"),
        });
        Self { in_flight: METRICS.in_flight.with_label_values(&[&*name]), stages, name }
    }
}
