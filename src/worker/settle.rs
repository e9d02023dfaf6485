//! The last act, and the only file that acks or nacks a request: publish, wait for the broker's
//! confirmation, then ack. Every way out is here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{Instrument, Span, debug, error, warn};

use super::SharedCore;
use super::answer::{CHECKPOINT, RETRY};
use super::dispatch::Work;
use super::ledger::{Answer, Running};
use super::served::Served;
use super::trace::OpenSpan;
use crate::broker::{Acker, BrokerStatus, Disposition, PublishError};
use crate::ops::metrics::{METRICS, seconds};

/// The first pause before a message that was not confirmed is published again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// What is said about one request, message by message, until the broker has all of it. Then every delivery of the
/// request is acked.
///
/// The broker's word is acted upon where it arrives: waiting for it costs no task and no wake-up.
pub(super) struct Settlement {
    core: SharedCore,
    namespace: Arc<Served>,
    running: Running,
    answer: Answer,
    /// How many of its messages the broker has.
    said: usize,
    /// Before a message that was not confirmed is published again.
    pause: Duration,
    published: Instant,
    /// As seen when it was published last.
    broker: watch::Receiver<BrokerStatus>,
    span: Span,
    _open_span: OpenSpan,
    /// A worker that stops waits for it.
    _open: TaskTrackerToken,
}

impl Settlement {
    pub(super) fn new(
        core: SharedCore,
        work: &Work,
        running: Running,
        answer: Answer,
        open: OpenSpan,
    ) -> Self {
        Self {
            namespace: work.namespace.clone(),
            running,
            answer,
            said: 0,
            pause: FIRST_PAUSE,
            published: Instant::now(),
            broker: core.broker.clone(),
            span: Span::current(),
            _open_span: open,
            _open: core.steps.token(),
            core,
        }
    }

    /// Publishes the next message. What follows, [`heard`](Self::heard) decides.
    pub(super) async fn publish(mut self) {
        let message = self.answer[self.said].clone();
        // A result counts whoever reports it. What is run would be run beside that of whoever has the request now.
        let is_request = matches!(message.properties.kind.as_deref(), Some(RETRY | CHECKPOINT));
        if is_request && !self.running.is_held() {
            return debug!("The delivery is no longer ours; if it comes back, its answer is ready");
        }
        self.published = Instant::now();
        self.broker.mark_unchanged();
        let core = self.core.clone();
        core.publisher.submit(message, move |confirmed| self.heard(confirmed)).await;
    }

    fn heard(mut self, confirmed: Result<(), PublishError>) {
        let problem = match confirmed {
            Ok(()) => {
                if let Some(stages) = &self.namespace.stages {
                    stages.confirm.observe(seconds(self.published.elapsed()));
                }
                self.said += 1;
                self.pause = FIRST_PAUSE;
                return if self.said == self.answer.len() { ack(self.running) } else { self.go_on(None) };
            }
            Err(PublishError::Closed) => return hand_back(self.running),
            Err(problem) => problem,
        };
        let span = self.span.clone();
        let _in_span = span.enter();
        if let PublishError::Invalid(problem) = problem {
            error!(problem, "The answer can never be published; the request goes to the dead letters");
            for delivery in self.running.leave() {
                refuse(delivery, &self.namespace.name, &problem);
            }
            return;
        }
        let pause = self.pause;
        warn!(%problem, pause_ms = pause.as_millis() as u64, "The broker did not confirm the answer; publishing it again");
        let longest = Duration::from_millis(self.core.config.worker.retry.publish_max_pause_ms);
        self.pause = (pause * 2).min(longest);
        self.go_on(Some(pause));
    }

    /// Publishes the next message, or the same one after a pause, in a task of its own.
    fn go_on(mut self, pause: Option<Duration>) {
        let (core, span) = (self.core.clone(), self.span.clone());
        let going_on = async move {
            if let Some(pause) = pause {
                let pausing = pausing(pause, &mut self.broker);
                if self.core.interrupted.run_until_cancelled(pausing).await.is_none() {
                    return hand_back(self.running);
                }
            }
            self.publish().await;
        };
        core.steps.spawn_on(going_on.instrument(span), &core.runtime);
    }
}

/// Waits for `pause`, but no longer than shortly after the broker takes messages again.
async fn pausing(pause: Duration, broker: &mut watch::Receiver<BrokerStatus>) {
    let taking_again = async {
        broker.changed().await?;
        broker.wait_for(|status| *status == BrokerStatus::Connected).await.map(drop)
    };
    tokio::select! {
        () = sleep(pause) => {}
        // What was taken with a lost connection comes again, and joins the step first.
        Ok(()) = taking_again => sleep(FIRST_PAUSE).await,
    }
}

/// Acks all deliveries of a request that is answered.
pub(super) fn ack(running: Running) {
    for delivery in running.leave() {
        if delivery.settle(Disposition::Ack).is_err() {
            debug!("Answered, but the delivery could not be acked any more; the broker hands it out again");
        }
    }
}

/// Refuses what is no request: the broker moves it to the dead letters in one step.
pub(super) fn refuse(acker: Acker, namespace: &str, problem: &str) {
    warn!(namespace, problem, "Refused a message; it goes to the dead letters");
    METRICS.dead_letters.with_label_values(&[namespace, "refused"]).inc();
    let _ = acker.settle(Disposition::Reject);
}

/// Hands a request back for another worker, spending no attempt.
pub(super) fn hand_back(running: Running) {
    for delivery in running.leave() {
        // A stale delivery is the broker's already.
        let _ = delivery.settle(Disposition::Release);
    }
}
