//! The one task that changes tasks: it takes what waits, applies it in memory, writes one transaction, and
//! only then acks, answers and hands over what is to be sent.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::advance::{Event, Outcome, Timing, advance};
use super::cache::Cache;
use super::changes::{Changes, RequestOf};
use super::incoming::Kind;
use super::intake::{
    Command, Confirmed, Heard, Submission, Work, hand_back, refuse_callers, settle, take_command,
};
use super::outbox::{Handle, Report};
use super::outgoing::new_uuid;
use super::shared::Shared;
use super::store::{DAMAGED, OutboxRow, Store, TaskRow};
use super::task::{Task, TaskState};
use super::{Pause, SubmitError, now, stages, trace};
use crate::Error;
use crate::broker::topology::Names;
use crate::broker::{Broker, Disposition, Subscription};
use crate::ops::metrics::{METRICS, seconds};
use crate::trace::TraceContext;

/// Settings of the writer.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) batch: usize,
    pub(super) default_timeout: Duration,
    pub(super) overdue_after: Duration,
    pub(super) resends: u32,
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
    /// The steps whose requests are in the outbox, by its rows.
    pub(super) requests: HashMap<i64, (Uuid, usize)>,
    pub(super) shared: Arc<Shared>,
    pub(super) stop: CancellationToken,
}

/// What is done once a transaction is on the disk.
#[derive(Default)]
struct Followup {
    accepted: Vec<Result<Uuid, Uuid>>,
    heard: Vec<Heard>,
    touched: Vec<Uuid>,
    /// Of each new row of the outbox, the step it is a request of.
    requests: Vec<RequestOf>,
    outcomes: Vec<(Kind, Outcome)>,
    overdue: u64,
    findings: Vec<(Uuid, &'static str)>,
    finished: Vec<(Uuid, TaskState)>,
    namespaces: HashMap<Uuid, String>,
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
            resends: self.limits.resends,
        };
        let mut followup = Followup::default();
        self.submit(work, changes, &timing, &mut followup).await?;
        for told in &work.told {
            let state = self.cache.get(told.task_uuid).await?.map(|task| task.state);
            let outcome = self.advance(told.task_uuid, &told.event, changes, &timing).await?;
            followup.heard.push(state.map(|state| (state, outcome)));
        }
        for message in &work.messages {
            let outcome = self.advance(message.task_uuid, &message.event, changes, &timing).await?;
            if outcome == Outcome::Applied {
                stages::received(&mut self.cache, message, now);
            }
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
        for task_uuid in &work.stale {
            self.advance(*task_uuid, &Event::Stale, changes, &timing).await?;
        }
        followup.touched = changes.touched().to_vec();
        followup.finished = changes.finished().to_vec();
        for (task_uuid, _) in &followup.finished {
            if let Some(task) = self.cache.peek(*task_uuid) {
                followup.namespaces.insert(*task_uuid, task.plan.template().namespace.clone());
            }
        }
        let mut batch = changes.rows(&self.cache, now);
        followup.findings = batch.findings.iter().map(|row| (row.task_uuid, row.finding.reason)).collect();
        batch.sent.clone_from(&work.sent);
        followup.requests = changes.take_requests();
        if batch.is_empty() {
            return Ok((Vec::new(), followup));
        }
        let outbox_ids = self.store.apply(&batch).await?;
        let rows = outbox_ids.into_iter().zip(batch.outbox);
        let rows = rows.map(|(outbox_id, (priority, message))| OutboxRow {
            outbox_id,
            priority,
            message,
            created_at: now,
        });
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
        for (message, (_, outcome)) in work.messages.into_iter().zip(&followup.outcomes) {
            if *outcome == Outcome::Refused && matches!(message.event, Event::Replayed { .. }) {
                tracing::warn!(
                    task_uuid = %message.task_uuid,
                    "A step was replayed whose task was rolled back or cancelled; its answer changes nothing"
                );
            }
            if *outcome == Outcome::Applied {
                stages::applied(&self.cache, &message);
            }
            if let Some(span) = message.span {
                span.with("task_uuid", message.task_uuid.to_string()).with("outcome", outcome.as_str()).end();
            }
            settle(message.acker, Disposition::Ack);
        }
        for (row, request) in rows.iter().zip(followup.requests) {
            self.requests.extend(request.map(|request| (row.outbox_id, request)));
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
        for (told, heard) in work.told.into_iter().zip(followup.heard) {
            let _ = told.reply.send(Ok(heard));
        }
        for (kind, outcome) in followup.outcomes {
            METRICS.messages_applied.with_label_values(&[kind.as_str(), outcome.as_str()]).inc();
        }
        METRICS.overdue.inc_by(followup.overdue);
        for (task_uuid, reason) in followup.findings {
            tracing::error!(%task_uuid, reason, "A task needs somebody to look at it");
            METRICS.findings.with_label_values(&[reason]).inc();
        }
        for task_uuid in self.cache.take_damaged() {
            METRICS.findings.with_label_values(&[DAMAGED]).inc();
            self.shared.finished(task_uuid, TaskState::Error);
        }
        self.shared.changed(&followup.touched);
        for (task_uuid, state) in followup.finished {
            if let Some(task) = self.cache.peek(task_uuid) {
                trace::finished(task, state);
            }
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
            if let Report::Sent { outbox_id, .. } = report {
                batch.sent.push(outbox_id);
            }
        }
        if !batch.is_empty()
            && let Err(error) = store.apply(&batch).await
        {
            tracing::warn!(
                %error, messages = batch.sent.len(),
                "Sent messages could not be removed from the outbox; the next start sends them again"
            );
        }
    }
}

fn new_task(submission: &Submission) -> (Task, TaskRow) {
    let request = &submission.request;
    let task_uuid = new_uuid();
    let correlation_id = request.correlation_id.unwrap_or_else(Uuid::new_v4).to_string();
    let mut task = Task::new(
        task_uuid,
        Arc::clone(&submission.plan),
        request.context.clone(),
        correlation_id.clone(),
        request.priority.unwrap_or(0),
        new_uuid,
    );
    task.trace.clone_from(&submission.trace);
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
        trace: submission.trace.as_ref().map(TraceContext::stored),
        parent_correlation_id: request.parent_correlation_id,
        requested_at: request.requested_at.map(|at| at.as_millisecond()),
        completed_at: None,
        stale_at: None,
    };
    (task, row)
}
