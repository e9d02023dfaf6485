//! What a running worker is told: which tasks are cancelled, which namespaces paused.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::SharedCore;
use super::pause::Flow;
use crate::broker::{Broker, ConsumerState, Disposition, Subscription};
use crate::message::ControlMessage;

/// A queue's length, as RabbitMQ tells it, is at most this old.
const COUNT_LAG: Duration = Duration::from_millis(500);

/// Cancelled tasks remembered, for requests of theirs that are still queued.
const REMEMBERED: usize = 10_000;

/// Applies control messages until the subscription ends.
pub(super) async fn listen(core: SharedCore, broker: Arc<dyn Broker>, mut subscription: Subscription) {
    let mut state = subscription.state();
    loop {
        let delivery = tokio::select! {
            delivery = subscription.recv() => delivery,
            Ok(()) = state.changed() => {
                if *state.borrow_and_update() == ConsumerState::Consuming {
                    // What was said while nobody listened.
                    tokio::time::sleep(COUNT_LAG).await;
                    core.pauses.look(&*broker, &core.names).await;
                }
                continue;
            }
        };
        let Some(delivery) = delivery else { return };
        match ControlMessage::decode(&delivery.body) {
            Ok(ControlMessage::CancelTask { task_uuid }) => core.cancellations.cancel(task_uuid),
            Ok(ControlMessage::PauseNamespace { namespace, hand_back }) => {
                core.pauses.set(&namespace, if hand_back { Flow::HandBack } else { Flow::Paused });
            }
            Ok(ControlMessage::ResumeNamespace { namespace }) => core.pauses.set(&namespace, Flow::Running),
            Err(error) => tracing::warn!(%error, "Ignored a control message that was not understood"),
        }
        // A broadcast needs no ack; settling it keeps the rule that nothing is dropped unsettled.
        let _ = delivery.acker.settle(Disposition::Ack);
    }
}

/// The running steps by task, and the tasks lately cancelled.
#[derive(Default)]
pub(super) struct Cancellations {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    running: HashMap<Uuid, Running>,
    cancelled: HashSet<Uuid>,
    oldest_first: VecDeque<Uuid>,
}

struct Running {
    token: CancellationToken,
    steps: usize,
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
        if let Some(running) = inner.running.get(&task_uuid) {
            running.token.cancel();
        }
    }

    /// Registers a step as running until the returned guard is dropped. Its token is cancelled with its
    /// task, or with `interrupted`.
    pub(super) fn enter(&self, task_uuid: Uuid, interrupted: &CancellationToken) -> RunningStep<'_> {
        let mut inner = self.lock();
        let cancelled = inner.cancelled.contains(&task_uuid);
        let running = inner
            .running
            .entry(task_uuid)
            .or_insert_with(|| Running { token: interrupted.child_token(), steps: 0 });
        running.steps += 1;
        if cancelled {
            running.token.cancel();
        }
        let token = running.token.clone();
        RunningStep { cancellations: self, task_uuid, token }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // Nothing panics while holding it, and its maps are valid at every line.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A step while it runs.
pub(super) struct RunningStep<'a> {
    cancellations: &'a Cancellations,
    task_uuid: Uuid,
    token: CancellationToken,
}

impl RunningStep<'_> {
    pub(super) fn token(&self) -> &CancellationToken {
        &self.token
    }

    pub(super) fn task_cancelled(&self) -> bool {
        self.token.is_cancelled() && self.cancellations.lock().cancelled.contains(&self.task_uuid)
    }
}

impl Drop for RunningStep<'_> {
    fn drop(&mut self) {
        let mut inner = self.cancellations.lock();
        if let Some(running) = inner.running.get_mut(&self.task_uuid) {
            running.steps -= 1;
            if running.steps == 0 {
                inner.running.remove(&self.task_uuid);
            }
        }
    }
}
