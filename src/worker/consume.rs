//! One loop per namespace: starts the life of each delivery as it comes, and takes none while it is paused.
//!
//! Each then waits for a slot, first come, first served over all namespaces. A namespace holds at most as many
//! deliveries as there are slots, so those ahead of the one that waits fill the slots once for every other
//! namespace: that many turns, and no more, it may wait. [`Lease`](crate::template::lease::Lease) counts on it.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::pause::Flow;
use super::supervise::report;
use super::{SharedCore, process};
use crate::broker::{Broker, ConsumerState, Source, Subscription};
use crate::ops::metrics::METRICS;

/// Runs until the worker stops, and the last delivery that had arrived is in `steps`.
pub(super) async fn consume(
    core: SharedCore,
    broker: Arc<dyn Broker>,
    namespace: Arc<str>,
    shown: watch::Sender<ConsumerState>,
    steps: TaskTracker,
) {
    let Some(mut flow) = core.pauses.watch(&namespace) else { return };
    let prefetch = core.config.worker.max_concurrent_steps;
    loop {
        if *flow.borrow_and_update() != Flow::Running {
            METRICS.consumer_up.with_label_values(&[&namespace]).set(0);
            shown.send_replace(ConsumerState::Paused);
            tokio::select! {
                () = core.stopping.cancelled() => {
                    shown.send_replace(ConsumerState::Stopped);
                    return;
                }
                // Its sender lives as long as the worker.
                _ = flow.wait_for(|flow| *flow == Flow::Running) => {}
            }
        }
        let subscription = broker.subscribe(Source::Queue(core.names.step_queue(&namespace)), prefetch);
        let reporting = report(namespace.to_string(), subscription.state(), broker.status(), shown.clone());
        let reporting = AbortOnDropHandle::new(tokio::spawn(reporting));
        forward(&core, &namespace, subscription, &mut flow, &steps).await;
        if core.stopping.is_cancelled() {
            // To the end: what was delivered is still being settled.
            drop(reporting.detach());
            return;
        }
    }
}

/// Starts deliveries until the worker stops or the namespace is paused, and no more are to come.
async fn forward(
    core: &SharedCore,
    namespace: &Arc<str>,
    mut subscription: Subscription,
    flow: &mut watch::Receiver<Flow>,
    steps: &TaskTracker,
) {
    let mut cancelled = false;
    loop {
        let delivery = tokio::select! {
            biased;
            () = core.stopping.cancelled(), if !cancelled => None,
            _ = flow.wait_for(|flow| *flow != Flow::Running), if !cancelled => None,
            delivery = subscription.recv() => match delivery {
                None => return,
                delivery => delivery,
            },
        };
        let Some(delivery) = delivery else {
            subscription.cancel();
            cancelled = true;
            continue;
        };
        let (core, namespace) = (core.clone(), namespace.clone());
        steps.spawn(async move { process(&core, &namespace, delivery).await });
    }
}
