//! Handlers that share state: a struct that is a handler, a closure, and one that blocks its thread.
//!
//! `cargo run --example shared_state`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::broker::topology::{Names, step_key};
use tasker_worker_rust::broker::{Broker, Disposition, Message, Properties, Source};
use tasker_worker_rust::message::StepExecutionResult;
use tasker_worker_rust::{Config, Namespace, RustWorker, Step, StepError, StepHandler, StepResult};
use uuid::Uuid;

/// What all steps share; a connection pool or a client would be kept the same way.
struct Warehouse {
    stock: Mutex<BTreeMap<String, u32>>,
}

impl Warehouse {
    fn take(&self, article: &str) -> Option<u32> {
        let mut stock = self.stock.lock().unwrap_or_else(PoisonError::into_inner);
        let left = stock.get_mut(article)?;
        *left = left.checked_sub(1)?;
        Some(*left)
    }

    fn count(&self) -> u32 {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }
}

/// A struct is a handler when it implements the trait. One value serves all calls, many at once.
struct Reserve {
    warehouse: Arc<Warehouse>,
}

impl StepHandler<String, String> for Reserve {
    async fn call(&self, step: Step<String>) -> StepResult<String> {
        match self.warehouse.take(&step.context) {
            Some(_) => Ok(format!("one {} reserved", step.context)),
            None => Err(StepError::permanent(format!("no {} left", step.context)).code("OUT_OF_STOCK")),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let stock = BTreeMap::from([("book".to_owned(), 2), ("pen".to_owned(), 5)]);
    let warehouse = Arc::new(Warehouse { stock: Mutex::new(stock) });

    let counted = warehouse.clone();
    let namespace = Namespace::new("warehouse")
        .step("reserve", Reserve { warehouse: warehouse.clone() })
        // Blocking handlers run on a thread pool of their own.
        .blocking_step("count", move |_: Step<String>| Ok(counted.count()));

    let broker = MemoryBroker::new();
    let worker =
        RustWorker::new(Config::default()).namespace(namespace).broker(broker.clone()).start().await?;
    worker.ready().await;

    // Three at once for the last two books: one of them must be told that there is none left.
    run_steps(broker.as_ref(), &["reserve", "reserve", "reserve"], "book").await?;
    run_steps(broker.as_ref(), &["count"], "everything").await?;

    worker.shutdown().await;
    Ok(())
}

/// What an orchestrator does: asks for some steps at once, and waits for their results.
async fn run_steps(
    broker: &MemoryBroker,
    steps: &[&str],
    context: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let names = Names::default();
    for step_name in steps {
        let request = json!({
            "task_uuid": Uuid::new_v4(),
            "step_uuid": Uuid::new_v4(),
            "namespace": "warehouse",
            "step_name": step_name,
            "task_data": context,
        });
        let message = Message {
            exchange: names.steps(),
            routing_key: step_key("warehouse", step_name),
            body: request.to_string().into(),
            properties: Properties::default(),
        };
        broker.publisher().publish(message).await?;
    }

    let mut answers = broker.subscribe(Source::Queue(names.orchestrator_queue()), 10);
    let mut lines = Vec::new();
    while lines.len() < steps.len() {
        let answer = answers.recv().await.ok_or("the broker is gone")?;
        answer.acker.settle(Disposition::Ack)?;
        // Copies of dead letters come through the same queue.
        if answer.exchange == names.results() {
            let result = StepExecutionResult::decode(&answer.body)?;
            lines.push(match result.error {
                None => format!("{}: {}", result.step_name, result.data.get()),
                Some(error) => format!("{}: failed: {}", result.step_name, error.message),
            });
        }
    }
    // They ran side by side, so they may answer in any order.
    lines.sort();
    lines.iter().for_each(|line| println!("{line}"));
    Ok(())
}
