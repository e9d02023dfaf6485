//! What the orchestrator's parts know of each other: who waits for a task, and what is wrong.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use uuid::Uuid;

use super::task::TaskState;
use crate::broker::ConsumerState;

#[derive(Debug, Default)]
pub(super) struct Shared {
    watched: Mutex<HashMap<Uuid, watch::Sender<Option<TaskState>>>>,
    store_problem: Mutex<Option<String>>,
    topology_problem: Mutex<Option<String>>,
    consumer: Mutex<Option<watch::Receiver<ConsumerState>>>,
    outbox_lags: AtomicBool,
}

impl Shared {
    /// Changes with the task, and is closed after its end, which is the last value.
    pub(super) fn watch(&self, task_uuid: Uuid) -> watch::Receiver<Option<TaskState>> {
        held(&self.watched).entry(task_uuid).or_insert_with(|| watch::Sender::new(None)).subscribe()
    }

    pub(super) fn changed(&self, tasks: &[Uuid]) {
        let mut watched = held(&self.watched);
        if watched.is_empty() {
            return;
        }
        for task_uuid in tasks {
            // A send fails when nobody looks any more.
            if watched.get(task_uuid).is_some_and(|watch| watch.send(None).is_err()) {
                watched.remove(task_uuid);
            }
        }
    }

    pub(super) fn finished(&self, task_uuid: Uuid, state: TaskState) {
        if let Some(watch) = held(&self.watched).remove(&task_uuid) {
            // Whoever waited may have given up.
            let _ = watch.send(Some(state));
        }
    }

    pub(super) fn stop_waiting(&self) {
        held(&self.watched).clear();
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
