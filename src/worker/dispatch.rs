//! From bytes to a request and its handler, or to the reason why not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::ledger::Key;
use super::served::Served;
use super::{Core, trace};
use crate::broker::{Acker, Delivery};
use crate::clock;
use crate::handler::ErasedHandler;
use crate::message::{StepExecutionRequest, header};
use crate::trace::TraceContext;

/// A retry that arrives this much before its time runs: clocks of hosts differ, and a delay queue of the
/// shortest rung would cost more than that.
const EARLY_ENOUGH: Duration = Duration::from_millis(250);

/// A request that was understood.
pub(super) struct Work {
    /// The namespace of the queue it came from.
    pub(super) namespace: Arc<Served>,
    pub(super) request: Arc<StepExecutionRequest>,
    /// `None`: nobody registered one.
    pub(super) handler: Option<ErasedHandler>,
    /// Its `not_before` lies ahead.
    pub(super) too_early: bool,
    pub(super) received_at: Instant,
    /// When it arrived, for people.
    pub(super) arrived: Timestamp,
    /// Its sender's place in its trace.
    pub(super) requested_by: Option<TraceContext>,
    /// The place of what is done and said about it.
    pub(super) trace: Option<TraceContext>,
    /// How often the step was replayed from the dead letters: its attempts are counted anew each time.
    pub(super) replays: u32,
    pub(super) replayed_from: Option<String>,
    pub(super) message_id: Option<String>,
    pub(super) exchange: String,
    pub(super) routing_key: String,
    /// The body as it came: what a dead letter is made of.
    pub(super) body: bytes::Bytes,
}

impl Work {
    /// What makes two requests the same one.
    pub(super) fn key(&self) -> Key {
        let StepExecutionRequest { step_uuid, attempt, part, .. } = *self.request;
        Key { step_uuid, replays: self.replays, attempt, part }
    }
}

/// # Errors
/// Why the delivery is no request, or too large to be one.
pub(super) fn dispatch(
    core: &Core,
    namespace: &Arc<Served>,
    delivery: Delivery,
) -> Result<(Work, Acker), (Acker, String)> {
    let limit = core.config.broker.max_message_bytes;
    if delivery.body.len() > limit {
        let problem = format!("the body has {} bytes, max_message_bytes is {limit}", delivery.body.len());
        return Err((delivery.acker, problem));
    }
    let request = match StepExecutionRequest::decode(&delivery.body) {
        Ok(request) => request,
        Err(error) => return Err((delivery.acker, format!("the body is not a request: {error}"))),
    };
    let arrived = clock::now();
    let headers = &delivery.properties.headers;
    let requested_by = TraceContext::of(headers);
    let work = Work {
        namespace: namespace.clone(),
        handler: core
            .registry
            .find(&request.namespace, request.template_step(), &request.handler.callable)
            .cloned(),
        too_early: request
            .not_before
            .is_some_and(|at| at.duration_since(arrived) > EARLY_ENOUGH.try_into().unwrap_or_default()),
        trace: trace::place(requested_by.as_ref()),
        requested_by,
        replays: headers.replays(),
        replayed_from: headers.text(header::REPLAYED_FROM).map(str::to_owned),
        request: Arc::new(request),
        message_id: delivery.properties.message_id,
        exchange: delivery.exchange,
        routing_key: delivery.routing_key,
        received_at: delivery.received_at,
        arrived,
        body: delivery.body,
    };
    Ok((work, delivery.acker))
}
