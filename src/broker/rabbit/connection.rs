//! One connection, kept up.
//!
//! The client's own recovery stays off: it hides the outage, and can leave a consumer dead on a healthy
//! connection. Here the keeper connects, says what it sees, and connects again; whoever has a channel
//! opens a new one on every new connection.

use std::sync::Arc;
use std::time::Duration;

use deadpool::managed::PoolError;
use futures_util::{FutureExt, StreamExt};
use lapin::Event;
use tokio::sync::watch;
use tokio::time::{self, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::connect::{Access, Object, Pool, pool};
use super::failure::Failure;
use super::link::{Health, Link, LinkState, Purpose, Up};
use super::reconnect::{Tries, Trouble};
use crate::broker::BrokerStatus;
use crate::ops::metrics::METRICS;

/// Not every end of a connection raises an event, so its state is looked at as well.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long an orderly end may take.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// Keeps the connection for one purpose up until it is told to close it.
pub(super) struct Keeper {
    purpose: Purpose,
    connect_timeout: Duration,
    /// One pool per address, beside its place. A connection is checked out for as long as it lives.
    pools: Vec<(String, Pool)>,
    /// The address to try first: the one that worked last.
    first: usize,
    connections: u64,
    health: Arc<Health>,
    state: watch::Sender<LinkState>,
    /// Cancelled by whoever wants it closed.
    pub(super) closing: CancellationToken,
}

impl Keeper {
    /// To be called, and run, in the runtime that the connection's input and output shall use.
    pub(super) fn new(purpose: Purpose, access: &Access, health: Arc<Health>) -> (Self, Link) {
        let starting = Failure::outage("starting", "starting").of_connection();
        let (state, link) = watch::channel(LinkState::Down(starting));
        let pools =
            access.addresses.iter().map(|address| (address.place.clone(), pool(purpose, access, address)));
        let keeper = Self {
            purpose,
            connect_timeout: access.connect_timeout,
            pools: pools.collect(),
            first: 0,
            connections: 0,
            health,
            state,
            closing: CancellationToken::new(),
        };
        (keeper, Link::new(link))
    }

    pub(super) async fn run(mut self) {
        let closing = self.closing.clone();
        let mut tries = Tries::new();
        loop {
            let failure = match closing.run_until_cancelled(self.connect()).await {
                None => break,
                Some(Ok((connection, place))) => {
                    info!(address = place, purpose = self.purpose.name(), "Connected to RabbitMQ");
                    tries.worked();
                    match self.watch(connection).await {
                        None => break,
                        Some(failure) => {
                            METRICS.reconnects.with_label_values(&[failure.cause]).inc();
                            let text = format!("the connection to {place} was lost: {failure}");
                            Failure { text, ..failure }
                        }
                    }
                }
                Some(Err(failure)) => failure,
            };
            if tries.is_news(&failure.text) {
                warn!(
                    purpose = self.purpose.name(),
                    reason = %failure,
                    "Not connected to RabbitMQ; trying again until it works"
                );
            }
            let pause = tries.pause(failure.trouble);
            self.health.report(self.purpose, BrokerStatus::Connecting(failure.text.clone()));
            self.state.send_replace(LinkState::Down(failure));
            if closing.run_until_cancelled(time::sleep(pause)).await.is_none() {
                break;
            }
        }
        self.health.report(self.purpose, BrokerStatus::Closed);
    }

    /// Tries the addresses in turn.
    async fn connect(&mut self) -> Result<(Object, String), Failure> {
        let mut failures: Vec<Failure> = Vec::new();
        for turn in 0..self.pools.len() {
            let index = (self.first + turn) % self.pools.len();
            let (place, pool) = &self.pools[index];
            failures.push(match pool.get().await {
                Ok(connection) => {
                    self.first = index;
                    return Ok((connection, place.clone()));
                }
                Err(PoolError::Backend(failure)) => failure,
                Err(PoolError::Timeout(_)) => {
                    Failure::timeout(&format!("cannot reach {place}"), self.connect_timeout)
                }
                Err(error) => Failure::outage(format!("cannot reach {place}: {error}"), "pool"),
            });
        }
        let texts: Vec<&str> = failures.iter().map(|failure| failure.text.as_str()).collect();
        let passes = failures.iter().any(|failure| failure.trouble == Trouble::Outage);
        Err(Failure {
            text: texts.join("; "),
            cause: failures.first().map_or("connection_lost", |failure| failure.cause),
            trouble: if passes { Trouble::Outage } else { Trouble::Refusal },
            connection_lost: true,
        })
    }

    /// Until the connection breaks, or `None` once it has been closed by us.
    async fn watch(&mut self, connection: Object) -> Option<Failure> {
        // One listener: the client gives each event to only one of them.
        let mut events = connection.events_listener().fuse();
        self.connections += 1;
        let useless = CancellationToken::new();
        let mut up = Up {
            connection: Arc::new(connection),
            number: self.connections,
            blocked: None,
            useless: useless.clone(),
        };
        self.announce(&up);
        let mut look = time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.closing.cancelled() => {
                    let goodbye = up.connection.close(200, "OK".into());
                    // A broker that does not answer has noticed, or will.
                    let _ = time::timeout(GRACE, goodbye).await;
                    return None;
                }
                () = useless.cancelled() => {
                    // Closed, or closing: in either case not used again.
                    let _ = time::timeout(GRACE, up.connection.close(200, "OK".into())).await;
                    return Some(Failure::outage("no channel could be opened on it", "timeout").of_connection());
                }
                _ = look.tick() => {
                    if !up.connection.status().connected() {
                        return Some(last_words(&mut events));
                    }
                }
                event = events.select_next_some() => match event {
                    Event::ConnectionBlocked(reason) => {
                        warn!(reason, "RabbitMQ takes no messages; nothing more is consumed until it does");
                        up.blocked = Some(reason);
                        self.announce(&up);
                    }
                    Event::ConnectionUnblocked => {
                        info!("RabbitMQ takes messages again");
                        up.blocked = None;
                        self.announce(&up);
                    }
                    // The end of a channel raises one too.
                    Event::Error(error) if !up.connection.status().connected() => {
                        return Some(Failure::from(error).of_connection());
                    }
                    _ => {}
                },
            }
        }
    }

    /// First to its users, then to everybody: who is told that the broker is connected can use it.
    fn announce(&self, up: &Up) {
        self.state.send_replace(LinkState::Up(up.clone()));
        self.health.report(
            self.purpose,
            match &up.blocked {
                None => BrokerStatus::Connected,
                Some(reason) => BrokerStatus::Blocked(reason.clone()),
            },
        );
    }
}

/// The error a connection ended with, if it left one.
fn last_words(events: &mut (impl futures_util::stream::FusedStream<Item = Event> + Unpin)) -> Failure {
    let mut failure = Failure::outage("it is closed", "connection_lost");
    while let Some(Some(event)) = events.next().now_or_never() {
        if let Event::Error(error) = event {
            failure = error.into();
        }
    }
    failure.of_connection()
}
