//! What a verdict has us say: the messages, made once, however often they are published.

use std::time::Duration;

use bytes::Bytes;
use tracing::{debug, error, warn};

use super::Core;
use super::dispatch::Work;
use super::execute::Timing;
use crate::broker::topology::{checkpoint_key, dead_key, result_key, retry_key};
use crate::broker::{Headers, Message, Properties};
use crate::checkpoint::Checkpoint;
use crate::clock;
use crate::message::{
    ErrorType, ExecutionMetadata, Json, PROTOCOL_VERSION, ResultStatus, StepExecutionError,
    StepExecutionRequest, StepExecutionResult, encode, header, replayed_message_id,
};
use crate::ops::metrics::METRICS;
use crate::outcome::{DeadReason, Delay, StepError, Verdict};

/// Error texts are cut to this in bodies, so that no error makes its own message unsendable.
const ERROR_BYTES: usize = 16 * 1024;
/// Error texts are cut to this in headers, which must fit one frame all together.
const HEADER_ERROR_BYTES: usize = 1024;
/// An error's details are left out above this.
const DETAILS_BYTES: usize = 64 * 1024;
/// The kind of a message that goes to the delay queues.
pub(super) const RETRY: &str = "step.retry";
/// The kind of a message that asks for the rest of a step.
pub(super) const CHECKPOINT: &str = "step.checkpoint";

/// What is said, in this order. `None`: nothing, the request goes back to the broker.
pub(super) fn answer(core: &Core, work: &Work, verdict: Verdict, timing: &Timing) -> Option<Vec<Message>> {
    let verdict = sendable(core, &work.request, verdict, timing);
    let (outcome, messages) = match verdict {
        Verdict::Complete(data) => {
            ("completed", vec![result(core, work, timing, ResultStatus::Completed, data, None)])
        }
        Verdict::Cancel => {
            let error = StepError::new(ErrorType::Cancelled, false, "the task was cancelled").error;
            let result = result(core, work, timing, ResultStatus::Cancelled, Json::null(), Some(error));
            ("cancelled", vec![result])
        }
        Verdict::GoOn(reached) => ("checkpointed", vec![rest(core, work, reached)]),
        Verdict::Retry { error, delay } => ("retried", vec![retry(core, work, &error, delay)]),
        Verdict::Fail { error, reason } => ("failed", fail(core, work, timing, &error, reason)),
        Verdict::HandBack => {
            count(work, "handed_back");
            return None;
        }
    };
    count(work, outcome);
    Some(messages)
}

/// What sends a request that arrived before its time back to the delay queues: a handler asked for a longer
/// delay than the longest queue has.
pub(super) fn postponed(core: &Core, work: &Work) -> Message {
    let remaining = work
        .request
        .not_before
        .map_or(Duration::ZERO, |at| Duration::try_from(at.duration_since(clock::now())).unwrap_or_default());
    let rung = core.ladder.at_least(remaining);
    let message = outgoing(core, work, core.names.retries(), retry_key(&work.request.namespace, rung));
    with_body(message, RETRY, work.request.message_id("postponed"), work.body.clone())
}

/// Replaces what is too large to be sent by the failure to send it, and a checkpoint that would be reported for ever by
/// the failure to go on.
fn sendable(core: &Core, request: &StepExecutionRequest, verdict: Verdict, timing: &Timing) -> Verdict {
    let limit = core.config.broker.max_message_bytes;
    let (what, bytes, envelope) = match &verdict {
        // The envelope around a result stays well below this.
        Verdict::Complete(data) => ("result", data.get().len(), 4096 + request.step_name.len()),
        Verdict::GoOn(reached) if request.checkpoint.as_ref() == Some(reached) => {
            let problem = "the checkpoint is the one that the step went on from: it would never end";
            return refused(problem);
        }
        Verdict::GoOn(reached) => {
            let bytes = reached.cursor.get().len() + reached.accumulated_results.get().len();
            let earlier = request.checkpoint.as_ref();
            let earlier = earlier.map_or(0, |at| at.cursor.get().len() + at.accumulated_results.get().len());
            ("checkpoint", bytes, request.encode().len() - earlier + 256)
        }
        _ => return verdict,
    };
    if bytes + envelope <= limit {
        return verdict;
    }
    warn!(what, bytes, ran_ms = timing.ran.as_millis() as u64, "What the step returned is too large");
    refused(format_args!(
        "the {what} has {bytes} bytes, max_message_bytes is {limit}; store it elsewhere and return a reference"
    ))
}

fn refused(problem: impl std::fmt::Display) -> Verdict {
    let error = StepError::new(ErrorType::ResultRefused, false, problem);
    Verdict::Fail { error, reason: DeadReason::PermanentError }
}

/// What asks for the rest of a step. No delay queue holds it up: it waits behind what waits already.
fn rest(core: &Core, work: &Work, reached: Checkpoint) -> Message {
    let mut next = StepExecutionRequest::clone(&work.request);
    next.part += 1;
    debug!(part = next.part, items_processed = reached.items_processed, "The step goes on from a checkpoint");
    next.checkpoint = Some(reached);
    next.created_at = Some(clock::now());
    next.not_before = None;
    let key = checkpoint_key(&next.namespace, &next.step_name);
    let message = outgoing(core, work, core.names.retries(), key);
    with_body(message, CHECKPOINT, next.message_id("request"), Bytes::from(next.encode()))
}

fn retry(core: &Core, work: &Work, error: &StepError, delay: Delay) -> Message {
    let (rung, at_least) = match delay {
        Delay::AtLeast(delay) => (core.ladder.at_least(delay), delay),
        Delay::About(delay) => {
            let jitter = core.config.worker.retry.jitter;
            let rung =
                if jitter { core.ladder.near(delay, rand::random()) } else { core.ladder.at_least(delay) };
            (rung, rung)
        }
    };
    let now = clock::now();
    let mut next = StepExecutionRequest::clone(&work.request);
    next.attempt += 1;
    next.previous_error = Some(bounded(&error.error));
    next.previous_attempt_at = Some(now);
    next.not_before = now.checked_add(jiff::SignedDuration::try_from(at_least).unwrap_or_default()).ok();
    let body = Bytes::from(next.encode());
    let namespace = &work.request.namespace;
    warn!(
        error = %error,
        next_attempt = next.attempt,
        max_attempts = next.max_attempts,
        delay_ms = rung.as_millis() as u64,
        "The step failed and is retried"
    );
    METRICS.retries.with_label_values(&[&work.namespace.name, work.request.template_step()]).inc();
    let mut message = outgoing(core, work, core.names.retries(), retry_key(namespace, rung));
    message.properties.headers.set(header::ATTEMPT, next.attempt);
    with_body(message, RETRY, next.message_id("retry"), body)
}

fn fail(core: &Core, work: &Work, timing: &Timing, error: &StepError, reason: DeadReason) -> Vec<Message> {
    error!(error = %error, reason = reason.as_str(), "The step failed for good");
    METRICS.dead_letters.with_label_values(&[&work.namespace.name, reason.as_str()]).inc();
    let for_body = Some(bounded(&error.error));
    let result = result(core, work, timing, ResultStatus::Failed, Json::null(), for_body);
    vec![result, dead_letter(core, work, error, reason)]
}

fn dead_letter(core: &Core, work: &Work, error: &StepError, reason: DeadReason) -> Message {
    let request = &work.request;
    // Under the namespace of its queue, which is declared: the request may name one that is not.
    let mut message =
        outgoing(core, work, core.names.dead_letters(), dead_key(&work.namespace.name, reason.as_str()));
    let headers = &mut message.properties.headers;
    headers.set(header::REASON, reason.as_str());
    headers.set(header::ERROR, shortened(&error.error.message, HEADER_ERROR_BYTES));
    headers.set(header::ERROR_TYPE, error.error.error_type.as_str());
    if let Some(code) = &error.error.code {
        headers.set(header::ERROR_CODE, shortened(code, HEADER_ERROR_BYTES));
    }
    if let Some(first) = request.created_at {
        headers.set(header::FIRST_AT, first.to_string());
    }
    headers.set(header::LAST_AT, clock::now().to_string());
    with_body(message, "step.dead_letter", request.message_id("dead"), work.body.clone())
}

fn result(
    core: &Core,
    work: &Work,
    timing: &Timing,
    status: ResultStatus,
    data: Json,
    error: Option<StepExecutionError>,
) -> Message {
    let request = &work.request;
    let broker_wait = request.not_before.or(request.created_at).map(|from| work.arrived.duration_since(from));
    let result = StepExecutionResult {
        protocol_version: PROTOCOL_VERSION,
        task_uuid: request.task_uuid,
        step_uuid: request.step_uuid,
        namespace: request.namespace.clone(),
        step_name: request.step_name.clone(),
        attempt: request.attempt,
        part: request.part,
        success: status == ResultStatus::Completed,
        status,
        data,
        error,
        metadata: ExecutionMetadata {
            executed_at: clock::now(),
            started_at: Some(timing.started_at),
            execution_environment: "rust".to_owned(),
            memory_usage_kb: memory_usage_kb(core),
            cpu_time_ms: Some(timing.polled.as_millis() as u64),
            worker_id: core.worker_id.clone(),
            worker_hostname: core.hostname.clone(),
            worker_version: env!("CARGO_PKG_VERSION").to_owned(),
            broker_wait_ms: broker_wait.map(|wait| wait.as_millis().max(0) as u64),
            queue_wait_ms: Some(timing.waited.as_millis() as u64),
        },
        duration_ms: timing.ran.as_millis() as u64,
    };
    let message = outgoing(core, work, core.names.results(), result_key(&request.namespace, status.as_str()));
    with_body(message, "step.result", request.message_id("result"), Bytes::from(encode(&result)))
}

fn memory_usage_kb(core: &Core) -> Option<u64> {
    core.config.worker.metrics.memory_monitoring.then(crate::ops::process::resident_memory_kb).flatten()
}

/// A message about `work`'s attempt, still without a body.
fn outgoing(core: &Core, work: &Work, exchange: String, routing_key: String) -> Message {
    let request = &work.request;
    let mut headers = Headers::default();
    headers.set(header::ATTEMPT, request.attempt);
    headers.set(header::WORKER_ID, core.worker_id.as_str());
    if let Some(trace) = &work.trace {
        trace.write(&mut headers);
    }
    if work.replays > 0 {
        headers.set(header::REPLAYS, work.replays);
    }
    if let Some(replayed_from) = &work.replayed_from {
        headers.set(header::REPLAYED_FROM, replayed_from.as_str());
    }
    let properties = Properties {
        correlation_id: Some(request.correlation_id.clone()),
        timestamp: u64::try_from(clock::now().as_second()).ok(),
        headers,
        ..Properties::default()
    };
    Message { exchange, routing_key, body: Bytes::new(), properties }
}

fn with_body(mut message: Message, kind: &str, message_id: String, body: Bytes) -> Message {
    message.properties.kind = Some(kind.to_owned());
    let replays = message.properties.headers.replays();
    message.properties.message_id = Some(replayed_message_id(message_id, replays));
    message.body = body;
    message
}

fn count(work: &Work, outcome: &str) {
    // A name nobody registered could be anything, and would make a metric for each.
    let step = if work.handler.is_some() { work.request.template_step() } else { "unknown" };
    match outcome {
        "completed" => work.namespace.completed(step),
        _ => METRICS.steps.with_label_values(&[&work.namespace.name, step, outcome]).inc(),
    }
}

fn bounded(error: &StepExecutionError) -> StepExecutionError {
    let mut error = error.clone();
    error.message = shortened(&error.message, ERROR_BYTES);
    error.code = error.code.map(|code| shortened(&code, HEADER_ERROR_BYTES));
    error.details = error.details.filter(|details| details.get().len() <= DETAILS_BYTES);
    error
}

fn shortened(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let end = (0..=limit).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{} … ({} bytes in all)", &text[..end], text.len())
}
