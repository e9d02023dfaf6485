//! A broker per test, and a desk that stands in for the orchestrator.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::broker::rabbit::RabbitBroker;
use tasker_worker_rust::broker::topology::{Names, Topology, is_checkpoint_key, step_key};
use tasker_worker_rust::broker::{
    Broker, BrokerStatus, Delivery, Disposition, Message, Properties, Publisher, Source, Subscription,
};
use tasker_worker_rust::config::{LadderConfig, variable};
use tasker_worker_rust::message::{StepExecutionRequest, StepExecutionResult};
use tasker_worker_rust::trace::TraceContext;
use tasker_worker_rust::{Config, Namespace, RunningWorker, RustWorker};
use uuid::Uuid;

/// Everything here happens within this, or the test fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The namespace of tests that need only one.
pub(crate) const NAMESPACE: &str = "orders";

/// Which broker a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Embedded,
    RabbitMq,
}

/// Makes one test per broker out of an `async fn(Kind)`.
#[macro_export]
macro_rules! on_both_brokers {
    ($($behaviour:ident)+) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                super::$behaviour($crate::support::Kind::Embedded).await;
            })+
        }
        mod rabbitmq {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                super::$behaviour($crate::support::Kind::RabbitMq).await;
            })+
        }
    };
}

/// The address of the RabbitMQ the tests use.
///
/// # Panics
/// Without one, saying how to get it: a test that needs a broker never passes without.
pub(crate) fn rabbitmq_url() -> String {
    #[expect(clippy::disallowed_methods, reason = "the tests' broker is no setting of the product")]
    let url = std::env::var("RABBITMQ_URL");
    url.unwrap_or_else(|_| {
        panic!(
            "this test needs RabbitMQ: run `make test`, which starts one, \
             or set RABBITMQ_URL=amqp://user:password@host:port/vhost"
        )
    })
}

/// Settings for one test: names of its own, short delays.
pub(crate) fn settings(kind: Kind) -> Config {
    let mut config = Config::default();
    if kind == Kind::RabbitMq {
        config.broker.urls = vec![rabbitmq_url().into()];
    }
    config.broker.prefix = format!("test-{}", Uuid::new_v4().simple());
    config.broker.delay_ladder = LadderConfig { first_ms: 50, ratio: 2.0, rungs: 3 };
    // A busy machine must not cut a step off that the test lets finish.
    config.worker.shutdown.shutdown_timeout_seconds = 60;
    config
}

/// Connects, and waits until that is done.
pub(crate) async fn connect(kind: Kind, config: &Config) -> Arc<dyn Broker> {
    let broker: Arc<dyn Broker> = match kind {
        Kind::Embedded => MemoryBroker::new(),
        Kind::RabbitMq => {
            Arc::new(RabbitBroker::connect(&config.broker, "test").expect("the settings are right"))
        }
    };
    let mut status = broker.status();
    within(status.wait_for(|status| *status == BrokerStatus::Connected)).await.expect("the broker lives");
    drop(status);
    broker
}

/// Fails the test when `future` takes too long.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.expect("this should have happened by now")
}

/// Waits until `look` has an answer.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let found = tokio::time::timeout(DEADLINE, looking).await;
    found.unwrap_or_else(|_| panic!("still waiting: {what}"))
}

/// A broker of the test's own with the orchestrator's seat taken by the test.
pub(crate) struct Desk {
    pub(crate) kind: Kind,
    pub(crate) config: Config,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) names: Names,
    publisher: Publisher,
    inbox: Subscription,
    namespaces: Vec<String>,
}

/// What the orchestrator's queue brings.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Report {
    Result(StepExecutionResult, Properties),
    Retry(StepExecutionRequest, Properties),
    Checkpoint(StepExecutionRequest, Properties),
    DeadLetter(Bytes, Properties),
}

impl Desk {
    pub(crate) async fn open(kind: Kind) -> Self {
        Self::open_with(settings(kind), kind, &[NAMESPACE]).await
    }

    pub(crate) async fn open_with(config: Config, kind: Kind, namespaces: &[&str]) -> Self {
        let broker = connect(kind, &config).await;
        Self::on(broker, config, kind, namespaces).await
    }

    /// On a broker that the test has connected to.
    pub(crate) async fn on(broker: Arc<dyn Broker>, config: Config, kind: Kind, namespaces: &[&str]) -> Self {
        let names = config.names();
        let topology = Topology::new(&names, &config.ladder(), config.broker.queue_kind, namespaces);
        within(broker.declare(&topology)).await.expect("the topology is new");
        let inbox = broker.subscribe(Source::Queue(names.orchestrator_queue()), 1_000);
        let publisher = broker.publisher();
        let namespaces = namespaces.iter().map(|n| (*n).to_owned()).collect();
        Self { kind, config, broker, names, publisher, inbox, namespaces }
    }

    /// A worker with these handlers, consuming.
    pub(crate) async fn worker(&self, namespace: Namespace) -> RunningWorker {
        self.worker_with(self.config.clone(), namespace).await
    }

    pub(crate) async fn worker_with(&self, config: Config, namespace: Namespace) -> RunningWorker {
        let worker = RustWorker::new(config).namespace(namespace).broker(self.broker.clone());
        let worker = worker.start().await.expect("the worker's settings are right");
        within(worker.ready()).await;
        worker
    }

    /// A first attempt of a step, at most three in all, a few milliseconds apart.
    pub(crate) fn request(&self, step_name: &str, context: Value) -> StepExecutionRequest {
        let body = json!({
            "task_uuid": Uuid::new_v4(),
            "step_uuid": Uuid::new_v4(),
            "namespace": NAMESPACE,
            "step_name": step_name,
            "max_attempts": 3,
            "retry": { "backoff": "linear", "base_ms": 50, "max_ms": 100 },
            "task_data": context,
            "created_at": jiff::Timestamp::now(),
        });
        StepExecutionRequest::decode(body.to_string().as_bytes()).expect("the request is well-formed")
    }

    /// Publishes a request, as the orchestrator would.
    pub(crate) async fn send(&self, request: &StepExecutionRequest) {
        self.send_bytes(&request.namespace, &request.step_name, request.encode()).await;
    }

    /// The same, as part of a trace.
    pub(crate) async fn send_within(&self, request: &StepExecutionRequest, trace: Option<&TraceContext>) {
        let mut properties = Properties::default();
        if let Some(trace) = trace {
            trace.write(&mut properties.headers);
        }
        let routing_key = step_key(&request.namespace, &request.step_name);
        let body = request.encode().into();
        let message = Message { exchange: self.names.steps(), routing_key, body, properties };
        within(self.publisher.publish(message)).await.expect("the broker takes the message");
    }

    /// Makes and publishes a request.
    pub(crate) async fn ask(&self, step_name: &str, context: Value) -> StepExecutionRequest {
        let request = self.request(step_name, context);
        self.send(&request).await;
        request
    }

    pub(crate) async fn send_bytes(&self, namespace: &str, step_name: &str, body: impl Into<Bytes>) {
        self.publish(self.names.steps(), step_key(namespace, step_name), body).await;
    }

    pub(crate) async fn publish(&self, exchange: String, routing_key: String, body: impl Into<Bytes>) {
        let message = Message { exchange, routing_key, body: body.into(), properties: Properties::default() };
        within(self.publisher.publish(message)).await.expect("the broker takes the message");
    }

    /// What arrives next at the orchestrator.
    pub(crate) async fn next(&mut self) -> Report {
        let (exchange, routing_key, properties, body) = loop {
            let delivery = within(self.inbox.recv()).await.expect("the subscription lives");
            let Delivery { exchange, routing_key, properties, body, acker, .. } = delivery;
            // One that was cut off comes again.
            if acker.settle(Disposition::Ack).is_ok() {
                break (exchange, routing_key, properties, body);
            }
        };
        if exchange == self.names.results() {
            Report::Result(StepExecutionResult::decode(&body).expect("results decode"), properties)
        } else if exchange == self.names.retries() && is_checkpoint_key(&routing_key) {
            Report::Checkpoint(StepExecutionRequest::decode(&body).expect("checkpoints decode"), properties)
        } else if exchange == self.names.retries() {
            Report::Retry(StepExecutionRequest::decode(&body).expect("retries decode"), properties)
        } else {
            Report::DeadLetter(body, properties)
        }
    }

    /// The next result, and the place in a trace that it came with.
    pub(crate) async fn next_trace(&mut self) -> TraceContext {
        match self.next().await {
            Report::Result(_, properties) => {
                TraceContext::of(&properties.headers).expect("the result is part of a trace")
            }
            other => panic!("expected a result, got {other:?}"),
        }
    }

    pub(crate) async fn next_result(&mut self) -> StepExecutionResult {
        match self.next().await {
            Report::Result(result, _) => result,
            other => panic!("expected a result, got {other:?}"),
        }
    }

    pub(crate) async fn next_retry(&mut self) -> StepExecutionRequest {
        match self.next().await {
            Report::Retry(request, _) => request,
            other => panic!("expected a retry, got {other:?}"),
        }
    }

    pub(crate) async fn next_checkpoint(&mut self) -> StepExecutionRequest {
        match self.next().await {
            Report::Checkpoint(request, _) => request,
            other => panic!("expected a checkpoint, got {other:?}"),
        }
    }

    pub(crate) async fn next_dead_letter(&mut self) -> (Bytes, Properties) {
        match self.next().await {
            Report::DeadLetter(body, properties) => (body, properties),
            other => panic!("expected a dead letter, got {other:?}"),
        }
    }

    /// The next parked dead letter of the namespace.
    pub(crate) async fn parked(&self) -> (Bytes, Properties) {
        let mut parked = self.broker.subscribe(Source::Queue(self.names.dead_letter_queue(NAMESPACE)), 1);
        let delivery = within(parked.recv()).await.expect("the subscription lives");
        delivery.acker.settle(Disposition::Ack).expect("the delivery is ours");
        (delivery.body, delivery.properties)
    }

    /// Removes what the test made on a shared broker.
    pub(crate) async fn close(self) {
        let topology = Topology::new(
            &self.names,
            &self.config.ladder(),
            self.config.broker.queue_kind,
            &self.namespaces,
        );
        drop(self.inbox);
        self.broker.close().await;
        if self.kind == Kind::RabbitMq {
            delete(&topology).await;
        }
    }
}

/// Where a measured program notes which of its lines ran: all that one with an empty environment is told of ours.
pub(crate) fn coverage() -> Option<(&'static str, String)> {
    Some("LLVM_PROFILE_FILE").zip(variable("LLVM_PROFILE_FILE"))
}

/// Deletes a topology from the tests' RabbitMQ.
pub(crate) async fn delete(topology: &Topology) {
    let url = rabbitmq_url();
    let connection = lapin::Connection::connect(&url, lapin::ConnectionProperties::default());
    let connection = connection.await.expect("the broker answers");
    let channel = connection.create_channel().await.expect("a channel opens");
    for queue in &topology.queues {
        let deleted =
            channel.queue_delete(queue.name.as_str().into(), lapin::options::QueueDeleteOptions::default());
        deleted.await.expect("the queue can be deleted");
    }
    for exchange in &topology.exchanges {
        let deleted = channel
            .exchange_delete(exchange.name.as_str().into(), lapin::options::ExchangeDeleteOptions::default());
        deleted.await.expect("the exchange can be deleted");
    }
    connection.close(200, "done".into()).await.expect("the connection closes");
}
