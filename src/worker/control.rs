//! What a running worker is told: which tasks are cancelled, which steps to stop, which namespaces are paused.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::SharedCore;
use super::dispatch::Work;
use super::execute::sleep_until;
use super::pause::Flow;
use crate::broker::{Broker, ConsumerState, Disposition, Subscription};
use crate::message::{ControlMessage, StepExecutionRequest};

/// When to look what was said while nobody listened, the next time last. RabbitMQ counts a queue as empty whose leader does not
/// answer within a quarter of a second, so that one with much to do hides a pause: the last look alone ends one.
const LOOKS: [Duration; 3] = [Duration::from_secs(15), Duration::from_secs(5), Duration::from_millis(500)];

/// Cancelled tasks remembered, for requests of theirs that are still queued.
const REMEMBERED: usize = 10_000;

/// Applies control messages until the subscription ends.
pub(super) async fn listen(core: SharedCore, broker: Arc<dyn Broker>, mut subscription: Subscription) {
    let mut state = subscription.state();
    let mut looks = Vec::new();
    loop {
        let delivery = tokio::select! {
            delivery = subscription.recv() => delivery,
            Ok(()) = state.changed() => {
                if *state.borrow_and_update() == ConsumerState::Consuming {
                    looks = LOOKS.map(|after| Instant::now() + after).into();
                }
                continue;
            }
            () = sleep_until(looks.last().copied()) => {
                looks.pop();
                core.pauses.look(&*broker, &core.names, looks.is_empty()).await;
                continue;
            }
        };
        let Some(delivery) = delivery else { return };
        match ControlMessage::decode(&delivery.body) {
            Ok(ControlMessage::CancelTask { task_uuid }) => core.cancellations.cancel(task_uuid),
            Ok(ControlMessage::StopStep { step_uuid, replays }) => {
                core.cancellations.stop(step_uuid, replays)
            }
            Ok(ControlMessage::PauseNamespace { namespace, hand_back }) => {
                put_off(&mut looks);
                core.pauses.set(&namespace, if hand_back { Flow::HandBack } else { Flow::Paused });
            }
            Ok(ControlMessage::ResumeNamespace { namespace }) => {
                put_off(&mut looks);
                core.pauses.set(&namespace, Flow::Running);
            }
            Err(error) => tracing::warn!(%error, "Ignored a control message that was not understood"),
        }
        // A broadcast needs no ack; settling it keeps the rule that nothing is dropped unsettled.
        let _ = delivery.acker.settle(Disposition::Ack);
    }
}

/// Until a count is surely from after an order that was heard.
fn put_off(looks: &mut Vec<Instant>) {
    looks.truncate(1);
    looks.iter_mut().for_each(|look| *look = Instant::now() + LOOKS[0]);
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
