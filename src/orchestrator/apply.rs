//! The one task that changes tasks: it takes what waits, applies it in memory, writes one transaction, and
//! only then acks, answers and hands over what is to be sent.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::advance::{Event, Outcome, Timing, advance};
use super::cache::Cache;
use super::changes::Changes;
use super::dag::Plan;
use super::incoming::{self, Kind};
use super::outbox::{Handle, Report};
use super::outgoing::new_uuid;
use super::shared::Shared;
use super::store::{OutboxRow, OverdueStep, Store, TaskRow};
use super::task::{Task, TaskState};
use super::{CancelError, Pause, SubmitError, now};
use crate::Error;
use crate::api::TaskRequest;
use crate::broker::topology::Names;
use crate::broker::{Acker, Broker, Delivery, Disposition, Source, Subscription};
use crate::message::{ErrorType, StepExecutionError, StepExecutionRequest};
use crate::ops::metrics::{METRICS, seconds};

/// What callers ask the writer for.
#[derive(Debug)]
pub(super) enum Command {
    Submit(Box<Submission>),
    Cancel { task_uuid: Uuid, reply: oneshot::Sender<Result<(), CancelError>> },
    Overdue(Vec<OverdueStep>),
}

#[derive(Debug)]
pub(super) struct Submission {
    pub(super) request: TaskRequest,
    pub(super) identity: Uuid,
    pub(super) template_id: Uuid,
    pub(super) plan: Arc<Plan>,
    pub(super) reply: oneshot::Sender<Result<Uuid, SubmitError>>,
}

/// Settings of the writer.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) batch: usize,
    pub(super) default_timeout: Duration,
    pub(super) overdue_after: Duration,
}

pub(super) struct Writer {
    pub(super) store: Store,
    pub(super) cache: Cache,
    pub(super) broker: Arc<dyn Broker>,
    pub(super) names: Names,
    pub(super) limits: Limits,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) reports: mpsc::UnboundedReceiver<Report>,
    pub(super) outbox: Handle,
    pub(super) declared: watch::Receiver<u64>,
    pub(super) subscription: Option<Subscription>,
    pub(super) confirmed: Confirmed,
    pub(super) shared: Arc<Shared>,
    pub(super) stop: CancellationToken,
}

/// Outbox rows that can go, and when they go at the latest.
#[derive(Debug, Default)]
pub(super) struct Confirmed {
    outbox_ids: Vec<i64>,
    until: Option<tokio::time::Instant>,
}

/// How long confirmed rows wait for a transaction to go along with. One of their own would keep the next
/// result waiting for the disk; a crash before they are gone sends them again, which does no harm.
const CONFIRMED_WAIT: Duration = Duration::from_millis(20);

/// What waits to be applied. It stays whole until the transaction that covers it is on the disk.
#[derive(Default)]
struct Work {
    submissions: Vec<Submission>,
    cancels: Vec<(Uuid, oneshot::Sender<Result<(), CancelError>>)>,
    overdue: Vec<OverdueStep>,
    messages: Vec<Incoming>,
    unpublishable: Vec<(Uuid, Event)>,
    sent: Vec<i64>,
}

/// A delivery that was understood.
struct Incoming {
    kind: Kind,
    task_uuid: Uuid,
    event: Event,
    acker: Acker,
}

/// What is done once a transaction is on the disk.
#[derive(Default)]
struct Followup {
    accepted: Vec<Result<Uuid, Uuid>>,
    cancelled: Vec<Result<(), CancelError>>,
    outcomes: Vec<(Kind, Outcome)>,
    overdue: u64,
    finished: Vec<(Uuid, TaskState)>,
    namespaces: HashMap<Uuid, String>,
}

impl Confirmed {
    fn push(&mut self, outbox_id: i64) {
        self.outbox_ids.push(outbox_id);
        self.until.get_or_insert_with(|| tokio::time::Instant::now() + CONFIRMED_WAIT);
    }
}

impl Work {
    fn len(&self) -> usize {
        self.submissions.len()
            + self.cancels.len()
            + self.overdue.len()
            + self.messages.len()
            + self.unpublishable.len()
    }
}

impl Writer {
    /// Works until stopped.
    pub(super) async fn run(mut self) {
        while let Some(work) = self.collect().await {
            self.apply(work).await;
            self.cache.trim();
        }
        self.finish().await;
    }

    /// Everything that waits, up to a batch: at least one thing, or `None` when it is time to stop.
    async fn collect(&mut self) -> Option<Work> {
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
                () = tokio::time::sleep_until(until.unwrap_or_else(tokio::time::Instant::now)), if until.is_some() => {
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
                work.messages.push(Incoming { kind, task_uuid, event, acker: delivery.acker });
            }
            Err(reason) => {
                METRICS.messages_applied.with_label_values(&[kind.as_str(), Outcome::Refused.as_str()]).inc();
                tracing::error!(
                    message_id = delivery.properties.message_id, exchange = delivery.exchange,
                    routing_key = delivery.routing_key, %reason,
                    "A message to the orchestrator cannot be understood, and is dropped."
                );
                settle(delivery.acker, Disposition::Ack);
            }
        }
    }

    fn take_report(&mut self, report: Report, work: &mut Work) {
        match report {
            Report::Sent(outbox_id) => self.confirmed.push(outbox_id),
            Report::Unpublishable { outbox_id, body, reason } => {
                tracing::error!(outbox_id, reason, "A message can never be published, and is dropped.");
                self.confirmed.push(outbox_id);
                if let Ok(request) = StepExecutionRequest::decode(&body) {
                    let error = StepExecutionError {
                        message: format!("the request cannot be published: {reason}"),
                        error_type: ErrorType::MessageRefused.to_string(),
                        code: Some("UNPUBLISHABLE".to_owned()),
                        retryable: false,
                        details: None,
                    };
                    let event = incoming::dead_letter(&request, "unpublishable".to_owned(), error);
                    work.unpublishable.push((request.task_uuid, event));
                }
            }
        }
    }

    /// Applies work and writes it. While the store fails, nothing is acked and nothing is forgotten but the
    /// callers' wishes, which are answered with the failure.
    async fn apply(&mut self, mut work: Work) {
        let mut pause = Pause::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            let begun = Instant::now();
            let mut changes = Changes::default();
            match self.write(&work, &mut changes).await {
                Ok((rows, followup)) => {
                    METRICS.apply_seconds.observe(seconds(begun.elapsed()));
                    self.shared.set_store_problem(None);
                    return self.follow_up(work, rows, followup);
                }
                Err(error) => {
                    for task_uuid in changes.touched() {
                        self.cache.forget(*task_uuid);
                    }
                    let pause = pause.next();
                    METRICS.store_errors.inc();
                    tracing::error!(
                        %error, retry_in_ms = pause.as_millis() as u64, messages = work.messages.len(),
                        "The store does not take changes. Nothing is acknowledged meanwhile."
                    );
                    self.shared.set_store_problem(Some(error.to_string()));
                    refuse_callers(&mut work, &error);
                    if work.len() == 0 && work.sent.is_empty() {
                        return;
                    }
                    if self.refuse_while_waiting(pause, &error).await.is_break() {
                        self.confirmed.outbox_ids.append(&mut work.sent);
                        return hand_back(work);
                    }
                }
            }
        }
    }

    /// Answers everybody who asks within the pause with the failure; breaks off when it is time to stop.
    async fn refuse_while_waiting(&mut self, pause: Duration, error: &Error) -> ControlFlow<()> {
        let over = tokio::time::sleep(pause);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return ControlFlow::Break(()),
                () = &mut over => return ControlFlow::Continue(()),
                Some(command) = self.commands.recv() => {
                    let mut work = Work::default();
                    take_command(command, &mut work);
                    refuse_callers(&mut work, error);
                }
            }
        }
    }

    async fn write(
        &mut self,
        work: &Work,
        changes: &mut Changes,
    ) -> Result<(Vec<OutboxRow>, Followup), Error> {
        let now = now();
        let timing = Timing {
            now,
            default_timeout: self.limits.default_timeout,
            overdue_after: self.limits.overdue_after,
        };
        let mut followup = Followup::default();
        self.submit(work, changes, &timing, &mut followup).await?;
        for (task_uuid, _) in &work.cancels {
            let answer = self.cancel(*task_uuid, changes, &timing).await?;
            followup.cancelled.push(answer);
        }
        for message in &work.messages {
            let outcome = self.advance(message.task_uuid, &message.event, changes, &timing).await?;
            followup.outcomes.push((message.kind, outcome));
        }
        for (task_uuid, event) in &work.unpublishable {
            self.advance(*task_uuid, event, changes, &timing).await?;
        }
        for step in &work.overdue {
            let event = Event::Overdue { step_name: step.name.clone(), step_uuid: step.step_uuid };
            let outcome = self.advance(step.task_uuid, &event, changes, &timing).await?;
            followup.overdue += u64::from(outcome == Outcome::Applied);
        }
        followup.finished = changes.finished().to_vec();
        for (task_uuid, _) in &followup.finished {
            if let Some(task) = self.cache.peek(*task_uuid) {
                followup.namespaces.insert(*task_uuid, task.plan.template().namespace.clone());
            }
        }
        let mut batch = changes.rows(&self.cache, now);
        batch.sent.clone_from(&work.sent);
        if batch.is_empty() {
            return Ok((Vec::new(), followup));
        }
        let outbox_ids = self.store.apply(&batch).await?;
        let rows = outbox_ids.into_iter().zip(batch.outbox);
        let rows = rows.map(|(outbox_id, message)| OutboxRow { outbox_id, message, created_at: now });
        Ok((rows.collect(), followup))
    }

    async fn submit(
        &mut self,
        work: &Work,
        changes: &mut Changes,
        timing: &Timing,
        followup: &mut Followup,
    ) -> Result<(), Error> {
        if work.submissions.is_empty() {
            return Ok(());
        }
        let identities: Vec<Uuid> = work.submissions.iter().map(|submission| submission.identity).collect();
        let mut known = self.store.tasks_of(&identities).await?;
        for submission in &work.submissions {
            if let Some(task_uuid) = known.get(&submission.identity) {
                followup.accepted.push(Err(*task_uuid));
                continue;
            }
            let (mut task, row) = new_task(submission);
            changes.created(&task, row);
            let started = advance(&mut task, &Event::Submitted, timing);
            changes.record(&task, started.effects, timing.now, &self.names);
            known.insert(submission.identity, task.uuid);
            followup.accepted.push(Ok(task.uuid));
            self.cache.insert(task);
        }
        Ok(())
    }

    async fn cancel(
        &mut self,
        task_uuid: Uuid,
        changes: &mut Changes,
        timing: &Timing,
    ) -> Result<Result<(), CancelError>, Error> {
        let state = match self.cache.get(task_uuid).await? {
            None => return Ok(Err(CancelError::NotFound)),
            Some(task) => task.state,
        };
        Ok(match self.advance(task_uuid, &Event::Cancel, changes, timing).await? {
            Outcome::Applied => Ok(()),
            _ => Err(CancelError::Finished(state)),
        })
    }

    async fn advance(
        &mut self,
        task_uuid: Uuid,
        event: &Event,
        changes: &mut Changes,
        timing: &Timing,
    ) -> Result<Outcome, Error> {
        let Some(task) = self.cache.get(task_uuid).await? else { return Ok(Outcome::Unknown) };
        let advanced = advance(task, event, timing);
        changes.record(task, advanced.effects, timing.now, &self.names);
        Ok(advanced.outcome)
    }

    fn follow_up(&mut self, work: Work, rows: Vec<OutboxRow>, followup: Followup) {
        for message in work.messages {
            settle(message.acker, Disposition::Ack);
        }
        METRICS.outbox_depth.add(rows.len() as i64 - work.sent.len() as i64);
        if !work.sent.is_empty() {
            self.outbox.deleted(work.sent);
        }
        if !rows.is_empty() {
            self.outbox.committed(rows);
        }
        for (submission, accepted) in work.submissions.into_iter().zip(followup.accepted) {
            if accepted.is_ok() {
                let namespace = submission.request.namespace.as_str();
                METRICS.tasks_submitted.with_label_values(&[namespace]).inc();
            }
            // Whoever asked may have gone.
            let _ = submission.reply.send(accepted.map_err(|task_uuid| SubmitError::Duplicate { task_uuid }));
        }
        for ((_, reply), answer) in work.cancels.into_iter().zip(followup.cancelled) {
            let _ = reply.send(answer);
        }
        for (kind, outcome) in followup.outcomes {
            METRICS.messages_applied.with_label_values(&[kind.as_str(), outcome.as_str()]).inc();
        }
        METRICS.overdue.inc_by(followup.overdue);
        for (task_uuid, state) in followup.finished {
            self.cache.forget(task_uuid);
            self.shared.finished(task_uuid, state);
            if let Some(namespace) = followup.namespaces.get(&task_uuid) {
                METRICS.tasks_finished.with_label_values(&[namespace.as_str(), state.as_str()]).inc();
            }
        }
    }

    /// Gives back what was not applied, and removes from the outbox what is confirmed at the last moment.
    async fn finish(mut self) {
        self.commands.close();
        let mut work = Work::default();
        while let Some(command) = self.commands.recv().await {
            take_command(command, &mut work);
        }
        refuse_callers(&mut work, &SubmitError::closing(&self.store));
        if let Some(mut subscription) = self.subscription.take() {
            subscription.cancel();
            while let Some(Some(delivery)) = subscription.recv().now_or_never() {
                settle(delivery.acker, Disposition::Release);
            }
        }
        let Self { outbox, mut reports, store, confirmed, .. } = self;
        drop(outbox);
        let mut batch = super::store::Batch { sent: confirmed.outbox_ids, ..Default::default() };
        while let Some(report) = reports.recv().await {
            if let Report::Sent(outbox_id) = report {
                batch.sent.push(outbox_id);
            }
        }
        if !batch.is_empty()
            && let Err(error) = store.apply(&batch).await
        {
            tracing::warn!(
                %error, messages = batch.sent.len(),
                "Sent messages could not be removed from the outbox; the next start sends them again."
            );
        }
    }
}

fn new_task(submission: &Submission) -> (Task, TaskRow) {
    let request = &submission.request;
    let task_uuid = new_uuid();
    let correlation_id = request.correlation_id.unwrap_or_else(Uuid::new_v4).to_string();
    let task = Task::new(
        task_uuid,
        Arc::clone(&submission.plan),
        request.context.clone(),
        correlation_id.clone(),
        request.priority.unwrap_or(0),
        new_uuid,
    );
    let row = TaskRow {
        task_uuid,
        template_id: submission.template_id,
        template: Arc::clone(submission.plan.template()),
        state: task.state.as_str(),
        identity: submission.identity,
        context: request.context.clone(),
        initiator: request.initiator.clone(),
        source_system: request.source_system.clone(),
        reason: request.reason.clone(),
        priority: request.priority,
        options: request.options.as_ref().map(ToString::to_string),
        tags: serde_json::to_string(&request.tags).expect("texts always encode"),
        correlation_id,
        parent_correlation_id: request.parent_correlation_id,
        completed_at: None,
    };
    (task, row)
}

fn take_command(command: Command, work: &mut Work) {
    match command {
        Command::Submit(submission) => work.submissions.push(*submission),
        Command::Cancel { task_uuid, reply } => work.cancels.push((task_uuid, reply)),
        Command::Overdue(steps) => work.overdue.extend(steps),
    }
}

fn refuse_callers(work: &mut Work, error: &Error) {
    let copy = || match error {
        Error::Store { store, problem } => Error::Store { store: store.clone(), problem: problem.clone() },
        other => Error::Store { store: String::new(), problem: other.to_string() },
    };
    for submission in work.submissions.drain(..) {
        let _ = submission.reply.send(Err(SubmitError::Store(copy())));
    }
    for (_, reply) in work.cancels.drain(..) {
        let _ = reply.send(Err(CancelError::Store(copy())));
    }
    // The next look finds them again.
    work.overdue.clear();
}

fn hand_back(work: Work) {
    for message in work.messages {
        settle(message.acker, Disposition::Release);
    }
}

fn settle(acker: Acker, disposition: Disposition) {
    // A stale delivery comes again, and is then found to be a duplicate.
    let _ = acker.settle(disposition);
}

/// The next delivery, once there is a subscription.
async fn next(subscription: &mut Option<Subscription>) -> Option<Delivery> {
    match subscription {
        Some(subscription) => subscription.recv().await,
        None => std::future::pending().await,
    }
}
