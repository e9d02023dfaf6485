//! A RabbitMQ short of memory, on a node of the test's own: an alarm stops everybody's publishing.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tasker_worker_rust::message::StepExecutionRequest;
use uuid::Uuid;

use crate::program::{Program, get};
use crate::support::{DEADLINE, Desk, Kind, settings};

const NAMESPACE: &str = "linear_workflow";

/// A private RabbitMQ; gone when its input ends.
struct Node {
    child: Child,
    directory: tempfile::TempDir,
    url: String,
}

impl Node {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/with-rabbitmq"))
            .args(["bash", "-c", "echo $RABBITMQ_URL; exec cat"])
            .env_remove("RABBITMQ_URL")
            .env("TMPDIR", directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut url).unwrap();
        assert!(!url.is_empty(), "no private RabbitMQ: see what scripts/with-rabbitmq said");
        Self { child, directory, url: url.trim().to_owned() }
    }

    /// The lowest memory limit raises an alarm at once, the default clears it.
    fn limit_memory(&self, share_of_memory: &str) {
        let mut folders = self.directory.path().read_dir().unwrap().map(|entry| entry.unwrap());
        let data = folders.find(|folder| folder.file_name().to_string_lossy().starts_with("with-rabbitmq"));
        let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/rabbitmq-node"))
            .arg("ctl")
            .arg(data.expect("with-rabbitmq keeps its node there").path())
            .args(["set_vm_memory_high_watermark", share_of_memory])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It may have failed by itself.
        let _ = self.child.wait();
    }
}

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
    let node = Node::start();
    let mut config = settings(Kind::Embedded);
    config.broker.urls = vec![node.url.as_str().into()];
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
    node.limit_memory("0.00001");

    let program = Program::new()
        .broker(&config)
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

    node.limit_memory("0.4");
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
