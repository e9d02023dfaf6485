//! The tasks in memory, and where they come back from when they are not.

use std::collections::HashMap;
use std::sync::Arc;

use uuid::Uuid;

use super::dag::Plan;
use super::now;
use super::outgoing::new_uuid;
use super::store::{Loaded, Store, StoredTask};
use super::task::Task;
use crate::Error;

/// Tasks kept at most. One with a small context takes a few kilobytes.
const TASKS: usize = 10_000;

/// Unfinished tasks, as many as fit. What is in here is what is stored: after a failed transaction the
/// tasks it touched have to be [`forget`](Self::forget)ed.
#[derive(Debug)]
pub(super) struct Cache {
    store: Store,
    tasks: HashMap<Uuid, Entry>,
    plans: HashMap<Uuid, Arc<Plan>>,
    uses: u64,
    damaged: Vec<Uuid>,
}

#[derive(Debug)]
struct Entry {
    task: Task,
    last_use: u64,
}

impl Cache {
    pub(super) fn new(store: Store) -> Self {
        Self { store, tasks: HashMap::new(), plans: HashMap::new(), uses: 0, damaged: Vec::new() }
    }

    /// A task, from the store where it is not at hand; `None` where there is none, or none that can be read.
    pub(super) async fn get(&mut self, task_uuid: Uuid) -> Result<Option<&mut Task>, Error> {
        if !self.tasks.contains_key(&task_uuid) {
            let restored = match self.store.load(task_uuid).await? {
                Loaded::Found(stored) => self.restore(task_uuid, *stored).await?,
                Loaded::Missing => return Ok(None),
                Loaded::Damaged(reason) => Err(reason),
            };
            match restored {
                Ok(task) => self.insert(task),
                Err(reason) => {
                    tracing::error!(
                        %task_uuid, %reason,
                        "A stored task cannot be read. It ends here, in state error; what is heard about it is lost"
                    );
                    if self.store.end_damaged(task_uuid, &reason, now()).await? {
                        self.damaged.push(task_uuid);
                    }
                    return Ok(None);
                }
            }
        }
        self.uses += 1;
        Ok(self.tasks.get_mut(&task_uuid).map(|entry| {
            entry.last_use = self.uses;
            &mut entry.task
        }))
    }

    pub(super) fn insert(&mut self, task: Task) {
        self.uses += 1;
        self.tasks.insert(task.uuid, Entry { task, last_use: self.uses });
    }

    /// The tasks that were ended since this was last asked because they could not be read.
    pub(super) fn take_damaged(&mut self) -> Vec<Uuid> {
        std::mem::take(&mut self.damaged)
    }

    /// A task that is at hand.
    pub(super) fn peek(&self, task_uuid: Uuid) -> Option<&Task> {
        self.tasks.get(&task_uuid).map(|entry| &entry.task)
    }

    /// The same, for what is written with its next change.
    pub(super) fn peek_mut(&mut self, task_uuid: Uuid) -> Option<&mut Task> {
        self.tasks.get_mut(&task_uuid).map(|entry| &mut entry.task)
    }

    pub(super) fn forget(&mut self, task_uuid: Uuid) {
        self.tasks.remove(&task_uuid);
    }

    /// Makes room by dropping the tasks that were not used for longest. Never while a batch is being applied.
    pub(super) fn trim(&mut self) {
        if self.tasks.len() <= TASKS {
            return;
        }
        // A quarter at a time, so that the search is paid for by many insertions.
        let mut uses: Vec<u64> = self.tasks.values().map(|entry| entry.last_use).collect();
        let (_, oldest_kept, _) = uses.select_nth_unstable(TASKS / 4);
        let oldest_kept = *oldest_kept;
        self.tasks.retain(|_, entry| entry.last_use >= oldest_kept);
        let tasks = &self.tasks;
        self.plans.retain(|_, plan| Arc::strong_count(plan) > 1 || tasks.is_empty());
    }

    async fn restore(&mut self, task_uuid: Uuid, stored: StoredTask) -> Result<Result<Task, String>, Error> {
        let plan = match self.plans.get(&stored.template_id) {
            Some(plan) => Arc::clone(plan),
            None => {
                let template = match self.store.template(stored.template_id).await? {
                    Ok(template) => template,
                    Err(reason) => return Ok(Err(reason)),
                };
                match Plan::new(Arc::new(template)) {
                    Ok(plan) => {
                        let plan = Arc::new(plan);
                        self.plans.insert(stored.template_id, Arc::clone(&plan));
                        plan
                    }
                    Err(reason) => return Ok(Err(reason)),
                }
            }
        };
        let mut task =
            Task::new(task_uuid, plan, stored.context, stored.correlation_id, stored.priority, new_uuid);
        task.state = stored.state;
        task.created_at = stored.created_at;
        task.trace = stored.trace;
        if let Err(reason) = task.restore(stored.steps) {
            return Ok(Err(reason));
        }
        Ok(Ok(task))
    }
}
