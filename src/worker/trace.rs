//! The span of a step's execution.

use jiff::Timestamp;

use super::Core;
use super::dispatch::Work;
use crate::ops::spans::{self, Kind, Span};
use crate::outcome::Verdict;
use crate::trace::TraceContext;

/// The place in its trace of what is done about a request that came with `incoming`, and of what is said
/// about it: one of its own while spans are sent, else the request's.
pub(super) fn place(incoming: Option<&TraceContext>) -> Option<TraceContext> {
    match incoming {
        Some(incoming) if spans::enabled() => Some(incoming.child()),
        None if spans::enabled() => Some(spans::root()),
        incoming => incoming.cloned(),
    }
}

/// A span that ends when this is dropped.
pub(super) struct OpenSpan(Option<Box<Span>>);

impl OpenSpan {
    pub(super) fn nothing() -> Self {
        Self(None)
    }
}

impl Drop for OpenSpan {
    fn drop(&mut self) {
        if let Some(span) = self.0.take() {
            span.end();
        }
    }
}

/// The span of an execution that came to this verdict; it ends with the settlement. Nothing while nobody wants spans.
pub(super) fn span(core: &Core, work: &Work, verdict: &Verdict, started: Timestamp) -> OpenSpan {
    let Some(context) = work.trace.clone().filter(|context| spans::enabled() && context.sampled) else {
        return OpenSpan::nothing();
    };
    let request = &work.request;
    let queue = core.names.step_queue(&work.namespace.name);
    let parent = work.requested_by.as_ref().map(|parent| parent.span_id);
    let name = format!("process {}.{}", work.namespace.name, request.step_name);
    let mut span = Span::new(context, parent, Kind::Consumer, name)
        .since(started)
        .with("messaging.system", "rabbitmq")
        .with("messaging.operation.type", "process")
        .with("messaging.operation.name", "process")
        .with("messaging.destination.name", format!("{}:{}:{queue}", work.exchange, work.routing_key))
        .with("messaging.rabbitmq.destination.routing_key", work.routing_key.as_str())
        .with("messaging.message.conversation_id", request.correlation_id.as_str())
        .with("messaging.message.body.size", work.body.len())
        .with("task_uuid", request.task_uuid.to_string())
        .with("step_uuid", request.step_uuid.to_string())
        .with("namespace", work.namespace.name.as_str())
        .with("step", request.step_name.as_str())
        .with("attempt", request.attempt)
        .with("worker_id", core.worker_id.as_str());
    if let Some(message_id) = &work.message_id {
        span = span.with("messaging.message.id", message_id.as_str());
    }
    // Its parent is the part or the attempt before, or the one that died, by the header that one wrote.
    if (request.part > 0 || request.attempt > 1 || work.replays > 0)
        && let Some(before) = &work.requested_by
    {
        span = span.linked_to(before.clone());
    }
    let (outcome, error) = match verdict {
        Verdict::Complete(_) => ("completed", None),
        Verdict::GoOn(_) => ("checkpointed", None),
        Verdict::Cancel => ("cancelled", None),
        Verdict::Retry { error, .. } => ("retried", Some(error)),
        Verdict::Fail { error, .. } => ("failed", Some(error)),
        Verdict::HandBack => ("handed_back", None),
    };
    if let Some(error) = error {
        span = span.with("error.type", error.error.error_type.as_str());
        span.failed(error.error.message.as_str());
    }
    OpenSpan(Some(Box::new(span.with("outcome", outcome))))
}
