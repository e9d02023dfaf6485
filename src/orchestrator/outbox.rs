//! Sends what was committed, the highest priority first. A message leaves the store only after the broker has
//! confirmed it, so it is sent at least once, whatever dies in between.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::shared::Shared;
use super::store::{OutboxRow, Rank, Store};
use super::{Pause, now, trace};
use crate::Error;
use crate::broker::topology::Names;
use crate::broker::{BoxFuture, Broker, BrokerStatus, PublishError, Publisher};
use crate::ops::metrics::METRICS;
use crate::ops::spans::Span;

/// Messages that wait for their confirmation at once.
const WINDOW: usize = 512;

/// Messages kept in memory; the rest waits in the store.
const HELD: usize = 4_096;

/// Before everything.
const START: Rank = (Reverse(i32::MAX), 0);

/// How long the messages on their way are waited for at the end.
const LAST_CONFIRMS: Duration = Duration::from_secs(2);

/// What the writer tells the outbox.
#[derive(Debug)]
enum News {
    Committed(Vec<OutboxRow>),
    Deleted(Vec<i64>),
}

/// What the outbox tells the writer.
#[derive(Debug)]
pub(super) enum Report {
    /// The broker has had it since this time, in milliseconds since 1970; the row can go.
    Sent { outbox_id: i64, at: i64 },
    /// The broker will never take it.
    Unpublishable { outbox_id: i64, body: Bytes, replays: u32, reason: String },
}

/// The writer's end.
#[derive(Debug)]
pub(super) struct Handle {
    news: mpsc::UnboundedSender<News>,
}

impl Handle {
    /// Hands over what was just committed.
    pub(super) fn committed(&self, rows: Vec<OutboxRow>) {
        // After the outbox has ended, the rows are sent by the next start.
        let _ = self.news.send(News::Committed(rows));
    }

    /// Tells that these rows are gone.
    pub(super) fn deleted(&self, outbox_ids: Vec<i64>) {
        let _ = self.news.send(News::Deleted(outbox_ids));
    }
}

type Sending = BoxFuture<'static, (Ticket, Result<(), PublishError>)>;

/// What is remembered of a message on its way.
struct Ticket {
    outbox_id: i64,
    created_at: i64,
    routing_key: String,
    broadcast: bool,
    body: Bytes,
    replays: u32,
    span: Option<Box<Span>>,
}

pub(super) struct Outbox {
    store: Store,
    publisher: Publisher,
    control: String,
    largest: usize,
    shared: Arc<Shared>,
    news: mpsc::UnboundedReceiver<News>,
    reports: mpsc::UnboundedSender<Report>,
    declared: watch::Receiver<u64>,
    status: watch::Receiver<BrokerStatus>,
    queue: BTreeMap<Rank, OutboxRow>,
    sending: FuturesUnordered<Sending>,
    /// Rows in `queue` or `sending`, and rows confirmed but not yet deleted: not to be read from the store again.
    busy: HashSet<i64>,
    /// What comes after this waits in the store only.
    cursor: Option<Rank>,
    /// Nothing is sent before.
    paused: Option<Instant>,
    pause: Pause,
    /// When messages that a queue did not take are tried again. The others go on meanwhile.
    refused: Option<Instant>,
    refused_pause: Pause,
    /// What a queue that exists has refused last.
    stuck: HashSet<i64>,
}

impl Outbox {
    /// An outbox that starts with what the store holds, once the topology is declared. A body of more than
    /// `largest` bytes is not sent.
    pub(super) fn new(
        store: Store,
        broker: &dyn Broker,
        names: &Names,
        largest: usize,
        shared: Arc<Shared>,
        declared: watch::Receiver<u64>,
    ) -> (Self, Handle, mpsc::UnboundedReceiver<Report>) {
        let (news_sender, news) = mpsc::unbounded_channel();
        let (reports, reports_receiver) = mpsc::unbounded_channel();
        shared.set_outbox_lags(true);
        let outbox = Self {
            store,
            publisher: broker.publisher(),
            control: names.control(),
            largest,
            shared,
            news,
            reports,
            declared,
            status: broker.status(),
            queue: BTreeMap::new(),
            sending: FuturesUnordered::new(),
            busy: HashSet::new(),
            cursor: Some(START),
            paused: None,
            pause: Pause::new(Duration::from_millis(100), Duration::from_secs(10)),
            refused: None,
            stuck: HashSet::new(),
            refused_pause: Pause::new(Duration::from_secs(1), Duration::from_secs(10)),
        };
        (outbox, Handle { news: news_sender }, reports_receiver)
    }

    /// Sends until the writer has gone.
    pub(super) async fn run(mut self) {
        loop {
            self.send();
            self.read_more().await;
            self.shared.set_outbox_lags(self.cursor.is_some() || !self.stuck.is_empty());
            let wake = [self.paused, self.refused].into_iter().flatten().min();
            tokio::select! {
                Some((ticket, outcome)) = self.sending.next() => self.settle(ticket, outcome),
                news = self.news.recv() => match news {
                    Some(news) => self.hear(news),
                    None => break,
                },
                () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
                Ok(()) = self.declared.changed() => self.again_at_once(),
                Ok(()) = self.status.changed() => {
                    if *self.status.borrow_and_update() == BrokerStatus::Connected {
                        self.paused = None;
                    }
                }
            }
            let time = Instant::now();
            self.paused = self.paused.filter(|until| *until > time);
            if self.refused.is_some_and(|at| at <= time) {
                self.refused = None;
                self.start_over();
            }
        }
        let deadline = Instant::now() + LAST_CONFIRMS;
        while let Ok(Some((ticket, outcome))) = tokio::time::timeout_at(deadline, self.sending.next()).await {
            self.settle(ticket, outcome);
        }
    }

    fn may_send(&self) -> bool {
        self.paused.is_none() && *self.declared.borrow() > 0
    }

    fn send(&mut self) {
        while self.may_send() && self.sending.len() < WINDOW {
            let Some((_, row)) = self.queue.pop_first() else { break };
            let ticket = Ticket {
                outbox_id: row.outbox_id,
                created_at: row.created_at,
                routing_key: row.message.routing_key.clone(),
                broadcast: row.message.exchange == self.control,
                body: row.message.body.clone(),
                replays: row.message.properties.headers.replays(),
                span: trace::sending(&row.message),
            };
            let size = row.message.body.len();
            if size > self.largest {
                let reason =
                    format!("its body has {size} bytes; broker.max_message_bytes allows {}", self.largest);
                self.settle(ticket, Err(PublishError::Invalid(reason)));
                continue;
            }
            let publisher = self.publisher.clone();
            let mut sending: Sending =
                Box::pin(async move { (ticket, publisher.publish(row.message).await) });
            // Begun here: left to themselves, messages of one window overtake each other.
            match tokio::task::unconstrained(&mut sending).now_or_never() {
                Some((ticket, outcome)) => self.settle(ticket, outcome),
                None => self.sending.push(sending),
            }
        }
    }

    /// Reads a page of what is not in memory, when there is something and room for it.
    async fn read_more(&mut self) {
        while let Some(cursor) = self.cursor.filter(|_| self.may_send() && self.queue.is_empty()) {
            match self.store.unsent(cursor, HELD as i64).await {
                Ok(rows) => {
                    self.cursor = rows.last().map(|(rank, _)| *rank).filter(|_| rows.len() == HELD);
                    for ((_, outbox_id), row) in rows {
                        if self.busy.insert(outbox_id) {
                            self.enqueue(outbox_id, row);
                        }
                    }
                }
                Err(error) => self.store_failed(&error),
            }
        }
        self.send();
    }

    fn enqueue(&mut self, outbox_id: i64, row: Result<OutboxRow, String>) {
        match row {
            Ok(row) => {
                self.queue.insert(row.rank(), row);
            }
            Err(reason) => {
                METRICS.store_errors.inc();
                tracing::error!(
                    outbox_id,
                    reason,
                    "An unsent message cannot be read and is dropped; a request is made anew when it is overdue"
                );
                let _ = self.reports.send(Report::Sent { outbox_id, at: now() });
            }
        }
    }

    fn store_failed(&mut self, error: &Error) {
        METRICS.store_errors.inc();
        tracing::error!(%error, "Unsent messages cannot be read from the store; trying again");
        self.paused = Some(Instant::now() + self.pause.next());
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Committed(rows) => {
                for row in rows {
                    let waits = self.cursor.is_some_and(|cursor| row.rank() > cursor);
                    if !waits && self.busy.insert(row.outbox_id) {
                        self.queue.insert(row.rank(), row);
                    }
                }
                self.put_back();
            }
            News::Deleted(outbox_ids) => {
                for outbox_id in &outbox_ids {
                    self.busy.remove(outbox_id);
                }
            }
        }
    }

    /// Leaves to the store what memory should not hold: what is sent last.
    fn put_back(&mut self) {
        while self.queue.len() > HELD
            && let Some(((priority, outbox_id), _)) = self.queue.pop_last()
        {
            self.busy.remove(&outbox_id);
            self.cursor = Some((priority, outbox_id - 1));
        }
    }

    /// Has everything that is not on its way read again, so that it goes out in its order.
    fn start_over(&mut self) {
        for (_, row) in std::mem::take(&mut self.queue) {
            self.busy.remove(&row.outbox_id);
        }
        self.cursor = Some(START);
    }

    fn again_at_once(&mut self) {
        self.paused = None;
        self.refused = None;
        self.refused_pause.reset();
        self.start_over();
    }

    fn settle(&mut self, ticket: Ticket, outcome: Result<(), PublishError>) {
        let Ticket { outbox_id, created_at, routing_key, broadcast, body, replays, span } = ticket;
        let report = match outcome {
            Ok(()) => {
                self.pause.reset();
                if let Some(span) = span {
                    span.end();
                }
                let at = now();
                METRICS.outbox_seconds.observe((at - created_at).max(0) as f64 / 1_000.0);
                Report::Sent { outbox_id, at }
            }
            // No worker is there to be told.
            Err(PublishError::Unroutable { .. }) if broadcast => Report::Sent { outbox_id, at: now() },
            Err(PublishError::Invalid(reason)) => Report::Unpublishable { outbox_id, body, replays, reason },
            Err(error @ (PublishError::Unroutable { .. } | PublishError::Refused)) => {
                self.busy.remove(&outbox_id);
                if error == PublishError::Refused {
                    self.stuck.insert(outbox_id);
                }
                if self.refused.is_none() {
                    let pause = self.refused_pause.next();
                    tracing::warn!(
                        %error, routing_key, retry_in_ms = pause.as_millis() as u64,
                        "A message was not taken; it stays in the outbox, and the others go on. Is its queue \
                         declared, and does it run?"
                    );
                    self.refused = Some(Instant::now() + pause);
                }
                return;
            }
            Err(error) => {
                self.busy.remove(&outbox_id);
                self.start_over();
                if self.paused.is_none() {
                    let pause = self.pause.next();
                    tracing::warn!(
                        %error, retry_in_ms = pause.as_millis() as u64,
                        "The broker takes no messages; they stay in the outbox"
                    );
                    self.paused = Some(Instant::now() + pause);
                }
                return;
            }
        };
        if self.stuck.remove(&outbox_id) {
            // Its queue takes messages again: what else it has refused need not wait long.
            self.refused_pause.reset();
            let soon = (!self.stuck.is_empty()).then(|| Instant::now() + self.refused_pause.next());
            self.refused = self.refused.into_iter().chain(soon).min();
        }
        // Without a writer the row stays, and is sent again by the next start.
        let _ = self.reports.send(report);
    }
}
