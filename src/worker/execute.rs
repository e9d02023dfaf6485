//! Runs a handler: with its timeout, its panic guard and its cancellation.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use jiff::Timestamp;

use super::Core;
use super::dispatch::Work;
use super::served::Pace;
use crate::clock;
use crate::handler::{BlockingFn, Call, Run};
use crate::message::{ErrorType, Json};
use crate::ops::metrics::seconds;
use crate::outcome::{Outcome, StepError, StepResult};

/// How long a handler may go on after it was told to stop.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// How one execution went.
pub(super) struct Execution {
    pub(super) outcome: Outcome,
    pub(super) timing: Timing,
}

/// When and how long a handler ran.
pub(super) struct Timing {
    pub(super) started_at: Timestamp,
    pub(super) ran: Duration,
    /// Time the handler's future was being polled.
    pub(super) polled: Duration,
    /// From the delivery's arrival to the handler's call.
    pub(super) waited: Duration,
}

pub(super) async fn execute(core: &Core, work: &Work) -> Execution {
    let started = Instant::now();
    let mut timing = Timing {
        started_at: clock::now(),
        ran: Duration::ZERO,
        polled: Duration::ZERO,
        waited: started.saturating_duration_since(work.received_at),
    };
    let request = &work.request;
    work.namespace.in_flight.inc();
    let outcome = run(core, work, &mut timing.polled).await;
    work.namespace.in_flight.dec();
    timing.ran = started.elapsed();
    work.namespace.pace.note(timing.polled);
    if let Some(stages) = &work.namespace.stages {
        stages.prefetch_wait.observe(seconds(timing.waited));
        stages.run.observe(seconds(timing.ran));
        // The step's name is taken from the registry's words only: an unknown one could be anything.
        if work.handler.is_some() {
            work.namespace.ran(request.template_step(), timing.ran);
        }
    }
    Execution { outcome, timing }
}

async fn run(core: &Core, work: &Work, polled: &mut Duration) -> Outcome {
    let request = &work.request;
    let Some(handler) = &work.handler else {
        return Outcome::Failed(StepError::new(
            ErrorType::HandlerNotFound,
            false,
            format_args!(
                "no handler is registered for step {:?} of namespace {:?}; this worker has: {}",
                request.step_name,
                request.namespace,
                core.registry.steps(&request.namespace).join(", "),
            ),
        ));
    };
    let running = core.cancellations.enter(work, &core.interrupted);
    if running.is_cancelled() {
        return Outcome::Cancelled;
    }
    let limit = request
        .timeout_ms
        .map_or(Duration::from_secs(core.config.worker.step_timeout_seconds), Duration::from_millis);
    let now = tokio::time::Instant::now();
    let deadline = now.checked_add(limit);
    let call = Call {
        request: request.clone(),
        cancelled: running.token().clone(),
        deadline: deadline.map(tokio::time::Instant::into_std),
    };
    let mut answer = pin!(answer(&handler.run, call, &work.namespace.pace, polled));
    let told_to_stop = tokio::select! {
        biased;
        answer = &mut answer => return after(answer, running.is_cancelled(), core.interrupted.is_cancelled()),
        () = sleep_until(deadline) => {
            return Outcome::Failed(StepError::new(
                ErrorType::TimeoutError,
                true,
                format_args!("the step ran longer than its {limit:?}"),
            ));
        }
        () = running.token().cancelled() => tokio::time::sleep(LAST_MOMENT),
    };
    let last_word = tokio::select! {
        biased;
        answer = answer => Some(answer),
        () = told_to_stop => None,
    };
    match last_word {
        Some(answer) => after(answer, running.is_cancelled(), core.interrupted.is_cancelled()),
        None if running.is_cancelled() => Outcome::Cancelled,
        None => Outcome::Interrupted,
    }
}

/// A handler that finished has finished, told to stop or not, and so has one that came to a checkpoint, unless nobody
/// wants the rest; one that failed then was cut off.
fn after(answer: StepResult<Json>, cancelled: bool, interrupted: bool) -> Outcome {
    match answer {
        Ok(data) => Outcome::Succeeded(data),
        Err(_) if cancelled => Outcome::Cancelled,
        Err(StepError { checkpoint: Some(reached), .. }) => Outcome::Reached(*reached),
        Err(_) if interrupted => Outcome::Interrupted,
        Err(error) => Outcome::Failed(error),
    }
}

/// For ever without a deadline.
async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn answer(run: &Run, call: Call, pace: &Pace, polled: &mut Duration) -> StepResult<Json> {
    match run {
        Run::Async(handler) => {
            // The call itself is guarded too: an `async fn` written by hand may panic before its first await.
            let handler = handler.clone();
            let future = AssertUnwindSafe(async move { handler.call(call).await }).catch_unwind();
            time_polls(future, pace, polled).await.unwrap_or_else(|panic| Err(panicked(panic.as_ref())))
        }
        Run::Blocking(function) => answer_blocking(function.clone(), call, polled).await,
    }
}

async fn answer_blocking(function: BlockingFn, call: Call, polled: &mut Duration) -> StepResult<Json> {
    let span = tracing::Span::current();
    let task = tokio::task::spawn_blocking(move || {
        let _entered = span.enter();
        let started = Instant::now();
        let answer = std::panic::catch_unwind(AssertUnwindSafe(|| function(call)))
            .unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
        (answer, started.elapsed())
    });
    match task.await {
        Ok((answer, ran)) => {
            *polled = ran;
            answer
        }
        Err(error) => Err(StepError::from(error)),
    }
}

async fn time_polls<F: Future>(future: F, pace: &Pace, polled: &mut Duration) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|context| {
        let started = Instant::now();
        let poll = future.as_mut().poll(context);
        let held = started.elapsed();
        *polled += held;
        // At the end all is noted.
        if poll.is_pending() {
            pace.note_unfinished(held);
        }
        poll
    })
    .await
}

fn panicked(panic: &(dyn Any + Send)) -> StepError {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message");
    StepError::new(ErrorType::HandlerPanicked, true, format_args!("the handler panicked: {text}"))
}
