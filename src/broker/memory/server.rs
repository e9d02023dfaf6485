//! The lock around the state, and the tasks that work on it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::connection::Connection;
use super::state::{ConnectionId, ConsumerId, State};
use crate::broker::{BrokerStatus, Disposition, PublishJob, Settle, StaleDelivery};
use crate::ops::metrics::METRICS;

/// Publishes that may wait for the publishing task; more of them wait in their callers.
const WAITING_PUBLISHES: usize = 1_024;

/// Publishes done under one lock.
const BATCH: usize = 128;

/// The queues of one broker, shared by its connections.
pub(super) struct Server {
    state: Mutex<State>,
    timer: Arc<Notify>,
    /// Where all tasks run, whoever's call starts them.
    runtime: Handle,
    /// Ends the timer with the last connection.
    _timer_stop: DropGuard,
}

impl Server {
    /// # Panics
    /// Outside a tokio runtime.
    pub(super) fn start() -> Arc<Self> {
        let stop = CancellationToken::new();
        let timer = Arc::new(Notify::new());
        let server = Arc::new_cyclic(|server: &Weak<Self>| Self {
            state: Mutex::new(State::new(server.clone())),
            timer: Arc::clone(&timer),
            runtime: Handle::current(),
            _timer_stop: stop.clone().drop_guard(),
        });
        server.spawn(ring(Arc::downgrade(&server), timer, stop));
        server
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// Changes the state.
    pub(super) fn with<R>(&self, change: impl FnOnce(&mut State, Instant) -> R) -> R {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut state, now);
        let garbage = std::mem::take(&mut state.garbage);
        let wake_timer = std::mem::take(&mut state.timer_is_late);
        drop(state);
        // Without the lock: deliveries among it settle themselves.
        drop(garbage);
        if wake_timer {
            self.timer.notify_one();
        }
        result
    }

    /// Opens a connection and its publishing task, which ends when the connection is closed.
    pub(super) fn open(
        self: &Arc<Self>,
    ) -> (ConnectionId, mpsc::Sender<PublishJob>, watch::Receiver<BrokerStatus>) {
        let (jobs, waiting) = mpsc::channel(WAITING_PUBLISHES);
        let closed = CancellationToken::new();
        let (id, status) = self.with(|state, _| {
            let id = ConnectionId(state.next_id());
            let (sender, receiver) = watch::channel(state.status());
            state.connections.insert(id, Connection::new(sender, closed.clone(), jobs.clone()));
            (id, receiver)
        });
        let server = Arc::clone(self);
        let changes = status.clone();
        self.spawn(async move {
            tokio::select! {
                () = closed.cancelled() => {}
                () = publish(&server, id, waiting, changes) => {}
            }
        });
        (id, jobs, status)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

/// Publishes what its connection's publishers hand in, in that order.
async fn publish(
    server: &Server,
    id: ConnectionId,
    mut waiting: mpsc::Receiver<PublishJob>,
    mut status: watch::Receiver<BrokerStatus>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut answers = Vec::with_capacity(BATCH);
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        loop {
            // Before the attempt, so that no change after it is missed.
            status.mark_unchanged();
            let done = server.with(|state, now| state.publish_batch(id, &mut batch, &mut answers, now));
            for (confirm, answer) in answers.drain(..) {
                confirm.answer(answer);
            }
            if done || status.changed().await.is_err() {
                break;
            }
        }
    }
}

/// Buries messages when their time is over.
async fn ring(server: Weak<Server>, earlier: Arc<Notify>, stop: CancellationToken) {
    loop {
        let Some(next) = server.upgrade().map(|server| server.with(|state, _| state.next_alarm())) else {
            return;
        };
        let alarm = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = earlier.notified() => {}
            () = alarm => {
                let Some(server) = server.upgrade() else { return };
                server.with(State::ring);
            }
        }
    }
}

/// What one consumer's deliveries came over, between two cuts.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) server: Weak<Server>,
    pub(super) consumer: ConsumerId,
    pub(super) open: AtomicBool,
}

impl Settle for Channel {
    fn settle(&self, tag: u64, disposition: Disposition) -> Result<(), StaleDelivery> {
        let server = self.server.upgrade().ok_or(StaleDelivery)?;
        let settled = server.with(|state, now| state.settle(self, tag, disposition, now));
        settled.inspect_err(|_| METRICS.stale_settlements.inc())
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }
}
