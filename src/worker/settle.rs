//! The last act, and the only file that acks or nacks a request: publish, wait for the broker's
//! confirmation, then ack. Every way out is here.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::{debug, error, warn};

use super::Core;
use super::dispatch::Work;
use super::execute::Timing;
use crate::broker::topology::{dead_key, result_key, retry_key};
use crate::broker::{Acker, Disposition, Headers, Message, Properties, PublishError};
use crate::clock;
use crate::message::{
    ErrorType, ExecutionMetadata, Json, PROTOCOL_VERSION, ResultStatus, StepExecutionError,
    StepExecutionRequest, StepExecutionResult, encode, header, replayed_message_id,
};
use crate::ops::metrics::{METRICS, seconds};
use crate::outcome::{DeadReason, Delay, StepError, Verdict};

/// Error texts are cut to this in bodies, so that no error makes its own message unsendable.
const ERROR_BYTES: usize = 16 * 1024;
/// Error texts are cut to this in headers, which must fit one frame all together.
const HEADER_ERROR_BYTES: usize = 1024;
/// An error's details are left out above this.
const DETAILS_BYTES: usize = 64 * 1024;
/// The first pause before a message that was not confirmed is published again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Carries out a verdict: publishes what it says, then acks. A delivery that cannot be settled any more
/// is the broker's again, and comes back.
pub(super) async fn settle(core: &Core, work: Work, verdict: Verdict, timing: Timing) {
    let verdict = sendable(core, &work.request, verdict, &timing);
    let outcome = match &verdict {
        Verdict::Complete(_) => "completed",
        Verdict::Retry { .. } => "retried",
        Verdict::Fail { .. } => "failed",
        Verdict::Cancel => "cancelled",
        Verdict::HandBack => "handed_back",
    };
    let published = match &verdict {
        Verdict::Complete(data) => {
            publish(core, &work, || result(core, &work, &timing, ResultStatus::Completed, data.clone(), None))
                .await
        }
        Verdict::Cancel => {
            let error = StepError::new(ErrorType::Cancelled, false, "the task was cancelled").error;
            let error = Some(error);
            publish(core, &work, || {
                result(core, &work, &timing, ResultStatus::Cancelled, Json::null(), error.clone())
            })
            .await
        }
        Verdict::Retry { error, delay } => retry(core, &work, error, *delay).await,
        Verdict::Fail { error, reason } => fail(core, &work, &timing, error, *reason).await,
        Verdict::HandBack => {
            count(&work, outcome);
            return release(work.acker);
        }
    };
    match published {
        Ok(()) => {
            count(&work, outcome);
            if work.acker.settle(Disposition::Ack).is_err() {
                debug!(
                    "answered, but the delivery could not be acked any more; the broker hands it out again"
                );
            }
        }
        Err(GaveUp::Stale) => debug!("the delivery is no longer ours; whoever gets it next answers it"),
        Err(GaveUp::Stopping) => release(work.acker),
        Err(GaveUp::Unsendable(problem)) => {
            error!(problem, "the answer can never be published; the request goes to the dead letters");
            refuse(work.acker, &work.namespace, &problem);
        }
    }
}

/// Sends a request that arrived before its time back to the delay queues: a handler asked for a longer
/// delay than the longest queue has.
pub(super) async fn postpone(core: &Core, work: Work) {
    let remaining = work
        .request
        .not_before
        .map_or(Duration::ZERO, |at| Duration::try_from(at.duration_since(clock::now())).unwrap_or_default());
    let rung = core.ladder.at_least(remaining);
    let send = || {
        let message = outgoing(core, &work, core.names.retries(), retry_key(&work.request.namespace, rung));
        with_body(message, "step.retry", work.request.message_id("postponed"), work.body.clone())
    };
    match publish(core, &work, send).await {
        Ok(()) => drop(work.acker.settle(Disposition::Ack)),
        Err(GaveUp::Stale) => {}
        Err(GaveUp::Stopping | GaveUp::Unsendable(_)) => release(work.acker),
    }
}

/// Refuses what is no request: the broker moves it to the dead letters in one step.
pub(super) fn refuse(acker: Acker, namespace: &str, problem: &str) {
    warn!(namespace, problem, "refused a message; it goes to the dead letters");
    METRICS.dead_letters.with_label_values(&[namespace, "refused"]).inc();
    let _ = acker.settle(Disposition::Reject);
}

/// Hands a delivery back for another worker, spending no attempt.
pub(super) fn release(acker: Acker) {
    let _ = acker.settle(Disposition::Release);
}

/// Replaces a result too large to be sent by the failure to send it.
fn sendable(core: &Core, request: &StepExecutionRequest, verdict: Verdict, timing: &Timing) -> Verdict {
    let Verdict::Complete(data) = &verdict else { return verdict };
    let limit = core.config.broker.max_message_bytes;
    // The envelope around a result stays well below this.
    let size = data.get().len() + 4096 + request.step_name.len();
    if size <= limit {
        return verdict;
    }
    warn!(
        result_bytes = data.get().len(),
        ran_ms = timing.ran.as_millis() as u64,
        "the step's result is too large"
    );
    let error = StepError::new(
        ErrorType::ResultRefused,
        false,
        format_args!(
            "the result has {} bytes, max_message_bytes is {limit}; store it elsewhere and return a reference",
            data.get().len()
        ),
    );
    Verdict::Fail { error, reason: DeadReason::PermanentError }
}

async fn retry(core: &Core, work: &Work, error: &StepError, delay: Delay) -> Result<(), GaveUp> {
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
        "the step failed and is retried"
    );
    publish(core, work, || {
        let mut message = outgoing(core, work, core.names.retries(), retry_key(namespace, rung));
        message.properties.headers.set(header::ATTEMPT, next.attempt);
        with_body(message, "step.retry", next.message_id("retry"), body.clone())
    })
    .await?;
    METRICS.retries.with_label_values(&[&*work.namespace, &work.request.step_name]).inc();
    Ok(())
}

async fn fail(
    core: &Core,
    work: &Work,
    timing: &Timing,
    error: &StepError,
    reason: DeadReason,
) -> Result<(), GaveUp> {
    error!(error = %error, reason = reason.as_str(), "the step failed for good");
    let for_body = bounded(&error.error);
    publish(core, work, || {
        result(core, work, timing, ResultStatus::Failed, Json::null(), Some(for_body.clone()))
    })
    .await?;
    publish(core, work, || dead_letter(core, work, error, reason)).await?;
    METRICS.dead_letters.with_label_values(&[&*work.namespace, reason.as_str()]).inc();
    Ok(())
}

fn dead_letter(core: &Core, work: &Work, error: &StepError, reason: DeadReason) -> Message {
    let request = &work.request;
    // Under the namespace of its queue, which is declared: the request may name one that is not.
    let mut message =
        outgoing(core, work, core.names.dead_letters(), dead_key(&work.namespace, reason.as_str()));
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
    if let Some(traceparent) = &work.traceparent {
        headers.set(header::TRACEPARENT, traceparent.as_str());
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

/// Why nothing was acked.
enum GaveUp {
    /// The delivery's channel is gone: the broker hands it out again.
    Stale,
    /// The worker ends and the broker does not confirm.
    Stopping,
    /// The message breaks a limit, today and tomorrow.
    Unsendable(String),
}

/// Publishes until the broker confirms, as long as that makes sense. The message is made anew for each
/// try, so that the usual single try copies nothing.
async fn publish(core: &Core, work: &Work, make: impl Fn() -> Message) -> Result<(), GaveUp> {
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        let problem = match core.publisher.publish(make()).await {
            Ok(()) => {
                if core.config.worker.metrics.step_timing_enabled {
                    METRICS.confirm_seconds.observe(seconds(started.elapsed()));
                }
                return Ok(());
            }
            Err(PublishError::Invalid(problem)) => return Err(GaveUp::Unsendable(problem)),
            Err(problem) => problem,
        };
        if !work.acker.is_usable() {
            return Err(GaveUp::Stale);
        }
        warn!(%problem, pause_ms = pause.as_millis() as u64, "the broker did not confirm the answer; publishing it again");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = core.interrupted.cancelled() => return Err(GaveUp::Stopping),
        }
        pause = (pause * 2).min(Duration::from_millis(core.config.worker.retry.publish_max_pause_ms));
    }
}

fn count(work: &Work, outcome: &str) {
    // A name nobody registered could be anything, and would make a metric for each.
    let step = if work.handler.is_some() { work.request.step_name.as_str() } else { "unknown" };
    METRICS.steps.with_label_values(&[&*work.namespace, step, outcome]).inc();
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
