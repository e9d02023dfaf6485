//! Whole tasks, on the embedded broker and a real store.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::broker::topology::{Names, result_key};
use tasker_worker_rust::broker::{Broker, ConsumerState, Message, Properties, Source};
use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::message::{ControlMessage, StepExecutionRequest};
use tasker_worker_rust::orchestrator::task::TaskState;
use tasker_worker_rust::orchestrator::{CancelError, Orchestrator, SubmitError};

use crate::support::{
    Answer, Toy, config, finished, linear, publish_answer, sqlite, start, task, template, texts, until,
    within,
};

fn inputs(request: &StepExecutionRequest) -> Vec<(String, String)> {
    let inputs = request.sequence_data.iter();
    inputs.map(|input| (input.step_name.clone(), input.result.get().to_owned())).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(name, result)| ((*name).to_owned(), (*result).to_owned())).collect()
}

#[tokio::test]
async fn a_linear_task_runs_step_by_step_to_its_end() {
    let broker = MemoryBroker::new();
    let orchestrator = start(&config("sqlite::memory:"), &broker, linear()).await;
    let toy = Toy::succeeding(&broker);

    let task_uuid = orchestrator.submit(task(json!({"n": 6}))).await.expect("a new task");
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Complete);

    assert_eq!(toy.names(), ["a:1", "b:1", "c:1"]);
    let last = &toy.ran()[2];
    assert_eq!(inputs(last), pairs(&[("a", "\"a\""), ("b", "\"b\"")]));
    assert_eq!((last.task_data.get(), last.timeout_ms), (r#"{"n":6}"#, Some(60_000)));
    let states = texts(
        &orchestrator,
        "SELECT COALESCE(steps.name, 'task') || ' ' || COALESCE(from_state, '') || '>' || to_state \
         FROM transitions LEFT JOIN steps ON steps.step_uuid = transitions.step_uuid ORDER BY transition_id",
    );
    let expected = [
        "task >pending",
        "a pending>enqueued",
        "task pending>steps_in_process",
        "a enqueued>complete",
        "b pending>enqueued",
        "b enqueued>complete",
        "c pending>enqueued",
        "c enqueued>complete",
        "task steps_in_process>complete",
    ];
    assert_eq!(states.await, expected);
    let steps = texts(
        &orchestrator,
        "SELECT name || ' ' || state || ' ' || attempts || ' ' || output || ' ' || (due_at IS NULL) \
         FROM steps ORDER BY position",
    );
    assert_eq!(steps.await, ["a complete 1 \"a\" 1", "b complete 1 \"b\" 1", "c complete 1 \"c\" 1"]);
    let records =
        texts(&orchestrator, "SELECT to_state FROM transitions WHERE result LIKE '%\"data\":null%'");
    assert_eq!(records.await, ["complete"; 3]);
    until("an empty outbox", async || texts(&orchestrator, "SELECT 'row' FROM outbox").await.is_empty())
        .await;
}

#[tokio::test]
async fn branches_run_side_by_side_and_join() {
    let broker = MemoryBroker::new();
    let diamond =
        template("shop", &[("d", vec!["b", "c"]), ("b", vec!["a"]), ("c", vec!["a"]), ("a", vec![])]);
    let orchestrator = start(&config("sqlite::memory:"), &broker, diamond).await;
    let toy = Toy::succeeding(&broker);
    let task_uuid = orchestrator.submit(task(json!({}))).await.expect("a new task");
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Complete);
    let names = toy.names();
    assert_eq!((names[0].as_str(), names[3].as_str(), names.len()), ("a:1", "d:1", 4));
    let joined: BTreeSet<_> = inputs(&toy.ran()[3]).into_iter().map(|(name, _)| name).collect();
    assert_eq!(joined.into_iter().collect::<Vec<_>>(), ["a", "b", "c"]);
}

#[tokio::test]
async fn answers_heard_three_times_count_once() {
    let broker = MemoryBroker::new();
    let orchestrator = start(&config("sqlite::memory:"), &broker, linear()).await;
    let toy = Toy::start(&broker, 3, |request| Answer::Succeed(json!(request.step_name)));
    let task_uuid = orchestrator.submit(task(json!({}))).await.expect("a new task");
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Complete);
    assert_eq!(toy.names(), ["a:1", "b:1", "c:1"]);
    until("the last copies", async || {
        broker.depth("tasker.orchestrator").await.expect("the queue is there") == Some(0)
    })
    .await;
    let ends = texts(&orchestrator, "SELECT 'end' FROM transitions WHERE to_state = 'complete'").await;
    assert_eq!(ends.len(), 4);
}

#[tokio::test]
async fn a_retried_step_waits_in_the_broker_and_then_completes() {
    let broker = MemoryBroker::new();
    let orchestrator = start(&config("sqlite::memory:"), &broker, linear()).await;
    let toy = Toy::start(&broker, 1, |request| match request.step_name.as_str() {
        "b" if request.attempt < 3 => Answer::Retry,
        name => Answer::Succeed(json!(name)),
    });
    let task_uuid = orchestrator.submit(task(json!({}))).await.expect("a new task");
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Complete);
    assert_eq!(toy.names(), ["a:1", "b:1", "b:2", "b:3", "c:1"]);
    let states = texts(
        &orchestrator,
        "SELECT to_state FROM transitions WHERE step_uuid IS NULL ORDER BY transition_id",
    )
    .await;
    assert_eq!(states, ["pending", "steps_in_process", "waiting_for_retry", "steps_in_process", "complete"]);
    let step = texts(
        &orchestrator,
        "SELECT attempts || ' ' || (last_failure_at IS NOT NULL) || ' ' || (next_retry_at IS NULL) \
         || ' ' || (error IS NULL) FROM steps WHERE name = 'b'",
    );
    assert_eq!(step.await, ["3 1 1 1"]);
    let records = texts(
        &orchestrator,
        "SELECT json_extract(result, '$.attempt') || ' ' || json_extract(result, '$.success') || ' ' || \
         COALESCE(json_extract(result, '$.error.message'), '') FROM transitions \
         WHERE step_uuid IN (SELECT step_uuid FROM steps WHERE name = 'b') AND result IS NOT NULL \
         ORDER BY transition_id",
    );
    assert_eq!(records.await, ["1 0 busy", "2 0 busy", "3 1 "]);
}

#[tokio::test]
async fn a_failure_undoes_what_completed_the_last_step_first() {
    let broker = MemoryBroker::new();
    let order = template(
        "shop",
        &[
            ("reserve", vec![]),
            ("pay", vec!["reserve"]),
            ("ship", vec!["pay"]),
            ("~reserve", vec![]),
            ("~pay", vec![]),
            ("~ship", vec![]),
        ],
    );
    let orchestrator = start(&config("sqlite::memory:"), &broker, order).await;
    let toy = Toy::start(&broker, 1, |request| match request.step_name.as_str() {
        "ship" => Answer::Fail("no carrier"),
        name => Answer::Succeed(json!(name)),
    });
    let task_uuid = orchestrator.submit(task(json!({}))).await.expect("a new task");
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Error);
    assert_eq!(toy.names(), ["reserve:1", "pay:1", "ship:1", "~pay:1", "~reserve:1"]);
    assert_eq!(inputs(&toy.ran()[3]), pairs(&[("reserve", "\"reserve\""), ("pay", "\"pay\"")]));
    assert_eq!(inputs(&toy.ran()[4]), pairs(&[("reserve", "\"reserve\"")]));
    let states = texts(
        &orchestrator,
        "SELECT to_state || COALESCE(' ' || reason, '') FROM transitions WHERE step_uuid IS NULL \
         ORDER BY transition_id",
    );
    let failed = "step \"ship\" failed";
    assert_eq!(states.await[2..], [format!("blocked_by_failures {failed}"), format!("error {failed}")]);
    let steps = texts(&orchestrator, "SELECT name FROM steps ORDER BY position").await;
    assert_eq!(
        steps,
        ["reserve", "pay", "ship", "~reserve", "~pay"],
        "nothing shipped, nothing to take back"
    );
}

#[tokio::test]
async fn a_request_the_workers_refuse_fails_its_step() {
    let broker = MemoryBroker::new();
    let orchestrator = start(&config("sqlite::memory:"), &broker, linear()).await;
    let toy = Toy::start(&broker, 1, |request| match request.step_name.as_str() {
        "b" => Answer::Reject,
        name => Answer::Succeed(json!(name)),
    });
    let task_uuid = orchestrator.submit(task(json!({}))).await.expect("a new task");
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Error);
    assert_eq!(toy.names(), ["a:1", "b:1"]);
    let error = texts(&orchestrator, "SELECT error FROM steps WHERE state = 'error'").await;
    assert!(error[0].contains("\"MessageRefused\"") && error[0].contains("\"REJECTED\""), "{error:?}");
    let parked = broker.depth(&Names::default().dead_letter_queue("shop")).await;
    assert_eq!(parked.expect("the queue is there"), Some(1), "the parked copy stays for a replay");
}

#[tokio::test]
async fn a_dead_letter_whose_result_was_lost_fails_its_step() {
    let broker = MemoryBroker::new();
    let orchestrator = start(&config("sqlite::memory:"), &broker, linear()).await;
    let _toy = Toy::start(&broker, 1, |_| Answer::DeadLetter);
    let task_uuid = orchestrator.submit(task(json!({}))).await.expect("a new task");
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Error);
    let reasons = texts(&orchestrator, "SELECT reason FROM transitions WHERE to_state = 'error'").await;
    assert_eq!(reasons[0], "dead letter (retries_exhausted): it never worked");
}

#[tokio::test]
async fn a_cancelled_task_tells_the_workers_and_ignores_what_they_still_answer() {
    let broker = MemoryBroker::new();
    let orchestrator = start(&config("sqlite::memory:"), &broker, linear()).await;
    until("the queues", async || orchestrator.health().is_ready()).await;
    let mut control = broker.subscribe(Source::Broadcast(Names::default().control()), 10);
    let mut state = control.state();
    within("the control queue", state.wait_for(|state| *state == ConsumerState::Consuming))
        .await
        .expect("it lives");
    let toy = Toy::start(&broker, 1, |_| Answer::Silence);

    let task_uuid = orchestrator.submit(task(json!({}))).await.expect("a new task");
    toy.has_run(1).await;
    orchestrator.cancel(task_uuid).await.expect("it has not ended");
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Cancelled);
    let told = within("the control message", control.recv()).await.expect("it lives");
    let message: ControlMessage = serde_json::from_slice(&told.body).expect("a control message");
    assert_eq!(message, ControlMessage::CancelTask { task_uuid });

    publish_answer(&*toy.broker, &toy.ran()[0], &Answer::Succeed(json!(1))).await;
    until("the late answer", async || broker.depth("tasker.orchestrator").await.expect("a queue") == Some(0))
        .await;
    let states = texts(&orchestrator, "SELECT DISTINCT state FROM steps UNION SELECT state FROM tasks").await;
    assert_eq!(states, ["cancelled"]);
    assert!(matches!(orchestrator.cancel(task_uuid).await, Err(CancelError::Finished(TaskState::Cancelled))));
    assert!(matches!(orchestrator.cancel(uuid::Uuid::new_v4()).await, Err(CancelError::NotFound)));
}

#[tokio::test]
async fn cancelling_without_any_worker_leaves_nothing_in_the_outbox() {
    let broker = MemoryBroker::new();
    let orchestrator = start(&config("sqlite::memory:"), &broker, linear()).await;
    let task_uuid = orchestrator.submit(task(json!({}))).await.expect("a new task");
    orchestrator.cancel(task_uuid).await.expect("it has not ended");
    until("an empty outbox", async || texts(&orchestrator, "SELECT 'row' FROM outbox").await.is_empty())
        .await;
}

#[tokio::test]
async fn the_same_task_is_accepted_once_however_many_ask_at_once() {
    let broker = MemoryBroker::new();
    let orchestrator = start(&config("sqlite::memory:"), &broker, linear()).await;
    let submissions: Vec<_> = (0..20)
        .map(|_| {
            let orchestrator = orchestrator.clone();
            tokio::spawn(async move { orchestrator.submit(task(json!({"a": 1, "b": 2}))).await })
        })
        .collect();
    let (mut accepted, mut duplicates) = (Vec::new(), Vec::new());
    for submission in submissions {
        match submission.await.expect("no panic") {
            Ok(task_uuid) => accepted.push(task_uuid),
            Err(SubmitError::Duplicate { task_uuid }) => duplicates.push(task_uuid),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!((accepted.len(), duplicates.len()), (1, 19));
    assert!(duplicates.iter().all(|duplicate| *duplicate == accepted[0]));

    let other = orchestrator.submit(task(json!({"a": 1, "b": 3}))).await.expect("another context");
    assert_ne!(other, accepted[0]);
    let mut keyed = task(json!({"a": 1, "b": 2}));
    keyed.idempotency_key = Some("order-17".to_owned());
    orchestrator.submit(keyed.clone()).await.expect("the key makes it another task");
    keyed.context = json!({}).into();
    assert!(matches!(orchestrator.submit(keyed).await, Err(SubmitError::Duplicate { .. })));
}

#[tokio::test]
async fn what_cannot_be_a_task_is_refused_with_the_reason() {
    let broker = MemoryBroker::new();
    let orchestrator = start(&config("sqlite::memory:"), &broker, linear()).await;
    let mut unknown = task(json!({}));
    unknown.version = Some("9.9.9".to_owned());
    let error = orchestrator.submit(unknown).await.expect_err("there is no such version");
    assert_eq!(
        error.to_string(),
        "there is no template \"order\" of version \"9.9.9\" in namespace \"shop\""
    );
    let mut nameless = task(json!({}));
    nameless.name = String::new();
    let error = orchestrator.submit(nameless).await.expect_err("there is no name");
    assert_eq!(error.to_string(), "name is empty");
    assert_eq!(
        within("an answer", orchestrator.finished(uuid::Uuid::new_v4())).await.expect("readable"),
        None
    );
}

#[tokio::test]
async fn a_task_keeps_the_template_it_started_with_whatever_becomes_of_the_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("order.yaml");
    let of_last_step = |last: &str| {
        let text = "name: order\nnamespace: shop\nversion: 1.0.0\nsteps:\n  - {name: a}\n";
        std::fs::write(&file, format!("{text}  - {{name: {last}, dependencies: [a]}}\n")).expect("a file");
    };
    of_last_step("b");
    let catalog = Catalog::load(directory.path(), None).expect("a good file");
    let settings = config(&sqlite(directory.path()));
    let broker = MemoryBroker::new();
    let begin = async || Orchestrator::start(&settings, broker.connect(), catalog.clone()).await;
    let orchestrator = begin().await.expect("the store opens");
    let toy = Toy::start(&broker, 1, |_| Answer::Silence);
    let old = orchestrator.submit(task(json!(1))).await.expect("a new task");
    of_last_step("c");
    catalog.reload();
    let new = orchestrator.submit(task(json!(2))).await.expect("a new task");
    std::fs::write(&file, "steps: {").expect("a file");
    catalog.reload();
    let newest = orchestrator.submit(task(json!(3))).await.expect("the last good file counts");
    toy.has_run(3).await;
    let first_steps = toy.ran();
    orchestrator.shutdown().await;
    drop(toy);

    let orchestrator = begin().await.expect("the store opens");
    let toy = Toy::succeeding(&broker);
    for request in &first_steps {
        publish_answer(&*broker, request, &Answer::Succeed(json!("a"))).await;
    }
    for (task_uuid, last) in [(old, "b"), (new, "c"), (newest, "c")] {
        assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Complete);
        let ran = toy.ran().into_iter().find(|request| request.task_uuid == task_uuid);
        assert_eq!(ran.map(|request| request.step_name), Some(last.to_owned()));
    }
}

#[tokio::test]
async fn a_message_nobody_can_read_is_dropped_and_holds_nothing_up() {
    let broker = MemoryBroker::new();
    let orchestrator = start(&config("sqlite::memory:"), &broker, linear()).await;
    until("the queues", async || orchestrator.health().is_ready()).await;
    let message = Message {
        exchange: Names::default().results(),
        routing_key: result_key("shop", "completed"),
        body: bytes::Bytes::from_static(b"{\"not\": \"a result\"}"),
        properties: Properties::default(),
    };
    broker.publisher().publish(message).await.expect("the broker takes anything");
    let _toy = Toy::succeeding(&broker);
    let task_uuid = orchestrator.submit(task(json!({}))).await.expect("a new task");
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Complete);
    assert_eq!(broker.depth("tasker.orchestrator").await.expect("a queue"), Some(0));
}

#[tokio::test]
async fn an_answer_that_got_lost_is_asked_for_again_under_the_same_attempt() {
    let broker = MemoryBroker::new();
    let mut template = linear();
    template.steps[1].timeout = Some(std::time::Duration::from_millis(100));
    let mut config = config("sqlite::memory:");
    config.orchestrator.overdue_after_seconds = 0;
    let orchestrator = start(&config, &broker, template).await;
    let seen = AtomicU32::new(0);
    let toy = Toy::start(&broker, 1, move |request| {
        let lost = request.step_name == "b" && seen.fetch_add(1, Ordering::Relaxed) < 2;
        if lost { Answer::Silence } else { Answer::Succeed(json!(request.step_name)) }
    });
    let task_uuid = orchestrator.submit(task(json!({}))).await.expect("a new task");
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Complete);
    let names = toy.names();
    assert_eq!(names[..4], ["a:1", "b:1", "b:1", "b:1"], "{names:?}");
    assert_eq!(toy.ran()[1].step_uuid, toy.ran()[2].step_uuid);
}

#[tokio::test]
async fn a_request_still_in_its_queue_is_not_sent_again() {
    let broker = MemoryBroker::new();
    let mut template = linear();
    template.steps[0].timeout = Some(std::time::Duration::from_millis(1));
    let mut config = config("sqlite::memory:");
    config.orchestrator.overdue_after_seconds = 1;
    let orchestrator = start(&config, &broker, template).await;
    orchestrator.submit(task(json!({}))).await.expect("a new task");
    let due = async || texts(&orchestrator, "SELECT '' || due_at FROM steps WHERE name = 'a'").await;
    let first = due().await;
    until("more time", async || due().await != first).await;
    assert_eq!(broker.depth(&Names::default().step_queue("shop")).await.expect("a queue"), Some(1));
}
