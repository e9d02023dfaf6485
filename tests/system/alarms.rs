//! A RabbitMQ short of memory, on a node of the test's own: an alarm stops everybody's publishing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;
use tasker_worker_rust::message::StepExecutionRequest;
use uuid::Uuid;

use crate::node::Node;
use crate::program::{Program, get};
use crate::support::{DEADLINE, Desk, Kind, settings};

const NAMESPACE: &str = "linear_workflow";

/// Asks until the answer is as wanted.
fn until(address: &str, path: &str, wanted: impl Fn(u16, &str) -> bool) -> String {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (status, body) = get(address, path);
        if wanted(status, &body) {
            return body;
        }
        assert!(Instant::now() < deadline, "{path} still answers {status}: {body}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_broker_is_short_of_memory_the_worker_waits_and_then_loses_and_repeats_nothing() {
    let node = Node::start(tempfile::tempdir().unwrap(), &[]);
    let mut config = settings(Kind::Embedded);
    config.broker.urls = vec![node.url("guest", "guest").as_str().into()];
    let mut desk = Desk::open_with(config.clone(), Kind::RabbitMq, &[NAMESPACE]).await;
    let request = || {
        let body = json!({"task_uuid": Uuid::new_v4(), "step_uuid": Uuid::new_v4(), "namespace": NAMESPACE,
            "step_name": "linear_step_1", "task_data": {"even_number": 6}});
        StepExecutionRequest::decode(body.to_string().as_bytes()).unwrap()
    };
    let mut asked = BTreeSet::new();
    for _ in 0..10 {
        let request = request();
        desk.send(&request).await;
        asked.insert(request.step_uuid);
    }
    // Below what any node needs: an alarm at once. The default clears it.
    node.ctl(&["set_vm_memory_high_watermark", "0.00001"]);

    let program = Program::new()
        .broker(&config)
        // However slow this machine is: what is not confirmed in time would be sent again.
        .set("TASKER__BROKER__PUBLISH_TIMEOUT_MS", "120000")
        .set("TASKER__WORKER__NAMESPACES", NAMESPACE)
        .set("TASKER__WORKER__MAX_CONCURRENT_STEPS", "2")
        .set("TASKER__WORKER__METRICS__PROMETHEUS_PORT", "0")
        .set("TASKER__WORKER__HEALTH_ADDRESS", "127.0.0.1:0");
    let mut worker = program.start(&["worker"]);
    let address = worker.says("serving")["address"].as_str().unwrap().to_owned();
    worker.says("rabbitmq takes no messages");
    let body =
        until(&address, "/health/ready", |status, body| status == 503 && body.contains("takes no messages"));
    assert!(body.to_lowercase().contains("memory"), "the reason is told: {body}");
    assert_eq!(get(&address, "/health/live").0, 200);
    until(&address, "/metrics", |_, body| body.contains("\ntasker_broker_blocked 1\n"));
    let queue = desk.names.step_queue(NAMESPACE);
    assert_eq!(desk.broker.depth(&queue).await, Ok(Some(8)), "two are held, and no more taken in");

    node.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    worker.says("takes messages again");
    until(&address, "/health/ready", |status, _| status == 200);
    let mut answered = BTreeSet::new();
    for _ in 0..10 {
        let result = desk.next_result().await;
        assert!(answered.insert(result.step_uuid), "{} was answered twice", result.step_uuid);
    }
    assert_eq!(answered, asked);
    let last = request();
    desk.send(&last).await;
    assert_eq!(desk.next_result().await.step_uuid, last.step_uuid, "nothing else was left");
    let metrics = until(&address, "/metrics", |_, body| body.contains("\ntasker_broker_blocked 0\n"));
    let completed = format!(
        "tasker_worker_steps_total{{namespace=\"{NAMESPACE}\",outcome=\"completed\",step=\"linear_step_1\"}} 11\n"
    );
    assert!(metrics.contains(&completed), "each ran once: {metrics}");
}
