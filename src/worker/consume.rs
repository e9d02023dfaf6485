//! One loop per namespace: takes deliveries as they come, and starts each when a slot is free.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::{SharedCore, hand_back, process};
use crate::broker::Subscription;

/// Runs until the worker stops and the last delivery that had arrived is started or handed back.
pub(super) async fn consume(
    core: SharedCore,
    namespace: Arc<str>,
    mut subscription: Subscription,
    slots: Arc<Semaphore>,
    running: TaskTracker,
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
        let slot = tokio::select! {
            biased;
            () = core.stopping.cancelled() => {
                hand_back(&core, delivery);
                break;
            }
            slot = slots.clone().acquire_owned() => slot,
        };
        let (core, namespace) = (core.clone(), namespace.clone());
        running.spawn(async move {
            process(&core, &namespace, delivery).await;
            drop(slot);
        });
    }
    subscription.cancel();
    while let Some(delivery) = subscription.recv().await {
        hand_back(&core, delivery);
    }
}
