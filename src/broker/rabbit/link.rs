//! A connection as those see it who use it, and the broker's state as everybody else does.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::connect::Object;
use super::failure::Failure;
use crate::broker::BrokerStatus;
use crate::ops::metrics::METRICS;

/// What one of the two connections is for: while the broker blocks a publishing connection, even the acks
/// on it hang, so consumers have their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Consume,
    Publish,
}

impl Purpose {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Consume => "consume",
            Self::Publish => "publish",
        }
    }
}

/// A connection as its users see it.
#[derive(Debug, Clone)]
pub(super) enum LinkState {
    Down(Failure),
    Up(Up),
}

#[derive(Debug, Clone)]
pub(super) struct Up {
    pub(super) connection: Arc<Object>,
    /// Counts the connections, so that one that broke is not taken for its successor.
    pub(super) number: u64,
    /// Why the broker takes no messages.
    pub(super) blocked: Option<String>,
    /// Cancelled by who finds that nothing can be done on it, though it is open.
    pub(super) useless: CancellationToken,
}

/// Follows a connection.
#[derive(Debug, Clone)]
pub(super) struct Link(watch::Receiver<LinkState>);

impl Link {
    pub(super) fn new(state: watch::Receiver<LinkState>) -> Self {
        Self(state)
    }

    /// The connection, once there is one after number `spent`. `down` hears why there is none yet.
    pub(super) async fn up(&mut self, spent: u64, mut down: impl FnMut(&Failure)) -> Up {
        loop {
            match &*self.0.borrow_and_update() {
                LinkState::Up(up) if up.number > spent => return up.clone(),
                LinkState::Down(failure) => down(failure),
                LinkState::Up(_) => {}
            }
            if self.0.changed().await.is_err() {
                // The keeper is gone: its users are being cancelled.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Does something on connection `number`, for as long as that is the one, and for `limit` at most: what waits for an
    /// answer when its connection breaks may wait for ever.
    pub(super) async fn on<T>(
        &mut self,
        number: u64,
        what: &str,
        limit: Duration,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            // It knows best what went wrong.
            biased;
            done = time::timeout(limit, work) => done.unwrap_or_else(|_| Err(Failure::timeout(what, limit))),
            failure = self.lost(number) => Err(failure),
        }
    }

    async fn lost(&mut self, number: u64) -> Failure {
        loop {
            match self.state() {
                LinkState::Up(up) if up.number == number => self.changed().await,
                LinkState::Up(_) => {
                    return Failure::outage("the connection was lost", "connection_lost").of_connection();
                }
                LinkState::Down(failure) => return failure.of_connection(),
            }
        }
    }

    pub(super) fn state(&self) -> LinkState {
        self.0.borrow().clone()
    }

    /// Whether connection `number` is still the one, and not known to be lost.
    pub(super) fn has(&self, number: u64) -> bool {
        matches!(&*self.0.borrow(), LinkState::Up(up) if up.number == number)
    }

    pub(super) fn is_blocked(&self) -> bool {
        matches!(&*self.0.borrow(), LinkState::Up(Up { blocked: Some(_), .. }))
    }

    /// Returns at the next change; never once the keeper is gone.
    pub(super) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The broker's state, from that of its two connections.
#[derive(Debug)]
pub(super) struct Health {
    links: Mutex<[BrokerStatus; 2]>,
    status: watch::Sender<BrokerStatus>,
}

impl Health {
    pub(super) fn new() -> Self {
        let connecting = || BrokerStatus::Connecting("starting".to_owned());
        Self { links: Mutex::new([connecting(), connecting()]), status: watch::Sender::new(connecting()) }
    }

    pub(super) fn status(&self) -> watch::Receiver<BrokerStatus> {
        self.status.subscribe()
    }

    pub(super) fn report(&self, purpose: Purpose, state: BrokerStatus) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links[purpose as usize] = state;
        let worst = links.iter().max_by_key(|state| match state {
            BrokerStatus::Connected => 0,
            BrokerStatus::Blocked(_) => 1,
            BrokerStatus::Connecting(_) => 2,
            BrokerStatus::Closed => 3,
        });
        let worst = worst.cloned().unwrap_or(BrokerStatus::Closed);
        METRICS.blocked.set(i64::from(matches!(worst, BrokerStatus::Blocked(_))));
        self.status.send_if_modified(|status| {
            let changed = *status != worst;
            *status = worst;
            changed
        });
    }
}
