//! The spans of the orchestrator: a task from its submission to its end, the requests it sends, what it applies.

use serde::Deserialize;
use uuid::Uuid;

use super::now;
use super::task::{Task, TaskState};
use crate::broker::{Delivery, Message};
use crate::ops::spans::{self, Kind, Span};
use crate::trace::TraceContext;

/// The span of a whole task. From its id, so that those within it know it before and after a restart.
fn task_span(task_uuid: Uuid) -> u64 {
    task_uuid.as_u64_pair().1
}

/// The place of a request: a span of its own while spans are sent, else the task's caller's.
pub(super) fn request(task: &Task) -> Option<TraceContext> {
    let trace = task.trace.as_ref()?;
    Some(if spans::enabled() { trace.child() } else { trace.clone() })
}

/// What a request says of its step.
#[derive(Deserialize)]
struct Request {
    task_uuid: Uuid,
    step_uuid: Uuid,
    namespace: String,
    step_name: String,
    attempt: u32,
}

/// The span of a message's publication, which begins now. `None` while nobody wants spans.
pub(super) fn sending(message: &Message) -> Option<Box<Span>> {
    let context = wanted(|| TraceContext::of(&message.properties.headers))?;
    let Request { task_uuid, step_uuid, namespace, step_name, attempt } =
        serde_json::from_slice(&message.body).ok()?;
    let destination = format!("{}:{}", message.exchange, message.routing_key);
    let name = format!("send {namespace}.{step_name}");
    let span = Span::new(context, Some(task_span(task_uuid)), Kind::Producer, name)
        .with("messaging.system", "rabbitmq")
        .with("messaging.operation.type", "send")
        .with("messaging.operation.name", "send")
        .with("messaging.destination.name", destination)
        .with("messaging.rabbitmq.destination.routing_key", message.routing_key.as_str())
        .with("messaging.message.id", message.properties.message_id.clone())
        .with("messaging.message.conversation_id", message.properties.correlation_id.clone())
        .with("messaging.message.body.size", message.body.len())
        .with("task_uuid", task_uuid.to_string())
        .with("step_uuid", step_uuid.to_string())
        .with("namespace", namespace)
        .with("step", step_name)
        .with("attempt", attempt);
    Some(Box::new(span))
}

/// The span of applying a message, since it arrived. `None` while nobody wants spans.
pub(super) fn applying(
    delivery: &Delivery,
    kind: &'static str,
    queue: impl FnOnce() -> String,
) -> Option<Box<Span>> {
    let sender = wanted(|| TraceContext::of(&delivery.properties.headers))?;
    let destination = format!("{}:{}:{}", delivery.exchange, delivery.routing_key, queue());
    let arrived =
        crate::clock::now() - jiff::SignedDuration::try_from(delivery.received_at.elapsed()).ok()?;
    let span = Span::new(sender.child(), Some(sender.span_id), Kind::Consumer, format!("apply {kind}"))
        .since(arrived)
        .with("messaging.system", "rabbitmq")
        .with("messaging.operation.type", "process")
        .with("messaging.operation.name", "apply")
        .with("messaging.destination.name", destination)
        .with("messaging.rabbitmq.destination.routing_key", delivery.routing_key.as_str())
        .with("messaging.message.id", delivery.properties.message_id.clone())
        .with("messaging.message.body.size", delivery.body.len());
    Some(Box::new(span))
}

/// The span of a task that has come to its end. One that was reopened has another for its later end.
pub(super) fn finished(task: &Task, state: TaskState) {
    let Some(trace) = wanted(|| task.trace.clone()) else { return };
    let reopened = task.steps.iter().any(|step| step.replays > 0);
    let context = if reopened { trace.child() } else { trace.with_span(task_span(task.uuid)) };
    let template = task.plan.template();
    let name = format!("task {}/{}", template.namespace, template.name);
    let accepted = jiff::Timestamp::from_millisecond(task.created_at.min(now())).unwrap_or_default();
    let mut span = Span::new(context, Some(trace.span_id), Kind::Internal, name)
        .since(accepted)
        .with("task_uuid", task.uuid.to_string())
        .with("namespace", template.namespace.as_str())
        .with("template", template.name.as_str())
        .with("template_version", template.version.as_str())
        .with("correlation_id", task.correlation_id.as_str())
        .with("state", state.as_str());
    if state == TaskState::Error {
        span.failed("a step failed for good");
    }
    span.end();
}

/// A place in a trace that spans are wanted of.
fn wanted(place: impl FnOnce() -> Option<TraceContext>) -> Option<TraceContext> {
    if spans::enabled() { place().filter(|place| place.sampled) } else { None }
}
