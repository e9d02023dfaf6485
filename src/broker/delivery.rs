//! Consuming: deliveries, and what settles them.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Properties;

/// Messages as they arrive.
#[derive(Debug)]
pub struct Subscription {
    deliveries: mpsc::UnboundedReceiver<Delivery>,
    state: watch::Receiver<ConsumerState>,
    cancel: CancellationToken,
}

impl Subscription {
    /// For brokers: a subscription to what is sent into `deliveries`, until `cancel`.
    pub fn new(
        deliveries: mpsc::UnboundedReceiver<Delivery>,
        state: watch::Receiver<ConsumerState>,
        cancel: CancellationToken,
    ) -> Self {
        Self { deliveries, state, cancel }
    }

    /// The next delivery; `None` once cancelled and empty. Cancel-safe. At most `prefetch` deliveries are
    /// unsettled at a time, those waiting here included.
    pub async fn recv(&mut self) -> Option<Delivery> {
        self.deliveries.recv().await
    }

    /// The next delivery that is here already.
    pub fn try_recv(&mut self) -> Option<Delivery> {
        self.deliveries.try_recv().ok()
    }

    /// The consumer's state, now and at every change.
    pub fn state(&self) -> watch::Receiver<ConsumerState> {
        self.state.clone()
    }

    /// Asks the broker to send no more. Deliveries already here still come out of [`recv`](Self::recv) and
    /// can be settled.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }
}

/// Dropping a subscription ends it.
impl Drop for Subscription {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Where the supervisor of one consumer stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsumerState {
    /// Connecting, or waiting to try again; the text says why.
    Connecting(String),
    /// Making sure of the queues and exchanges.
    Declaring,
    /// Messages are flowing.
    Consuming,
    /// Consuming, but the broker takes no messages, so that no work is begun; the text says why.
    Blocked(String),
    /// Cancelled by an operator until resumed; what was delivered is finished.
    Paused,
    /// Cancelled by us; what was delivered can still be settled.
    Draining,
    /// Over.
    Stopped,
}

impl ConsumerState {
    /// The state's name.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Connecting(_) => "connecting",
            Self::Declaring => "declaring",
            Self::Consuming => "consuming",
            Self::Blocked(_) => "blocked",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }

    /// Why it is not consuming, where that is not plain.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Connecting(why) | Self::Blocked(why) => Some(why),
            _ => None,
        }
    }
}

/// A message from a queue. It stays the broker's until its [`Acker`] settles it.
#[derive(Debug)]
pub struct Delivery {
    /// The exchange it was published to.
    pub exchange: String,
    /// The key it was published under.
    pub routing_key: String,
    /// Whether it may have been handed out before.
    pub redelivered: bool,
    /// What the broker stores beside the body.
    pub properties: Properties,
    /// The body.
    pub body: Bytes,
    /// When it arrived here.
    pub received_at: Instant,
    /// Settles it.
    pub acker: Acker,
}

/// Settles one delivery, once, on the channel it came from.
///
/// Dropped unsettled, it rejects the delivery back to its queue, counted against the delivery limit: a
/// message whose processing keeps dying ends in the dead letters, and none is held for ever.
pub struct Acker {
    tag: u64,
    channel: Option<Arc<dyn Settle>>,
}

/// What can be done with a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Done: the broker forgets it.
    Ack,
    /// Not done, and not its fault: back to its queue.
    Release,
    /// Not done, and perhaps its fault: back to its queue, counted against the delivery limit.
    Retry,
    /// Never to be done: to the dead letters.
    Reject,
}

/// The channel a delivery came from.
pub trait Settle: Send + Sync {
    /// Settles the delivery of this tag.
    ///
    /// # Errors
    /// When the channel is gone: the broker has given the delivery to somebody else, or will.
    fn settle(&self, tag: u64, disposition: Disposition) -> Result<(), StaleDelivery>;

    /// Whether its deliveries can still be settled.
    fn is_open(&self) -> bool;
}

/// The delivery's channel is gone, so it cannot be settled any more; the broker hands it out again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the channel this delivery came from is gone; the broker hands it out again")]
pub struct StaleDelivery;

impl Acker {
    /// For brokers: settles the delivery of this tag on its channel.
    pub fn new(tag: u64, channel: Arc<dyn Settle>) -> Self {
        Self { tag, channel: Some(channel) }
    }

    /// Settles the delivery.
    ///
    /// # Errors
    /// [`StaleDelivery`] when it is no longer ours to settle.
    pub fn settle(mut self, disposition: Disposition) -> Result<(), StaleDelivery> {
        match self.channel.take() {
            Some(channel) => channel.settle(self.tag, disposition),
            None => Err(StaleDelivery),
        }
    }

    /// Whether the delivery is still ours to settle.
    pub fn is_usable(&self) -> bool {
        self.channel.as_ref().is_some_and(|channel| channel.is_open())
    }
}

impl Drop for Acker {
    fn drop(&mut self) {
        if let Some(channel) = self.channel.take() {
            // A stale delivery needs no settling.
            let _ = channel.settle(self.tag, Disposition::Retry);
        }
    }
}

impl fmt::Debug for Acker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acker").field("tag", &self.tag).field("usable", &self.is_usable()).finish()
    }
}
