//! Keeps the gauges that nobody sets while working: memory, and steps per second.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::metrics::METRICS;
use super::process::resident_memory_kb;
use crate::config::{MetricsConfig, WorkerConfig};

/// How far back the rate looks.
const WINDOW: Duration = Duration::from_secs(10);

/// Sets the metrics that only say what this worker is: the info metric, and the rate it is meant to reach.
pub fn describe(worker: &WorkerConfig) {
    METRICS.worker_info.with_label_values(&[env!("CARGO_PKG_VERSION"), worker.worker_type.as_str()]).set(1);
    METRICS.target_steps_per_second.set(i64::from(worker.performance_target_steps_per_second));
}

/// Measures, every second until `stop` is cancelled, what the settings ask for: the process's memory, and
/// the rate of finished steps over the last ten seconds.
pub async fn run(settings: MetricsConfig, stop: CancellationToken) {
    if !settings.memory_monitoring && !settings.performance_monitoring {
        return;
    }
    let mut rate = Rate::default();
    let mut every_second = tokio::time::interval(Duration::from_secs(1));
    every_second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            now = every_second.tick() => {
                if settings.memory_monitoring && let Some(resident) = resident_memory_kb() {
                    METRICS.resident_memory_bytes.set(i64::try_from(resident * 1_024).unwrap_or(i64::MAX));
                }
                if settings.performance_monitoring {
                    METRICS.steps_per_second.set(rate.observe(now, METRICS.steps_finished()));
                }
            }
        }
    }
}

/// The growth of a count per second, over the last [`WINDOW`].
#[derive(Debug, Default)]
struct Rate {
    seen: VecDeque<(Instant, u64)>,
}

impl Rate {
    fn observe(&mut self, now: Instant, count: u64) -> i64 {
        self.seen.push_back((now, count));
        while self.seen.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.seen.pop_front();
        }
        match self.seen.front() {
            Some((at, before)) if *at < now => {
                let seconds = now.duration_since(*at).as_secs_f64();
                (count.saturating_sub(*before) as f64 / seconds).round() as i64
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_ten_seconds() {
        let start = Instant::now();
        let mut rate = Rate::default();
        let mut observe = |second: u64, count| rate.observe(start + Duration::from_secs(second), count);
        assert_eq!(observe(0, 500), 0, "what was counted before the first look has no rate");
        assert_eq!(observe(1, 600), 100);
        assert_eq!(observe(2, 600), 50);
        for second in 3..=10 {
            observe(second, 600);
        }
        assert_eq!(observe(11, 600), 0, "the burst is more than ten seconds ago");
        assert_eq!(observe(12, 1_600), 100);
    }

    #[test]
    fn a_late_look_divides_by_the_time_that_passed() {
        let start = Instant::now();
        let mut rate = Rate::default();
        rate.observe(start, 0);
        assert_eq!(rate.observe(start + Duration::from_secs(4), 400), 100);
    }
}
