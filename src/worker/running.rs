//! A started worker, and how it stops.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::SharedCore;
use crate::broker::{Broker, BrokerStatus, ConsumerState};
use crate::ops::health::{ConsumerHealth, Identity};

/// After the shutdown timeout, how long cut-off steps may take to be handed back.
const LAST_SETTLEMENTS: Duration = Duration::from_secs(2);

/// A started worker.
pub struct RunningWorker {
    pub(super) core: SharedCore,
    pub(super) broker: Arc<dyn Broker>,
    pub(super) owned: bool,
    pub(super) consumers: TaskTracker,
    pub(super) states: BTreeMap<String, watch::Receiver<ConsumerState>>,
}

impl RunningWorker {
    /// Waits until results can be published and every namespace is consuming, or paused.
    pub async fn ready(&self) {
        // An error means that it is closed; then there is nothing to wait for.
        let _ = self.broker.status().wait_for(|status| *status == BrokerStatus::Connected).await;
        for state in self.states.values() {
            let _ = state.clone().wait_for(is_up).await;
        }
    }

    /// What the health endpoints show.
    pub fn health(&self) -> ConsumerHealth {
        ConsumerHealth {
            identity: Identity::worker(&self.core.config, self.states.keys().cloned().collect()),
            target_steps_per_second: self.core.config.worker.performance_target_steps_per_second,
            broker: self.broker.status(),
            consumers: self.states.clone(),
            registration: watch::channel(None).1,
            stopping: self.core.stopping.clone(),
        }
    }

    /// Stops as [`RustWorker::run`](super::RustWorker::run) does on its first signal.
    pub async fn shutdown(self) -> Drained {
        self.drain(&CancellationToken::new()).await
    }

    pub(super) async fn drain(self, immediate: &CancellationToken) -> Drained {
        let started = Instant::now();
        let limit = Duration::from_secs(self.core.config.worker.shutdown.shutdown_timeout_seconds);
        let running = self.core.busy_slots();
        info!(
            running_steps = running,
            limit_seconds = limit.as_secs(),
            "Stopping: finishing the running steps"
        );
        self.core.stopping.cancel();
        self.core.steps.close();
        tokio::select! {
            () = self.core.steps.wait() => {}
            () = tokio::time::sleep(limit) => {}
            () = immediate.cancelled() => {}
        }
        let cut_off = self.core.busy_slots();
        self.core.interrupted.cancel();
        self.consumers.close();
        let settled = async {
            self.consumers.wait().await;
            self.core.steps.wait().await;
        };
        if tokio::time::timeout(LAST_SETTLEMENTS, settled).await.is_err() {
            warn!(steps = self.core.steps.len(), "Some steps did not stop; the broker hands them out again");
        }
        if self.owned {
            self.broker.close().await;
        }
        let drained = Drained {
            finished: running.saturating_sub(cut_off),
            handed_back: cut_off,
            took: started.elapsed(),
        };
        info!(
            finished = drained.finished,
            handed_back = drained.handed_back,
            drain_ms = drained.took.as_millis() as u64,
            "Stopped"
        );
        drained
    }
}

fn is_up(state: &ConsumerState) -> bool {
    matches!(state, ConsumerState::Consuming | ConsumerState::Paused)
}

impl fmt::Debug for RunningWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningWorker")
            .field("worker_id", &self.core.worker_id)
            .field("namespaces", &self.states.keys())
            .field("running_steps", &self.core.steps.len())
            .finish()
    }
}

/// What a shutdown came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Steps that were running and finished in time.
    pub finished: usize,
    /// Steps that were cut off and handed back.
    pub handed_back: usize,
    /// How long it took.
    pub took: Duration,
}
