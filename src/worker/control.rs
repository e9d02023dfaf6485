//! What a running worker is told: which tasks are cancelled, which steps to stop, which namespaces are paused.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::dispatch::Work;
use super::pause::Flow;
use super::{Core, SharedCore};
use crate::broker::{Broker, ConsumerState, Disposition, Subscription};
use crate::message::{ControlMessage, StepExecutionRequest};

/// When to look for what was said while nobody listened.
const LOOKS: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(5), Duration::from_secs(15)];

/// And from then on, for what a broker with much to do has not shown yet.
const LATER_LOOKS: Duration = Duration::from_secs(30);

/// Cancelled tasks remembered, for requests of theirs that are still queued.
const REMEMBERED: usize = 10_000;

/// Applies control messages until the subscription ends, and looks for what they have not told.
pub(super) async fn listen(core: SharedCore, broker: Arc<dyn Broker>, subscription: Subscription) {
    let state = subscription.state();
    // Beside each other: while the broker is slow to answer, its messages count all the same.
    tokio::join!(follow(&core, subscription), look_for_pauses(&core, &*broker, state));
}

async fn follow(core: &Core, mut subscription: Subscription) {
    while let Some(delivery) = subscription.recv().await {
        match ControlMessage::decode(&delivery.body) {
            Ok(ControlMessage::CancelTask { task_uuid }) => core.cancellations.cancel(task_uuid),
            Ok(ControlMessage::StopStep { step_uuid, replays }) => {
                core.cancellations.stop(step_uuid, replays)
            }
            Ok(ControlMessage::PauseNamespace { namespace, hand_back }) => {
                core.pauses.order(&namespace, if hand_back { Flow::HandBack } else { Flow::Paused });
            }
            Ok(ControlMessage::ResumeNamespace { namespace }) => {
                core.pauses.order(&namespace, Flow::Running);
            }
            Err(error) => tracing::warn!(%error, "Ignored a control message that was not understood"),
        }
        // A broadcast needs no ack; settling it keeps the rule that nothing is dropped unsettled.
        let _ = delivery.acker.settle(Disposition::Ack);
    }
}

/// Each time that control messages arrive again, until they never will.
async fn look_for_pauses(core: &Core, broker: &dyn Broker, mut state: watch::Receiver<ConsumerState>) {
    while state.wait_for(|state| *state == ConsumerState::Consuming).await.is_ok() {
        for look in looks_from(Instant::now()) {
            if look < Instant::now() {
                // The one before took that long.
                continue;
            }
            tokio::select! {
                changed = state.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                () = time::sleep_until(look) => core.pauses.look(broker, &core.names).await,
            }
        }
    }
}

fn looks_from(start: Instant) -> impl Iterator<Item = Instant> {
    let [.., last] = LOOKS;
    LOOKS.into_iter().chain((1..).map(move |n| last + n * LATER_LOOKS)).map(move |after| start + after)
}

/// What runs, and the tasks lately cancelled.
#[derive(Default)]
pub(super) struct Cancellations {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    running: HashMap<u64, Running>,
    next: u64,
    cancelled: HashSet<Uuid>,
    oldest_first: VecDeque<Uuid>,
}

struct Running {
    task_uuid: Uuid,
    step_uuid: Uuid,
    replays: u32,
    token: CancellationToken,
    /// Told to stop, and not only because the worker stops.
    cancelled: bool,
}

impl Running {
    fn cancel(&mut self) {
        self.cancelled = true;
        self.token.cancel();
    }
}

impl Cancellations {
    fn cancel(&self, task_uuid: Uuid) {
        let mut inner = self.lock();
        if !inner.cancelled.insert(task_uuid) {
            return;
        }
        inner.oldest_first.push_back(task_uuid);
        if inner.oldest_first.len() > REMEMBERED
            && let Some(oldest) = inner.oldest_first.pop_front()
        {
            inner.cancelled.remove(&oldest);
        }
        inner.running.values_mut().filter(|run| run.task_uuid == task_uuid).for_each(Running::cancel);
    }

    /// Not remembered: what is requested of the step later is wanted.
    fn stop(&self, step_uuid: Uuid, replays: u32) {
        let mut inner = self.lock();
        let meant = |run: &&mut Running| run.step_uuid == step_uuid && run.replays <= replays;
        inner.running.values_mut().filter(meant).for_each(Running::cancel);
    }

    /// Registers a request as running until the returned guard is dropped. Its token is cancelled with its
    /// task or step, or with `interrupted`.
    pub(super) fn enter(&self, work: &Work, interrupted: &CancellationToken) -> RunningStep<'_> {
        let StepExecutionRequest { task_uuid, step_uuid, .. } = *work.request;
        let token = interrupted.child_token();
        let mut running =
            Running { task_uuid, step_uuid, replays: work.replays, token: token.clone(), cancelled: false };
        let mut inner = self.lock();
        if inner.cancelled.contains(&task_uuid) {
            running.cancel();
        }
        let number = inner.next;
        inner.next += 1;
        inner.running.insert(number, running);
        RunningStep { cancellations: self, number, token }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // Nothing panics while holding it, and its maps are valid at every line.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A step while it runs.
pub(super) struct RunningStep<'a> {
    cancellations: &'a Cancellations,
    number: u64,
    token: CancellationToken,
}

impl RunningStep<'_> {
    pub(super) fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Whether its answer counts no more.
    pub(super) fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
            && self.cancellations.lock().running.get(&self.number).is_some_and(|run| run.cancelled)
    }
}

impl Drop for RunningStep<'_> {
    fn drop(&mut self) {
        self.cancellations.lock().running.remove(&self.number);
    }
}
