//! The worker: consume, dispatch, execute, settle. One file each; `process` tells the life of a message.

mod consume;
mod control;
mod dispatch;
mod execute;
mod run;
mod running;
mod settle;
mod supervise;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::Instrument;

pub use run::RustWorker;
pub use running::{Drained, RunningWorker};

use crate::broker::topology::Names;
use crate::broker::{Delivery, Publisher};
use crate::config::Config;
use crate::handler::HandlerRegistry;
use crate::ops::metrics::METRICS;
use crate::outcome::decide;
use crate::retry::Ladder;
use control::Cancellations;
use dispatch::Dispatched;

/// What every step of one worker shares.
struct Core {
    registry: HandlerRegistry,
    publisher: Publisher,
    names: Names,
    ladder: Ladder,
    worker_id: String,
    hostname: String,
    config: Config,
    /// Which tasks are cancelled, and how to tell their running steps.
    cancellations: Cancellations,
    /// Set first on shutdown: nothing new is started.
    stopping: CancellationToken,
    /// Set last: what still runs is cut off and handed back.
    interrupted: CancellationToken,
}

/// The life of one delivery, from its arrival to its settlement. Nothing else acks or nacks a request.
async fn process(core: &Core, namespace: &Arc<str>, delivery: Delivery) {
    if delivery.redelivered {
        METRICS.redeliveries.with_label_values(&[&**namespace]).inc();
    }
    let work = match dispatch::dispatch(core, namespace, delivery) {
        Dispatched::Work(work) => work,
        Dispatched::TooEarly(work) => return settle::postpone(core, *work).await,
        Dispatched::Unusable(acker, problem) => return settle::refuse(acker, namespace, &problem),
    };
    let span = tracing::info_span!(
        "step",
        task_uuid = %work.request.task_uuid,
        step_uuid = %work.request.step_uuid,
        namespace = &**namespace,
        step = work.request.step_name,
        attempt = work.request.attempt,
    );
    async {
        let execution = execute::execute(core, &work).await;
        let request = &work.request;
        let verdict = decide(execution.outcome, request.attempt, request.max_attempts, &request.retry);
        settle::settle(core, work, verdict, execution.timing).await;
    }
    .instrument(span)
    .await;
}

/// Whether a step found work to hand back rather than to do.
fn hand_back(core: &Core, delivery: Delivery) {
    settle::release(delivery.acker);
    tracing::debug!(worker_id = core.worker_id, "handed an unstarted delivery back to the broker");
}

type SharedCore = Arc<Core>;
