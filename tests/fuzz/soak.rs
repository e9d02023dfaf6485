//! The worker program over many steps and reconnects: its memory must not grow.
//!
//! `SOAK_STEPS` and `SOAK_RECONNECTS` say how many of each; `make soak` runs 1,000,000 and 500.

use std::collections::HashSet;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use tasker_worker_rust::Config;
use tasker_worker_rust::broker::rabbit::RabbitBroker;
use tasker_worker_rust::broker::topology::{Topology, step_key};
use tasker_worker_rust::broker::{Broker, Disposition, Message, Properties, Source};
use tasker_worker_rust::config::{AmqpUrl, variable};
use tasker_worker_rust::message::StepExecutionResult;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::setting;

const NAMESPACE: &str = "linear_workflow";
const STEP: &str = "linear_step_1";
/// Requests waiting for their results.
const IN_FLIGHT: usize = 400;

/// Ends the program with the test.
struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Worker {
    fn start(directory: &std::path::Path, url: &str, prefix: &str) -> Self {
        let program = Command::new(env!("CARGO_BIN_EXE_tasker-worker-rust"))
            .arg("worker")
            .current_dir(directory)
            .env_clear()
            .envs(Some("LLVM_PROFILE_FILE").zip(variable("LLVM_PROFILE_FILE")))
            .envs([("RABBITMQ_URL", url), ("TASKER__BROKER__PREFIX", prefix), ("RUST_LOG", "error")])
            .envs([
                ("TASKER__WORKER__NAMESPACES", NAMESPACE),
                // Full within the first fifth of even a short run.
                ("TASKER__WORKER__LEDGER__MAX_ENTRIES", "500"),
                ("TASKER__WORKER__METRICS__PROMETHEUS_PORT", "0"),
            ])
            .env("TASKER__WORKER__HEALTH_ADDRESS", "127.0.0.1:0")
            .stdin(Stdio::null())
            .spawn();
        Self(program.unwrap())
    }

    fn resident_kb(&self) -> f64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("the worker lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim_end_matches("kB").trim().parse().unwrap()
    }
}

/// A way to the broker; each new value of `cuts` cuts every connection.
async fn proxy(to: String, cuts: watch::Receiver<u64>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let (mut cuts, to) = (cuts.clone(), to.clone());
            cuts.mark_unchanged();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    _ = cuts.changed() => {}
                }
            });
        }
    });
    address
}

/// The slope of the line nearest to the points.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let (x, y) =
        points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0 / count, sum.1 + point.1 / count));
    let over = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>();
    over / points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>()
}

fn request(step_uuid: Uuid) -> Vec<u8> {
    let padding = "x".repeat(512);
    let body = json!({"task_uuid": Uuid::new_v4(), "step_uuid": step_uuid, "namespace": NAMESPACE,
        "step_name": STEP, "task_data": {"even_number": 6, "padding": padding}});
    body.to_string().into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_does_not_grow_over_steps_and_reconnects() {
    let (steps, reconnects) = (setting("SOAK_STEPS", 5_000_usize), setting("SOAK_RECONNECTS", 10_usize));
    let url = setting("RABBITMQ_URL", String::new());
    assert!(
        !url.is_empty(),
        "this test needs RabbitMQ: run `make test`, which starts one, or set RABBITMQ_URL"
    );
    let mut config = Config::default();
    config.broker.urls = vec![AmqpUrl::from(url.as_str())];
    config.broker.prefix = format!("soak-{}", Uuid::new_v4().simple());
    let broker = Arc::new(RabbitBroker::connect(&config.broker, "soak").unwrap());
    let names = config.names();
    let topology = Topology::new(&names, &config.ladder(), config.broker.queue_kind, [NAMESPACE]);
    broker.declare(&topology).await.unwrap();
    let mut inbox = broker.subscribe(Source::Queue(names.orchestrator_queue()), 1_000);
    let publisher = broker.publisher();

    let uri: lapin::uri::AMQPUri = url.parse().unwrap();
    let cuts = watch::Sender::new(0);
    let direct = format!("{}:{}", uri.authority.host, uri.authority.port);
    let address = proxy(direct.clone(), cuts.subscribe()).await;
    let directory = tempfile::tempdir().unwrap();
    let worker = Worker::start(directory.path(), &url.replace(&direct, &address), &config.broker.prefix);

    let (started, mut sent, mut done, mut repeated) = (Instant::now(), 0, 0, 0);
    let (mut waiting, mut publishing) = (HashSet::new(), JoinSet::new());
    let mut samples = Vec::new();
    while done < steps {
        while sent < steps && waiting.len() < IN_FLIGHT {
            let step_uuid = Uuid::new_v4();
            let (exchange, routing_key) = (names.steps(), step_key(NAMESPACE, STEP));
            let body = Bytes::from(request(step_uuid));
            let message = Message { exchange, routing_key, body, properties: Properties::default() };
            waiting.insert(step_uuid);
            let publisher = publisher.clone();
            publishing.spawn(async move { publisher.publish(message).await });
            sent += 1;
        }
        while let Some(published) = publishing.try_join_next() {
            published.unwrap().unwrap();
        }
        let delivery = tokio::time::timeout(Duration::from_secs(60), inbox.recv()).await;
        let delivery = delivery.unwrap_or_else(|_| panic!("{done} of {steps} steps, and no more")).unwrap();
        let result = StepExecutionResult::decode(&delivery.body).unwrap();
        assert!(result.success, "{result:?}");
        delivery.acker.settle(Disposition::Ack).unwrap();
        if !waiting.remove(&result.step_uuid) {
            repeated += 1;
            continue;
        }
        done += 1;
        if done * reconnects / steps > (done - 1) * reconnects / steps {
            cuts.send_modify(|count| *count += 1);
        }
        if done % (steps / 200).max(1) == 0 {
            samples.push((done as f64, worker.resident_kb()));
        }
    }
    broker.close().await;
    let seconds = started.elapsed().as_secs_f64();
    // The first fifth fills caches, pools and the allocator's arenas.
    let warm = &samples[samples.len() / 5..];
    let growth_kb = slope(warm) * 100_000.0;
    let (first, last) = (warm[0].1 / 1_024.0, warm[warm.len() - 1].1 / 1_024.0);
    println!(
        "{steps} steps and {reconnects} reconnects in {seconds:.0} s ({:.0} steps/s), {repeated} results twice; \
         resident memory {first:.1} MB after the first fifth, {last:.1} MB at the end, {:.2} MB per 100,000 steps",
        steps as f64 / seconds,
        growth_kb / 1_024.0
    );
    delete(&url, &topology).await;
    // Over a short run, one more buffer of a connection weighs more than the steps: it may grow by 8 MB in all.
    let limit_kb = if steps >= 500_000 { 1_024.0 } else { 8.0 * 1_024.0 * 100_000.0 / (steps as f64 * 0.8) };
    assert!(growth_kb < limit_kb, "{growth_kb:.0} kB per 100,000 steps: {warm:?}");
}

/// Deletes a topology from the tests' RabbitMQ.
async fn delete(url: &str, topology: &Topology) {
    let connection = lapin::Connection::connect(url, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    for queue in &topology.queues {
        channel.queue_delete(queue.name.as_str().into(), Default::default()).await.unwrap();
    }
    for exchange in &topology.exchanges {
        channel.exchange_delete(exchange.name.as_str().into(), Default::default()).await.unwrap();
    }
    connection.close(200, "done".into()).await.unwrap();
}
