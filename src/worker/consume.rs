//! One loop per namespace: starts the life of each delivery as it comes, and takes none while it is paused.
//!
//! Each then waits for a slot, first come, first served over all namespaces. A namespace holds at most as many
//! deliveries as there are slots, so those ahead of the one that waits fill the slots once for every other
//! namespace: that many turns, and no more, it may wait. [`Lease`](crate::template::lease::Lease) counts on it.

use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::pause::Flow;
use super::served::Served;
use super::supervise::report;
use super::{SharedCore, process};
use crate::broker::{BoxFuture, Broker, BrokerStatus, ConsumerState, Delivery, Source, Subscription};
use crate::ops::metrics::METRICS;

/// So many deliveries are begun before whatever else is ready may run: what they had to say is published meanwhile.
const TURN: usize = 32;

/// Reading a larger request takes a while in itself.
const IN_PLACE_BYTES: usize = 64 * 1024;

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
        let reporting = AbortOnDropHandle::new(core.runtime.spawn(reporting));
        let paused = forward(&core, &served, subscription, &mut flow).await;
        if !paused || core.stopping.is_cancelled() {
            // To the end: what was delivered is still being settled.
            drop(reporting.detach());
            return;
        }
        // What it has to say of this subscription must not come after what is said next.
        reporting.abort();
        let _ = reporting.await;
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
    let mut waiting = FuturesUnordered::new();
    let mut stopping = pin!(core.stopping.cancelled());
    loop {
        let delivery = tokio::select! {
            biased;
            () = &mut stopping, if !cancelled => None,
            _ = flow.wait_for(|flow| *flow != Flow::Running), if !cancelled => None,
            Some(rest) = waiting.next(), if !waiting.is_empty() => {
                hand_over(core, rest);
                // And whatever else is done by now.
                while let Some(Some(rest)) = waiting.next().now_or_never() {
                    hand_over(core, rest);
                }
                continue;
            }
            delivery = subscription.recv() => match delivery {
                None => break,
                delivery => delivery,
            },
        };
        if delivery.is_none() {
            subscription.cancel();
            cancelled = true;
        }
        // And those that came with it: at most as many as there are slots.
        let mut next = delivery;
        let mut begun = 0;
        while let Some(delivery) = next {
            waiting.extend(begin(core, namespace, delivery));
            begun += 1;
            if begun % TURN == 0 {
                tokio::task::yield_now().await;
            }
            next = subscription.try_recv();
        }
    }
    waiting.into_iter().for_each(|begun| hand_over(core, begun.life));
    cancelled
}

/// What is not done yet goes on in a task of its own.
fn hand_over(core: &SharedCore, rest: Option<Life>) {
    if let Some(life) = rest {
        core.runtime.spawn(life);
    }
}

type Life = BoxFuture<'static, ()>;

/// A delivery's life that goes on where it began: to its end, or until its namespace is not quick any more. The rest of it is
/// given back then, before it can hold the thread as another one has.
struct Begun {
    namespace: Arc<Served>,
    life: Option<Life>,
}

impl Future for Begun {
    type Output = Option<Life>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { namespace, life } = &mut *self;
        match life {
            Some(life) if namespace.pace.is_quick() => life.as_mut().poll(context).map(|()| None),
            left => Poll::Ready(left.take()),
        }
    }
}

/// Begins a delivery's life: in a task of its own, or here and now where the namespace's handlers have been quick. Most of
/// these are done at once; one that waits for something is given back, to go on beside the others here. What would begin,
/// wake and end a task for each is saved.
fn begin(core: &SharedCore, namespace: &Arc<Served>, delivery: Delivery) -> Option<Begun> {
    let in_place = namespace.pace.is_quick() && delivery.body.len() <= IN_PLACE_BYTES;
    let life = process(core.clone(), namespace.clone(), delivery);
    if !in_place {
        core.steps.spawn_on(life, &core.runtime);
        return None;
    }
    // One that panics is its own end, not this loop's, as in a task.
    let life = AssertUnwindSafe(core.steps.track_future(life)).catch_unwind().map(drop);
    let mut life: Life = Box::pin(life);
    // Polled anew where it goes on, it asks to be woken there.
    let is_open = (&mut life).now_or_never().is_none();
    is_open.then(|| Begun { namespace: namespace.clone(), life: Some(life) })
}
