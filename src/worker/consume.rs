//! One loop per namespace: starts the life of each delivery as it comes, and takes none while it is paused.
//!
//! Each then waits for a slot, first come, first served over all namespaces. A namespace holds at most as many
//! deliveries as there are slots, so those ahead of the one that waits fill the slots once for every other
//! namespace: that many turns, and no more, it may wait. [`Lease`](crate::template::lease::Lease) counts on it.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::pause::Flow;
use super::served::Served;
use super::supervise::report;
use super::{SharedCore, process};
use crate::broker::{Broker, BrokerStatus, ConsumerState, Source, Subscription};
use crate::ops::metrics::METRICS;

/// Runs until the worker stops or the broker is closed, and the last delivery that had arrived is among the core's steps.
pub(super) async fn consume(
    core: SharedCore,
    broker: Arc<dyn Broker>,
    namespace: String,
    shown: watch::Sender<ConsumerState>,
) {
    let Some(mut flow) = core.pauses.watch(&namespace) else { return };
    let served = Arc::new(Served::new(namespace, &core.registry, &core.config.worker.metrics));
    let namespace = &served.name;
    let mut connection = broker.status();
    let prefetch = core.config.worker.max_concurrent_steps;
    loop {
        if *flow.borrow_and_update() != Flow::Running {
            METRICS.consumer_up.with_label_values(&[namespace]).set(0);
            shown.send_replace(ConsumerState::Paused);
            tokio::select! {
                () = core.stopping.cancelled() => {}
                _ = connection.wait_for(|status| *status == BrokerStatus::Closed) => {}
                // Its sender lives as long as the worker.
                _ = flow.wait_for(|flow| *flow == Flow::Running) => continue,
            }
            shown.send_replace(ConsumerState::Stopped);
            return;
        }
        let subscription = broker.subscribe(Source::Queue(core.names.step_queue(namespace)), prefetch);
        let reporting = report(namespace.to_string(), subscription.state(), broker.status(), shown.clone());
        let reporting = AbortOnDropHandle::new(tokio::spawn(reporting));
        let paused = forward(&core, &served, subscription, &mut flow).await;
        if !paused || core.stopping.is_cancelled() {
            // To the end: what was delivered is still being settled.
            drop(reporting.detach());
            return;
        }
    }
}

/// Starts deliveries until no more are to come. Tells whether that is because the namespace was paused.
async fn forward(
    core: &SharedCore,
    namespace: &Arc<Served>,
    mut subscription: Subscription,
    flow: &mut watch::Receiver<Flow>,
) -> bool {
    let mut cancelled = false;
    loop {
        let delivery = tokio::select! {
            biased;
            () = core.stopping.cancelled(), if !cancelled => None,
            _ = flow.wait_for(|flow| *flow != Flow::Running), if !cancelled => None,
            delivery = subscription.recv() => match delivery {
                None => return cancelled,
                delivery => delivery,
            },
        };
        if delivery.is_none() {
            subscription.cancel();
            cancelled = true;
        }
        // And those that came with it: at most as many as there are slots.
        let mut next = delivery;
        while let Some(delivery) = next {
            core.steps.spawn(process(core.clone(), namespace.clone(), delivery));
            next = subscription.try_recv();
        }
    }
}
