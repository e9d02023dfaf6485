//! What has to be true when everything is over.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::Row;
use tasker_worker_rust::broker::{Broker, Disposition, Source};
use tasker_worker_rust::message::StepExecutionRequest;
use tasker_worker_rust::orchestrator::Orchestrator;
use tasker_worker_rust::orchestrator::task::TaskState;

use crate::locked;
use crate::wire::Flaw;
use crate::workflow::{
    MAX_ATTEMPTS, StepEnd, WORKFLOWS, Workflow, expected, fails, is_made_later, number, target,
};
use crate::world::{Told, World};

/// One row of the history.
#[derive(Debug)]
struct Transition {
    id: i64,
    from: Option<String>,
    to: String,
    attempt: Option<u32>,
    reason: Option<String>,
}

/// A step as it is stored.
struct Stored {
    state: String,
    attempts: u32,
    output: Option<u64>,
    history: Vec<Transition>,
}

impl World {
    /// Everything that is not as it should be.
    pub(crate) async fn check(&self, told: &[Told], gave_up: bool) -> Vec<String> {
        let Some(orchestrator) = self.orchestrator() else {
            return vec!["the orchestrator never came back".to_owned()];
        };
        let mut problems = Vec::new();
        if gave_up {
            problems.push("it never came to rest".to_owned());
            problems.extend(self.left_in_queues().await);
            problems.extend(unfinished(&orchestrator).await);
            return problems;
        }
        let tasks: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM tasks")
            .fetch_one(orchestrator.store().readers())
            .await
            .expect("the store can be read");
        if tasks != told.len() as i64 {
            problems.push(format!("{} tasks were asked for, {tasks} are stored", told.len()));
        }
        let parked = self.parked().await;
        for told in told {
            let mut check = Check { world: self, told, problems: Vec::new() };
            check.task(&orchestrator, &parked).await;
            problems.append(&mut check.problems);
        }
        problems
    }

    /// The attempts whose dead letters are parked: step, attempt, task.
    async fn parked(&self) -> BTreeSet<(String, String, u32)> {
        let mut parked = BTreeSet::new();
        for namespace in ["shop", "bank"] {
            let queue = self.names.dead_letter_queue(namespace);
            let waiting = self.broker.depth(&queue).await.ok().flatten().unwrap_or(0);
            let mut letters = self.broker.subscribe(Source::Queue(queue), 0);
            for _ in 0..waiting {
                let letter = letters.recv().await.expect("it is there");
                let request = StepExecutionRequest::decode(&letter.body).expect("a request we wrote");
                parked.insert((request.task_uuid.to_string(), request.step_name, request.attempt));
                letter.acker.settle(Disposition::Ack).expect("it is ours");
            }
        }
        parked
    }
}

async fn unfinished(orchestrator: &Orchestrator) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT 'task ' || tasks.task_uuid || ' is ' || tasks.state || ', its step ' || steps.name || ' ' \
         || steps.state || ' after ' || steps.attempts || ' attempts' FROM tasks \
         JOIN steps ON steps.task_uuid = tasks.task_uuid \
         WHERE tasks.state NOT IN ('complete', 'error', 'cancelled') \
         UNION ALL SELECT 'the outbox holds ' || routing_key FROM outbox",
    )
    .fetch_all(orchestrator.store().readers())
    .await
    .expect("the store can be read")
}

struct Check<'a> {
    world: &'a World,
    told: &'a Told,
    problems: Vec<String>,
}

impl Check<'_> {
    fn must(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        if !holds {
            let name = WORKFLOWS[self.told.task.workflow].name;
            self.problems.push(format!("{name} task {}: {}", self.told.task_uuid, problem()));
        }
    }

    async fn task(&mut self, orchestrator: &Orchestrator, parked: &BTreeSet<(String, String, u32)>) {
        let Told { task, task_uuid, cancelled } = *self.told;
        let workflow = &WORKFLOWS[task.workflow];
        let (state, history, steps) = read(orchestrator, &task_uuid.to_string()).await;
        let expected = expected(workflow, task.context);
        let failed = fails(&expected);
        let cancelled = cancelled == Some(TaskState::Cancelled);
        let end = match (cancelled, failed) {
            (true, _) => "cancelled",
            (false, true) => "error",
            (false, false) => "complete",
        };
        self.must(state == end, || format!("it is {state}, and should be {end}"));
        self.connected("the task", &history, None);
        let ends = history.iter().filter(|row| is_end(&row.to)).count();
        self.must(ends == 1, || format!("it ended {ends} times"));

        for (name, _) in workflow.steps {
            match (steps.get(*name), expected.get(name)) {
                (Some(stored), Some(end)) if cancelled => self.step_of_cancelled(name, stored, *end),
                (Some(stored), Some(end)) => self.step(name, stored, *end),
                (Some(stored), None) => {
                    let allowed = if cancelled { "cancelled" } else { "pending" };
                    let idle = stored.state == allowed && stored.attempts == 0;
                    self.must(idle && target(name).is_none(), || format!("{name} is {}", stored.state));
                }
                (None, Some(_)) => self.must(cancelled, || format!("{name} was never made")),
                (None, None) => self.must(is_made_later(name), || format!("{name} is missing")),
            }
        }
        self.order(workflow, &steps);
        for (name, end) in &expected {
            let letter = (task_uuid.to_string(), (*name).to_owned(), end.attempt);
            let wanted = end.output.is_none() && !cancelled;
            let found = parked.contains(&letter);
            self.must(found || !wanted, || format!("the dead letter of {name} is not parked"));
            self.must(!found || end.output.is_none(), || format!("{name} is parked, and did not fail"));
        }
        self.executions(&expected, cancelled);
    }

    fn step(&mut self, name: &str, stored: &Stored, end: StepEnd) {
        let state = if end.output.is_some() { "complete" } else { "error" };
        let found = (stored.state.as_str(), stored.attempts, stored.output);
        let wanted = (state, end.attempt, end.output);
        self.must(found == wanted, || format!("{name} is {found:?}, and should be {wanted:?}"));
        let ends = stored.history.iter().filter(|row| is_end(&row.to)).count();
        self.must(ends == 1, || format!("{name} ended {ends} times: {:?}", stored.history));
        self.attempts(name, stored);
    }

    fn step_of_cancelled(&mut self, name: &str, stored: &Stored, end: StepEnd) {
        match stored.state.as_str() {
            "cancelled" => self.attempts(name, stored),
            _ => self.step(name, stored, end),
        }
    }

    /// Each attempt is told of once, in order.
    fn attempts(&mut self, name: &str, stored: &Stored) {
        self.connected(name, &stored.history, Some("pending"));
        let told = |states: &[&str]| -> Vec<u32> {
            let rows = stored.history.iter().filter(|row| states.contains(&row.to.as_str()));
            rows.filter_map(|row| row.attempt).collect()
        };
        let (asked, answered) = (told(&["enqueued"]), told(&["waiting_for_retry", "complete", "error"]));
        for attempts in [&asked, &answered] {
            let once = attempts.is_sorted_by(|a, b| a < b);
            self.must(once, || format!("{name}: attempts told of in this order: {attempts:?}"));
        }
        let reached = stored.history.iter().filter(|row| row.to == "in_progress");
        let reached: Vec<_> =
            reached.map(|row| (row.attempt, row.reason.as_deref().and_then(part))).collect();
        let forward = reached.is_sorted_by(|a, b| a < b) && reached.iter().all(|(_, part)| part.is_some());
        self.must(forward, || format!("{name}: attempts and parts told of in this order: {reached:?}"));
        if !self.world.schedule.reorders() {
            let gapless = answered.iter().copied().eq(1..=answered.len() as u32);
            self.must(gapless, || format!("{name}: attempts told of: {answered:?}"));
        }
    }

    /// Every row of a history begins where the one before ended.
    fn connected(&mut self, what: &str, history: &[Transition], first: Option<&str>) {
        let mut before = match history.first() {
            Some(row) if row.from.is_none() => None,
            _ => first,
        };
        for row in history {
            self.must(row.from.as_deref() == before, || {
                format!("the history of {what} has a gap: {history:?}")
            });
            before = Some(&row.to);
        }
    }

    /// Nothing is asked for before what it waits for is done, nor undone before what came later is.
    fn order(&mut self, workflow: &Workflow, steps: &BTreeMap<String, Stored>) {
        let asked =
            |stored: &Stored| stored.history.iter().find(|row| row.to == "enqueued").map(|row| row.id);
        let ended = |stored: &Stored| stored.history.iter().find(|row| is_end(&row.to)).map(|row| row.id);
        for (name, stored) in steps {
            let Some(asked) = asked(stored) else { continue };
            for (other, earlier) in steps {
                let waits = match (target(name), target(other)) {
                    (None, None) => workflow.comes_after(name, other),
                    (Some(undone), Some(later)) => workflow.comes_after(later, undone),
                    (Some(undone), None) => undone == other,
                    (None, Some(_)) => false,
                };
                let in_order = !waits || ended(earlier).is_some_and(|ended| ended < asked);
                self.must(in_order, || format!("{name} was asked for before {other} had ended"));
            }
        }
    }

    /// Handlers may run more than once, but never in vain; without faults, exactly once.
    fn executions(&mut self, expected: &BTreeMap<&'static str, StepEnd>, cancelled: bool) {
        let seed = self.told.task.context.seed;
        let exact = self.world.schedule.has_no_faults() && self.world.flaw == Flaw::None && !cancelled;
        for name in WORKFLOWS[self.told.task.workflow].steps.iter().map(|(name, _)| *name) {
            for attempt in 1..=MAX_ATTEMPTS + 1 {
                let key = (seed, name.to_owned(), attempt);
                let times = locked(&self.world.begun).get(&key).cloned().unwrap_or_default();
                let due = expected.get(name).is_some_and(|end| attempt <= end.attempt);
                self.must(due || times.is_empty(), || {
                    format!("attempt {attempt} of {name} should never run")
                });
                self.must(!exact || times.values().all(|times| *times == 1), || {
                    format!("parts of attempt {attempt} of {name} ran so often: {times:?}")
                });
                self.must(!due || cancelled || !times.is_empty(), || {
                    format!("attempt {attempt} of {name} never ran")
                });
            }
        }
    }
}

/// How many parts were done, by what the history says of a checkpoint.
fn part(reason: &str) -> Option<u32> {
    reason.strip_prefix("checkpoint ")?.split(':').next()?.parse().ok()
}

fn is_end(state: &str) -> bool {
    matches!(state, "complete" | "error" | "cancelled")
}

async fn read(
    orchestrator: &Orchestrator,
    task_uuid: &str,
) -> (String, Vec<Transition>, BTreeMap<String, Stored>) {
    let readers = orchestrator.store().readers();
    let state: Option<String> = sqlx::query_scalar("SELECT state FROM tasks WHERE task_uuid = ?")
        .bind(task_uuid)
        .fetch_optional(readers)
        .await
        .expect("the store can be read");
    let rows = sqlx::query("SELECT step_uuid, name, state, attempts, output FROM steps WHERE task_uuid = ?")
        .bind(task_uuid)
        .fetch_all(readers)
        .await
        .expect("the store can be read");
    let mut steps: BTreeMap<String, (String, Stored)> = rows
        .iter()
        .map(|row| {
            let output: Option<String> = row.get("output");
            let stored = Stored {
                state: row.get("state"),
                attempts: row.get("attempts"),
                output: output
                    .map(|output| number(&serde_json::from_str(&output).expect("an output is JSON"))),
                history: Vec::new(),
            };
            (row.get("step_uuid"), (row.get("name"), stored))
        })
        .collect();
    let rows = sqlx::query(
        "SELECT transition_id, step_uuid, from_state, to_state, attempt, reason FROM transitions \
         WHERE task_uuid = ? ORDER BY transition_id",
    )
    .bind(task_uuid)
    .fetch_all(readers)
    .await
    .expect("the store can be read");
    let mut history = Vec::new();
    for row in rows {
        let transition = Transition {
            id: row.get("transition_id"),
            from: row.get("from_state"),
            to: row.get("to_state"),
            attempt: row.get("attempt"),
            reason: row.get("reason"),
        };
        match row.get::<Option<String>, _>("step_uuid") {
            None => history.push(transition),
            Some(step) => steps.get_mut(&step).expect("a step of this task").1.history.push(transition),
        }
    }
    (state.unwrap_or_else(|| "missing".to_owned()), history, steps.into_values().collect())
}
