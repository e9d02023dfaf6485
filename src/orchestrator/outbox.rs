//! Sends what was committed. A message leaves the store only after the broker has confirmed it, so it
//! is sent at least once, whatever dies in between.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::shared::Shared;
use super::store::{OutboxRow, Store};
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

/// How long the messages on their way are waited for at the end.
const LAST_CONFIRMS: Duration = Duration::from_secs(2);

/// What the writer tells the outbox.
#[derive(Debug)]
enum News {
    Committed(Vec<OutboxRow>),
    /// More was committed than is kept in memory.
    Overflow,
    Deleted(Vec<i64>),
}

/// What the outbox tells the writer.
#[derive(Debug)]
pub(super) enum Report {
    /// The broker has had it since this time, in milliseconds since 1970; the row can go.
    Sent { outbox_id: i64, at: i64 },
    /// The broker will never take it.
    Unpublishable { outbox_id: i64, body: Bytes, reason: String },
}

/// The writer's end.
#[derive(Debug)]
pub(super) struct Handle {
    news: mpsc::UnboundedSender<News>,
    held: Arc<AtomicUsize>,
}

impl Handle {
    /// Hands over what was just committed.
    pub(super) fn committed(&self, rows: Vec<OutboxRow>) {
        let news =
            if self.held.load(Ordering::Relaxed) > HELD { News::Overflow } else { News::Committed(rows) };
        // After the outbox has ended, the rows are sent by the next start.
        let _ = self.news.send(news);
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
    broadcast: bool,
    body: Bytes,
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
    queue: VecDeque<OutboxRow>,
    sending: FuturesUnordered<Sending>,
    /// Rows in `queue` or `sending`, and rows confirmed but not yet deleted: not to be read from the store again.
    busy: HashSet<i64>,
    held: Arc<AtomicUsize>,
    /// Read the store again from here.
    cursor: Option<i64>,
    /// Nothing is sent before.
    paused: Option<Instant>,
    pause: Pause,
    /// When messages that no queue wanted are tried again.
    unroutable: Option<Instant>,
    unroutable_pause: Pause,
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
        let held = Arc::new(AtomicUsize::new(0));
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
            queue: VecDeque::new(),
            sending: FuturesUnordered::new(),
            busy: HashSet::new(),
            held: Arc::clone(&held),
            cursor: Some(0),
            paused: None,
            pause: Pause::new(Duration::from_millis(100), Duration::from_secs(10)),
            unroutable: None,
            unroutable_pause: Pause::new(Duration::from_secs(1), Duration::from_secs(30)),
        };
        (outbox, Handle { news: news_sender, held }, reports_receiver)
    }

    /// Sends until the writer has gone.
    pub(super) async fn run(mut self) {
        loop {
            self.send();
            self.read_more().await;
            self.held.store(self.queue.len(), Ordering::Relaxed);
            let wake = [self.paused, self.unroutable].into_iter().flatten().min();
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
            if self.unroutable.is_some_and(|at| at <= time) {
                self.unroutable = None;
                self.cursor = Some(0);
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
            let Some(row) = self.queue.pop_front() else { break };
            let ticket = Ticket {
                outbox_id: row.outbox_id,
                created_at: row.created_at,
                broadcast: row.message.exchange == self.control,
                body: row.message.body.clone(),
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
            self.sending.push(Box::pin(async move { (ticket, publisher.publish(row.message).await) }));
        }
    }

    /// Reads a page of what is not in memory, when there is something and room for it.
    async fn read_more(&mut self) {
        while let Some(cursor) = self.cursor.filter(|_| self.may_send() && self.queue.is_empty()) {
            match self.store.unsent(cursor, HELD as i64).await {
                Ok(rows) => {
                    self.cursor = rows.last().map(|(outbox_id, _)| *outbox_id).filter(|_| rows.len() == HELD);
                    for (outbox_id, row) in rows {
                        if self.busy.insert(outbox_id) {
                            self.enqueue(outbox_id, row);
                        }
                    }
                    if self.cursor.is_none() {
                        self.shared.set_outbox_lags(false);
                    }
                }
                Err(error) => self.store_failed(&error),
            }
        }
        self.send();
    }

    fn enqueue(&mut self, outbox_id: i64, row: Result<OutboxRow, String>) {
        match row {
            Ok(row) => self.queue.push_back(row),
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
                self.queue.extend(rows.into_iter().filter(|row| self.busy.insert(row.outbox_id)));
            }
            News::Overflow => {
                self.cursor.get_or_insert(0);
                self.shared.set_outbox_lags(true);
            }
            News::Deleted(outbox_ids) => {
                for outbox_id in &outbox_ids {
                    self.busy.remove(outbox_id);
                }
            }
        }
    }

    fn again_at_once(&mut self) {
        self.paused = None;
        self.unroutable = None;
        self.unroutable_pause.reset();
        self.cursor = Some(0);
    }

    fn settle(&mut self, ticket: Ticket, outcome: Result<(), PublishError>) {
        let Ticket { outbox_id, created_at, broadcast, body, span } = ticket;
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
            Err(PublishError::Invalid(reason)) => Report::Unpublishable { outbox_id, body, reason },
            Err(error @ PublishError::Unroutable { .. }) => {
                self.busy.remove(&outbox_id);
                if self.unroutable.is_none() {
                    let pause = self.unroutable_pause.next();
                    tracing::warn!(
                        %error, retry_in_ms = pause.as_millis() as u64,
                        "A request has no queue to go to; it stays in the outbox. Is its namespace declared?."
                    );
                    self.unroutable = Some(Instant::now() + pause);
                }
                return;
            }
            Err(error) => {
                self.busy.remove(&outbox_id);
                self.cursor = Some(0);
                self.shared.set_outbox_lags(true);
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
        // Without a writer the row stays, and is sent again by the next start.
        let _ = self.reports.send(report);
    }
}
