//! W6: what grows, and how: the store, a step's followers, messages, namespaces.

use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tasker_worker_rust::api::TaskRequest;
use uuid::Uuid;

use super::super::demo::TEMPLATES;
use super::Answer;
use super::figure::{Figure, percentile};
use super::flows::{Folder, NAMESPACES, Product, load, task};
use super::rounds::Bench;
use super::steps::{Backlog, backlog, paced};

pub(super) async fn growth(bench: &Bench) -> Answer<Vec<Figure>> {
    let mut figures = Vec::new();
    if bench.wants("tasks in the store") {
        figures.extend(store(bench).await?);
    }
    if bench.wants("fan-out") {
        figures.extend(fan_out(bench).await?);
    }
    for bytes in [1_000, 10_000, 100_000, 1_000_000] {
        let case = "p50, bytes per request";
        if bench.wants(case) {
            let rounds = paced(bench, &format!("W6 requests of {bytes} bytes"), 20, 100, bytes, 3).await?;
            let numbers = rounds.numbers(|run| percentile(&run.value, 0.5));
            figures.extend(at(Figure::new("W6", case, "ms", &numbers, None), bytes as f64));
        }
    }
    for namespaces in [1, 10, 50, 200] {
        const STEPS: u64 = 20_000;
        let case = "throughput, namespaces";
        if bench.wants(case) {
            let kind = bench.config.broker.queue_kind;
            let waiting = Backlog { kind, namespaces, prefetch: 100, steps: STEPS };
            let rounds = backlog(bench, &format!("{namespaces} namespaces"), 3, waiting, None).await?;
            let numbers = rounds.numbers(|run| STEPS as f64 / run.value.seconds);
            figures.extend(at(Figure::new("W6", case, "steps/s", &numbers, None), namespaces as f64));
        }
    }
    Ok(figures)
}

fn at(figure: Option<Figure>, at: f64) -> Option<Figure> {
    figure.map(|figure| Figure { at: Some(at), ..figure })
}

/// The same work with ever more finished tasks in the store.
async fn store(bench: &Bench) -> Answer<Vec<Figure>> {
    let load_of = bench.scaled(500, 50);
    let folder = Folder::new()?;
    let mut figures = Vec::new();
    for tasks in [1_000, 10_000, 100_000, 1_000_000] {
        if tasks > bench.stored_tasks {
            break;
        }
        let prefix = format!("bench-{}", Uuid::new_v4().simple());
        let product = Product::start(bench, &prefix, folder.0.clone(), &TEMPLATES).await?;
        product.warm_up(|| task(0)).await?;
        product.stop().await?;
        fill(&folder.0.join("bench.sqlite"), tasks).await?;
        let product = Product::start(bench, &prefix, folder.0.clone(), &TEMPLATES).await?;
        product.warm_up(|| task(0)).await?;
        let mut latencies = Vec::new();
        for _ in 0..bench.scaled(200, 10) {
            latencies.push(product.task(&task(0)).await?);
        }
        let mut throughput = Vec::new();
        for _ in 0..bench.scaled(3, 1) {
            throughput.push((load(bench, &product, load_of).await?.value.steps_per_second, None));
        }
        product.stop().await?;
        bench.remove(&prefix, &NAMESPACES).await?;
        let p50 = [(percentile(&latencies, 0.5), None)];
        let tasks = tasks as f64;
        figures.extend(at(Figure::new("W6", "linear p50, tasks in the store", "ms", &p50, None), tasks));
        figures
            .extend(at(Figure::new("W6", "load, tasks in the store", "steps/s", &throughput, None), tasks));
        eprintln!("bench: W6, {tasks} tasks in the store");
    }
    Ok(figures)
}

/// Copies a finished task until there are `tasks`, under ids spread as random ones are.
async fn fill(path: &Path, tasks: u32) -> Answer {
    let mut store = SqliteConnectOptions::new().filename(path).connect().await?;
    // Times a prime, within 32 bits: each number once, in no order.
    let id = |number: &str, part: &str| {
        format!("printf('%08x-0000-4000-8000-%012x', ({number} * 2654435761) % 4294967296, {part})")
    };
    let numbers = "WITH RECURSIVE model AS (SELECT * FROM tasks WHERE state = 'complete' LIMIT 1), \
                   numbers (n) AS (SELECT (SELECT COUNT(*) FROM tasks) UNION ALL SELECT n + 1 FROM numbers WHERE n < $1)";
    let (task, step) = (id("n", "0"), id("n", "1 + position"));
    let statements = [
        format!(
            "CREATE TEMP TABLE copies AS {numbers} SELECT n, {task} AS id, model.task_uuid AS model FROM numbers, model"
        ),
        "INSERT INTO tasks (task_uuid, template_id, namespace, name, version, state, identity, context, initiator, \
         source_system, reason, priority, tags, correlation_id, requested_at, created_at, updated_at, completed_at) \
         SELECT id, template_id, namespace, name, version, state, id, context, initiator, source_system, reason, \
         priority, tags, correlation_id, requested_at, created_at, updated_at, completed_at \
         FROM copies JOIN tasks ON task_uuid = model"
            .to_owned(),
        format!(
            "INSERT INTO steps (step_uuid, task_uuid, position, name, state, attempts, max_attempts, output, \
             created_at, updated_at, completed_at) SELECT {step}, id, position, name, state, attempts, max_attempts, \
             output, created_at, updated_at, completed_at FROM copies JOIN steps ON task_uuid = model"
        ),
        format!(
            "INSERT INTO transitions (task_uuid, step_uuid, from_state, to_state, attempt, worker_id, duration_ms, result, at) \
             SELECT id, CASE WHEN position IS NULL THEN NULL ELSE {step} END, from_state, to_state, attempt, worker_id, \
             duration_ms, result, at FROM copies JOIN (SELECT t.*, s.position FROM transitions t LEFT JOIN steps s \
             ON s.step_uuid = t.step_uuid) t ON t.task_uuid = model"
        ),
        "DROP TABLE copies".to_owned(),
    ];
    for statement in statements {
        sqlx::query(sqlx::AssertSqlSafe(statement)).bind(tasks).execute(&mut store).await?;
    }
    Ok(store.close().await?)
}

/// One step that lets many go, and one that waits for them all.
async fn fan_out(bench: &Bench) -> Answer<Vec<Figure>> {
    let widths = [10, 100, 1_000, 10_000];
    let templates = widths.map(template);
    let templates: Vec<&str> = templates.iter().map(String::as_str).collect();
    let (folder, prefix) = (Folder::new()?, format!("bench-{}", Uuid::new_v4().simple()));
    let product = Product::start(bench, &prefix, folder.0.clone(), &templates).await?;
    let wide = |width: usize| {
        let context = serde_json::json!({ "even_number": 6 });
        let request = TaskRequest::new("linear_workflow", format!("wide_{width}"), context);
        TaskRequest { idempotency_key: Some(Uuid::new_v4().to_string()), ..request }
    };
    product.warm_up(|| wide(10)).await?;
    let mut figures = Vec::new();
    for width in widths {
        let mut rounds = Vec::new();
        for _ in 0..bench.scaled(3, 1) {
            rounds.push((product.task(&wide(width)).await? / width as f64, None));
        }
        figures.extend(at(Figure::new("W6", "time per step, fan-out", "ms", &rounds, None), width as f64));
        eprintln!("bench: W6, fan-out {width}");
    }
    product.stop().await?;
    bench.remove(&prefix, &["linear_workflow"]).await?;
    Ok(figures)
}

fn template(width: usize) -> String {
    let step = |name: String, needs: String| {
        format!(
            "  - name: {name}\n    handler: {{ callable: linear_step_1 }}\n    timeout_seconds: 60\n    dependencies: [{needs}]\n"
        )
    };
    let mut text = format!(
        "namespace_name: linear_workflow\nname: wide_{width}\nversion: 1.0.0\nstep_templates:\n{}",
        step("start".to_owned(), String::new())
    );
    let names: Vec<String> = (0..width).map(|number| format!("middle_{number}")).collect();
    for name in &names {
        text.push_str(&step(name.clone(), "start".to_owned()));
    }
    text.push_str(&step("end".to_owned(), names.join(", ")));
    text
}
