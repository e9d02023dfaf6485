//! What a replay from the dead letters does to a task.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tasker_worker_rust::Checkpoint;
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::broker::topology::{Names, result_key, retry_key};
use tasker_worker_rust::broker::{Broker, Message, Properties};
use tasker_worker_rust::message::{Json, StepExecutionRequest, header};
use tasker_worker_rust::orchestrator::advance::{
    Advance, DeadLetter, Effect, Event, Outcome, Timing, advance,
};
use tasker_worker_rust::orchestrator::by_hand::{ByHand, Decision};
use tasker_worker_rust::orchestrator::dag::Plan;
use tasker_worker_rust::orchestrator::outgoing;
use tasker_worker_rust::orchestrator::task::{StepState, Task, TaskState};
use tasker_worker_rust::template::Template;
use uuid::Uuid;

use crate::support::{
    Answer, Toy, config, failure, finished, linear, result_of, sqlite, start, task, template, texts, until,
};

/// A task, and what is heard about it.
pub(crate) struct World {
    pub(crate) task: Task,
    plan: Arc<Plan>,
    pub(crate) now: i64,
}

impl World {
    pub(crate) fn new(template: Template) -> Self {
        let plan = Arc::new(Plan::new(Arc::new(template)).expect("a sound template"));
        let context = Json::empty_object();
        let task = Task::new(Uuid::new_v4(), Arc::clone(&plan), context, "c".to_owned(), 0, Uuid::new_v4);
        let mut world = Self { task, plan, now: 1_000 };
        assert_eq!(world.hear(Event::Submitted).outcome, Outcome::Applied);
        world
    }

    pub(crate) fn hear(&mut self, event: Event) -> Advance {
        self.now += 1;
        let timing = Timing {
            now: self.now,
            default_timeout: Duration::ZERO,
            overdue_after: Duration::from_secs(60),
            resends: 2,
        };
        let advanced = advance(&mut self.task, &event, &timing);
        // What is counted on is what is counted anew after a restart.
        assert_eq!(format!("{:?}", self.task), format!("{:?}", self.restored()));
        advanced
    }

    /// The task as it comes back from the store.
    fn restored(&self) -> Task {
        let old = &self.task;
        let mut uuids = old.steps.iter().map(|step| step.uuid);
        let uuids = || uuids.next().expect("one for each step");
        let (plan, correlation) = (Arc::clone(&self.plan), old.correlation_id.clone());
        let mut task = Task::new(old.uuid, plan, old.context.clone(), correlation, old.priority, uuids);
        (task.state, task.created_at, task.recorded) = (old.state, old.created_at, old.recorded);
        let stored = old.steps.iter().enumerate().filter(|(_, step)| step.exists);
        let stored = stored.map(|(place, step)| (old.plan.step(place).name.clone(), step.clone()));
        task.restore(stored.collect()).expect("every step has its place");
        task
    }

    pub(crate) fn step(&self, name: &str) -> usize {
        self.task.plan.find(name).expect("a step of the template")
    }

    pub(crate) fn state(&self, name: &str) -> StepState {
        self.task.steps[self.step(name)].state
    }

    pub(crate) fn request(&self, name: &str, attempt: u32) -> StepExecutionRequest {
        let message = outgoing::request(&self.task, self.step(name), attempt, self.now, &Names::default());
        StepExecutionRequest::decode(&message.body).expect("a request we wrote")
    }

    pub(crate) fn success(&self, name: &str, attempt: u32) -> Event {
        Event::Result(Box::new(result_of(&self.request(name, attempt), Ok(json!(attempt)))))
    }

    pub(crate) fn failure(&self, name: &str, attempt: u32) -> Event {
        Event::Result(Box::new(result_of(&self.request(name, attempt), Err("no"))))
    }

    pub(crate) fn retry(&self, name: &str, failed: u32) -> Event {
        Event::Retry(Box::new(self.request(name, failed + 1)))
    }

    /// The request for the rest of a step of which so many parts are done.
    pub(crate) fn checkpoint(&self, name: &str, attempt: u32, part: u32) -> Event {
        let checkpoint = Some(reached(part));
        Event::Checkpoint(Box::new(StepExecutionRequest { part, checkpoint, ..self.request(name, attempt) }))
    }

    pub(crate) fn dead_letter(&self, name: &str, attempt: u32) -> Event {
        let request = self.request(name, attempt);
        Event::DeadLetter(Box::new(DeadLetter {
            step_uuid: request.step_uuid,
            step_name: request.step_name,
            attempt,
            part: request.part,
            error: failure("dead"),
            reason: "rejected".to_owned(),
        }))
    }

    pub(crate) fn outcomes(&mut self, events: Vec<Event>) -> Vec<Outcome> {
        events.into_iter().map(|event| self.hear(event).outcome).collect()
    }
}

pub(crate) fn reached(part: u32) -> Checkpoint {
    Checkpoint { cursor: json!(part).into(), items_processed: part.into(), ..Checkpoint::default() }
}

pub(crate) fn replayed(replays: u32, event: Event) -> Event {
    Event::Replayed { replays, event: Box::new(event) }
}

#[test]
fn a_replayed_success_reopens_its_task_and_the_next_step_is_sent() {
    let mut world = World::new(linear());
    let (failed, parked) = (world.failure("a", 3), world.dead_letter("a", 3));
    assert_eq!(world.outcomes(vec![failed, parked]), [Outcome::Applied, Outcome::Duplicate]);
    assert_eq!(world.task.state, TaskState::Error);

    let advanced = world.hear(replayed(1, world.success("a", 1)));
    assert_eq!((world.state("a"), world.task.state), (StepState::Complete, TaskState::StepsInProcess));
    assert_eq!(world.task.steps[world.step("a")].attempts, 1);
    let reasons: Vec<_> = advanced
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Step { to, note, .. } => Some(format!("step {to} {}", note.reason.as_deref()?)),
            Effect::Task { to, reason, .. } => Some(format!("task {to} {}", reason.as_deref()?)),
            _ => None,
        })
        .collect();
    assert_eq!(reasons, ["step enqueued replayed", "task steps_in_process replayed"]);
    let sent = Effect::Send { step: world.step("b"), attempt: 1, again: false };
    assert!(advanced.effects.contains(&sent), "{advanced:?}");
    for step in ["b", "c"] {
        assert_eq!(world.hear(world.success(step, 1)).outcome, Outcome::Applied);
    }
    assert_eq!(world.task.state, TaskState::Complete);
}

#[test]
fn each_attempt_of_each_life_counts_once_whatever_comes_late() {
    let mut world = World::new(linear());
    let failed = world.failure("a", 2);
    world.hear(failed.clone());
    let retry = replayed(1, world.retry("a", 1));
    let answers = vec![retry.clone(), retry.clone(), failed.clone(), world.retry("a", 1)];
    let expected = [Outcome::Applied, Outcome::Duplicate, Outcome::Stale, Outcome::Stale];
    assert_eq!(world.outcomes(answers), expected);
    assert_eq!(world.task.state, TaskState::WaitingForRetry);

    // A request sent again belongs to the same life.
    let message = outgoing::request(&world.task, world.step("a"), 2, world.now, &Names::default());
    assert_eq!(message.properties.headers.replays(), 1);
    assert_eq!(message.properties.headers.integer(header::ATTEMPT), Some(2));
    assert!(message.properties.message_id.expect("it has one").ends_with(":2:request:1"));

    let dead = replayed(1, world.dead_letter("a", 2));
    assert_eq!(world.outcomes(vec![dead.clone(), dead]), [Outcome::Applied, Outcome::Duplicate]);
    assert_eq!((world.state("a"), world.task.state), (StepState::Error, TaskState::Error));

    let success = replayed(2, world.success("a", 1));
    let answers = vec![success.clone(), success, retry, replayed(3, world.failure("a", 1))];
    let expected = [Outcome::Applied, Outcome::Duplicate, Outcome::Stale, Outcome::Stale];
    assert_eq!(world.outcomes(answers), expected);
    assert_eq!((world.state("a"), world.task.state), (StepState::Complete, TaskState::StepsInProcess));
}

#[test]
fn a_late_success_from_before_the_replay_counts_while_the_step_is_open() {
    let mut world = World::new(linear());
    let late = world.success("a", 1);
    world.hear(world.failure("a", 1));
    world.hear(replayed(1, world.retry("a", 1)));
    assert_eq!(world.outcomes(vec![late]), [Outcome::Applied]);
    assert_eq!(world.hear(replayed(1, world.success("a", 2))).outcome, Outcome::Stale);
    assert_eq!(world.state("a"), StepState::Complete);
}

#[test]
fn a_replay_resumes_no_task_that_was_rolled_back_or_cancelled() {
    let rollback = || template("shop", &[("a", vec![]), ("b", vec!["a"]), ("~a", vec![])]);
    for undone in [false, true] {
        let mut world = World::new(rollback());
        world.hear(world.success("a", 1));
        world.hear(world.failure("b", 1));
        assert_eq!(world.task.state, TaskState::BlockedByFailures);
        if undone {
            world.hear(world.success("~a", 1));
            assert_eq!(world.task.state, TaskState::Error);
        }
        let replays = [world.success("b", 1), world.retry("b", 1), world.dead_letter("b", 1)];
        let outcomes = world.outcomes(replays.into_iter().map(|event| replayed(1, event)).collect());
        assert_eq!(outcomes, [Outcome::Refused; 3]);
        assert_eq!(world.state("b"), StepState::Error);
    }
    let mut world = World::new(linear());
    world.hear(Event::Cancel);
    assert_eq!(world.hear(replayed(1, world.success("a", 1))).outcome, Outcome::Refused);
    assert_eq!(world.task.state, TaskState::Cancelled);
}

#[test]
fn a_compensation_that_failed_can_be_replayed() {
    let steps = [("a", vec![]), ("b", vec!["a"]), ("c", vec!["b"]), ("~a", vec![]), ("~b", vec![])];
    let mut world = World::new(template("shop", &steps));
    for event in [("a", true), ("b", true), ("c", false), ("~b", false), ("~a", true)] {
        let event = if event.1 { world.success(event.0, 1) } else { world.failure(event.0, 1) };
        assert_eq!(world.hear(event).outcome, Outcome::Applied);
    }
    assert_eq!(world.task.state, TaskState::Error);
    assert_eq!(world.hear(replayed(1, world.retry("~b", 1))).outcome, Outcome::Applied);
    assert_eq!(world.task.state, TaskState::BlockedByFailures);
    assert_eq!(world.hear(replayed(1, world.success("~b", 2))).outcome, Outcome::Applied);
    assert_eq!((world.state("~b"), world.state("~a")), (StepState::Complete, StepState::Complete));
    assert_eq!(world.task.state, TaskState::Error);
}

#[tokio::test]
async fn a_request_that_cannot_be_sent_fails_its_step_in_every_life() {
    let broker = MemoryBroker::new();
    let mut settings = config("sqlite::memory:");
    settings.broker.max_message_bytes = 5_000;
    let orchestrator = start(&settings, &broker, linear()).await;
    let _toy = Toy::start(&broker, 1, |_| Answer::Succeed(json!("x".repeat(3_000))));
    let task_uuid = orchestrator.submit(task(json!({}))).await.expect("a new task");
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Error);
    let step_uuid =
        texts(&orchestrator, "SELECT step_uuid FROM steps WHERE state = 'error'").await[0].clone();
    let wish = ByHand {
        step_uuid: step_uuid.parse().expect("an id"),
        decision: Decision::Retry,
        by: "ann".to_owned(),
        reason: "a try".to_owned(),
    };
    assert!(orchestrator.act(task_uuid, wish).await.expect("the store takes it"));
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Error);
    let step = texts(&orchestrator, "SELECT name || replays || error FROM steps WHERE state = 'error'").await;
    assert!(step[0].starts_with("c1{") && step[0].contains("UNPUBLISHABLE"), "{step:?}");
    let failures = texts(&orchestrator, "SELECT result FROM transitions WHERE result LIKE '%UNPUBLISHABLE%'");
    assert_eq!(failures.await.len(), 2);
}

#[tokio::test]
async fn a_restarted_orchestrator_knows_the_life_of_each_step() {
    let directory = tempfile::tempdir().expect("a directory");
    let settings = config(&sqlite(directory.path()));
    let broker = MemoryBroker::new();
    let orchestrator = start(&settings, &broker, linear()).await;
    let toy = Toy::start(&broker, 1, |request| match request.step_name.as_str() {
        "a" => Answer::Fail("no"),
        name => Answer::Succeed(json!(name)),
    });
    let task_uuid = orchestrator.submit(task(json!({}))).await.expect("a new task");
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Error);
    let mut request = toy.ran().remove(0);

    let names = Names::default();
    let publish = async |exchange: String, routing_key: String, body: Vec<u8>, replays: u32| {
        let mut properties = Properties::default();
        if replays > 0 {
            properties.headers.set(header::REPLAYS, replays);
        }
        let message = Message { exchange, routing_key, body: body.into(), properties };
        broker.publisher().publish(message).await.expect("the broker takes it");
    };
    request.attempt = 2;
    let rung = settings.ladder().rungs()[0];
    let state = || texts(&orchestrator, "SELECT state || ' ' || replays FROM steps WHERE name = 'a'");
    // The toy answers it without the header: for the orchestrator that is news from before the replay.
    publish(names.retries(), retry_key("shop", rung), request.encode(), 1).await;
    until("the retry", async || state().await == ["waiting_for_retry 1"]).await;
    orchestrator.shutdown().await;

    let orchestrator = start(&settings, &broker, linear()).await;
    request.attempt = 9;
    let late = result_of(&request, Err("from before the replay")).encode();
    publish(names.results(), result_key("shop", "failed"), late, 0).await;
    let success = result_of(&request, Ok(json!("a"))).encode();
    publish(names.results(), result_key("shop", "completed"), success, 1).await;
    until("the end", async || texts(&orchestrator, "SELECT state FROM tasks").await == ["complete"]).await;
    let errors = texts(&orchestrator, "SELECT reason FROM transitions WHERE reason LIKE '%before%'").await;
    assert!(errors.is_empty(), "{errors:?}");
}
