//! Collects what a batch of events led to, and turns it into the rows of one transaction.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::advance::Effect;
use super::cache::Cache;
use super::outgoing;
use super::stale;
use super::store::{Batch, FindingRow, StepRow, TaskRow, TaskStateRow, TransitionRow};
use super::task::{StepState, Task, TaskState};
use crate::broker::Message;
use crate::broker::topology::Names;

/// The priority of what workers are told, whatever waits to be run.
const BEFORE_ALL: i32 = i32::MAX;

/// The task and the place of the step that a message requests.
pub(super) type RequestOf = Option<(Uuid, usize)>;

/// Changes that are not written yet.
#[derive(Debug, Default)]
pub(super) struct Changes {
    tasks: HashMap<Uuid, TaskChange>,
    /// The order in which tasks were touched: rows are written in the order of events.
    order: Vec<Uuid>,
    transitions: Vec<TransitionRow>,
    findings: Vec<FindingRow>,
    messages: Vec<(i32, Message, RequestOf)>,
    requests: Vec<RequestOf>,
    finished: Vec<(Uuid, TaskState)>,
}

#[derive(Debug, Default)]
struct TaskChange {
    new: Option<TaskRow>,
    state: bool,
    steps: BTreeMap<usize, StepChange>,
}

#[derive(Debug, Default)]
struct StepChange {
    new: bool,
    output: bool,
}

impl Changes {
    /// A task that was made just now, with the steps it has from the beginning.
    pub(super) fn created(&mut self, task: &Task, row: TaskRow) {
        let steps = (0..task.steps.len()).filter(|step| task.steps[*step].exists);
        let change = self.change(task.uuid);
        change.new = Some(row);
        change.steps = steps.map(|step| (step, StepChange { new: true, ..StepChange::default() })).collect();
    }

    /// What an event led to.
    pub(super) fn record(&mut self, task: &Task, effects: Vec<Effect>, now: i64, names: &Names) {
        for effect in effects {
            match effect {
                Effect::Send { step, attempt, .. } => {
                    self.change(task.uuid).steps.entry(step).or_default();
                    let request = outgoing::request(task, step, attempt, now, names);
                    self.messages.push((task.priority, request, Some((task.uuid, step))));
                }
                Effect::BroadcastCancel => {
                    self.messages.push((BEFORE_ALL, outgoing::cancel(task, now, names), None));
                }
                Effect::Stop { step } => {
                    self.messages.push((BEFORE_ALL, outgoing::stop(task, step, now, names), None));
                }
                Effect::Park { step, attempt, reason } => {
                    let letter = outgoing::dead_letter(task, step, attempt, reason, now, names);
                    self.messages.push((task.priority, letter, None));
                }
                Effect::Record(finding) => {
                    self.findings.push(FindingRow { task_uuid: task.uuid, finding: *finding });
                }
                Effect::Deadline => self.change(task.uuid).state = true,
                Effect::Task { from, to, reason } => {
                    self.change(task.uuid).state = true;
                    if to.is_terminal() {
                        self.finished.push((task.uuid, to));
                    }
                    self.transitions.push(TransitionRow {
                        task_uuid: task.uuid,
                        step_uuid: None,
                        from_state: from.map(TaskState::as_str),
                        to_state: to.as_str(),
                        attempt: None,
                        reason,
                        worker_id: None,
                        duration_ms: None,
                        result: None,
                    });
                }
                Effect::Step { step, from, to, note } => {
                    let change = self.change(task.uuid).steps.entry(step).or_default();
                    change.new |= from.is_none();
                    change.output |= to.satisfies();
                    self.transitions.push(TransitionRow {
                        task_uuid: task.uuid,
                        step_uuid: Some(task.steps[step].uuid),
                        from_state: from.map(StepState::as_str),
                        to_state: to.as_str(),
                        attempt: note.attempt,
                        reason: note.reason,
                        worker_id: note.worker_id,
                        duration_ms: note.duration_ms,
                        result: note.result,
                    });
                }
            }
        }
    }

    /// The tasks that changed.
    pub(super) fn touched(&self) -> &[Uuid] {
        &self.order
    }

    /// The tasks that came to their end.
    pub(super) fn finished(&self) -> &[(Uuid, TaskState)] {
        &self.finished
    }

    /// Of each message among the rows, the step it is a request of.
    pub(super) fn take_requests(&mut self) -> Vec<RequestOf> {
        std::mem::take(&mut self.requests)
    }

    /// The rows to write, from the tasks as they are now.
    pub(super) fn rows(&mut self, cache: &Cache, now: i64) -> Batch {
        let mut batch = Batch {
            now,
            transitions: std::mem::take(&mut self.transitions),
            findings: std::mem::take(&mut self.findings),
            ..Batch::default()
        };
        for task_uuid in &self.order {
            let Some((task, change)) = cache.peek(*task_uuid).zip(self.tasks.remove(task_uuid)) else {
                continue;
            };
            let completed_at = task.state.is_terminal().then_some(now);
            let stale_at = stale::limit(task).map(|limit| limit.at);
            match change.new {
                Some(row) => {
                    if !batch.templates.iter().any(|(template_id, _)| *template_id == row.template_id) {
                        batch.templates.push((row.template_id, row.template.clone()));
                    }
                    batch.new_tasks.push(TaskRow {
                        state: task.state.as_str(),
                        completed_at,
                        stale_at,
                        ..row
                    });
                }
                None if change.state => batch.task_states.push(TaskStateRow {
                    task_uuid: *task_uuid,
                    state: task.state.as_str(),
                    completed_at,
                    stale_at,
                }),
                None => {}
            }
            for (position, step) in change.steps {
                let definition = task.plan.step(position);
                let rows = if step.new { &mut batch.new_steps } else { &mut batch.steps };
                rows.push(StepRow {
                    task_uuid: *task_uuid,
                    position,
                    name: definition.name.clone(),
                    max_attempts: definition.max_attempts,
                    run: task.steps[position].clone(),
                    output: step.output,
                });
            }
        }
        (batch.outbox, self.requests) = std::mem::take(&mut self.messages)
            .into_iter()
            .map(|(priority, message, request)| ((priority, message), request))
            .unzip();
        batch
    }

    fn change(&mut self, task_uuid: Uuid) -> &mut TaskChange {
        self.tasks.entry(task_uuid).or_insert_with(|| {
            self.order.push(task_uuid);
            TaskChange::default()
        })
    }
}
