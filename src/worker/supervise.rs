//! What runs beside the steps: the topology made sure of, the consumers started, their state reported.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::{Core, SharedCore, consume, control};
use crate::broker::topology::Topology;
use crate::broker::{Broker, BrokerError, BrokerStatus, ConsumerState, Source};
use crate::config::TopologyMode;
use crate::ops::metrics::METRICS;

/// The pause before the topology is tried again that the broker refused.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);
/// The pause before the topology is tried again when the broker could not be reached.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(250);
/// How long steps wait for the worker to hear orders about them. One that hears none works all the same.
const DEAF: Duration = Duration::from_secs(5);
/// Control messages held at once.
const CONTROL_PREFETCH: u16 = 100;

/// Where each namespace's consumer stands, for whoever watches.
pub(super) type States = BTreeMap<String, watch::Sender<ConsumerState>>;

/// Makes sure of the topology and listens to orders, then consumes every namespace until the worker stops.
pub(super) async fn supervise(
    core: SharedCore,
    broker: Arc<dyn Broker>,
    states: States,
    consumers: TaskTracker,
) {
    tokio::select! {
        () = core.stopping.cancelled() => return,
        () = ensure_topology(&core, broker.as_ref(), &states) => {}
    }
    let control = broker.subscribe(Source::Broadcast(core.names.control()), CONTROL_PREFETCH);
    let mut hears = control.state();
    tokio::select! {
        () = core.stopping.cancelled() => return,
        _ = timeout(DEAF, hears.wait_for(|state| *state == ConsumerState::Consuming)) => {}
    }
    core.pauses.look(&*broker, &core.names).await;
    let consuming = states
        .into_iter()
        .map(|(namespace, state)| consume::consume(core.clone(), broker.clone(), namespace, state));
    let consuming = consuming.collect::<FuturesUnordered<_>>().collect::<()>();
    broker.run_beside(Box::pin(consumers.track_future(consuming)));
    // To the very end: while the worker drains, a running step may still be cancelled.
    tokio::select! {
        () = control::listen(core.clone(), broker, control) => {}
        () = core.interrupted.cancelled() => {}
    }
}

/// Keeps state and metric of one consumer true, and says in the log when it stops or resumes.
pub(super) async fn report(
    namespace: String,
    mut actual: watch::Receiver<ConsumerState>,
    mut broker: watch::Receiver<BrokerStatus>,
    shown: watch::Sender<ConsumerState>,
) {
    let up = METRICS.consumer_up.with_label_values(&[&namespace]);
    let mut consuming = false;
    loop {
        let now = match (&*actual.borrow_and_update(), &*broker.borrow_and_update()) {
            (ConsumerState::Consuming, BrokerStatus::Blocked(why)) => ConsumerState::Blocked(why.clone()),
            (state, _) => state.clone(),
        };
        match &now {
            ConsumerState::Consuming if !consuming => info!(namespace, "Consuming"),
            ConsumerState::Connecting(reason) | ConsumerState::Blocked(reason) if consuming => {
                warn!(namespace, reason, "Not consuming any more")
            }
            _ => {}
        }
        consuming = now == ConsumerState::Consuming;
        up.set(i64::from(consuming));
        let over = now == ConsumerState::Stopped;
        shown.send_replace(now);
        let changed = async {
            tokio::select! {
                changed = actual.changed() => changed,
                Ok(()) = broker.changed() => Ok(()),
            }
        };
        if over || changed.await.is_err() {
            up.set(0);
            return;
        }
    }
}

/// Declares or verifies until that succeeds.
async fn ensure_topology(core: &Core, broker: &dyn Broker, states: &States) {
    let topology = Topology::new(&core.names, &core.ladder, core.config.broker.queue_kind, states.keys());
    let mut last_problem = None;
    loop {
        if last_problem.is_none() && *broker.status().borrow() == BrokerStatus::Connected {
            for state in states.values() {
                state.send_replace(ConsumerState::Declaring);
            }
        }
        let outcome = match core.config.broker.topology {
            TopologyMode::Declare => broker.declare(&topology).await,
            TopologyMode::Verify => match broker.verify(&topology).await {
                Ok(missing) if missing.is_empty() => Ok(()),
                Ok(missing) => Err(BrokerError::Refused(format!(
                    "missing on the broker: {}; create them with `tasker-worker-rust topology declare`",
                    missing.join(", ")
                ))),
                Err(error) => Err(error),
            },
        };
        let Err(problem) = outcome else { return };
        if last_problem.as_ref() != Some(&problem) {
            error!(%problem, "The queues cannot be used yet; trying again until they can");
            for state in states.values() {
                state.send_replace(ConsumerState::Connecting(problem.to_string()));
            }
        }
        let pause = match problem {
            BrokerError::Refused(_) | BrokerError::Invalid(_) => REFUSED_PAUSE,
            BrokerError::Unreachable { .. } | BrokerError::Closed => UNREACHABLE_PAUSE,
        };
        last_problem = Some(problem);
        tokio::time::sleep(pause).await;
    }
}
