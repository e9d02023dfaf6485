//! Crashes, outages, and a store that takes nothing.

use std::sync::Arc;

use serde_json::json;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tasker_worker_rust::Config;
use tasker_worker_rust::broker::Broker;
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::orchestrator::Orchestrator;
use tasker_worker_rust::orchestrator::task::TaskState;
use tasker_worker_rust::orchestrator::{CancelError, SubmitError};
use uuid::Uuid;

use crate::support::{
    Answer, Toy, config, finished, linear, publish_answer, sqlite, start, task, texts, until, within,
};

/// An orchestrator on a runtime of its own: dropping that runtime is as good as killing the process.
struct Doomed {
    runtime: Option<tokio::runtime::Runtime>,
    orchestrator: Orchestrator,
    database_url: String,
}

impl Doomed {
    async fn start(config: &Config, broker: &Arc<MemoryBroker>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let database_url = config.orchestrator.database_url.clone();
        let (config, broker) = (config.clone(), Arc::clone(broker));
        let started = runtime.spawn(async move { start(&config, &broker, linear()).await });
        Self { orchestrator: started.await.expect("it starts"), runtime: Some(runtime), database_url }
    }

    /// Everything stops where it stands: nothing is written, acked or sent any more.
    async fn kill(mut self) {
        let runtime = self.runtime.take().expect("not yet killed");
        tokio::task::spawn_blocking(move || drop(runtime)).await.expect("no panic");
        // SQLite's own thread outlives the runtime, as it cannot outlive a process: a commit that it was told of is
        // waited for, so that it does not land after the next life has read.
        let mut store = SqliteConnection::connect(&self.database_url).await.expect("the store is there");
        sqlx::raw_sql("BEGIN IMMEDIATE; ROLLBACK").execute(&mut store).await.expect("the write lock");
    }
}

#[tokio::test]
async fn a_restart_in_the_middle_goes_on_where_the_task_stood() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = config(&sqlite(directory.path()));
    let broker = MemoryBroker::new();
    let toy = Toy::start(&broker, 1, |request| match request.step_name.as_str() {
        "b" => Answer::Silence,
        name => Answer::Succeed(json!(name)),
    });

    let orchestrator = start(&config, &broker, linear()).await;
    let task_uuid = orchestrator.submit(task(json!({}))).await.expect("a new task");
    toy.has_run(2).await;
    orchestrator.shutdown().await;
    assert!(matches!(orchestrator.submit(task(json!(1))).await, Err(SubmitError::Store(_))));
    assert!(matches!(orchestrator.cancel(task_uuid).await, Err(CancelError::Store(_))));

    publish_answer(&*toy.broker, &toy.ran()[1], &Answer::Succeed(json!("late"))).await;
    let orchestrator = start(&config, &broker, linear()).await;
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Complete);
    assert_eq!(toy.names(), ["a:1", "b:1", "c:1"]);
    let last = toy.ran().pop().expect("c ran");
    assert_eq!(last.sequence_data[1].result.get(), "\"late\"");
    assert!(matches!(
        orchestrator.submit(task(json!({}))).await,
        Err(SubmitError::Duplicate { task_uuid: first }) if first == task_uuid
    ));
}

#[tokio::test]
async fn killed_at_any_time_it_loses_nothing_and_applies_nothing_twice() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = config(&sqlite(directory.path()));
    let broker = MemoryBroker::new();
    let toy = Toy::start(&broker, 2, |request| Answer::Succeed(json!(request.step_name)));
    let mut accepted: Vec<Uuid> = Vec::new();
    for life in 1..=8 {
        let doomed = Doomed::start(&config, &broker).await;
        for number in 0..10 {
            let submitted = doomed.orchestrator.submit(task(json!([life, number]))).await;
            accepted.push(submitted.expect("a new task"));
        }
        // In the middle of the work, at another place in every life.
        toy.has_run(life * 23).await;
        doomed.kill().await;
    }
    let orchestrator = start(&config, &broker, linear()).await;
    for task_uuid in accepted {
        assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Complete);
    }
    let twice = texts(
        &orchestrator,
        "SELECT step_uuid || to_state FROM transitions WHERE step_uuid IS NOT NULL \
         GROUP BY step_uuid, to_state HAVING COUNT(*) > 1",
    );
    assert_eq!(twice.await, Vec::<String>::new());
    let steps = texts(&orchestrator, "SELECT state || attempts FROM steps").await;
    assert_eq!(steps, vec!["complete1"; 240]);
    until("an empty outbox", async || texts(&orchestrator, "SELECT 'row' FROM outbox").await.is_empty())
        .await;
}

#[tokio::test]
async fn tasks_are_accepted_while_the_broker_is_away_and_run_once_it_is_back() {
    let broker = MemoryBroker::new();
    broker.set_down(Some("maintenance"));
    let orchestrator = start(&config("sqlite::memory:"), &broker, linear()).await;
    let task_uuid = orchestrator.submit(task(json!({}))).await.expect("a new task");
    let health = orchestrator.health();
    assert!(health.accepts_tasks() && !health.is_ready(), "{health:?}");
    until("the reason", async || orchestrator.health().topology_problem.is_some()).await;

    broker.set_down(None);
    let toy = Toy::succeeding(&broker);
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Complete);
    assert_eq!(toy.names(), ["a:1", "b:1", "c:1"]);
    until("everything to work", async || orchestrator.health().is_ready()).await;
}

#[tokio::test]
async fn an_outage_in_the_middle_and_lost_confirms_lose_no_task() {
    let broker = MemoryBroker::new();
    let orchestrator = start(&config("sqlite::memory:"), &broker, linear()).await;
    until("everything to work", async || orchestrator.health().is_ready()).await;
    let mut accepted = Vec::new();
    for number in 0..30 {
        match number {
            5 | 15 => broker.disconnect(),
            10 => broker.set_down(Some("restarting")),
            20 => broker.set_down(None),
            25 => broker.lose_confirms(3),
            _ => {}
        }
        accepted.push(orchestrator.submit(task(json!(number))).await.expect("a new task"));
    }
    let _toy = Toy::succeeding(&broker);
    for task_uuid in accepted {
        assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Complete);
    }
    let steps = texts(&orchestrator, "SELECT DISTINCT state || attempts FROM steps").await;
    assert_eq!(steps, ["complete1"]);
}

/// Makes every transaction fail, from outside, as a full disk would.
async fn break_store(url: &str) {
    let trigger = "CREATE TRIGGER broken BEFORE INSERT ON transitions \
                   BEGIN SELECT RAISE(ABORT, 'no room left'); END";
    sqlx::query(trigger).execute(&mut connect(url).await).await.expect("a trigger");
}

async fn mend_store(url: &str) {
    sqlx::query("DROP TRIGGER broken").execute(&mut connect(url).await).await.expect("the trigger is there");
}

async fn connect(url: &str) -> SqliteConnection {
    let options: sqlx::sqlite::SqliteConnectOptions = url.parse().expect("a url");
    let options = options.busy_timeout(std::time::Duration::from_secs(20)).disable_statement_logging();
    SqliteConnection::connect_with(&options).await.expect("the file is there")
}

#[tokio::test]
async fn while_the_store_takes_nothing_nothing_is_acked_and_callers_are_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = sqlite(directory.path());
    let config = config(&url);
    let broker = MemoryBroker::new();
    let toy = Toy::start(&broker, 1, |_| Answer::Silence);
    let orchestrator = start(&config, &broker, linear()).await;
    let first = orchestrator.submit(task(json!(1))).await.expect("a new task");
    let second = orchestrator.submit(task(json!(2))).await.expect("a new task");
    toy.has_run(2).await;

    break_store(&url).await;
    for request in toy.ran() {
        publish_answer(&*toy.broker, &request, &Answer::Succeed(json!("a"))).await;
    }
    until("the failure to be noticed", async || orchestrator.health().store_problem.is_some()).await;
    let error = orchestrator.submit(task(json!(3))).await.expect_err("the store takes nothing");
    assert!(error.to_string().contains("no room left"), "{error}");
    assert!(!orchestrator.health().accepts_tasks());
    within("the end", orchestrator.shutdown()).await;
    assert_eq!(broker.depth("tasker.orchestrator").await.expect("a queue"), Some(2), "not acked");

    mend_store(&url).await;
    drop(toy);
    let toy = Toy::succeeding(&broker);
    let orchestrator = start(&config, &broker, linear()).await;
    assert_eq!(finished(&orchestrator, first).await, TaskState::Complete);
    assert_eq!(finished(&orchestrator, second).await, TaskState::Complete);
    assert_eq!(toy.ran().len(), 4, "both first steps had been answered");
}

#[tokio::test]
async fn a_store_that_recovers_goes_on_without_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = sqlite(directory.path());
    let broker = MemoryBroker::new();
    let orchestrator = start(&config(&url), &broker, linear()).await;
    let toy = Toy::start(&broker, 1, |_| Answer::Silence);
    let task_uuid = orchestrator.submit(task(json!(1))).await.expect("a new task");
    toy.has_run(1).await;
    break_store(&url).await;
    publish_answer(&*toy.broker, &toy.ran()[0], &Answer::Succeed(json!("a"))).await;
    until("the failure to be noticed", async || orchestrator.health().store_problem.is_some()).await;
    drop(toy);

    let toy = Toy::succeeding(&broker);
    mend_store(&url).await;
    assert_eq!(finished(&orchestrator, task_uuid).await, TaskState::Complete);
    assert_eq!(toy.names(), ["b:1", "c:1"]);
    assert_eq!(orchestrator.health().store_problem, None);
}
