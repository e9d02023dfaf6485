//! The states and transitions in `docs/api.md` are those the core makes: all orders of all events on small workflows.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tasker_worker_rust::Checkpoint;
use tasker_worker_rust::broker::topology::Names;
use tasker_worker_rust::message::{Json, ResultStatus, StepExecutionRequest, StepExecutionResult};
use tasker_worker_rust::orchestrator::advance::{DeadLetter, Effect, Event, Outcome, Timing, advance};
use tasker_worker_rust::orchestrator::by_hand::{ByHand, Decision};
use tasker_worker_rust::orchestrator::dag::Plan;
use tasker_worker_rust::orchestrator::outgoing;
use tasker_worker_rust::orchestrator::task::{StepState, Task, TaskState};
use uuid::Uuid;

use crate::support::{failure, template};

type Pairs = BTreeSet<(String, String)>;

/// Changes of tasks and of steps.
#[derive(Default)]
struct Seen {
    tasks: Pairs,
    steps: Pairs,
}

/// Everything that can be heard about a task at this point.
fn events(task: &Task, now: i64) -> Vec<Event> {
    let mut events = vec![Event::Cancel];
    for (index, step) in task.steps.iter().enumerate().filter(|(_, step)| step.exists) {
        let attempt = step.attempts + 1;
        let name = task.plan.step(index).name.clone();
        for status in [ResultStatus::Completed, ResultStatus::Failed, ResultStatus::Cancelled] {
            let success = status == ResultStatus::Completed;
            events.push(Event::Result(Box::new(StepExecutionResult {
                protocol_version: 1,
                task_uuid: task.uuid,
                step_uuid: step.uuid,
                namespace: "shop".to_owned(),
                step_name: name.clone(),
                attempt,
                part: step.part,
                success,
                status,
                data: Json::null(),
                error: (!success).then(|| failure("no")),
                metadata: Default::default(),
                duration_ms: 1,
            })));
        }
        let message = outgoing::request(task, index, attempt + 1, now, &Names::default());
        events.push(Event::Retry(Box::new(StepExecutionRequest::decode(&message.body).expect("ours"))));
        let message = outgoing::request(task, index, attempt, now, &Names::default());
        let mut rest = StepExecutionRequest::decode(&message.body).expect("ours");
        (rest.part, rest.checkpoint) = (1, Some(Checkpoint::default()));
        events.push(Event::Checkpoint(Box::new(rest)));
        events.push(Event::DeadLetter(Box::new(DeadLetter {
            step_uuid: step.uuid,
            step_name: name.clone(),
            attempt,
            part: step.part,
            error: failure("dead"),
            reason: "rejected".to_owned(),
        })));
        events.push(Event::Overdue { step_name: name, step_uuid: step.uuid });
        let complete = Decision::Complete { result: json!(1).into(), metadata: None };
        for decision in [Decision::Retry, Decision::Resolve(Json::null()), complete] {
            let (by, reason) = ("ann".to_owned(), "so".to_owned());
            events.push(Event::ByHand(Box::new(ByHand { step_uuid: step.uuid, decision, by, reason })));
        }
    }
    let again = |event: &Event| Event::Replayed { replays: 1, event: Box::new(event.clone()) };
    let answers = events
        .iter()
        .filter(|event| !matches!(event, Event::Cancel | Event::ByHand(_) | Event::Overdue { .. }));
    let replayed: Vec<Event> = answers.map(again).collect();
    events.into_iter().chain(replayed).collect()
}

/// Follows every event from every situation that is not known yet.
fn explore(steps: &[(&str, Vec<&str>)], seen: &mut Seen) {
    let plan = Arc::new(Plan::new(Arc::new(template("shop", steps))).expect("sound"));
    let mut next = 0;
    let uuids = || {
        next += 1;
        Uuid::from_u128(next)
    };
    let new = Task::new(Uuid::from_u128(99), plan, Json::null(), "c".to_owned(), 0, uuids);
    let now = 1_000_000_000;
    let timing = Timing { now, default_timeout: Duration::ZERO, overdue_after: Duration::ZERO, resends: 1 };
    // All of a task but its plan, which never changes and is long.
    let no_plan = Arc::new(Plan::new(Arc::new(template("shop", &[("a", vec![])]))).expect("sound"));
    let counted = |mut task: Task| {
        task.plan = no_plan.clone();
        format!("{task:?}")
    };
    let mut known = HashSet::new();
    let mut open = vec![(new, Event::Submitted)];
    while let Some((mut task, event)) = open.pop() {
        let advanced = advance(&mut task, &event, &timing);
        for effect in &advanced.effects {
            match effect {
                Effect::Task { from: Some(from), to, .. } => {
                    seen.tasks.insert((from.to_string(), to.to_string()));
                }
                Effect::Step { from: Some(from), to, .. } => {
                    seen.steps.insert((from.to_string(), to.to_string()));
                }
                _ => {}
            }
        }
        // What is counted on is what is counted anew.
        let mut recounted = task.clone();
        recounted.recount();
        assert_eq!(counted(task.clone()), counted(recounted), "after {event:?}");
        if advanced.outcome != Outcome::Applied {
            continue;
        }
        // Overdue again at once.
        task.steps.iter_mut().filter(|step| step.due_at.is_some()).for_each(|step| step.due_at = Some(0));
        let step = |step: &tasker_worker_rust::orchestrator::task::StepRun| {
            (step.exists, step.state, step.attempts, step.part, step.replays)
        };
        let situation = (task.state, task.steps.iter().map(step).collect::<Vec<_>>());
        let replays: u32 = task.steps.iter().map(|step| step.replays).sum();
        if replays < 2 && task.steps.iter().all(|step| step.attempts < 2) && known.insert(situation) {
            open.extend(events(&task, now).into_iter().map(|event| (task.clone(), event)));
        }
    }
}

/// The cells of the table whose first line begins so.
fn table(head: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string("docs/api.md").expect("the document");
    let rows = text.split_once(head).unwrap_or_else(|| panic!("docs/api.md has no table {head:?}")).1;
    let cells = |line: &str| {
        let cells = line.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    rows.lines().skip(2).take_while(|line| line.starts_with('|')).map(cells).collect()
}

fn pairs(head: &str) -> Pairs {
    table(head).into_iter().map(|cells| (cells[0].clone(), cells[1].clone())).collect()
}

/// The lines a table of transitions should have.
fn lines(pairs: &Pairs) -> String {
    pairs.iter().map(|(from, to)| format!("| `{from}` | `{to}` |\n")).collect()
}

#[test]
fn the_documented_states_and_transitions_are_those_the_core_makes() {
    let mut seen = Seen::default();
    explore(&[("a", vec![]), ("b", vec!["a"]), ("~a", vec![])], &mut seen);
    explore(&[("a", vec![]), ("b", vec![])], &mut seen);
    assert_eq!(seen.tasks, pairs("| task from |"), "\n{}", lines(&seen.tasks));
    assert_eq!(seen.steps, pairs("| step from |"), "\n{}", lines(&seen.steps));

    let word = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let reached = |pairs: &Pairs, state: &str| pairs.iter().any(|(_, to)| to == state);
    let tasks: Vec<Vec<String>> = TaskState::ALL
        .iter()
        .map(|s| vec![s.to_string(), word(s.is_terminal()), word(reached(&seen.tasks, s.as_str()))])
        .collect();
    assert_eq!(tasks, table("| state | finished | seen |"));
    let first = |state: StepState| state == StepState::Pending;
    let steps: Vec<Vec<String>> = StepState::ALL
        .iter()
        .map(|s| {
            let seen = first(*s) || reached(&seen.steps, s.as_str());
            vec![s.to_string(), word(s.is_finished()), word(s.satisfies()), word(seen)]
        })
        .collect();
    assert_eq!(steps, table("| state | finished | what waits"));
}
