//! One loop per namespace takes deliveries as they come; one for all starts each when a slot is free.
//!
//! First come, first served over all namespaces. A namespace holds at most as many deliveries as there are
//! slots, so the deliveries ahead of the one that waits fill the slots once for every other namespace: that
//! many turns, and no more, it may wait. [`Lease`](crate::template::lease::Lease) counts on it.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;

use super::{SharedCore, hand_back, process};
use crate::broker::{Delivery, Subscription};

/// A delivery, and the namespace of the queue it came from.
pub(super) type Arrival = (Arc<str>, Delivery);

/// Runs until the worker stops and the last delivery that had arrived is passed on or handed back.
pub(super) async fn consume(
    core: SharedCore,
    namespace: Arc<str>,
    mut subscription: Subscription,
    arrivals: mpsc::UnboundedSender<Arrival>,
) {
    loop {
        let delivery = tokio::select! {
            biased;
            () = core.stopping.cancelled() => break,
            delivery = subscription.recv() => match delivery {
                Some(delivery) => delivery,
                None => return,
            },
        };
        if let Err(unwanted) = arrivals.send((namespace.clone(), delivery)) {
            hand_back(&core, unwanted.0.1);
        }
    }
    subscription.cancel();
    while let Some(delivery) = subscription.recv().await {
        hand_back(&core, delivery);
    }
}

/// Starts what arrives, in the order of arrival, until every consumer has ended. Once the worker stops,
/// hands it back instead.
pub(super) async fn start(
    core: SharedCore,
    mut arrivals: mpsc::UnboundedReceiver<Arrival>,
    slots: Arc<Semaphore>,
    running: TaskTracker,
) {
    while let Some((namespace, delivery)) = arrivals.recv().await {
        let slot = tokio::select! {
            biased;
            () = core.stopping.cancelled() => {
                hand_back(&core, delivery);
                continue;
            }
            slot = slots.clone().acquire_owned() => slot,
        };
        // Its channel broke while it waited: the broker hands it out again.
        if !delivery.acker.is_usable() {
            continue;
        }
        let core = core.clone();
        running.spawn(async move {
            process(&core, &namespace, delivery).await;
            drop(slot);
        });
    }
}
