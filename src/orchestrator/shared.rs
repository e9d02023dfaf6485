//! What the orchestrator's parts know of each other: who waits for a task, and what is wrong.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use super::task::TaskState;
use crate::broker::ConsumerState;

#[derive(Debug, Default)]
pub(super) struct Shared {
    waiting: Mutex<HashMap<Uuid, Vec<oneshot::Sender<TaskState>>>>,
    store_problem: Mutex<Option<String>>,
    topology_problem: Mutex<Option<String>>,
    consumer: Mutex<Option<watch::Receiver<ConsumerState>>>,
    outbox_lags: AtomicBool,
}

impl Shared {
    /// Answers once the task has come to its end, if it has not yet.
    pub(super) fn wait_for(&self, task_uuid: Uuid) -> oneshot::Receiver<TaskState> {
        let (finished, wait) = oneshot::channel();
        let mut waiting = held(&self.waiting);
        let waiters = waiting.entry(task_uuid).or_default();
        waiters.retain(|waiter| !waiter.is_closed());
        waiters.push(finished);
        wait
    }

    pub(super) fn finished(&self, task_uuid: Uuid, state: TaskState) {
        for waiter in held(&self.waiting).remove(&task_uuid).into_iter().flatten() {
            // Whoever waited may have given up.
            let _ = waiter.send(state);
        }
    }

    pub(super) fn stop_waiting(&self) {
        held(&self.waiting).clear();
    }

    pub(super) fn set_store_problem(&self, problem: Option<String>) {
        *held(&self.store_problem) = problem;
    }

    pub(super) fn store_problem(&self) -> Option<String> {
        held(&self.store_problem).clone()
    }

    /// Returns whether this is news.
    pub(super) fn set_topology_problem(&self, problem: Option<String>) -> bool {
        let mut known = held(&self.topology_problem);
        let news = *known != problem;
        *known = problem;
        news
    }

    pub(super) fn topology_problem(&self) -> Option<String> {
        held(&self.topology_problem).clone()
    }

    pub(super) fn set_consumer(&self, state: watch::Receiver<ConsumerState>) {
        *held(&self.consumer) = Some(state);
    }

    pub(super) fn consumer(&self) -> Option<ConsumerState> {
        held(&self.consumer).as_ref().map(|state| state.borrow().clone())
    }

    /// Whether messages are older in the outbox than a moment.
    pub(super) fn outbox_lags(&self) -> bool {
        self.outbox_lags.load(Ordering::Relaxed)
    }

    pub(super) fn set_outbox_lags(&self, lags: bool) {
        self.outbox_lags.store(lags, Ordering::Relaxed);
    }
}

/// Nothing that is done under these locks can panic half-way.
pub(super) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
