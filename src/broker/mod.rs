//! One contract, two brokers: RabbitMQ for production, the embedded one for the first minute and for tests.
//!
//! A [`Broker`] hands out [`Publisher`]s and [`Subscription`]s. Both keep working across outages: a
//! publisher answers every message with "the broker has it" or with an error, a subscription resumes by
//! itself. What a delivery's [`Acker`] settles is bound to the channel the delivery came from: after a
//! reconnect it can no longer settle anything.

mod delivery;
pub mod memory;
mod message;
mod publish;
pub mod rabbit;
pub mod rights;
pub mod topology;

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use tokio::sync::watch;

use topology::Topology;

pub use delivery::{Acker, ConsumerState, Delivery, Disposition, Settle, StaleDelivery, Subscription};
pub use message::{HeaderValue, Headers, Message, Properties};
pub use publish::{Confirm, PublishError, PublishJob, Publisher};

/// A boxed future, for the calls that are rare.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A message broker.
pub trait Broker: Send + Sync + fmt::Debug + 'static {
    /// A handle for publishing. Cheap; clones share one confirming channel.
    fn publisher(&self) -> Publisher;

    /// Starts consuming, and goes on over outages until cancelled. Returns at once.
    fn subscribe(&self, source: Source, prefetch: u16) -> Subscription;

    /// Runs `work`, which takes deliveries and has messages published, beside what the broker itself does about them: in the
    /// same task where it can be, so that what goes back and forth wakes no other thread. It must not hold up its thread.
    fn run_beside(&self, work: BoxFuture<'static, ()>) {
        tokio::spawn(work);
    }

    /// Creates what is missing. What exists with other arguments is an error, never a change.
    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), BrokerError>>;

    /// Names every queue and exchange of `topology` that is missing, without creating any.
    fn verify<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<Vec<String>, BrokerError>>;

    /// How many messages wait in a queue, `None` where there is no such queue.
    fn depth<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<Option<u64>, BrokerError>>;

    /// The connection's state, now and at every change.
    fn status(&self) -> watch::Receiver<BrokerStatus>;

    /// Closes the connections. What is unacked goes back to its queue.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// The state of the connections to the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerStatus {
    /// Not connected; the text says why.
    Connecting(String),
    /// Connected, and accepting messages.
    Connected,
    /// Connected, but the broker takes no messages: it is short of memory or disk.
    Blocked(String),
    /// Closed by us.
    Closed,
}

/// Where a subscription's messages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A declared queue, shared with other consumers.
    Queue(String),
    /// Every message of a fanout exchange, through a queue of this subscription's own that lives as long
    /// as its connection. Deliveries need no ack.
    Broadcast(String),
}

/// Why a broker operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// The broker cannot be reached.
    #[error("the broker at {address} cannot be reached: {reason}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// What the network said.
        reason: String,
    },
    /// The broker refused, and will go on refusing until somebody changes something.
    #[error("the broker refused: {0}")]
    Refused(String),
    /// The settings make no sense.
    #[error("{0}")]
    Invalid(String),
    /// The broker was closed by us.
    #[error("the broker connection is closed")]
    Closed,
}
