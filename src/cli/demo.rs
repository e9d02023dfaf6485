//! `demo`: broker, orchestrator and worker in one process, and a task of each workflow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tasker_worker_rust::api::{StepResponse, TaskRequest, TaskResponse};
use tasker_worker_rust::broker::Broker;
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::client::{Client, Submitted};
use tasker_worker_rust::orchestrator::{Orchestrator, api};
use tasker_worker_rust::{Config, Error, RustWorker, ops, template, workflows};

use super::output::{self, Table, brief, took};
use super::{Answer, Output};

/// So much of an answer keeps the table within 80 columns.
const ANSWER: usize = 36;

/// A task of the demo.
struct Showcase {
    title: &'static str,
    namespace: &'static str,
    name: &'static str,
    context: Value,
    expected: &'static str,
    /// Which step's field is the answer.
    answer: (&'static str, &'static str),
}

fn showcases() -> Vec<Showcase> {
    let order = |token: &str| {
        let mut order: Value = serde_json::from_str(include_str!("../../config/samples/order.json"))
            .expect("the sample is JSON");
        order["payment"]["token"] = token.into();
        order
    };
    vec![
        Showcase {
            title: "linear, 6",
            namespace: "linear_workflow",
            name: "mathematical_sequence",
            context: json!({ "even_number": 6 }),
            expected: "complete",
            answer: ("linear_step_4", "final_result"),
        },
        Showcase {
            title: "diamond, 10",
            namespace: "diamond_workflow",
            name: "parallel_processing",
            context: json!({ "base_value": 10 }),
            expected: "complete",
            answer: ("diamond_end", "final_result"),
        },
        Showcase {
            title: "tree, 2",
            namespace: "tree_workflow",
            name: "hierarchical_tree",
            context: json!({ "even_number": 2 }),
            expected: "complete",
            answer: ("tree_final_convergence", "final_result"),
        },
        Showcase {
            title: "mixed DAG, 6",
            namespace: "mixed_dag_workflow",
            name: "complex_dag",
            context: json!({ "even_number": 6 }),
            expected: "complete",
            answer: ("dag_finalize", "final_result"),
        },
        Showcase {
            title: "order",
            namespace: "order_fulfillment",
            name: "business_workflow",
            context: order("tok_visa"),
            expected: "complete",
            answer: ("process_payment", "amount_charged"),
        },
        Showcase {
            title: "order, declined",
            namespace: "order_fulfillment",
            name: "business_workflow",
            context: order("tok_declined"),
            expected: "error",
            answer: ("release_inventory", "reservation_id"),
        },
    ]
}

/// The templates the five workflows come with.
pub(super) const TEMPLATES: [&str; 5] = [
    include_str!("../../config/workflows/linear_workflow_handler.yaml"),
    include_str!("../../config/workflows/diamond_workflow_handler.yaml"),
    include_str!("../../config/workflows/tree_workflow_handler.yaml"),
    include_str!("../../config/workflows/mixed_dag_workflow_handler.yaml"),
    include_str!("../../config/workflows/order_fulfillment_handler.yaml"),
];

pub(super) fn run(output: Output) -> Result<Answer, Error> {
    let runtime = tokio::runtime::Runtime::new().expect("the system gives the process threads");
    runtime.block_on(demonstrate(output))
}

async fn demonstrate(output: Output) -> Result<Answer, Error> {
    let started = Instant::now();
    let mut config = Config::default();
    config.orchestrator.database_url = "sqlite::memory:".into();
    let broker: Arc<dyn Broker> = MemoryBroker::new();
    let orchestrator = Orchestrator::start(&config, broker.clone(), catalog()?).await?;
    let router = api::router(orchestrator.clone(), &config.orchestrator)?;
    let server = ops::http::serve("127.0.0.1:0", "orchestrator.listen_address", router).await?;
    let mut worker = RustWorker::new(config).broker(broker);
    for namespace in workflows::all() {
        worker = worker.namespace(namespace);
    }
    let worker = worker.start().await?;
    let client = Client::new(&format!("http://{}", server.address()))?;

    let progress = MultiProgress::new();
    let runs = showcases().into_iter().map(|showcase| show(&client, &progress, showcase));
    let rows = futures_util::future::try_join_all(runs).await?;

    let as_expected = rows.iter().all(|row| row.task.status == row.showcase.expected);
    report(&rows, output);
    if output == Output::Text {
        println!(
            "\n{} tasks in {}, on the embedded broker",
            rows.len(),
            took(started.elapsed().as_millis() as i64)
        );
    }
    worker.shutdown().await;
    server.stop().await;
    orchestrator.shutdown().await;
    Ok(if as_expected { Answer::Yes } else { Answer::No })
}

fn catalog() -> Result<Catalog, Error> {
    let templates = TEMPLATES.iter().map(|text| template::parse(text, None).map(|parsed| parsed.template));
    let templates = templates.collect::<Result<Vec<_>, _>>();
    let templates =
        templates.map_err(|mistakes| Error::Templates(mistakes.iter().map(ToString::to_string).collect()))?;
    Ok(Catalog::from_templates(templates))
}

/// A finished task of the demo.
struct Row {
    showcase: Showcase,
    task: TaskResponse,
    steps: Vec<StepResponse>,
}

/// Submits one task and follows it to its end.
async fn show(client: &Client, progress: &MultiProgress, showcase: Showcase) -> Result<Row, Error> {
    let style = ProgressStyle::with_template("{prefix:22} {bar:24} {pos}/{len} {msg}")
        .expect("the template is right");
    let bar = progress.add(ProgressBar::new(1).with_style(style).with_prefix(showcase.title));
    let request = TaskRequest::new(showcase.namespace, showcase.name, showcase.context.clone());
    let task_uuid = match client.submit(&request).await? {
        Submitted::Created(task) => task.task_uuid,
        Submitted::Exists(task_uuid) => task_uuid,
    };
    loop {
        let task = client.task(task_uuid).await?;
        bar.set_length(task.total_steps.unsigned_abs());
        bar.set_position(task.completed_steps.unsigned_abs());
        let running =
            task.steps.iter().filter(|step| step.current_state == "enqueued").map(|step| step.name.as_str());
        bar.set_message(running.collect::<Vec<_>>().join(", "));
        if task.is_finished() {
            bar.finish_and_clear();
            let steps = client.steps(task_uuid).await?;
            return Ok(Row { showcase, task, steps });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Row {
    fn answer(&self) -> Value {
        let (step, field) = self.showcase.answer;
        let output = self.steps.iter().find(|s| s.name == step).and_then(StepResponse::output);
        let output: Option<Value> = output.and_then(|output| output.parse().ok());
        output.and_then(|output| output.get(field).cloned()).unwrap_or(Value::Null)
    }

    fn took_ms(&self) -> i64 {
        let end = self.task.completed_at.unwrap_or(self.task.updated_at);
        i64::try_from(end.duration_since(self.task.created_at).as_millis()).unwrap_or(i64::MAX)
    }
}

fn report(rows: &[Row], output: Output) {
    if output == Output::Json {
        let rows: Vec<Value> = rows
            .iter()
            .map(|row| {
                json!({
                    "workflow": row.showcase.title,
                    "namespace": row.task.namespace,
                    "task_uuid": row.task.task_uuid,
                    "status": row.task.status,
                    "steps": row.steps.iter().map(|s| json!({ "name": s.name, "state": s.current_state })).collect::<Vec<_>>(),
                    "answer": row.answer(),
                    "duration_ms": row.took_ms(),
                })
            })
            .collect();
        return output::json(&rows);
    }
    let mut table = Table::new(["WORKFLOW", "STATUS", "STEPS", "TIME", "ANSWER"]);
    for row in rows {
        let done = row.steps.iter().filter(|step| step.current_state == "complete").count();
        table.row([
            row.showcase.title.to_owned(),
            row.task.status.clone(),
            format!("{done}/{}", row.steps.len()),
            took(row.took_ms()),
            brief(&format!("{} {}", row.showcase.answer.1, brief(&row.answer(), ANSWER)).into(), ANSWER),
        ]);
    }
    table.print();
}
