//! The embedded broker: RabbitMQ's meaning in this process's memory, for the first minute and for tests.
//!
//! It passes the same conformance suite as RabbitMQ. Nothing outlives the process.
//!
//! Where it differs, on purpose: it has no consumer timeout and no heartbeats; a released message is not
//! counted, as on RabbitMQ 4.3 but not before; a dead letter carries no `x-death` list, only its first and
//! last death; one that no queue wants is tried again when the topology changes, not every three minutes;
//! and the broker can be told to fail.

mod connection;
mod consumer;
mod queue;
mod routing;
mod server;
mod state;

use std::fmt;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::consumer::Consumer;
use self::server::Server;
use self::state::ConnectionId;
use super::topology::Topology;
use super::{
    BoxFuture, Broker, BrokerError, BrokerStatus, ConsumerState, PublishJob, Publisher, Source, Subscription,
};

/// A connection to a broker in this process.
///
/// [`new`](Self::new) starts an empty broker; [`connect`](Self::connect) opens further connections to the
/// same queues, each of which closes on its own. A connection dropped is a connection closed, and the broker
/// is gone with its last connection.
///
/// Publishing to an exchange that does not exist fails as [`Unroutable`](super::PublishError::Unroutable):
/// no fault of the message, and mended by a declaration. While the broker is blocked, publishes wait.
pub struct MemoryBroker {
    server: Arc<Server>,
    connection: ConnectionId,
    jobs: mpsc::Sender<PublishJob>,
    status: watch::Receiver<BrokerStatus>,
}

impl MemoryBroker {
    /// Starts an empty broker on the current tokio runtime, and connects to it.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new() -> Arc<Self> {
        Self::open(Server::start())
    }

    /// Opens another connection to the same queues, as another process would.
    pub fn connect(&self) -> Arc<Self> {
        Self::open(Arc::clone(&self.server))
    }

    fn open(server: Arc<Server>) -> Arc<Self> {
        let (connection, jobs, status) = server.open();
        Arc::new(Self { server, connection, jobs, status })
    }
}

/// Faults to order, for tests and simulation. All of them meet every connection of the broker.
impl MemoryBroker {
    /// Cuts every connection for a moment.
    ///
    /// What is unsettled goes back to its queue, counted against the delivery limit; its [`Acker`](super::Acker)s
    /// answer [`StaleDelivery`](super::StaleDelivery). Publishes under way fail with
    /// [`Disconnected`](super::PublishError::Disconnected) without having been stored. Subscriptions resume by
    /// themselves; deliveries that nobody had read yet still come out of them, stale.
    pub fn disconnect(&self) {
        self.server.with(|state, now| state.disconnect("the connection was cut", now));
    }

    /// Takes the broker down, giving a reason, or up again. While it is down publishes fail with
    /// [`Disconnected`](super::PublishError::Disconnected) and nothing is delivered or declared; messages
    /// stay, and their time runs.
    pub fn set_down(&self, reason: Option<&str>) {
        self.server.with(|state, now| {
            state.down = reason.map(str::to_owned);
            state.disconnect(reason.unwrap_or("connecting again"), now);
        });
    }

    /// Blocks publishing, giving a reason, or lets it go on. Deliveries and acks go on all the while.
    pub fn set_blocked(&self, reason: Option<&str>) {
        self.server.with(|state, _| {
            state.blocked = reason.map(str::to_owned);
            state.show_status();
        });
    }

    /// The next `count` messages are stored, but their publishers hear
    /// [`Disconnected`](super::PublishError::Disconnected): a confirm lost on its way.
    pub fn lose_confirms(&self, count: usize) {
        self.server.with(|state, _| state.confirms_to_lose = count);
    }

    /// Lets at most `limit` messages wait in a queue: publishes beyond it are
    /// [`Refused`](super::PublishError::Refused), although other queues may have got their copy. Dead letters
    /// are let in all the same.
    ///
    /// # Errors
    /// When there is no such queue.
    pub fn limit_queue(&self, queue: &str, limit: Option<usize>) -> Result<(), BrokerError> {
        self.server.with(|state, _| {
            let id = state
                .queue_id(queue)
                .ok_or_else(|| BrokerError::Refused(format!("queue {queue:?} does not exist; declare it")))?;
            state.queue_mut(id).limit = limit;
            Ok(())
        })
    }
}

impl Broker for MemoryBroker {
    fn publisher(&self) -> Publisher {
        Publisher::new(self.jobs.clone())
    }

    fn subscribe(&self, source: Source, prefetch: u16) -> Subscription {
        let (sender, deliveries) = mpsc::unbounded_channel();
        let (state_sender, state) = watch::channel(ConsumerState::Connecting("not yet connected".to_owned()));
        let cancel = CancellationToken::new();
        let started = self.server.with(|state, now| {
            let closed = state.connections.get(&self.connection)?.closed.clone();
            let consumer = Consumer::new(
                self.connection,
                source,
                prefetch,
                sender,
                state_sender.clone(),
                cancel.clone(),
            );
            Some((state.subscribe(consumer, now), closed))
        });
        match started {
            Some((id, closed)) => {
                let server = Arc::clone(&self.server);
                let cancelled = cancel.clone();
                self.server.spawn(async move {
                    tokio::select! {
                        () = closed.cancelled() => {}
                        () = cancelled.cancelled() => server.with(|state, now| state.cancel(id, now)),
                    }
                });
            }
            None => {
                state_sender.send_replace(ConsumerState::Stopped);
            }
        }
        Subscription::new(deliveries, state, cancel)
    }

    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            self.server.with(|state, now| {
                state.check(self.connection)?;
                state.declare(topology, now)
            })
        })
    }

    fn verify<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<Vec<String>, BrokerError>> {
        Box::pin(async move {
            self.server.with(|state, _| {
                state.check(self.connection)?;
                Ok(state.missing(topology))
            })
        })
    }

    fn depth<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<Option<u64>, BrokerError>> {
        Box::pin(async move {
            self.server.with(|state, _| {
                state.check(self.connection)?;
                Ok(state.depth(queue))
            })
        })
    }

    fn status(&self) -> watch::Receiver<BrokerStatus> {
        self.status.clone()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.server.with(|state, now| state.close(self.connection, now)) })
    }
}

impl Drop for MemoryBroker {
    fn drop(&mut self) {
        self.server.with(|state, now| state.close(self.connection, now));
    }
}

impl fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBroker").field("status", &*self.status.borrow()).finish_non_exhaustive()
    }
}
