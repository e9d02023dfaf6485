//! The users of `topology export`: the whole product runs with their rights, and they have no others.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::join_all;
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::{Value, json};
use tasker_worker_rust::api::{TaskRequest, TaskResponse};
use tasker_worker_rust::broker::rabbit::RabbitBroker;
use tasker_worker_rust::broker::topology::Topology;
use tasker_worker_rust::broker::{Broker, BrokerStatus, ConsumerState};
use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::client::Client;
use tasker_worker_rust::config::{LadderConfig, TopologyMode};
use tasker_worker_rust::pause::{pause, resume};
use tasker_worker_rust::{
    Checkpoint, Config, Namespace, RunningWorker, RustWorker, Step, StepError, StepResult, template,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::node::Node;
use crate::program::{Program, stderr, stdout};
use crate::support::{DEADLINE, within};
use crate::system::orchestrate;

const TEMPLATE: &str = "
namespace: sales
name: order
version: 1.0.0
steps:
  - {name: quote, handler: {callable: quote}, retry: {max_attempts: 3, backoff: linear, backoff_base_ms: 500}}
  - {name: bill, handler: {callable: bill}, dependencies: [quote]}
";

const USERS: [&str; 5] =
    ["tasker-topology", "tasker-orchestrator", "tasker-scaler", "tasker-worker", "billing-worker"];

/// A node that knows nothing but what `topology export` has written.
struct Scene {
    node: Node,
    passwords: TempDir,
    definitions: Value,
}

impl Scene {
    fn open() -> Self {
        let passwords = tempfile::tempdir().unwrap();
        for user in USERS {
            std::fs::write(passwords.path().join(user), format!("password-of-{user}\n")).unwrap();
        }
        let folder = passwords.path().to_str().unwrap();
        let exported = Program::new().set("TASKER__BROKER__DELAY_LADDER__RUNGS", "3").run(&[
            "topology",
            "export",
            "--worker",
            "tasker-worker=sales",
            "--worker",
            "billing-worker=billing",
            "--passwords",
            folder,
        ]);
        assert!(exported.status.success(), "{}", stderr(&exported));
        assert!(!stdout(&exported).contains("password-of-"), "a password is printed");
        let node = Node::start(tempfile::tempdir().unwrap(), &[]);
        let file = passwords.path().join("definitions.json");
        std::fs::write(&file, &exported.stdout).unwrap();
        node.ctl(&["import_definitions", file.to_str().unwrap()]);
        Self { node, definitions: serde_json::from_slice(&exported.stdout).unwrap(), passwords }
    }

    fn password_file(&self, user: &str) -> PathBuf {
        self.passwords.path().join(user)
    }

    fn config(&self, user: &str, store: &Path) -> Config {
        let mut config = Config::default();
        config.broker.urls = vec![self.node.url(user, "of-the-file").as_str().into()];
        config.broker.password_file = Some(self.password_file(user));
        config.broker.topology = TopologyMode::Verify;
        config.broker.delay_ladder = LadderConfig { rungs: 3, ..LadderConfig::default() };
        config.orchestrator.database_url = format!("sqlite:{}", store.join("store.sqlite").display());
        config.worker.health_address = "127.0.0.1:0".to_owned();
        config.worker.metrics.prometheus_port = 0;
        config
    }

    async fn broker(&self, user: &str) -> Arc<dyn Broker> {
        let config = self.config(user, Path::new(""));
        let broker: Arc<dyn Broker> = Arc::new(RabbitBroker::connect(&config.broker, user).unwrap());
        let mut status = broker.status();
        within(status.wait_for(|status| *status == BrokerStatus::Connected)).await.unwrap();
        drop(status);
        broker
    }

    async fn connection(&self, user: &str) -> Connection {
        let url = self.node.url(user, &format!("password-of-{user}"));
        Connection::connect(&url, ConnectionProperties::default()).await.unwrap()
    }
}

async fn quote(step: Step<Value>) -> StepResult<i64> {
    match (step.context["fails"].as_bool(), step.attempt()) {
        (None, 2) if step.request().checkpoint.is_none() => {
            Err(StepError::checkpoint(Checkpoint { cursor: 1, ..Checkpoint::<_, ()>::default() }))
        }
        (Some(true), _) => Err(StepError::permanent("nobody sells that")),
        (_, 1) => Err(StepError::retryable("the price list is away")),
        _ => Ok(42),
    }
}

async fn bill(step: Step<Value>) -> StepResult<i64> {
    step.result_of("quote")
}

async fn run(client: &Client, context: Value) -> TaskResponse {
    let task = client.submit(&TaskRequest::new("sales", "order", context)).await.unwrap().task_uuid();
    client.wait(task, DEADLINE).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_product_runs_with_the_exported_rights_which_permit_nothing_else() {
    let scene = Scene::open();
    let store = tempfile::tempdir().unwrap();
    let catalog = Catalog::from_templates(vec![template::parse(TEMPLATE, None).unwrap().template]);
    let orchestrating = scene.broker("tasker-orchestrator").await;
    let config = scene.config("tasker-orchestrator", store.path());
    let (orchestrator, server, client) = orchestrate(&config, &orchestrating, &catalog).await;
    let handlers = Namespace::new("sales").step("quote", quote).step("bill", bill);
    let worker = RustWorker::new(scene.config("tasker-worker", store.path())).namespace(handlers);
    let worker = worker.start().await.unwrap();
    within(worker.ready()).await;

    // A retry, a checkpoint, results, and a dead letter.
    let task = run(&client, json!({ "order": 1 })).await;
    assert_eq!((task.status.as_str(), task.steps[0].attempts), ("complete", 2), "{task:#?}");
    let reached = client.step(task.task_uuid, "quote").await.unwrap().checkpoint;
    assert_eq!(reached.expect("it has reported one").cursor.get(), "1");
    let failed = run(&client, json!({ "fails": true })).await;
    assert_eq!(failed.status, "error", "{failed:#?}");
    let names = config.names();
    let operator = scene.broker("tasker-topology").await;
    assert_eq!(operator.depth(&names.dead_letter_queue("sales")).await, Ok(Some(1)));

    pausing(&worker, &*operator, &config).await;
    a_worker_may_do_nothing_else(&scene, &config).await;
    the_scaler_sees_lengths_and_nothing_else(&scene, &config).await;
    the_operator_finds_everything_in_place(&scene, &*operator, &config).await;
    passwords_change_under_load(&scene, &client).await;

    within(worker.shutdown()).await;
    within(server.stop()).await;
    within(orchestrator.shutdown()).await;
    orchestrating.close().await;
    operator.close().await;
}

/// Orders of the operator reach the worker.
async fn pausing(worker: &RunningWorker, operator: &dyn Broker, config: &Config) {
    let (names, kind) = (config.names(), config.broker.queue_kind);
    let state = worker.health().consumers["sales"].clone();
    within(pause(operator, &names, kind, "sales", false)).await.unwrap();
    let mut paused = state.clone();
    within(paused.wait_for(|state| *state != ConsumerState::Consuming)).await.unwrap();
    within(resume(operator, &names, kind, "sales")).await.unwrap();
    let mut resumed = state;
    within(resumed.wait_for(|state| *state == ConsumerState::Consuming)).await.unwrap();
}

/// Runs it on a channel of its own, as the broker closes one at every refusal.
async fn forbidden<T>(
    connection: &Connection,
    what: &str,
    forbidden: impl AsyncFnOnce(&Channel) -> lapin::Result<T>,
) {
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let refused = within(forbidden(&channel)).await.err().unwrap_or_else(|| panic!("a worker may {what}"));
    assert!(!channel.status().connected(), "{what}: {refused}");
}

async fn a_worker_may_do_nothing_else(scene: &Scene, config: &Config) {
    let (names, table) = (config.names(), FieldTable::default);
    let connection = scene.connection("tasker-worker").await;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mine = names.step_queue("sales");
    let foreign = [
        names.step_queue("billing"),
        names.orchestrator_queue(),
        names.dead_letter_queue("sales"),
        names.unroutable(),
    ];

    forbidden(&connection, "make a queue", async |channel| {
        channel.queue_declare("tasker.mine".into(), durable, table()).await
    })
    .await;
    forbidden(&connection, "delete its own queue", async |channel| {
        channel.queue_delete(mine.as_str().into(), QueueDeleteOptions::default()).await
    })
    .await;
    forbidden(&connection, "delete an exchange", async |channel| {
        channel.exchange_delete(names.results().as_str().into(), ExchangeDeleteOptions::default()).await
    })
    .await;
    for queue in &foreign {
        forbidden(&connection, &format!("read {queue}"), async |channel| {
            channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await
        })
        .await;
        forbidden(&connection, &format!("consume {queue}"), async |channel| {
            channel
                .basic_consume(queue.as_str().into(), "".into(), BasicConsumeOptions::default(), table())
                .await
        })
        .await;
        forbidden(&connection, &format!("purge {queue}"), async |channel| {
            channel.queue_purge(queue.as_str().into(), QueuePurgeOptions::default()).await
        })
        .await;
        forbidden(&connection, &format!("bind {queue}"), async |channel| {
            let (queue, exchange) = (queue.as_str().into(), names.control().as_str().into());
            channel.queue_bind(queue, exchange, "".into(), QueueBindOptions::default(), table()).await
        })
        .await;
    }
    for (exchange, key) in [
        (names.steps(), "step.sales.quote"),
        (names.control(), ""),
        (names.results(), "result.billing.completed"),
        (names.retries(), "retry.billing.500"),
        (names.retries(), "checkpoint.billing.bill"),
        (names.dead_letters(), "dead.billing.permanent"),
        (String::new(), mine.as_str()),
    ] {
        forbidden(&connection, &format!("publish {key} to {exchange:?}"), async |channel| {
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let (exchange, key) = (exchange.as_str().into(), key.into());
            channel.basic_publish(exchange, key, options, b"{}", BasicProperties::default()).await?.await
        })
        .await;
    }
    connection.close(200, "done".into()).await.unwrap();
}

async fn the_scaler_sees_lengths_and_nothing_else(scene: &Scene, config: &Config) {
    let queue = config.names().step_queue("sales");
    let asked = |user: &str| {
        let script = "import base64, json, sys, urllib.request\n\
            url, login = sys.argv[1:]\n\
            request = urllib.request.Request(url)\n\
            request.add_header('Authorization', 'Basic ' + base64.b64encode(login.encode()).decode())\n\
            print(json.load(urllib.request.urlopen(request, timeout=10))['name'])";
        let url = format!("http://127.0.0.1:{}/api/queues/%2F/{queue}", scene.node.port + 3);
        let login = format!("{user}:password-of-{user}");
        std::process::Command::new("python3").args(["-c", script, &url, &login]).output().unwrap()
    };
    assert_eq!(stdout(&asked("tasker-scaler")).trim(), queue, "{}", stderr(&asked("tasker-scaler")));
    assert!(stderr(&asked("tasker-worker")).contains("401"), "a worker sees the management API");
    let connection = scene.connection("tasker-scaler").await;
    forbidden(&connection, "read as the scaler", async |channel| {
        channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await
    })
    .await;
    connection.close(200, "done".into()).await.unwrap();
}

/// What was imported is what would have been declared: declaring it again is no conflict.
async fn the_operator_finds_everything_in_place(scene: &Scene, operator: &dyn Broker, config: &Config) {
    let kind = config.broker.queue_kind;
    let topology = Topology::new(&config.names(), &config.ladder(), kind, ["sales", "billing"]);
    assert_eq!(operator.verify(&topology).await, Ok(Vec::new()));
    operator.declare(&topology).await.unwrap();
    assert_eq!(scene.definitions["queues"].as_array().unwrap().len(), topology.queues.len());
}

/// New passwords and no restart: whoever is thrown out comes back with the new one, and no task is lost.
async fn passwords_change_under_load(scene: &Scene, client: &Client) {
    let stop = CancellationToken::new();
    let load = join_all((0..8).map(|lane| {
        let (client, stop) = (client.clone(), stop.clone());
        tokio::spawn(async move {
            let mut orders = 0;
            while !stop.is_cancelled() {
                let task = run(&client, json!({ "lane": lane, "order": orders })).await;
                assert_eq!(task.status, "complete", "{task:#?}");
                orders += 1;
            }
            orders
        })
    }));
    for user in ["tasker-worker", "tasker-orchestrator"] {
        std::fs::write(scene.password_file(user), "the new one").unwrap();
        scene.node.ctl(&["change_password", user, "the new one"]);
    }
    let old = scene.node.url("tasker-worker", "password-of-tasker-worker");
    let old = Connection::connect(&old, ConnectionProperties::default()).await;
    assert!(old.is_err(), "the old password still opens the door");
    scene.node.ctl(&["close_all_connections", "--vhost", "/", "passwords have changed"]);
    let after = run(client, json!({ "after": "the change" })).await;
    assert_eq!(after.status, "complete", "{after:#?}");
    stop.cancel();
    let orders: Vec<usize> = load.await.into_iter().map(Result::unwrap).collect();
    assert!(orders.iter().all(|orders| *orders > 1), "{orders:?}");
}
