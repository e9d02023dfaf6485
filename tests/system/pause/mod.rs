//! Pausing namespaces, from the orchestrator's and the operator's side.

mod looks;

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tasker_worker_rust::broker::BrokerStatus;
use tasker_worker_rust::ops::health::Health;
use tasker_worker_rust::ops::metrics::METRICS;
use tasker_worker_rust::pause::{is_paused, pause, resume};
use tasker_worker_rust::{Namespace, RunningWorker, RustWorker, Step, StepResult};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};

use crate::node::Node;
use crate::on_both_brokers;
use crate::program::Program;
use crate::support::{DEADLINE, Desk, Kind, NAMESPACE, eventually, settings, within};

on_both_brokers! {
    a_paused_namespace_takes_nothing_finishes_what_it_has_and_goes_on_when_resumed
    a_pause_outlives_the_worker_and_meets_those_that_start_later
    draining_hands_back_what_has_not_begun
}

/// A handler that tells that it has begun, and ends when it may.
struct Gate {
    begun: mpsc::UnboundedSender<String>,
    may_end: Arc<Semaphore>,
}

impl Gate {
    fn new() -> (Self, mpsc::UnboundedReceiver<String>) {
        let (begun, has_begun) = mpsc::unbounded_channel();
        (Self { begun, may_end: Arc::new(Semaphore::new(0)) }, has_begun)
    }

    fn namespace(&self, name: &str) -> Namespace {
        let (begun, may_end) = (self.begun.clone(), self.may_end.clone());
        Namespace::new(name).step("wait", move |step: Step| {
            let (begun, may_end) = (begun.clone(), may_end.clone());
            async move {
                begun.send(step.namespace().to_owned())?;
                may_end.acquire().await?.forget();
                StepResult::Ok("done")
            }
        })
    }
}

fn shown(worker: &RunningWorker, namespace: &str) -> serde_json::Value {
    worker.health().status()["namespaces"][namespace]["state"].clone()
}

async fn shows(worker: &RunningWorker, namespace: &str, state: &str) {
    let health = worker.health();
    let waiting = async {
        while shown(worker, namespace) != state {
            sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(timeout(DEADLINE, waiting).await.is_ok(), "{state} is not shown, but {}", health.status());
    assert_eq!(health.readiness().ready, ["consuming", "paused"].contains(&state), "{state}");
}

async fn waiting(desk: &Desk, namespace: &str, requests: u64) {
    let queue = desk.names.step_queue(namespace);
    let waits = async || (desk.broker.depth(&queue).await == Ok(Some(requests))).then_some(());
    eventually(&format!("{requests} requests wait"), waits).await;
}

async fn order(desk: &Desk, namespace: &str, hand_back: bool) {
    let kind = desk.config.broker.queue_kind;
    within(pause(&*desk.broker, &desk.names, kind, namespace, hand_back)).await.expect("the order is sent");
}

async fn end(desk: &Desk, namespace: &str) {
    let kind = desk.config.broker.queue_kind;
    within(resume(&*desk.broker, &desk.names, kind, namespace)).await.expect("the order is sent");
    assert_eq!(is_paused(&*desk.broker, &desk.names, namespace).await, Ok(false));
}

async fn a_paused_namespace_takes_nothing_finishes_what_it_has_and_goes_on_when_resumed(kind: Kind) {
    let mut desk = Desk::open(kind).await;
    let (gate, mut has_begun) = Gate::new();
    let mut config = desk.config.clone();
    config.worker.max_concurrent_steps = 2;
    let worker = desk.worker_with(config, gate.namespace(NAMESPACE)).await;
    for _ in 0..2 {
        desk.ask("wait", json!({})).await;
        within(has_begun.recv()).await;
    }
    order(&desk, NAMESPACE, false).await;
    // Twice is as good as once.
    order(&desk, NAMESPACE, false).await;
    shows(&worker, NAMESPACE, "paused").await;
    for _ in 0..3 {
        desk.ask("wait", json!({})).await;
    }
    gate.may_end.add_permits(5);
    for _ in 0..2 {
        assert_eq!(desk.next_result().await.data.get(), "\"done\"");
    }
    waiting(&desk, NAMESPACE, 3).await;
    assert!(has_begun.try_recv().is_err(), "nothing begins while it is paused");

    end(&desk, NAMESPACE).await;
    shows(&worker, NAMESPACE, "consuming").await;
    for _ in 0..3 {
        let result = desk.next_result().await;
        assert_eq!((result.data.get(), result.attempt), ("\"done\"", 1));
    }
    worker.shutdown().await;
    waiting(&desk, NAMESPACE, 0).await;
    desk.close().await;
}

async fn a_pause_outlives_the_worker_and_meets_those_that_start_later(kind: Kind) {
    let mut desk = Desk::open(kind).await;
    let (gate, mut has_begun) = Gate::new();
    gate.may_end.add_permits(9);
    // Nobody hears the order.
    order(&desk, NAMESPACE, false).await;
    let paused = async || (is_paused(&*desk.broker, &desk.names, NAMESPACE).await == Ok(true)).then_some(());
    eventually("the order stays", paused).await;
    let request = desk.ask("wait", json!({})).await;
    for _ in 0..2 {
        let worker = desk.worker(gate.namespace(NAMESPACE)).await;
        shows(&worker, NAMESPACE, "paused").await;
        waiting(&desk, NAMESPACE, 1).await;
        worker.shutdown().await;
    }
    assert!(has_begun.try_recv().is_err(), "nothing begins while it is paused");
    let worker = desk.worker(gate.namespace(NAMESPACE)).await;
    end(&desk, NAMESPACE).await;
    assert_eq!(desk.next_result().await.step_uuid, request.step_uuid);
    worker.shutdown().await;
    desk.close().await;
}

async fn draining_hands_back_what_has_not_begun(kind: Kind) {
    let mut desk = Desk::open_with(settings(kind), kind, &[NAMESPACE, "reports"]).await;
    let (gate, mut has_begun) = Gate::new();
    let mut config = desk.config.clone();
    config.worker.max_concurrent_steps = 1;
    let worker = RustWorker::new(config)
        .namespace(gate.namespace(NAMESPACE))
        .namespace(gate.namespace("reports"))
        .broker(desk.broker.clone())
        .start()
        .await
        .expect("the settings are right");
    within(worker.ready()).await;
    let mut report = desk.request("wait", json!({}));
    report.namespace = "reports".to_owned();
    desk.send(&report).await;
    assert_eq!(within(has_begun.recv()).await.as_deref(), Some("reports"));
    // Taken, and behind the other for the only slot.
    desk.ask("wait", json!({})).await;
    waiting(&desk, NAMESPACE, 0).await;
    order(&desk, NAMESPACE, true).await;
    waiting(&desk, NAMESPACE, 1).await;
    shows(&worker, NAMESPACE, "paused").await;
    shows(&worker, "reports", "consuming").await;
    let paused = |namespace: &str| METRICS.consumer_paused.with_label_values(&[namespace]).get();
    assert_eq!(paused("reports"), 0);
    gate.may_end.add_permits(2);
    assert_eq!(desk.next_result().await.step_uuid, report.step_uuid);
    assert!(has_begun.try_recv().is_err(), "what was handed back has not begun");
    end(&desk, NAMESPACE).await;
    assert_eq!(desk.next_result().await.attempt, 1);
    worker.shutdown().await;
    desk.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_outlives_the_broker_rabbitmq() {
    const KEPT: &str = "kept";
    let node = Node::start(tempfile::tempdir().unwrap(), &[]);
    let mut config = settings(Kind::Embedded);
    config.broker.urls = vec![node.url("guest", "guest").as_str().into()];
    let mut desk = Desk::open_with(config, Kind::RabbitMq, &[KEPT]).await;
    let (gate, mut has_begun) = Gate::new();
    gate.may_end.add_permits(1);
    let worker = desk.worker(gate.namespace(KEPT)).await;
    order(&desk, KEPT, false).await;
    shows(&worker, KEPT, "paused").await;
    let metrics = || {
        [&METRICS.consumer_paused, &METRICS.consumer_up].map(|gauge| gauge.with_label_values(&[KEPT]).get())
    };
    assert_eq!(metrics(), [1, 0]);

    tokio::task::block_in_place(|| node.restart());
    let mut status = desk.broker.status();
    within(status.wait_for(|status| *status == BrokerStatus::Connected)).await.expect("the broker lives");
    // Also of what was done before the order: a node that stops writes all it has to say.
    assert_eq!(node.logged("no queue"), Vec::<String>::new());
    let mut request = desk.request("wait", json!({}));
    request.namespace = KEPT.to_owned();
    waiting(&desk, KEPT, 0).await;
    desk.send(&request).await;
    waiting(&desk, KEPT, 1).await;
    shows(&worker, KEPT, "paused").await;
    let second = desk.worker(gate.namespace(KEPT)).await;
    shows(&second, KEPT, "paused").await;
    assert!(has_begun.try_recv().is_err(), "nothing begins while it is paused");
    end(&desk, KEPT).await;
    assert_eq!(desk.next_result().await.step_uuid, request.step_uuid);
    // Of two workers the other may still be about to consume.
    eventually("both consume", async || (metrics() == [0, 1]).then_some(())).await;
    worker.shutdown().await;
    second.shutdown().await;
    desk.broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_pauses_and_resumes() {
    let desk = Desk::open(Kind::RabbitMq).await;
    let program = Program::new().broker(&desk.config);
    let (gate, mut has_begun) = Gate::new();
    let worker = desk.worker(gate.namespace(NAMESPACE)).await;
    let run = |arguments: &[&str]| {
        let output = program.run(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    assert!(run(&["drain", NAMESPACE]).starts_with("orders: paused"));
    shows(&worker, NAMESPACE, "paused").await;
    desk.ask("wait", json!({})).await;
    waiting(&desk, NAMESPACE, 1).await;
    let answer = run(&["resume", NAMESPACE, "--output", "json"]);
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(answer, json!({ "namespaces": [NAMESPACE], "state": "running" }));
    assert_eq!(within(has_begun.recv()).await.as_deref(), Some(NAMESPACE));
    gate.may_end.add_permits(1);
    worker.shutdown().await;
    desk.close().await;
}
