//! Connections: their state, and what happens to their publishes when they break.

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::state::{ConnectionId, State};
use crate::broker::{BrokerError, BrokerStatus, Confirm, PublishError, PublishJob};

/// Who is told what about a publish.
pub(super) type Answer = (Confirm, Result<(), PublishError>);

/// One client's connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) status: watch::Sender<BrokerStatus>,
    pub(super) closed: CancellationToken,
    pub(super) jobs: mpsc::Sender<PublishJob>,
    /// Publishes that wait outside the channel while the broker is blocked.
    held: usize,
    /// Publishes that were under way when the connection was cut: they fail.
    cut: usize,
}

impl Connection {
    pub(super) fn new(
        status: watch::Sender<BrokerStatus>,
        closed: CancellationToken,
        jobs: mpsc::Sender<PublishJob>,
    ) -> Self {
        Self { status, closed, jobs, held: 0, cut: 0 }
    }
}

impl State {
    /// What every connection's state is.
    pub(super) fn status(&self) -> BrokerStatus {
        match (&self.down, &self.blocked) {
            (Some(reason), _) => BrokerStatus::Connecting(reason.clone()),
            (None, Some(reason)) => BrokerStatus::Blocked(reason.clone()),
            (None, None) => BrokerStatus::Connected,
        }
    }

    pub(super) fn show_status(&self) {
        for connection in self.connections.values() {
            connection.status.send_replace(self.status());
        }
    }

    /// # Errors
    /// When the connection is closed, or there is none.
    pub(super) fn check(&self, connection: ConnectionId) -> Result<(), BrokerError> {
        if !self.connections.contains_key(&connection) {
            return Err(BrokerError::Closed);
        }
        match &self.down {
            Some(reason) => Err(BrokerError::Unreachable {
                address: "the embedded broker".to_owned(),
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Publishes a batch, answer by answer. `false` while it has to wait, with what waits left in `batch`.
    pub(super) fn publish_batch(
        &mut self,
        id: ConnectionId,
        batch: &mut Vec<PublishJob>,
        answers: &mut Vec<Answer>,
        now: Instant,
    ) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else {
            answers.extend(batch.drain(..).map(|job| (job.confirm, Err(PublishError::Closed))));
            return true;
        };
        let cut = connection.cut.min(batch.len());
        connection.cut -= cut;
        if connection.jobs.capacity() == connection.jobs.max_capacity() {
            // Nothing is under way any more, so what was counted twice must not meet a later publish.
            connection.cut = 0;
        }
        let lost = || Err(PublishError::Disconnected("the connection was cut".to_owned()));
        answers.extend(batch.drain(..cut).map(|job| (job.confirm, lost())));
        if let Some(reason) = &self.down {
            let refused = || Err(PublishError::Disconnected(reason.clone()));
            answers.extend(batch.drain(..).map(|job| (job.confirm, refused())));
        }
        connection.held = if self.blocked.is_some() { batch.len() } else { 0 };
        if connection.held > 0 {
            return false;
        }
        for job in batch.drain(..) {
            let mut published = self.publish(job.message, now);
            if published.is_ok() && self.confirms_to_lose > 0 {
                self.confirms_to_lose -= 1;
                published = lost();
            }
            answers.push((job.confirm, published));
        }
        true
    }

    /// Cuts every connection; they come back at once, unless the broker is down.
    pub(super) fn disconnect(&mut self, reason: &str, now: Instant) {
        for connection in self.connections.values_mut() {
            connection.cut += connection.held + connection.jobs.max_capacity() - connection.jobs.capacity();
            connection.held = 0;
            connection.status.send_replace(BrokerStatus::Connecting(reason.to_owned()));
        }
        let consumers: Vec<_> = self.consumers.iter().map(|(id, c)| (*id, c.deliveries.is_none())).collect();
        for (id, cancelled) in consumers {
            if cancelled {
                self.end(id, now);
            } else {
                self.cut(id, now);
            }
        }
        self.attach_waiting();
        self.show_status();
        self.serve_changed(now);
    }

    /// Closes one connection for good.
    pub(super) fn close(&mut self, id: ConnectionId, now: Instant) {
        let Some(connection) = self.connections.remove(&id) else { return };
        connection.closed.cancel();
        connection.status.send_replace(BrokerStatus::Closed);
        let consumers: Vec<_> =
            self.consumers.iter().filter(|(_, c)| c.connection == id).map(|(id, _)| *id).collect();
        for consumer in consumers {
            self.end(consumer, now);
        }
        self.serve_changed(now);
    }
}
