//! One loop per namespace: starts the life of each delivery as it comes.

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
