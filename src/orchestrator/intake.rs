//! What waits for the writer, and how it is gathered into batches.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

use super::advance::{Event, Outcome};
use super::apply::Writer;
use super::dag::Plan;
use super::incoming::{self, Kind};
use super::outbox::Report;
use super::store::OverdueStep;
use super::task::TaskState;
use super::{SubmitError, outgoing, stages, trace};
use crate::Error;
use crate::api::TaskRequest;
use crate::broker::{Acker, Delivery, Disposition, Message, PublishError, Publisher, Source, Subscription};
use crate::message::{ErrorType, StepExecutionError, StepExecutionRequest};
use crate::ops::metrics::METRICS;
use crate::ops::spans::Span;
use crate::trace::TraceContext;

/// What callers ask the writer for.
#[derive(Debug)]
pub(super) enum Command {
    Submit(Box<Submission>),
    Tell(Told),
    Overdue(Vec<OverdueStep>),
    Stale(Vec<Uuid>),
}

/// What a caller tells the orchestrator about a task.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) task_uuid: Uuid,
    pub(super) event: Event,
    pub(super) reply: oneshot::Sender<Result<Heard, Error>>,
}

/// What became of it, and the task's state before; `None` where there is no such task.
pub(super) type Heard = Option<(TaskState, Outcome)>;

#[derive(Debug)]
pub(super) struct Submission {
    pub(super) request: TaskRequest,
    pub(super) identity: Uuid,
    pub(super) template_id: Uuid,
    pub(super) plan: Arc<Plan>,
    pub(super) trace: Option<TraceContext>,
    pub(super) reply: oneshot::Sender<Result<Uuid, SubmitError>>,
}

/// Outbox rows that can go, and when they go at the latest.
#[derive(Debug, Default)]
pub(super) struct Confirmed {
    pub(super) outbox_ids: Vec<i64>,
    until: Option<Instant>,
}

/// How long confirmed rows wait for a transaction to go along with. One of their own would keep the next
/// result waiting for the disk; a crash before they are gone sends them again, which does no harm.
const CONFIRMED_WAIT: Duration = Duration::from_millis(20);

/// How long a message is held that cannot be parked now.
const PARKING_PAUSE: Duration = Duration::from_secs(1);

/// What waits to be applied. It stays whole until the transaction that covers it is on the disk.
#[derive(Default)]
pub(super) struct Work {
    pub(super) submissions: Vec<Submission>,
    pub(super) told: Vec<Told>,
    pub(super) overdue: Vec<OverdueStep>,
    pub(super) stale: Vec<Uuid>,
    pub(super) messages: Vec<Incoming>,
    pub(super) unpublishable: Vec<(Uuid, Event)>,
    pub(super) sent: Vec<i64>,
}

/// A delivery that was understood.
pub(super) struct Incoming {
    pub(super) kind: Kind,
    pub(super) task_uuid: Uuid,
    pub(super) event: Event,
    pub(super) received_at: std::time::Instant,
    /// Ends when it is applied.
    pub(super) span: Option<Box<Span>>,
    pub(super) acker: Acker,
}

impl Confirmed {
    fn push(&mut self, outbox_id: i64) {
        self.outbox_ids.push(outbox_id);
        self.until.get_or_insert_with(|| Instant::now() + CONFIRMED_WAIT);
    }
}

impl Work {
    pub(super) fn len(&self) -> usize {
        self.submissions.len()
            + self.told.len()
            + self.overdue.len()
            + self.stale.len()
            + self.messages.len()
            + self.unpublishable.len()
    }
}

impl Writer {
    /// Everything that waits, up to a batch: at least one thing, or `None` when it is time to stop.
    pub(super) async fn collect(&mut self) -> Option<Work> {
        let mut work = Work::default();
        while work.len() == 0 {
            let until = self.confirmed.until;
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                Some(report) = self.reports.recv() => self.take_report(report, &mut work),
                Some(command) = self.commands.recv() => take_command(command, &mut work),
                delivery = next(&mut self.subscription) => self.take_delivery(delivery, &mut work),
                Ok(()) = self.declared.changed(), if self.subscription.is_none() => self.subscribe(),
                () = tokio::time::sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    break;
                }
            }
            if self.confirmed.outbox_ids.len() >= self.limits.batch {
                break;
            }
        }
        while work.len() < self.limits.batch {
            let before = work.len();
            let report = self.reports.try_recv().ok();
            let delivery = next(&mut self.subscription);
            // Unconstrained: a spent budget would look like an empty queue, and make batches small under load.
            let delivery = tokio::task::unconstrained(delivery).now_or_never();
            let heard = report.is_some() || delivery.is_some();
            if let Some(report) = report {
                self.take_report(report, &mut work);
            }
            if let Ok(command) = self.commands.try_recv() {
                take_command(command, &mut work);
            }
            if let Some(delivery) = delivery {
                self.take_delivery(delivery, &mut work);
            }
            if work.len() == before && !heard {
                break;
            }
        }
        work.sent = std::mem::take(&mut self.confirmed).outbox_ids;
        Some(work)
    }

    fn subscribe(&mut self) {
        let prefetch = u16::try_from(self.limits.batch * 2).unwrap_or(u16::MAX);
        let subscription = self.broker.subscribe(Source::Queue(self.names.orchestrator_queue()), prefetch);
        self.shared.set_consumer(subscription.state());
        self.subscription = Some(subscription);
    }

    fn take_delivery(&mut self, delivery: Option<Delivery>, work: &mut Work) {
        let Some(delivery) = delivery else {
            self.subscription = None;
            return;
        };
        let kind = Kind::of(&delivery, &self.names);
        match incoming::read(kind, &delivery) {
            Ok((task_uuid, event)) => {
                let span = trace::applying(&delivery, kind.as_str(), || self.names.orchestrator_queue());
                work.messages.push(Incoming {
                    kind,
                    task_uuid,
                    event,
                    received_at: delivery.received_at,
                    span,
                    acker: delivery.acker,
                });
            }
            Err(reason) => {
                METRICS.messages_applied.with_label_values(&[kind.as_str(), Outcome::Refused.as_str()]).inc();
                tracing::error!(
                    message_id = delivery.properties.message_id, exchange = delivery.exchange,
                    routing_key = delivery.routing_key, %reason,
                    "A message to the orchestrator cannot be understood; it is parked with the dead letters"
                );
                match kind {
                    // Of these the broker has another copy, which is or will be parked.
                    Kind::Retry | Kind::Checkpoint | Kind::DeadLetter => {
                        settle(delivery.acker, Disposition::Ack)
                    }
                    Kind::Result | Kind::Foreign => {
                        let letter = outgoing::refused(&delivery, &reason, &self.names);
                        tokio::spawn(park(self.broker.publisher(), letter, delivery.acker));
                    }
                }
            }
        }
    }

    fn take_report(&mut self, report: Report, work: &mut Work) {
        match report {
            Report::Sent { outbox_id, at } => {
                self.confirmed.push(outbox_id);
                if let Some(request) = self.requests.remove(&outbox_id) {
                    stages::sent(&mut self.cache, request, at);
                }
            }
            Report::Unpublishable { outbox_id, body, replays, reason } => {
                tracing::error!(outbox_id, reason, "A message can never be published, and is dropped");
                self.confirmed.push(outbox_id);
                self.requests.remove(&outbox_id);
                if let Ok(request) = StepExecutionRequest::decode(&body) {
                    let error = StepExecutionError {
                        message: format!("the request cannot be published: {reason}"),
                        error_type: ErrorType::MessageRefused.to_string(),
                        code: Some("UNPUBLISHABLE".to_owned()),
                        retryable: false,
                        details: None,
                    };
                    let event = incoming::dead_letter(&request, "unpublishable".to_owned(), error);
                    work.unpublishable.push((request.task_uuid, incoming::in_life(replays, event)));
                }
            }
        }
    }
}

pub(super) fn take_command(command: Command, work: &mut Work) {
    match command {
        Command::Submit(submission) => work.submissions.push(*submission),
        Command::Tell(told) => work.told.push(told),
        Command::Overdue(steps) => work.overdue.extend(steps),
        Command::Stale(tasks) => work.stale.extend(tasks),
    }
}

pub(super) fn refuse_callers(work: &mut Work, error: &Error) {
    let copy = || match error {
        Error::Store { store, problem } => Error::Store { store: store.clone(), problem: problem.clone() },
        other => Error::Store { store: String::new(), problem: other.to_string() },
    };
    for submission in work.submissions.drain(..) {
        let _ = submission.reply.send(Err(SubmitError::Store(copy())));
    }
    for told in work.told.drain(..) {
        let _ = told.reply.send(Err(copy()));
    }
    // The next look finds them again.
    work.overdue.clear();
    work.stale.clear();
}

pub(super) fn hand_back(work: Work) {
    for message in work.messages {
        settle(message.acker, Disposition::Release);
    }
}

pub(super) fn settle(acker: Acker, disposition: Disposition) {
    // A stale delivery comes again, and is then found to be a duplicate.
    let _ = acker.settle(disposition);
}

/// Keeps a message for somebody to look at. Until that is certain it stays the queue's.
async fn park(publisher: Publisher, letter: Message, acker: Acker) {
    match publisher.publish(letter).await {
        Ok(()) => settle(acker, Disposition::Ack),
        Err(PublishError::Invalid(reason)) => {
            tracing::error!(
                reason,
                "A message that cannot be understood cannot be parked either, and is dropped"
            );
            settle(acker, Disposition::Ack);
        }
        Err(error) => {
            tracing::warn!(%error, "A message that cannot be understood cannot be parked yet; it comes again");
            tokio::time::sleep(PARKING_PAUSE).await;
            settle(acker, Disposition::Release);
        }
    }
}

/// The next delivery, once there is a subscription.
async fn next(subscription: &mut Option<Subscription>) -> Option<Delivery> {
    match subscription {
        Some(subscription) => subscription.recv().await,
        None => std::future::pending().await,
    }
}
