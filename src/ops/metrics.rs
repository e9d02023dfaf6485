//! Every metric of this program. No other file registers one; unbounded values such as ids are never labels.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{GaugeVec, HistogramVec, IntCounterVec, IntGaugeVec, Registry, TextEncoder};
pub(crate) use prometheus::{Histogram, IntCounter, IntGauge};

/// The process's metrics.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:ident = $text:literal $([$($label:literal),+])?,)+) => {
        /// One field per metric; the field's text is the metric's help.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $help])+ pub $name: $kind,)+
        }

        impl Metrics {
            fn new() -> Self {
                let registry = Registry::new();
                $(let $name = <$kind as Metric>::create($text, concat!($($help),+).trim(), &[$($($label),+)?]);
                registry.register(Box::new($name.clone())).expect("metric names are unique");)+
                Self { registry, $($name),+ }
            }
        }

        /// Name, kind, labels and help of every metric, for the documentation.
        pub const CATALOGUE: &[(&str, &str, &[&str], &str)] =
            &[$(($text, stringify!($kind), &[$($($label),+)?], concat!($($help),+))),+];
    };
}

metrics! {
    /// Steps answered, once each however often the answer is published, by what became of them (completed, retried, failed, cancelled, checkpointed, handed_back).
    steps: IntCounterVec = "tasker_worker_steps_total" ["namespace", "step", "outcome"],
    /// Time the handler ran.
    step_seconds: HistogramVec = "tasker_worker_step_seconds" ["namespace", "step"],
    /// Time of a step's stages; enqueued, broker_wait and apply are measured by the orchestrator, prefetch_wait, run and confirm by the worker.
    stage_seconds: HistogramVec = "tasker_step_stage_seconds" ["namespace", "stage"],
    /// Steps running now.
    in_flight: IntGaugeVec = "tasker_worker_steps_in_flight" ["namespace"],
    /// Requests that wait in the namespace's queue, as the broker said at the last look.
    queue_messages: IntGaugeVec = "tasker_worker_queue_messages" ["namespace"],
    /// Seconds this worker alone would need for what waits in the namespace's queue: requests x mean run time / slots.
    work_seconds_backlog: GaugeVec = "tasker_worker_work_seconds_backlog" ["namespace"],
    /// Retries decided on; each is published until the broker confirms it.
    retries: IntCounterVec = "tasker_worker_retries_total" ["namespace", "step"],
    /// Dead letters decided on, and requests refused to the dead letters.
    dead_letters: IntCounterVec = "tasker_worker_dead_letters_total" ["namespace", "reason"],
    /// Requests that came again, by what became of them (joined the running step, replayed its answer, overtaken by what its step
    /// went on with, run).
    redeliveries: IntCounterVec = "tasker_worker_redeliveries_total" ["namespace", "outcome"],
    /// Settlements of deliveries whose channel was gone.
    stale_settlements: IntCounter = "tasker_worker_stale_settlements_total",
    /// 1 while the namespace's consumer receives messages.
    consumer_up: IntGaugeVec = "tasker_worker_consumer_up" ["namespace"],
    /// 1 while the namespace is paused by an operator.
    consumer_paused: IntGaugeVec = "tasker_worker_consumer_paused" ["namespace"],
    /// Steps finished per second, over the last ten seconds.
    steps_per_second: IntGauge = "tasker_worker_steps_per_second",
    /// Steps per second this worker is meant to reach.
    target_steps_per_second: IntGauge = "tasker_worker_target_steps_per_second",
    /// Resident memory of the process.
    resident_memory_bytes: IntGauge = "tasker_process_resident_memory_bytes",
    /// Always 1; its labels describe the worker.
    worker_info: IntGaugeVec = "tasker_worker_info" ["version", "worker_type"],
    /// Connections and channels opened again, by what ended the last one.
    reconnects: IntCounterVec = "tasker_broker_reconnects_total" ["reason"],
    /// 1 while the broker takes no messages.
    blocked: IntGauge = "tasker_broker_blocked",
    /// Publishes that were not confirmed, by why (unroutable, refused, timeout, disconnected, invalid).
    publish_failures: IntCounterVec = "tasker_broker_publish_failures_total" ["reason"],
    /// Tasks accepted.
    tasks_submitted: IntCounterVec = "tasker_orchestrator_tasks_submitted_total" ["namespace"],
    /// Tasks that reached a terminal state.
    tasks_finished: IntCounterVec = "tasker_orchestrator_tasks_finished_total" ["namespace", "state"],
    /// Messages applied, by kind (result, retry, checkpoint, dead_letter) and what came of them (applied, duplicate, stale, unknown, refused).
    messages_applied: IntCounterVec = "tasker_orchestrator_messages_total" ["kind", "outcome"],
    /// Time to apply one batch of messages, its transaction included.
    apply_seconds: Histogram = "tasker_orchestrator_apply_seconds",
    /// Time from a request's commit to its confirmed publication.
    outbox_seconds: Histogram = "tasker_orchestrator_outbox_seconds",
    /// Messages committed but not yet confirmed by the broker.
    outbox_depth: IntGauge = "tasker_orchestrator_outbox_depth",
    /// Requests published again because their answer was overdue.
    overdue: IntCounter = "tasker_orchestrator_overdue_total",
    /// Tasks recorded for somebody to look at, by why (staleness_timeout, worker_unavailable,
    /// max_retries_exceeded, manual_dlq).
    findings: IntCounterVec = "tasker_orchestrator_findings_total" ["reason"],
    /// Failed operations on the store.
    store_errors: IntCounter = "tasker_orchestrator_store_errors_total",
    /// Template files that could not be used, at the last look.
    broken_templates: IntGauge = "tasker_broken_template_files",
    /// Spans for the collector of traces, by what became of them (sent, dropped).
    spans: IntCounterVec = "tasker_spans_total" ["outcome"],
    /// Time to answer an API request.
    api_seconds: HistogramVec = "tasker_orchestrator_api_seconds" ["method", "route", "status"],
}

impl Metrics {
    /// The Prometheus text exposition of every metric.
    pub fn render(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_else(|error| format!("# {error}\n"))
    }

    /// Steps answered so far, by outcome.
    pub fn steps_by_outcome(&self) -> BTreeMap<String, u64> {
        let by_outcome = sums(&self.steps, "outcome");
        by_outcome.into_iter().map(|(outcome, steps)| (outcome, steps as u64)).collect()
    }

    /// Steps answered so far, but for those handed back.
    pub fn steps_finished(&self) -> u64 {
        let by_outcome = self.steps_by_outcome().into_iter();
        by_outcome.filter(|(outcome, _)| outcome != "handed_back").map(|(_, steps)| steps).sum()
    }

    /// How many of a namespace's handlers have run so far, and for how many seconds in all.
    pub fn runs(&self, namespace: &str) -> (u64, f64) {
        let families = self.step_seconds.collect();
        let samples = families.iter().flat_map(|family| family.get_metric()).filter(|sample| {
            sample.get_label().iter().any(|pair| pair.name() == "namespace" && pair.value() == namespace)
        });
        samples.map(|sample| sample.get_histogram()).fold((0, 0.0), |(count, sum), histogram| {
            (count + histogram.get_sample_count(), sum + histogram.get_sample_sum())
        })
    }

    /// Steps running now, by namespace.
    pub fn in_flight_by_namespace(&self) -> BTreeMap<String, i64> {
        let by_namespace = sums(&self.in_flight, "namespace");
        by_namespace.into_iter().map(|(namespace, steps)| (namespace, steps as i64)).collect()
    }
}

/// A counter's or gauge's values, added up for each value of `label`.
fn sums(metric: &impl Collector, label: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for family in metric.collect() {
        for sample in family.get_metric() {
            let value = sample.get_counter().get_value() + sample.get_gauge().get_value();
            for pair in sample.get_label().iter().filter(|pair| pair.name() == label) {
                *sums.entry(pair.value().to_owned()).or_insert(0.0) += value;
            }
        }
    }
    sums
}

/// Seconds, for histograms.
pub fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

trait Metric: Sized {
    fn create(name: &str, help: &str, labels: &[&str]) -> Self;
}

macro_rules! metric {
    ($($kind:ident: |$name:ident, $help:ident, $labels:ident| $create:expr;)+) => {
        $(impl Metric for $kind {
            fn create($name: &str, $help: &str, $labels: &[&str]) -> Self {
                $create.expect("metric names and labels are valid")
            }
        })+
    };
}

metric! {
    IntCounter: |name, help, _labels| IntCounter::new(name, help);
    IntCounterVec: |name, help, labels| IntCounterVec::new(prometheus::opts!(name, help), labels);
    IntGauge: |name, help, _labels| IntGauge::new(name, help);
    GaugeVec: |name, help, labels| GaugeVec::new(prometheus::opts!(name, help), labels);
    IntGaugeVec: |name, help, labels| IntGaugeVec::new(prometheus::opts!(name, help), labels);
    Histogram: |name, help, _labels| Histogram::with_opts(prometheus::histogram_opts!(name, help, SECONDS.to_vec()));
    HistogramVec: |name, help, labels| HistogramVec::new(prometheus::histogram_opts!(name, help, SECONDS.to_vec()), labels);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_exposed_with_help_and_type() {
        METRICS.steps.with_label_values(&["orders", "pay", "completed"]).inc();
        let text = METRICS.render();
        assert!(text.contains("# HELP tasker_worker_steps_total Steps answered"));
        assert!(
            text.contains(
                "tasker_worker_steps_total{namespace=\"orders\",outcome=\"completed\",step=\"pay\"} "
            )
        );
    }

    #[test]
    fn a_step_that_was_handed_back_is_not_finished() {
        let metrics = Metrics::new();
        for outcome in ["completed", "retried", "handed_back"] {
            metrics.steps.with_label_values(&["orders", "pay", outcome]).inc();
        }
        assert_eq!(metrics.steps_finished(), 2);
    }

    #[test]
    fn names_say_their_unit() {
        for (name, kind, _, help) in CATALOGUE {
            assert!(!help.trim().is_empty(), "{name}");
            assert_eq!(name.ends_with("_total"), kind.starts_with("IntCounter"), "{name}");
            assert_eq!(name.ends_with("_seconds"), kind.starts_with("Histogram"), "{name}");
        }
    }
}
