//! How much work waits: the length of each namespace's queue, and how long it would keep this worker busy.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tracing::debug;

use super::{Core, SharedCore};
use crate::broker::{Broker, BrokerStatus};
use crate::ops::metrics::METRICS;

/// As often as RabbitMQ renews its own statistics.
const PERIOD: Duration = Duration::from_secs(5);

/// Looks at the queues until the worker stops or its broker is closed: also in the middle of a look, as a broker
/// that went away answers late.
pub(super) async fn watch(core: SharedCore, broker: Arc<dyn Broker>, namespaces: Vec<String>) {
    let mut status = broker.status();
    let closed = async { drop(status.wait_for(|status| *status == BrokerStatus::Closed).await) };
    tokio::select! {
        () = core.stopping.cancelled() => {}
        () = closed => {}
        () = look_again_and_again(&core, &*broker, namespaces) => {}
    }
}

async fn look_again_and_again(core: &Core, broker: &dyn Broker, namespaces: Vec<String>) {
    let mut means: Vec<Mean> = namespaces.iter().map(|_| Mean::default()).collect();
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if *broker.status().borrow() != BrokerStatus::Connected {
            continue;
        }
        for (namespace, mean) in namespaces.iter().zip(&mut means) {
            match broker.depth(&core.names.step_queue(namespace)).await {
                Ok(waiting) => note(core, namespace, waiting.unwrap_or(0), mean),
                Err(error) => debug!(namespace, %error, "The queue's length is unknown"),
            }
        }
    }
}

fn note(core: &Core, namespace: &str, waiting: u64, mean: &mut Mean) {
    let gauge = METRICS.queue_messages.with_label_values(&[namespace]);
    gauge.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    let (runs, seconds) = METRICS.runs(namespace);
    if let Some(mean) = mean.observe(runs, seconds) {
        let slots = f64::from(core.config.worker.max_concurrent_steps);
        METRICS.work_seconds_backlog.with_label_values(&[namespace]).set(waiting as f64 * mean / slots);
    }
}

/// The mean run time of late: each look's own mean, half blended into the one before.
#[derive(Debug, Default)]
struct Mean {
    runs: u64,
    seconds: f64,
    mean: Option<f64>,
}

impl Mean {
    /// `runs` and `seconds` count from the start of the process. `None` until something has run.
    fn observe(&mut self, runs: u64, seconds: f64) -> Option<f64> {
        let (new_runs, new_seconds) = (runs - self.runs, seconds - self.seconds);
        (self.runs, self.seconds) = (runs, seconds);
        if new_runs > 0 {
            let fresh = new_seconds / new_runs as f64;
            self.mean = Some(self.mean.map_or(fresh, |mean| (mean + fresh) / 2.0));
        }
        self.mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_follows_what_ran_lately_and_stays_while_nothing_runs() {
        let mut mean = Mean::default();
        assert_eq!(mean.observe(0, 0.0), None, "nothing has run yet");
        assert_eq!(mean.observe(10, 20.0), Some(2.0));
        assert_eq!(mean.observe(10, 20.0), Some(2.0));
        assert_eq!(mean.observe(11, 26.0), Some(4.0), "half of 2 and half of 6");
    }
}
