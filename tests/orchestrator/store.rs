//! Every way the store can go wrong says what to do, and none leaves a task stuck in silence.

use std::time::Duration;

use serde_json::json;
use sqlx::{AssertSqlSafe, SqlitePool};
use tasker_worker_rust::Error;
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::broker::topology::{Names, dead_key, result_key};
use tasker_worker_rust::broker::{Broker, Message, Properties};
use tasker_worker_rust::dead_letters::take;
use tasker_worker_rust::orchestrator::store::Store;
use tasker_worker_rust::orchestrator::task::TaskState;

use crate::support::{
    Answer, Toy, config, finished, linear, publish_answer, sqlite, start, task, texts, until, within,
};

async fn refusal(url: &str) -> String {
    let error = Store::open(url).await.expect_err("it cannot be opened");
    assert!(matches!(error, Error::Store { .. }));
    error.to_string()
}

#[tokio::test]
async fn another_kind_of_store_is_refused_without_showing_its_password() {
    let text = refusal("postgres://me:secret@host/db").await;
    assert!(text.contains("\"postgres\"") && text.contains("sqlite:PATH"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = refusal(&format!("sqlite:{}/none/tasker.sqlite", directory.path().display())).await;
    assert!(
        text.contains("none/tasker.sqlite") && text.contains("check that the directory exists"),
        "{text}"
    );
}

#[tokio::test]
async fn a_file_that_is_no_database_is_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("tasker.sqlite");
    let letter = "Dear diary, ".repeat(1_000);
    std::fs::write(&file, &letter).expect("a file");
    let text = refusal(&sqlite(directory.path())).await;
    assert!(text.contains("the file is something else"), "{text}");
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), letter);
}

#[tokio::test]
async fn a_store_in_use_is_not_shared() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = sqlite(directory.path());
    let first = Store::open(&url).await.expect("a new store");
    assert!(refusal(&url).await.contains("is in use by another orchestrator"));
    first.close().await;
    Store::open(&url).await.expect("it is free again");
}

#[tokio::test]
async fn a_store_of_a_later_version_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = sqlite(directory.path());
    let store = Store::open(&url).await.expect("a new store");
    let migration = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                     VALUES (9999, 'from the future', TRUE, x'00', 0)";
    sqlx::query(migration).execute(store.readers()).await.expect("the table is there");
    store.close().await;
    assert!(refusal(&url).await.contains("was written by a later or different version"));
}

#[tokio::test]
async fn a_damaged_file_is_named_and_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    Store::open(&sqlite(directory.path())).await.expect("a new store").close().await;
    let file = directory.path().join("tasker.sqlite");
    let mut content = std::fs::read(&file).expect("the store's file");
    // Its first page tells what it is; nothing behind that can be used.
    content[4_096..].fill(0xa5);
    std::fs::write(&file, &content).expect("it may be written");
    let text = refusal(&sqlite(directory.path())).await;
    assert!(text.contains("the file is damaged: restore it from a backup"), "{text}");
    assert_eq!(std::fs::read(&file).expect("still there"), content);
}

#[tokio::test]
async fn a_file_damaged_while_it_is_in_use_stops_the_work_and_loses_nothing_that_a_backup_has() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = sqlite(directory.path());
    let broker = MemoryBroker::new();
    let toy = Toy::start(&broker, 1, |_| Answer::Silence);
    let orchestrator = start(&config(&url), &broker, linear()).await;
    let task_uuid = orchestrator.submit(task(json!(1))).await.expect("a new task");
    toy.has_run(1).await;
    until("an empty outbox", async || texts(&orchestrator, "SELECT 'row' FROM outbox").await.is_empty())
        .await;

    let other = SqlitePool::connect(&url).await.expect("the file is there");
    // A write of another process makes the orchestrator read the file again.
    for statement in ["PRAGMA user_version = 1", "PRAGMA wal_checkpoint(TRUNCATE)"] {
        sqlx::query(AssertSqlSafe(statement)).execute(&other).await.expect("it may be written");
    }
    other.close().await;
    let file = directory.path().join("tasker.sqlite");
    let backup = std::fs::read(&file).expect("the store's file");
    let mut content = backup.clone();
    content[4_096..].fill(0xa5);
    std::fs::write(&file, &content).expect("it may be written");

    publish_answer(&*toy.broker, &toy.ran()[0], &Answer::Succeed(json!("a"))).await;
    until("the failure to be noticed", async || orchestrator.health().store_problem.is_some()).await;
    let refused = orchestrator.submit(task(json!(2))).await.expect_err("it takes nothing");
    assert!(refused.to_string().contains("the file is damaged: restore it from a backup"), "{refused}");
    assert!(!orchestrator.health().accepts_tasks());
    within("the end", orchestrator.shutdown()).await;
    assert_eq!(broker.depth("tasker.orchestrator").await.expect("a queue"), Some(1), "not acked");

    drop(toy);
    let toy = Toy::succeeding(&broker);
    for left in ["tasker.sqlite-wal", "tasker.sqlite-shm"] {
        // Whether they are left behind is SQLite's business.
        std::fs::remove_file(directory.path().join(left)).ok();
    }
    std::fs::write(&file, &backup).expect("it may be written");
    let orchestrator = start(&config(&url), &broker, linear()).await;
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Complete);
    assert_eq!(toy.names(), ["b:1", "c:1"]);
}

#[tokio::test]
async fn while_another_process_holds_a_lock_callers_are_told_and_nothing_is_acked() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = sqlite(directory.path());
    let broker = MemoryBroker::new();
    let orchestrator = start(&config(&url), &broker, linear()).await;
    let toy = Toy::start(&broker, 1, |_| Answer::Silence);
    let task_uuid = orchestrator.submit(task(json!(1))).await.expect("a new task");
    toy.has_run(1).await;

    let other = SqlitePool::connect(&url).await.expect("the file is there");
    let locked = other.begin_with("BEGIN IMMEDIATE").await.expect("nobody else writes");
    publish_answer(&*toy.broker, &toy.ran()[0], &Answer::Succeed(json!("a"))).await;
    until("the failure to be noticed", async || orchestrator.health().store_problem.is_some()).await;
    let refused = orchestrator.submit(task(json!(2))).await.expect_err("it takes nothing");
    assert!(refused.to_string().contains("another process holds a lock on it"), "{refused}");
    assert!(!orchestrator.health().is_ready());
    assert_eq!(texts(&orchestrator, "SELECT state FROM steps WHERE name = 'a'").await, ["enqueued"]);

    drop(toy);
    let _toy = Toy::succeeding(&broker);
    locked.rollback().await.expect("the lock falls");
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Complete);
    until("everything to work", async || orchestrator.health().is_ready()).await;
}

#[tokio::test]
async fn a_task_that_cannot_be_read_ends_where_everybody_sees_it_and_holds_up_no_other() {
    for (damage, says) in [
        ("UPDATE tasks SET context = '{\"unfinished\"' WHERE task_uuid = ?", "EOF while parsing"),
        ("UPDATE tasks SET state = 'dreaming' WHERE task_uuid = ?", "state \"dreaming\" is unknown"),
        ("UPDATE steps SET state = '' WHERE name = 'c' AND task_uuid = ?", "step state \"\" is unknown"),
        (
            "UPDATE steps SET name = 'x' WHERE name = 'c' AND task_uuid = ?",
            "has a step \"x\", and its template has none",
        ),
        (
            "UPDATE templates SET definition = 'gone' WHERE template_id IN \
             (SELECT template_id FROM tasks WHERE task_uuid = ?)",
            "cannot be read",
        ),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        let url = sqlite(directory.path());
        let mut config = config(&url);
        // Nobody answers for it: that it is looked at does not hang on a message.
        config.orchestrator.overdue_after_seconds = 0;
        let mut template = linear();
        template.steps[0].timeout = Some(Duration::from_millis(50));
        let broker = MemoryBroker::new();
        let toy = Toy::start(&broker, 1, |_| Answer::Silence);
        let orchestrator = start(&config, &broker, template.clone()).await;
        let damaged = orchestrator.submit(task(json!(1))).await.expect("a new task");
        toy.has_run(1).await;
        orchestrator.abort().await;
        let store = SqlitePool::connect(&url).await.expect("the file is there");
        let changed = sqlx::query(damage).bind(damaged.to_string()).execute(&store).await;
        assert_eq!(changed.expect("it can be damaged").rows_affected(), 1, "{damage}");
        store.close().await;
        drop(toy);

        let _toy = Toy::succeeding(&broker);
        template.version = "2.0.0".to_owned();
        let orchestrator = start(&config, &broker, template).await;
        until("the end", async || texts(&orchestrator, "SELECT state FROM tasks").await == ["error"]).await;
        let reasons = "SELECT reason FROM transitions WHERE to_state = 'error'";
        let reasons = texts(&orchestrator, reasons).await;
        assert!(reasons.len() == 1 && reasons[0].contains(says), "{damage}: {reasons:?}");
        let entries = texts(&orchestrator, "SELECT dlq_reason || metadata FROM dlq_entries").await;
        assert!(entries.len() == 1 && entries[0].starts_with("manual_dlq{\"problem\""), "{entries:?}");
        let other =
            tasker_worker_rust::api::TaskRequest { version: Some("2.0.0".to_owned()), ..task(json!(2)) };
        let other = orchestrator.submit(other).await.expect("a new task");
        assert_eq!(finished(&orchestrator, other).await, TaskState::Complete);
        assert_eq!(
            within("its end", orchestrator.finished(damaged)).await.expect("it is read"),
            Some(TaskState::Error)
        );
    }
}

#[tokio::test]
async fn an_unsent_message_that_cannot_be_read_is_made_anew() {
    for damage in ["UPDATE outbox SET properties = '{'", "UPDATE outbox SET created_at = 'once'"] {
        let directory = tempfile::tempdir().expect("a directory");
        let url = sqlite(directory.path());
        let mut config = config(&url);
        config.orchestrator.overdue_after_seconds = 0;
        let mut template = linear();
        template.steps[0].timeout = Some(Duration::from_millis(50));
        let broker = MemoryBroker::new();
        broker.set_down(Some("away"));
        let orchestrator = start(&config, &broker, template.clone()).await;
        let task_uuid = orchestrator.submit(task(json!(1))).await.expect("a new task");
        orchestrator.abort().await;
        let store = SqlitePool::connect(&url).await.expect("the file is there");
        let changed = sqlx::query(AssertSqlSafe(damage)).execute(&store).await;
        assert_eq!(changed.expect("it can be damaged").rows_affected(), 1, "{damage}");
        store.close().await;
        broker.set_down(None);
        let _toy = Toy::succeeding(&broker);
        let orchestrator = start(&config, &broker, template).await;
        assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Complete, "{damage}");
        until("an empty outbox", async || texts(&orchestrator, "SELECT 'row' FROM outbox").await.is_empty())
            .await;
    }
}

#[tokio::test]
async fn what_nobody_understands_is_parked_and_not_looked_at_twice() {
    let broker = MemoryBroker::new();
    let orchestrator = start(&config("sqlite::memory:"), &broker, linear()).await;
    until("everything to work", async || orchestrator.health().is_ready()).await;
    let names = Names::default();
    let body: Vec<u8> = b"{\"not\": \xff a result".to_vec();
    for (exchange, routing_key) in [
        (names.results(), result_key("shop", "completed")),
        (names.results(), result_key("nowhere", "completed")),
        (names.dead_letters(), dead_key("shop", "refused")),
    ] {
        let message =
            Message { exchange, routing_key, body: body.clone().into(), properties: Properties::default() };
        broker.publisher().publish(message).await.expect("the broker takes it");
    }
    let depth = async |queue: String| broker.depth(&queue).await;
    until("all of them parked", async || {
        depth(names.dead_letter_queue("shop")).await == Ok(Some(2))
            && depth(names.unroutable()).await == Ok(Some(1))
    })
    .await;
    until("an empty queue", async || depth(names.orchestrator_queue()).await == Ok(Some(0))).await;
    let (letters, _) = take(&*broker, &names, "shop").await.expect("it can be read");
    assert!(letters.iter().all(|letter| letter.body == body), "{letters:?}");
    let refused: Vec<_> = letters.iter().filter(|letter| letter.reason == "refused").collect();
    assert!(refused.len() == 1 && refused[0].error.error_type == "MessageRefused", "{letters:?}");
}
