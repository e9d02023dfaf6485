//! A process's connection to the broker: everything goes through here, and here it goes wrong.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::broker::topology::Topology;
use tasker_worker_rust::broker::{
    Acker, BoxFuture, Broker, BrokerError, BrokerStatus, Delivery, Disposition, Message, PublishError,
    PublishJob, Publisher, Settle, Source, StaleDelivery, Subscription,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::locked;
use crate::schedule::{Act, Slip, Who};
use crate::world::World;

/// A deliberate mistake, to see that the simulation sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    None,
    /// Deliveries are acked when they are handed out.
    AcksEarly,
    /// Every so many publishes, one is confirmed and thrown away.
    Drops {
        one_in: usize,
    },
}

/// One life of one process, from its connect to its end.
pub(crate) struct Wire {
    me: Weak<Self>,
    world: Arc<World>,
    who: Who,
    broker: Arc<MemoryBroker>,
    jobs: mpsc::Sender<PublishJob>,
    /// Deliveries not settled, and messages not yet with the broker.
    pending: Arc<AtomicUsize>,
    end: Mutex<Option<End>>,
    ended: CancellationToken,
}

/// How a life ends, and how long the process is then away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Crash { down_ms: u64 },
    Stop { down_ms: u64 },
}

/// Something under way, while it exists.
struct Pending(Arc<AtomicUsize>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn sleep_ms(ms: u64) {
    if ms > 0 {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

impl Wire {
    pub(crate) fn connect(world: &Arc<World>, who: Who) -> Arc<Self> {
        let (jobs, waiting) = mpsc::channel(1_024);
        let wire = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            world: Arc::clone(world),
            who,
            broker: world.broker.connect(),
            jobs,
            pending: Arc::default(),
            end: Mutex::default(),
            ended: CancellationToken::new(),
        });
        tokio::spawn(Arc::clone(&wire).carry(waiting));
        wire
    }

    /// Ends this life, unless it has ended. In a crash nothing goes in or out from this moment on.
    pub(crate) fn end(&self, end: End) {
        let mut decided = locked(&self.end);
        if decided.is_none() {
            *decided = Some(end);
            self.world.log(|| format!("{:?}: {end:?}", self.who));
            if matches!(end, End::Crash { .. }) {
                self.broker.close().now_or_never().expect("the embedded broker closes at once");
            }
            self.ended.cancel();
        }
    }

    pub(crate) async fn ended(&self) -> End {
        self.ended.cancelled().await;
        locked(&self.end).expect("said before the token is cancelled")
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.pending.load(Ordering::Relaxed) == 0
    }

    fn pending(&self) -> Pending {
        self.pending.fetch_add(1, Ordering::Relaxed);
        Pending(Arc::clone(&self.pending))
    }

    /// What is to go wrong now, the part before the act done.
    fn act(&self, act: Act, what: impl FnOnce() -> String) -> Option<Slip> {
        let slip = self.world.act(self.who, act, what);
        match slip {
            Some(Slip::CrashBefore { down_ms }) => self.end(End::Crash { down_ms }),
            Some(Slip::CutBefore) => self.world.broker.disconnect(),
            _ => {}
        }
        slip
    }

    fn after(&self, slip: Option<Slip>) {
        match slip {
            Some(Slip::CrashAfter { down_ms }) => self.end(End::Crash { down_ms }),
            Some(Slip::CutAfter) => self.world.broker.disconnect(),
            _ => {}
        }
    }

    async fn carry(self: Arc<Self>, mut jobs: mpsc::Receiver<PublishJob>) {
        while let Some(PublishJob { message, confirm }) = jobs.recv().await {
            let (wire, pending) = (Arc::clone(&self), self.pending());
            tokio::spawn(async move {
                let answer = wire.publish(message).await;
                sleep_ms(wire.world.schedule.latency_ms).await;
                drop(pending);
                confirm.answer(answer);
            });
        }
    }

    async fn publish(self: &Arc<Self>, message: Arc<Message>) -> Result<(), PublishError> {
        sleep_ms(self.world.schedule.latency_ms).await;
        let slip = self.act(Act::Publish, || {
            format!(
                "{} {}",
                message.routing_key,
                message.properties.message_id.as_deref().unwrap_or_default()
            )
        });
        let lost = || Err(PublishError::Disconnected("the connection was cut".to_owned()));
        let publisher = self.broker.publisher();
        match slip {
            Some(Slip::Delay { ms }) => sleep_ms(ms).await,
            Some(Slip::Refused) => return Err(PublishError::Refused),
            // What is parked is nowhere else, so nothing could heal its loss.
            Some(Slip::MessageLost) if message.exchange != self.world.names.dead_letters() => return Ok(()),
            Some(Slip::Twice { after_ms }) => {
                let (again, publisher, pending) = (message.clone(), publisher.clone(), self.pending());
                tokio::spawn(async move {
                    sleep_ms(after_ms).await;
                    // Nobody relies on it.
                    let _ = publisher.publish(again).await;
                    drop(pending);
                });
            }
            _ => {}
        }
        if self.world.drops_this_publish() {
            return Ok(());
        }
        let answer = publisher.publish(message).await;
        self.after(slip);
        if matches!(slip, Some(Slip::ConfirmLost | Slip::CrashAfter { .. })) { lost() } else { answer }
    }

    async fn deliver(
        self: Arc<Self>,
        mut from: Subscription,
        to: mpsc::UnboundedSender<Delivery>,
        cancel: CancellationToken,
    ) {
        loop {
            let delivery = tokio::select! {
                biased;
                () = cancel.cancelled() => {
                    from.cancel();
                    break;
                }
                delivery = from.recv() => delivery,
            };
            let Some(delivery) = delivery else { break };
            self.hand_out(delivery, &to).await;
        }
        while let Some(delivery) = from.recv().await {
            self.hand_out(delivery, &to).await;
        }
    }

    async fn hand_out(self: &Arc<Self>, mut delivery: Delivery, to: &mpsc::UnboundedSender<Delivery>) {
        let pending = self.pending();
        let (key, redelivered) = (delivery.routing_key.clone(), delivery.redelivered);
        let slip =
            self.act(Act::Receive, || format!("{key}{}", if redelivered { " redelivered" } else { "" }));
        if let Some(Slip::Delay { ms }) = slip {
            sleep_ms(ms).await;
        }
        let inner = delivery.acker;
        let inner = if self.world.flaw == Flaw::AcksEarly {
            // A stale one was not ours to ack.
            let _ = inner.settle(Disposition::Ack);
            None
        } else {
            Some(inner)
        };
        let channel =
            Channel { wire: Arc::clone(self), pending: Mutex::new(Some(pending)), acker: Mutex::new(inner) };
        delivery.acker = Acker::new(0, Arc::new(channel));
        // Nobody reads any more: the delivery settles itself.
        let _ = to.send(delivery);
        self.after(slip);
    }
}

/// What one delivery is settled through.
struct Channel {
    wire: Arc<Wire>,
    pending: Mutex<Option<Pending>>,
    /// `None` where it was acked early.
    acker: Mutex<Option<Acker>>,
}

impl Settle for Channel {
    fn settle(&self, _tag: u64, disposition: Disposition) -> Result<(), StaleDelivery> {
        let pending = locked(&self.pending).take();
        let acker = locked(&self.acker).take();
        let Some(acker) = acker else { return Ok(()) };
        let slip = self.wire.act(Act::Settle, || format!("{disposition:?}"));
        if let Some(Slip::AckLost { until_ms }) = slip {
            let wire = Arc::clone(&self.wire);
            tokio::spawn(async move {
                sleep_ms(until_ms).await;
                wire.world.broker.disconnect();
                drop((acker, pending));
            });
            return Ok(());
        }
        let settled = acker.settle(disposition);
        self.wire.after(slip);
        settled
    }

    fn is_open(&self) -> bool {
        locked(&self.acker).as_ref().is_none_or(Acker::is_usable)
    }
}

impl Broker for Wire {
    fn publisher(&self) -> Publisher {
        Publisher::new(self.jobs.clone())
    }

    fn subscribe(&self, source: Source, prefetch: u16) -> Subscription {
        let inner = self.broker.subscribe(source, prefetch);
        let (sender, deliveries) = mpsc::unbounded_channel();
        let (state, cancel) = (inner.state(), CancellationToken::new());
        let wire = self.me.upgrade().expect("whoever calls holds it");
        tokio::spawn(wire.deliver(inner, sender, cancel.clone()));
        Subscription::new(deliveries, state, cancel)
    }

    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.broker.declare(topology)
    }

    fn verify<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<Vec<String>, BrokerError>> {
        self.broker.verify(topology)
    }

    fn depth<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<Option<u64>, BrokerError>> {
        self.broker.depth(queue)
    }

    fn status(&self) -> watch::Receiver<BrokerStatus> {
        self.broker.status()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.broker.close()
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("who", &self.who).finish_non_exhaustive()
    }
}
