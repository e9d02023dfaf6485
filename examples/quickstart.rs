//! One handler, one worker and one request, on the broker inside this process: no RabbitMQ is needed.
//!
//! `cargo run --example quickstart`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use serde::Deserialize;
use serde_json::json;
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::broker::topology::{Names, step_key};
use tasker_worker_rust::broker::{Broker, Disposition, Message, Properties, Source};
use tasker_worker_rust::message::StepExecutionResult;
use tasker_worker_rust::{Config, Namespace, RustWorker, Step, StepResult};
use uuid::Uuid;

#[derive(Deserialize)]
struct Person {
    name: String,
}

async fn greet(step: Step<Person>) -> StepResult<String> {
    Ok(format!("Hello {}", step.context.name))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let broker = MemoryBroker::new();
    let worker = RustWorker::new(Config::default())
        .namespace(Namespace::new("greetings").step("greet", greet))
        .broker(broker.clone())
        .start()
        .await?;
    worker.ready().await;

    // From here on: what the orchestrator does. It asks for a step …
    let names = Names::default();
    let request = json!({
        "task_uuid": Uuid::new_v4(),
        "step_uuid": Uuid::new_v4(),
        "namespace": "greetings",
        "step_name": "greet",
        "task_data": { "name": "Ada" },
    });
    let message = Message {
        exchange: names.steps(),
        routing_key: step_key("greetings", "greet"),
        body: request.to_string().into(),
        properties: Properties::default(),
    };
    broker.publisher().publish(message).await?;

    // … and reads what became of it.
    let mut answers = broker.subscribe(Source::Queue(names.orchestrator_queue()), 1);
    let answer = answers.recv().await.ok_or("the broker is gone")?;
    let result = StepExecutionResult::decode(&answer.body)?;
    answer.acker.settle(Disposition::Ack)?;
    println!("{}: {}", result.status.as_str(), result.data.get());

    worker.shutdown().await;
    Ok(())
}
