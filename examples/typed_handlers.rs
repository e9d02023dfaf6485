//! Handlers with types of their own: reading the context, an earlier result and a setting, and saying what
//! a failure means.
//!
//! `cargo run --example typed_handlers`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::broker::topology::{Names, step_key};
use tasker_worker_rust::broker::{Broker, Disposition, Message, Properties, Source};
use tasker_worker_rust::message::StepExecutionResult;
use tasker_worker_rust::{Config, Namespace, RustWorker, Step, StepError, StepResult};
use uuid::Uuid;

/// The task's context. One that does not fit fails the step for good, before its handler is called.
#[derive(Deserialize)]
struct Order {
    quantity: u32,
    card: String,
}

/// What `quote` returns, and `charge` reads.
#[derive(Serialize, Deserialize)]
struct Quote {
    cents: u32,
}

#[derive(Serialize)]
struct Payment {
    paid_cents: u32,
    /// The same over all attempts, so that a gateway charges once however often it is asked.
    key_is_the_steps: bool,
}

async fn quote(step: Step<Order>) -> StepResult<Quote> {
    let price: u32 = step.setting("price_cents")?.unwrap_or(100);
    let cents = step.context.quantity.checked_mul(price);
    cents.map(|cents| Quote { cents }).ok_or_else(|| StepError::permanent("nobody has that much money"))
}

async fn charge(step: Step<Order>) -> StepResult<Payment> {
    let quote: Quote = step.result_of("quote")?;
    // `?` on any error would make the step retryable too.
    match step.context.card.as_str() {
        "declined" => Err(StepError::permanent("the card was declined").code("CARD_DECLINED")),
        "slow" if step.attempt() == 1 => {
            Err(StepError::retryable("the gateway is busy").retry_after(Duration::from_millis(10)))
        }
        _ => Ok(Payment {
            paid_cents: quote.cents,
            key_is_the_steps: step.idempotency_key() == step.step_uuid().to_string(),
        }),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let broker = MemoryBroker::new();
    let worker = RustWorker::new(Config::default())
        .namespace(Namespace::new("shop").step("quote", quote).step("charge", charge))
        .broker(broker.clone())
        .start()
        .await?;
    worker.ready().await;

    let order = |card: &str| json!({ "quantity": 3, "card": card });
    let quoted = json!([{ "step_name": "quote", "result": { "cents": 750 } }]);
    for (step_name, task_data, ancestors) in [
        ("quote", order("good"), json!([])),
        ("charge", order("good"), quoted.clone()),
        ("charge", order("declined"), quoted.clone()),
        ("charge", order("slow"), quoted),
        ("charge", order("good"), json!([])),
        ("charge", json!({ "quantity": "three" }), json!([])),
    ] {
        let result = run_step(broker.as_ref(), step_name, task_data, ancestors).await?;
        let outcome = match &result.error {
            None => result.data.get().to_owned(),
            Some(error) => format!("{} {}", error.code.as_deref().unwrap_or("-"), error.message),
        };
        println!("{step_name}: {} on attempt {}: {outcome}", result.status.as_str(), result.attempt);
    }

    worker.shutdown().await;
    Ok(())
}

/// What an orchestrator does: asks for a step, and waits for its result.
async fn run_step(
    broker: &MemoryBroker,
    step_name: &str,
    task_data: Value,
    ancestors: Value,
) -> Result<StepExecutionResult, Box<dyn std::error::Error>> {
    let names = Names::default();
    let request = json!({
        "task_uuid": Uuid::new_v4(),
        "step_uuid": Uuid::new_v4(),
        "namespace": "shop",
        "step_name": step_name,
        "handler": { "initialization": { "price_cents": 250 } },
        "task_data": task_data,
        "sequence_data": ancestors,
    });
    let message = Message {
        exchange: names.steps(),
        routing_key: step_key("shop", step_name),
        body: request.to_string().into(),
        properties: Properties::default(),
    };
    broker.publisher().publish(message).await?;
    let mut answers = broker.subscribe(Source::Queue(names.orchestrator_queue()), 1);
    loop {
        let answer = answers.recv().await.ok_or("the broker is gone")?;
        answer.acker.settle(Disposition::Ack)?;
        // Copies of retries and dead letters come through the same queue.
        if answer.exchange == names.results() {
            return Ok(StepExecutionResult::decode(&answer.body)?);
        }
    }
}
