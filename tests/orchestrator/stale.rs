//! Tasks that take longer than their template allows, and requests nobody answers for.

use std::time::Duration;

use serde_json::{Value, json};
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::broker::topology::{Names, result_key};
use tasker_worker_rust::broker::{Broker, Message, Properties};
use tasker_worker_rust::dead_letters::{Replayed, take};
use tasker_worker_rust::message::{ControlMessage, header};
use tasker_worker_rust::orchestrator::advance::{Advance, Effect, Event, Outcome};
use tasker_worker_rust::orchestrator::outgoing;
use tasker_worker_rust::orchestrator::task::{StepState, TaskState};
use tasker_worker_rust::template::{Lifecycle, Template};

use crate::replay::World;
use crate::support::{
    Answer, Toy, config, finished, linear, result_of, sqlite, start, task, template, texts, until,
};

const MINUTE: i64 = 60_000;

fn no_limit() -> Lifecycle {
    Lifecycle {
        max_duration: None,
        max_waiting_for_dependencies: None,
        max_waiting_for_retry: None,
        max_steps_in_process: None,
        records: true,
        fails: true,
    }
}

fn minutes(minutes: u64) -> Option<Duration> {
    Some(Duration::from_secs(minutes * 60))
}

fn with(lifecycle: Lifecycle, template: Template) -> Template {
    Template { lifecycle: Some(lifecycle), ..template }
}

/// What the task does when it is looked at this many minutes after it was submitted.
fn look(world: &mut World, minutes: i64) -> Advance {
    world.now = 1_000 + minutes * MINUTE;
    world.hear(Event::Stale)
}

fn is_recorded(advance: &Advance) -> bool {
    advance.effects.iter().any(|effect| matches!(effect, Effect::Record(_)))
}

#[test]
fn each_limit_ends_a_task_that_passes_it_and_not_a_moment_before() {
    let in_process = Lifecycle { max_steps_in_process: minutes(30), ..no_limit() };
    let dependencies = Lifecycle { max_waiting_for_dependencies: minutes(30), ..no_limit() };
    let duration = Lifecycle { max_duration: minutes(30), ..no_limit() };
    for (lifecycle, name) in [
        (in_process, "max_steps_in_process_minutes"),
        (dependencies, "max_waiting_for_dependencies_minutes"),
        (duration, "max_duration_minutes"),
    ] {
        let mut world = World::new(with(lifecycle, linear()));
        let early = look(&mut world, 29);
        assert_eq!((early.outcome, early.effects), (Outcome::Applied, vec![Effect::Deadline]), "{name}");
        let late = look(&mut world, 31);
        let finding = late.effects.iter().find_map(|effect| match effect {
            Effect::Record(finding) => Some(finding.clone()),
            _ => None,
        });
        let finding = finding.expect(name);
        assert_eq!((finding.reason, finding.state), ("staleness_timeout", TaskState::StepsInProcess));
        let metadata: Value = serde_json::from_str(finding.metadata.get()).expect("JSON");
        assert_eq!(metadata["limit"], name);
        assert_eq!((&metadata["limit_minutes"], &metadata["minutes"]), (&json!(30), &json!(31)), "{name}");
        let snapshot: Value = serde_json::from_str(finding.snapshot.get()).expect("JSON");
        assert_eq!(
            (&snapshot["steps"][0]["state"], &snapshot["steps"][1]["state"]),
            (&json!("enqueued"), &json!("pending"))
        );
        assert_eq!((world.task.state, world.state("a")), (TaskState::Error, StepState::Error), "{name}");
        let step = &world.task.steps[world.step("a")];
        assert_eq!(step.error.as_ref().and_then(|error| error.code.as_deref()), Some("STALE"));
        // What comes later changes nothing.
        assert_eq!(world.hear(world.success("a", 1)).outcome, Outcome::Stale);
        assert_eq!(world.hear(Event::Stale).outcome, Outcome::Stale);
    }
}

#[test]
fn progress_gives_a_task_more_time_but_not_more_than_its_longest_duration() {
    let lifecycle = Lifecycle { max_steps_in_process: minutes(30), max_duration: minutes(60), ..no_limit() };
    let mut world = World::new(with(lifecycle, linear()));
    world.now = 1_000 + 29 * MINUTE;
    assert_eq!(world.hear(world.success("a", 1)).outcome, Outcome::Applied);
    assert!(!is_recorded(&look(&mut world, 58)));
    assert_eq!(world.hear(world.success("b", 1)).outcome, Outcome::Applied);
    assert!(!is_recorded(&look(&mut world, 59)));
    assert!(is_recorded(&look(&mut world, 61)));
    assert_eq!(world.task.state, TaskState::Error);
}

#[test]
fn a_task_that_waits_for_its_retry_has_a_limit_of_its_own() {
    let lifecycle =
        Lifecycle { max_waiting_for_retry: minutes(10), max_steps_in_process: minutes(1), ..no_limit() };
    let mut world = World::new(with(lifecycle, linear()));
    assert_eq!(world.hear(world.retry("a", 1)).outcome, Outcome::Applied);
    assert_eq!(world.task.state, TaskState::WaitingForRetry);
    assert!(!is_recorded(&look(&mut world, 9)));
    assert!(is_recorded(&look(&mut world, 11)));
    assert_eq!(world.state("a"), StepState::Error);
}

#[test]
fn what_happens_to_a_stale_task_is_for_its_template_to_say() {
    for (records, fails) in [(true, true), (false, true), (true, false), (false, false)] {
        let lifecycle = Lifecycle { max_duration: minutes(1), records, fails, ..no_limit() };
        let mut world = World::new(with(lifecycle, linear()));
        assert_eq!(is_recorded(&look(&mut world, 2)), records);
        assert_eq!(world.task.state == TaskState::Error, fails);
        if !fails {
            assert!(!is_recorded(&look(&mut world, 3)), "once is enough");
            assert_eq!(world.hear(world.success("a", 1)).outcome, Outcome::Applied);
        }
    }
}

#[test]
fn a_stale_task_is_rolled_back_and_the_rollback_has_no_limit() {
    let steps = [("a", vec![]), ("~a", vec![]), ("b", vec!["a"])];
    let lifecycle = Lifecycle { max_duration: minutes(1), ..no_limit() };
    let mut world = World::new(with(lifecycle, template("shop", &steps)));
    assert_eq!(world.hear(world.success("a", 1)).outcome, Outcome::Applied);
    assert!(is_recorded(&look(&mut world, 2)));
    assert_eq!((world.task.state, world.state("~a")), (TaskState::BlockedByFailures, StepState::Enqueued));
    assert!(!is_recorded(&look(&mut world, 90)));
    assert_eq!(world.hear(world.success("~a", 1)).outcome, Outcome::Applied);
    assert_eq!(world.task.state, TaskState::Error);
}

#[test]
fn a_request_sent_again_too_often_is_parked_and_the_count_begins_anew_with_each_attempt() {
    let mut world = World::new(linear());
    let step_uuid = world.task.steps[world.step("a")].uuid;
    let overdue = || Event::Overdue { step_name: "a".to_owned(), step_uuid };
    let look = |world: &mut World| {
        world.now += 100 * MINUTE;
        world.hear(overdue()).effects
    };
    let again = |attempt| vec![Effect::Send { step: 0, attempt, again: true }];
    for _ in 0..2 {
        assert_eq!(look(&mut world), again(1));
    }
    assert_eq!(world.hear(world.retry("a", 1)).outcome, Outcome::Applied);
    assert!(look(&mut world).contains(&again(2)[0]));
    assert_eq!(look(&mut world), again(2));
    let effects = look(&mut world);
    assert!(effects.contains(&Effect::Park { step: 0, attempt: 2, reason: "unanswered" }), "{effects:?}");
    assert_eq!((world.state("a"), world.task.state), (StepState::Error, TaskState::Error));
    // Its own copy of the dead letter.
    assert_eq!(world.hear(world.dead_letter("a", 2)).outcome, Outcome::Duplicate);
}

#[test]
fn what_runs_of_a_step_that_is_given_up_is_told_to_stop() {
    let mut world = World::new(with(Lifecycle { max_duration: minutes(30), ..no_limit() }, linear()));
    let stop = Effect::Stop { step: world.step("a") };
    assert!(!look(&mut world, 29).effects.contains(&stop));
    assert!(look(&mut world, 31).effects.contains(&stop));

    let mut world = World::new(linear());
    world.hear(Event::Replayed { replays: 2, event: Box::new(world.retry("a", 1)) });
    let message = outgoing::stop(&world.task, world.step("a"), world.now, &Names::default());
    assert_eq!(message.exchange, Names::default().control());
    let order: ControlMessage = serde_json::from_slice(&message.body).expect("an order");
    let step_uuid = world.task.steps[world.step("a")].uuid;
    assert_eq!(order, ControlMessage::StopStep { step_uuid, replays: world.task.steps[0].replays });
}

#[test]
fn a_task_that_fails_by_spent_attempts_is_recorded_once_and_by_no_other_failure() {
    let broken = |world: &World, step: &str, attempt: u32, retryable: bool| {
        let mut result = result_of(&world.request(step, attempt), Err("busy"));
        result.error.as_mut().expect("it failed").retryable = retryable;
        Event::Result(Box::new(result))
    };
    let findings = |advance: &Advance| -> Vec<(&'static str, String)> {
        let finding = |effect: &Effect| match effect {
            Effect::Record(finding) => Some((finding.reason, finding.metadata.get().to_owned())),
            _ => None,
        };
        advance.effects.iter().filter_map(finding).collect()
    };
    let spent = |step: &str| {
        let metadata = json!({"step": step, "attempts": 3, "max_attempts": 3});
        vec![("max_retries_exceeded", metadata.to_string())]
    };
    for (attempt, retryable, recorded) in [(3, true, true), (3, false, false), (1, false, false)] {
        let mut world = World::new(linear());
        let advance = world.hear(broken(&world, "a", attempt, retryable));
        assert_eq!(findings(&advance), if recorded { spent("a") } else { vec![] }, "{attempt} {retryable}");
        assert_eq!(world.task.state, TaskState::Error);
    }
    // The second step adds nothing to the record of the first; one that was to undo another does.
    let mut world =
        World::new(template("shop", &[("a", vec![]), ("b", vec!["a"]), ("c", vec!["a"]), ("~a", vec![])]));
    world.hear(world.success("a", 1));
    assert_eq!(findings(&world.hear(broken(&world, "b", 3, true))), spent("b"));
    assert_eq!(findings(&world.hear(broken(&world, "c", 3, true))), []);
    assert_eq!(findings(&world.hear(broken(&world, "~a", 3, true))), spent("~a"));

    // The worker's dead letter may come first, and the broker's own comes alone.
    for (reason, recorded) in [
        ("retries_exhausted", Some("max_retries_exceeded")),
        ("delivery_limit", Some("worker_unavailable")),
        ("permanent_error", None),
    ] {
        let mut world = World::new(linear());
        let Event::DeadLetter(mut letter) = world.dead_letter("a", 3) else { unreachable!() };
        letter.reason = reason.to_owned();
        let advance = world.hear(Event::DeadLetter(letter));
        assert_eq!(findings(&advance).first().map(|(reason, _)| *reason), recorded, "{reason}");
        assert_eq!(findings(&world.hear(broken(&world, "a", 3, true))), [], "{reason}");
    }
}

#[tokio::test]
async fn a_stale_task_ends_and_is_recorded_once_whatever_is_restarted() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = config(&sqlite(directory.path()));
    config.orchestrator.overdue_after_seconds = 0;
    let broker = MemoryBroker::new();
    let _toy = Toy::start(&broker, 1, |_| Answer::Silence);
    let lifecycle = Lifecycle { max_steps_in_process: Some(Duration::from_millis(700)), ..no_limit() };
    let orchestrator = start(&config, &broker, with(lifecycle.clone(), linear())).await;
    let task_uuid = orchestrator.submit(task(json!({}))).await.expect("a new task");
    // Its time runs while nobody looks.
    orchestrator.abort().await;
    let orchestrator = start(&config, &broker, with(lifecycle.clone(), linear())).await;
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Error);
    orchestrator.shutdown().await;
    let orchestrator = start(&config, &broker, with(lifecycle, linear())).await;
    until("a second look", async || orchestrator.health().is_ready()).await;
    let entries = "SELECT dlq_reason || ' ' || original_state || ' ' || resolution_status FROM dlq_entries";
    assert_eq!(texts(&orchestrator, entries).await, ["staleness_timeout steps_in_process pending"]);
    let reasons = texts(&orchestrator, "SELECT reason FROM transitions WHERE to_state = 'error'").await;
    assert!(reasons[0].contains("more than max_steps_in_process_minutes allows"), "{reasons:?}");
    assert!(texts(&orchestrator, "SELECT '' || stale_at FROM tasks WHERE stale_at > 0").await.is_empty());
}

#[tokio::test]
async fn a_task_that_is_only_recorded_goes_on() {
    let broker = MemoryBroker::new();
    let mut config = config("sqlite::memory:");
    config.orchestrator.overdue_after_seconds = 0;
    let lifecycle =
        Lifecycle { max_steps_in_process: Some(Duration::from_millis(1)), fails: false, ..no_limit() };
    let orchestrator = start(&config, &broker, with(lifecycle, linear())).await;
    let task_uuid = orchestrator.submit(task(json!({}))).await.expect("a new task");
    let entries = async || texts(&orchestrator, "SELECT dlq_reason FROM dlq_entries").await;
    until("an entry", async || !entries().await.is_empty()).await;
    let _toy = Toy::succeeding(&broker);
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Complete);
    assert_eq!(entries().await, ["staleness_timeout"]);
}

#[tokio::test]
async fn a_request_nobody_answers_is_parked_and_its_replay_ends_the_task_well() {
    let broker = MemoryBroker::new();
    let mut template = linear();
    template.steps[1].timeout = Some(Duration::from_millis(50));
    let mut config = config("sqlite::memory:");
    config.orchestrator.overdue_after_seconds = 0;
    config.orchestrator.overdue_resends = 2;
    let orchestrator = start(&config, &broker, template).await;
    let toy = Toy::start(&broker, 1, |request| match request.step_name.as_str() {
        "b" => Answer::Silence,
        name => Answer::Succeed(json!(name)),
    });
    let task_uuid = orchestrator.submit(task(json!({}))).await.expect("a new task");
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Error);
    assert_eq!(toy.names(), ["a:1", "b:1", "b:1", "b:1"]);
    let entries = texts(&orchestrator, "SELECT dlq_reason || ' ' || metadata FROM dlq_entries").await;
    assert_eq!(entries, [r#"worker_unavailable {"attempt":1,"sent_again":2,"step":"b"}"#]);

    let names = Names::default();
    let parked = names.dead_letter_queue("shop");
    until("the dead letter", async || broker.depth(&parked).await == Ok(Some(1))).await;
    let (mut letters, _) = take(&*broker, &names, "shop").await.expect("it can be read");
    let letter = &mut letters[0];
    assert_eq!((letter.reason.as_str(), letter.error.code.as_deref()), ("unanswered", Some("UNANSWERED")));
    assert!(letter.error.message.contains("no worker answered for attempt 1"), "{}", letter.error.message);
    let replayed = letter.replay(&broker.publisher(), &names).await.expect("it is replayed");
    assert_eq!(replayed, Replayed::Done);
    toy.has_run(5).await;
    let mut properties = Properties::default();
    properties.headers.set(header::REPLAYS, 1u32);
    let body = result_of(&toy.ran()[4], Ok(json!("at last"))).encode().into();
    let (exchange, routing_key) = (names.results(), result_key("shop", "completed"));
    let answer = Message { exchange, routing_key, body, properties };
    broker.publisher().publish(answer).await.expect("the broker takes it");
    until("the end", async || texts(&orchestrator, "SELECT state FROM tasks").await == ["complete"]).await;
    assert_eq!(toy.names()[4..], ["b:1", "c:1"]);
}
