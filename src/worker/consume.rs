//! One loop per namespace: starts the life of each delivery as it comes.
//!
//! Each then waits for a slot, first come, first served over all namespaces. A namespace holds at most as many
//! deliveries as there are slots, so those ahead of the one that waits fill the slots once for every other
//! namespace: that many turns, and no more, it may wait. [`Lease`](crate::template::lease::Lease) counts on it.

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use super::{SharedCore, process};
use crate::broker::Subscription;

/// Runs until the worker stops, and the last delivery that had arrived is in `steps`.
pub(super) async fn consume(
    core: SharedCore,
    namespace: Arc<str>,
    mut subscription: Subscription,
    steps: TaskTracker,
) {
    let mut cancelled = false;
    loop {
        let delivery = tokio::select! {
            biased;
            () = core.stopping.cancelled(), if !cancelled => {
                subscription.cancel();
                cancelled = true;
                continue;
            }
            delivery = subscription.recv() => delivery,
        };
        let Some(delivery) = delivery else { return };
        let (core, namespace) = (core.clone(), namespace.clone());
        steps.spawn(async move { process(&core, &namespace, delivery).await });
    }
}
