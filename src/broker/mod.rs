//! One contract, two brokers: RabbitMQ for production, the embedded one for the first minute and for tests.
//!
//! A [`Broker`] hands out [`Publisher`]s and [`Subscription`]s. Both keep working across outages: a
//! publisher answers every message with "the broker has it" or with an error, a subscription resumes by
//! itself. What a delivery's [`Acker`] settles is bound to the channel the delivery came from: after a
//! reconnect it can no longer settle anything.

pub mod memory;
pub mod rabbit;
pub mod rights;
pub mod topology;

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use topology::Topology;

use crate::message::header;

/// A boxed future, for the calls that are rare.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A message broker.
pub trait Broker: Send + Sync + fmt::Debug + 'static {
    /// A handle for publishing. Cheap; clones share one confirming channel.
    fn publisher(&self) -> Publisher;

    /// Starts consuming, and goes on over outages until cancelled. Returns at once.
    fn subscribe(&self, source: Source, prefetch: u16) -> Subscription;

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

/// A message to publish. Its serialised form is for the worker's ledger, which keeps bodies apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Where to; the empty name is the default exchange, which routes by queue name.
    pub exchange: String,
    /// Under which key.
    pub routing_key: String,
    /// The body.
    #[serde(skip)]
    pub body: Bytes,
    /// What the broker stores beside the body.
    pub properties: Properties,
}

/// What the broker stores beside a body. Every message is persistent JSON.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Properties {
    /// Deterministic: the same message published twice has the same id.
    pub message_id: Option<String>,
    /// The task's correlation id.
    pub correlation_id: Option<String>,
    /// What the message is, such as `step.request`.
    pub kind: Option<String>,
    /// When it was written, in seconds since 1970.
    pub timestamp: Option<u64>,
    /// How long the broker keeps it, in milliseconds. For callers outside the product: a copy in every
    /// queue dies by it, and it does not overtake older messages.
    pub expiration_ms: Option<u64>,
    /// Anything else.
    pub headers: Headers,
}

/// Message headers, in order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Headers(Vec<(Cow<'static, str>, HeaderValue)>);

impl Headers {
    /// Sets a header, replacing an earlier one of that name.
    pub fn set(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<HeaderValue>) {
        let name = name.into();
        self.0.retain(|(n, _)| *n != name);
        self.0.push((name, value.into()));
    }

    /// A header's value.
    pub fn get(&self, name: &str) -> Option<&HeaderValue> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value)
    }

    /// A header's text.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(HeaderValue::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A header's number.
    pub fn integer(&self, name: &str) -> Option<i64> {
        match self.get(name) {
            Some(HeaderValue::Integer(number)) => Some(*number),
            _ => None,
        }
    }

    /// How often the step this message is about was replayed from the dead letters.
    pub fn replays(&self) -> u32 {
        self.integer(header::REPLAYS).and_then(|replays| u32::try_from(replays).ok()).unwrap_or(0)
    }

    /// All headers.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &HeaderValue)> {
        self.0.iter().map(|(name, value)| (&**name, value))
    }

    /// Drops what brokers write themselves (`x-…`). A republished message that kept its death records
    /// would be taken for a cycle by RabbitMQ before 4.0, and dropped; kept counters would be believed.
    pub fn strip_broker_headers(&mut self) {
        self.0.retain(|(name, _)| !name.starts_with("x-"));
    }
}

/// A header's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeaderValue {
    /// Text.
    Text(String),
    /// Any integer.
    Integer(i64),
}

impl From<&str> for HeaderValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for HeaderValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for HeaderValue {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<u32> for HeaderValue {
    fn from(number: u32) -> Self {
        Self::Integer(i64::from(number))
    }
}

/// Publishes messages, each confirmed by the broker.
#[derive(Debug, Clone)]
pub struct Publisher {
    jobs: mpsc::Sender<PublishJob>,
}

/// A message on its way to the task that owns the publishing channel.
#[derive(Debug)]
pub struct PublishJob {
    /// What to publish.
    pub message: Arc<Message>,
    /// Who hears the broker's answer.
    pub confirm: Confirm,
}

/// Hears what became of one message, once. Dropped, it hears [`PublishError::Closed`].
pub struct Confirm(Option<Box<Hear>>);

type Hear = dyn FnOnce(Result<(), PublishError>) + Send;

impl Confirm {
    /// For brokers: `hear` must not block.
    pub fn new(hear: impl FnOnce(Result<(), PublishError>) + Send + 'static) -> Self {
        Self(Some(Box::new(hear)))
    }

    /// Tells it.
    pub fn answer(mut self, result: Result<(), PublishError>) {
        if let Some(hear) = self.0.take() {
            hear(result);
        }
    }
}

impl Drop for Confirm {
    fn drop(&mut self) {
        if let Some(hear) = self.0.take() {
            hear(Err(PublishError::Closed));
        }
    }
}

impl fmt::Debug for Confirm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Confirm")
    }
}

impl Publisher {
    /// For brokers: a publisher that hands its messages to whoever receives the jobs.
    pub fn new(jobs: mpsc::Sender<PublishJob>) -> Self {
        Self { jobs }
    }

    /// Publishes, and returns once the broker has taken responsibility for the message.
    ///
    /// Dropping the future does not take the message back.
    ///
    /// # Errors
    /// When that is not certain. The message may have arrived all the same: publish it again under the same id.
    pub async fn publish(&self, message: impl Into<Arc<Message>>) -> Result<(), PublishError> {
        let (confirm, confirmed) = oneshot::channel();
        // Whoever asked may have gone.
        self.submit(message, move |result| drop(confirm.send(result))).await;
        confirmed.await.unwrap_or(Err(PublishError::Closed))
    }

    /// Hands a message over, and returns before the broker has it. `hear` is called with what [`publish`](Self::publish)
    /// would return, where the broker's answers arrive: it must not block.
    pub async fn submit(
        &self,
        message: impl Into<Arc<Message>>,
        hear: impl FnOnce(Result<(), PublishError>) + Send + 'static,
    ) {
        let job = PublishJob { message: message.into(), confirm: Confirm::new(hear) };
        // Dropped when the broker is closed, it says so.
        drop(self.jobs.send(job).await);
    }
}

/// Why it is not certain that the broker has a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No queue is bound for it.
    #[error("no queue is bound to exchange {exchange:?} for key {routing_key:?}")]
    Unroutable {
        /// The exchange.
        exchange: String,
        /// The key.
        routing_key: String,
    },
    /// The broker refused it, as a full queue does.
    #[error("the broker refused the message (a queue is full or unavailable)")]
    Refused,
    /// The broker said nothing in time.
    #[error("the broker did not confirm the message within {0:?}")]
    NotConfirmed(Duration),
    /// There is no connection.
    #[error("not connected to the broker: {0}")]
    Disconnected(String),
    /// It can never be published.
    #[error("the message cannot be published: {0}")]
    Invalid(String),
    /// The broker was closed by us.
    #[error("the broker connection is closed")]
    Closed,
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

/// Messages as they arrive.
#[derive(Debug)]
pub struct Subscription {
    deliveries: mpsc::UnboundedReceiver<Delivery>,
    state: watch::Receiver<ConsumerState>,
    cancel: CancellationToken,
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
