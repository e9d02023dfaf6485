//! The worker: consume, dispatch, ledger, execute, settle. One file each; `process` tells the life of a message.

mod answer;
mod backlog;
mod consume;
mod control;
mod dispatch;
mod execute;
mod ledger;
mod pause;
mod register;
mod run;
mod running;
mod served;
mod settle;
mod supervise;
mod trace;

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

pub use run::RustWorker;
pub use running::{Drained, RunningWorker};

use crate::broker::topology::Names;
use crate::broker::{BrokerStatus, Delivery, Publisher};
use crate::config::Config;
use crate::handler::HandlerRegistry;
use crate::ops::metrics::METRICS;
use crate::ops::spans;
use crate::outcome::decide;
use crate::retry::Ladder;
use control::Cancellations;
use dispatch::Work;
use ledger::{Entered, Ledger};
use pause::Pauses;
use served::Served;
use settle::Settlement;
use trace::OpenSpan;

/// What every step of one worker shares.
struct Core {
    registry: HandlerRegistry,
    publisher: Publisher,
    broker: watch::Receiver<BrokerStatus>,
    names: Names,
    ladder: Ladder,
    worker_id: String,
    hostname: String,
    config: Config,
    /// One per step that may run at once.
    slots: Semaphore,
    /// What runs and what has finished, so that it is not run again.
    ledger: Arc<Ledger>,
    /// Which tasks are cancelled, and how to tell their running steps.
    cancellations: Cancellations,
    /// Which namespaces take no requests.
    pauses: Pauses,
    /// Every step until it is settled.
    steps: TaskTracker,
    /// Where steps run.
    runtime: Handle,
    /// Set first on shutdown: nothing new is started.
    stopping: CancellationToken,
    /// Set last: what still runs is cut off and handed back.
    interrupted: CancellationToken,
}

impl Core {
    /// A slot to run in, first come, first served. `None`: the namespace's requests go back instead.
    async fn slot(&self, namespace: &str) -> Option<SemaphorePermit<'_>> {
        if self.stopping.is_cancelled() || self.pauses.hands_back(namespace) {
            return None;
        }
        // Free ones are there only when nobody waits.
        if let Ok(slot) = self.slots.try_acquire() {
            return Some(slot);
        }
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => None,
            () = self.pauses.handing_back(namespace) => None,
            slot = self.slots.acquire() => slot.ok(),
        }
    }

    /// How many steps run.
    fn busy_slots(&self) -> usize {
        usize::from(self.config.worker.max_concurrent_steps) - self.slots.available_permits()
    }
}

/// The life of one delivery, from its arrival to its settlement. Nothing else acks or nacks a request.
async fn process(core: SharedCore, namespace: Arc<Served>, delivery: Delivery) {
    let redelivered = delivery.redelivered;
    let (work, delivery) = match dispatch::dispatch(&core, &namespace, delivery) {
        Ok(understood) => understood,
        Err((delivery, problem)) => return settle::refuse(delivery, &namespace.name, &problem),
    };
    let span = spans::adopt(work.trace.as_ref(), || {
        tracing::info_span!(
            "step",
            task_uuid = %work.request.task_uuid,
            step_uuid = %work.request.step_uuid,
            namespace = namespace.name,
            step = work.request.step_name,
            attempt = work.request.attempt,
        )
    });
    async {
        let entered = core.ledger.enter(work.key(), delivery);
        note(&work, &entered, redelivered);
        let (running, answer, span) = match entered {
            Entered::Joined => return,
            Entered::Overtaken(running) => return settle::ack(running),
            Entered::Finished(running, answer) => (running, answer, OpenSpan::nothing()),
            Entered::New(running) if work.too_early => {
                (running, Arc::from([Arc::new(answer::postponed(&core, &work))]), OpenSpan::nothing())
            }
            Entered::New(running) => {
                let Some(_slot) = core.slot(&namespace.name).await else { return settle::hand_back(running) };
                let execution = execute::execute(&core, &work).await;
                let request = &work.request;
                let verdict =
                    decide(execution.outcome, request.attempt, request.max_attempts, &request.retry);
                let span = trace::span(&core, &work, &verdict, execution.timing.started_at);
                let Some(answer) = answer::answer(&core, &work, verdict, &execution.timing) else {
                    return settle::hand_back(running);
                };
                let answer = running.finished(answer);
                (running, answer, span)
            }
        };
        Settlement::new(core.clone(), &work, running, answer, span).publish().await;
    }
    .instrument(span)
    .await;
}

/// Tells what becomes of a request that came again.
fn note(work: &Work, entered: &Entered, redelivered: bool) {
    let outcome = match entered {
        Entered::Joined => "joined",
        Entered::Finished(..) => "replayed",
        Entered::Overtaken(_) => "overtaken",
        Entered::New(_) if redelivered => "run",
        Entered::New(_) => return,
    };
    METRICS.redeliveries.with_label_values(&[&work.namespace.name, outcome]).inc();
    tracing::debug!(outcome, redelivered, "The request came again");
}

type SharedCore = Arc<Core>;
