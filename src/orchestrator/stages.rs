//! Clocks of a step's stages: what is measured here of the way of a request to a worker and of its result back.

use uuid::Uuid;

use super::advance::Event;
use super::cache::Cache;
use super::intake::Incoming;
use super::task::Task;
use crate::message::StepExecutionResult;
use crate::ops::metrics::{METRICS, seconds};

/// The broker confirmed a step's request. Stored with what is heard of the step next.
pub(super) fn sent(cache: &mut Cache, (task_uuid, step): (Uuid, usize), at: i64) {
    let Some(task) = cache.peek_mut(task_uuid) else { return };
    // What was put off, or answered before the confirmation was back, is sent no more.
    let Some(run) = task.steps.get_mut(step).filter(|run| run.state.is_open()) else { return };
    run.sent_at = Some(at);
    let enqueued_at = run.enqueued_at;
    observe_between(&task.plan.template().namespace, "enqueued", enqueued_at, Some(at));
}

/// A message was applied to its task.
pub(super) fn received(cache: &mut Cache, message: &Incoming, now: i64) {
    let (Some(result), Some(task)) = (result(&message.event), cache.peek_mut(message.task_uuid)) else {
        return;
    };
    let Some(step) = task.find(&result.step_name, result.step_uuid) else { return };
    let waited = i64::try_from(message.received_at.elapsed().as_millis()).unwrap_or(0);
    task.steps[step].received_at = Some(now - waited);
    broker_wait(task, step, result);
}

/// What was applied is on the disk.
pub(super) fn applied(cache: &Cache, message: &Incoming) {
    if let Some(task) = cache.peek(message.task_uuid).filter(|_| result(&message.event).is_some()) {
        let labels = [task.plan.template().namespace.as_str(), "apply"];
        METRICS.stage_seconds.with_label_values(&labels).observe(seconds(message.received_at.elapsed()));
    }
}

fn result(event: &Event) -> Option<&StepExecutionResult> {
    match event {
        Event::Result(result) => Some(result),
        Event::Replayed { event, .. } => result(event),
        _ => None,
    }
}

fn broker_wait(task: &Task, step: usize, result: &StepExecutionResult) {
    let (run, metadata) = (&task.steps[step], &result.metadata);
    let arrived = metadata.started_at.map(|at| at.as_millisecond() - millis(metadata.queue_wait_ms));
    let from = match metadata.broker_wait_ms {
        // A retry waits in the broker because it has to, until the time its worker counts from; the rest of a step was
        // requested by its worker.
        Some(waited) if result.attempt > 1 || result.part > 0 => arrived.map(|at| at - millis(Some(waited))),
        _ => run.sent_at.or(run.enqueued_at),
    };
    observe_between(&task.plan.template().namespace, "broker_wait", from, arrived);
}

fn observe_between(namespace: &str, stage: &str, from: Option<i64>, to: Option<i64>) {
    if let (Some(from), Some(to)) = (from, to) {
        let time = (to - from).max(0) as f64 / 1_000.0;
        METRICS.stage_seconds.with_label_values(&[namespace, stage]).observe(time);
    }
}

fn millis(time: Option<u64>) -> i64 {
    time.and_then(|time| i64::try_from(time).ok()).unwrap_or(0)
}
