//! Mutated requests through a running worker: each is answered once, and none stops it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::broker::topology::{Topology, step_key};
use tasker_worker_rust::broker::{Broker, Delivery, Disposition, Message, Properties, Source, Subscription};
use tasker_worker_rust::config::LadderConfig;
use tasker_worker_rust::message::{StepExecutionRequest, StepExecutionResult, header};
use tasker_worker_rust::ops::metrics::METRICS;
use tasker_worker_rust::{Config, Namespace, RustWorker, Step, StepError, StepResult};
use uuid::Uuid;

use crate::mutate::Mutator;
use crate::{corpus, setting};

const NAMESPACE: &str = "linear_workflow";
const IN_FLIGHT: u64 = 500;

/// The goldens' step, with a context it can fail on in every way.
async fn step(step: Step<Value>) -> StepResult<Value> {
    match step.context.get("even_number") {
        Some(Value::Number(number)) if number.as_i64() == Some(6) => Ok(step.context.clone()),
        Some(Value::Number(_)) => Err(StepError::retryable("another number")),
        Some(other) => Err(StepError::permanent(format!("no number: {other}"))),
        None => Ok(Value::Null),
    }
}

async fn items(step: Step<Value>) -> StepResult<usize> {
    match step.context.as_array() {
        Some(items) => Ok(items.len()),
        None => Err(StepError::retryable("no list yet")),
    }
}

/// What has come of the messages so far.
#[derive(Debug, Default)]
struct Ends {
    completed: u64,
    cancelled: u64,
    failed: u64,
    /// By the worker, each beside a failed result.
    dead: u64,
    /// By the broker, for the worker.
    refused: u64,
    retried: u64,
}

impl Ends {
    fn total(&self) -> u64 {
        self.completed + self.cancelled + self.failed + self.refused + self.retried
    }

    fn count(&mut self, delivery: &Delivery, config: &Config) {
        let names = config.names();
        if delivery.exchange == names.results() {
            match StepExecutionResult::decode(&delivery.body).unwrap().status.as_str() {
                "completed" => self.completed += 1,
                "cancelled" => self.cancelled += 1,
                _ => self.failed += 1,
            }
        } else if delivery.exchange == names.retries() {
            StepExecutionRequest::decode(&delivery.body).unwrap();
            self.retried += 1;
        } else if delivery.properties.headers.text(header::REASON).is_some() {
            self.dead += 1;
        } else {
            self.refused += 1;
        }
    }
}

/// Golden requests as mutable texts; each message gets ids of its own, where its mutations left them.
fn with_own_ids(mut input: Vec<u8>) -> Vec<u8> {
    for golden in ["0198a3c0-5b7e-7d10-9c52-6f6a0a5d1e01", "0198a3c0-5b7e-7d10-9c52-6f6a0a5d1e02"] {
        if let Some(at) = input.windows(36).position(|window| window == golden.as_bytes()) {
            input.splice(at..at + 36, Uuid::new_v4().to_string().into_bytes());
        }
    }
    input
}

fn message(exchange: String, routing_key: String, body: Vec<u8>) -> Message {
    Message { exchange, routing_key, body: Bytes::from(body), properties: Properties::default() }
}

async fn next(subscription: &mut Subscription, ends: &Ends) -> Delivery {
    let waiting = tokio::time::timeout(Duration::from_secs(30), subscription.recv()).await;
    waiting.unwrap_or_else(|_| panic!("a message had no end; so far {ends:?}")).unwrap()
}

/// Removes what arrives, so that a million messages need no room.
fn empty(broker: &dyn Broker, queue: String) {
    let mut subscription = broker.subscribe(Source::Queue(queue), 1_000);
    tokio::spawn(async move {
        while let Some(delivery) = subscription.recv().await {
            delivery.acker.settle(Disposition::Ack).unwrap();
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_ends_once_as_result_retry_dead_letter_or_refusal() {
    let (messages, seed) = (setting("FUZZ_MESSAGES", 20_000_u64), setting("FUZZ_SEED", 1_u64));
    let broker = MemoryBroker::new();
    let mut config = Config::default();
    // What is retried, or comes before its time, does not come back in this test.
    config.broker.delay_ladder = LadderConfig { first_ms: 86_400_000, ratio: 2.0, rungs: 2 };
    let (names, ladder) = (config.names(), config.ladder());
    let topology = Topology::new(&names, &ladder, config.broker.queue_kind, [NAMESPACE]);
    broker.declare(&topology).await.unwrap();
    let handlers = Namespace::new(NAMESPACE).step("linear_step_3", step).step("linear_step_1", items);
    let worker =
        RustWorker::new(config.clone()).namespace(handlers).broker(broker.clone()).start().await.unwrap();
    worker.ready().await;
    let mut inbox = broker.subscribe(Source::Queue(names.orchestrator_queue()), 1_000);
    empty(&*broker, names.dead_letter_queue(NAMESPACE));
    for rung in [86_400, 2 * 86_400] {
        empty(&*broker, names.delay_queue(Duration::from_secs(rung)));
    }

    let mut goldens = corpus("tests/contract/golden", "json");
    goldens.retain(|golden| StepExecutionRequest::decode(golden).is_ok());
    let controls =
        [serde_json::to_vec(&json!({"command": "cancel_task", "task_uuid": Uuid::nil()})).unwrap()];
    let (requests, controls) = (Mutator::new(&goldens), Mutator::new(&controls));
    let (publisher, started) = (broker.publisher(), Instant::now());
    let (mut sent, mut ends) = (0, Ends::default());
    while ends.total() < messages {
        while sent < messages && sent < ends.total() + IN_FLIGHT {
            let mut request =
                message(names.steps(), step_key(NAMESPACE, "any"), with_own_ids(requests.input(seed + sent)));
            if sent % 3 == 0 {
                let trace = String::from_utf8_lossy(&controls.input(seed + sent)).into_owned();
                request.properties.headers.set(header::TRACEPARENT, trace);
            }
            publisher.publish(request).await.unwrap();
            if sent % 50 == 0 {
                let control = message(names.control(), String::new(), controls.input(seed + sent));
                publisher.publish(control).await.unwrap();
            }
            sent += 1;
        }
        let delivery = next(&mut inbox, &ends).await;
        ends.count(&delivery, &config);
        delivery.acker.settle(Disposition::Ack).unwrap();
    }
    while ends.dead < ends.failed {
        let delivery = next(&mut inbox, &ends).await;
        ends.count(&delivery, &config);
        delivery.acker.settle(Disposition::Ack).unwrap();
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{messages} messages, {:.0}/s: {ends:?}", messages as f64 / seconds);

    // The last word: a good request is answered next, so nothing came twice.
    let good = json!({"task_uuid": Uuid::new_v4(), "step_uuid": Uuid::new_v4(), "namespace": NAMESPACE,
        "step_name": "linear_step_1", "task_data": [1, 2, 3]});
    let body = good.to_string().into_bytes();
    publisher.publish(message(names.steps(), step_key(NAMESPACE, "linear_step_1"), body)).await.unwrap();
    let delivery = next(&mut inbox, &ends).await;
    assert_eq!(StepExecutionResult::decode(&delivery.body).unwrap().data.get(), "3");
    delivery.acker.settle(Disposition::Ack).unwrap();
    assert_eq!((ends.total(), ends.dead), (messages, ends.failed), "{ends:?}");
    assert!([ends.completed, ends.failed, ends.refused, ends.retried].iter().all(|end| *end > 0), "{ends:?}");
    worker.shutdown().await;
    assert_eq!(broker.depth(&names.step_queue(NAMESPACE)).await, Ok(Some(0)));
    assert_eq!(broker.depth(&names.unroutable()).await, Ok(Some(0)));
    let counted = METRICS.dead_letters.with_label_values(&[NAMESPACE, "refused"]).get();
    assert_eq!(counted, ends.refused, "the worker's own count");
}
