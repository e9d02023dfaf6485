//! An orchestrator over the embedded broker, and a worker of few words.

use std::sync::Arc;
use std::time::Duration;

use tasker_worker_rust::Config;
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::broker::topology::{Names, result_key};
use tasker_worker_rust::broker::{Broker, Disposition, Message, Properties, Source};
use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::config::OrchestratorConfig;
use tasker_worker_rust::message::{
    ExecutionMetadata, Json, PROTOCOL_VERSION, ResultStatus, StepExecutionError, StepExecutionRequest,
    StepExecutionResult, header,
};
use tasker_worker_rust::orchestrator::Orchestrator;

/// Starts an orchestrator, and returns once it works.
pub(crate) async fn start(
    config: &OrchestratorConfig,
    catalog: Catalog,
) -> (Orchestrator, Arc<MemoryBroker>) {
    let broker = MemoryBroker::new();
    let config = Config { orchestrator: config.clone(), ..Config::default() };
    let shared: Arc<dyn Broker> = Arc::clone(&broker) as _;
    let orchestrator = Orchestrator::start(&config, shared, catalog).await.unwrap();
    until("the orchestrator works", || orchestrator.health().is_ready()).await;
    (orchestrator, broker)
}

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let poll = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), poll)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// Answers the next step of a namespace.
pub(crate) async fn answer_next_step(
    broker: &Arc<MemoryBroker>,
    namespace: &str,
    outcome: Result<Json, StepExecutionError>,
) {
    let names = Names::default();
    let mut requests = broker.subscribe(Source::Queue(names.step_queue(namespace)), 1);
    let delivery = requests.recv().await.unwrap();
    let request = StepExecutionRequest::decode(&delivery.body).unwrap();
    let status = if outcome.is_ok() { ResultStatus::Completed } else { ResultStatus::Failed };
    let result = StepExecutionResult {
        protocol_version: PROTOCOL_VERSION,
        task_uuid: request.task_uuid,
        step_uuid: request.step_uuid,
        namespace: request.namespace,
        step_name: request.step_name,
        attempt: request.attempt,
        part: request.part,
        success: outcome.is_ok(),
        status,
        data: outcome.clone().unwrap_or_default(),
        error: outcome.err(),
        metadata: ExecutionMetadata { worker_id: "w1".to_owned(), ..ExecutionMetadata::default() },
        duration_ms: 12,
    };
    let mut properties = Properties { kind: Some("step.result".to_owned()), ..Properties::default() };
    // As workers do: what a replay led to says so.
    let replays = delivery.properties.headers.replays();
    if replays > 0 {
        properties.headers.set(header::REPLAYS, replays);
    }
    let message = Message {
        exchange: names.results(),
        routing_key: result_key(namespace, status.as_str()),
        body: result.encode().into(),
        properties,
    };
    broker.publisher().publish(message).await.unwrap();
    delivery.acker.settle(Disposition::Ack).unwrap();
}
