//! Templates with very many steps: a fan-out, a chain, batches, and what grows with them.
#![expect(clippy::print_stdout, reason = "the figures, for who runs it with --nocapture")]

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tasker_worker_rust::api::TaskResponse;
use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::ops::process::resident_memory_kb;
use tasker_worker_rust::template::Template;
use tasker_worker_rust::{Batches, Namespace, Step, StepResult, template};

use crate::on_both_brokers;
use crate::support::Kind;
use crate::system::System;

on_both_brokers! {
    a_long_chain_runs_to_its_end
    a_wide_fan_out_runs_to_its_end
    many_batches_run_to_their_end
    a_request_that_would_be_too_large_fails_its_step_and_says_so
}

/// Long enough for a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(400);

/// Steps and what each waits for, all run by the handler `step`.
fn parsed(steps: impl Iterator<Item = (String, String)>) -> (Template, Duration) {
    let mut text = "namespace: scale\nname: large\nversion: 1.0.0\nsteps:\n".to_owned();
    for (name, rest) in steps {
        writeln!(text, "  - {{name: {name}, handler: {{callable: step}}, {rest}}}").unwrap();
    }
    let started = Instant::now();
    let template = template::parse(&text, None).expect("the template is right").template;
    (template, started.elapsed())
}

fn after(names: impl Iterator<Item = String>) -> String {
    format!("dependencies: [{}]", names.collect::<Vec<_>>().join(", "))
}

/// Runs one task whose steps return `{"n": 1234567}`, and prints what it took.
async fn run(
    kind: Kind,
    what: &str,
    (template, parsing): (Template, Duration),
    batches: u64,
) -> TaskResponse {
    let (sent, largest) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let handler = {
        let (sent, largest) = (Arc::clone(&sent), Arc::clone(&largest));
        move |step: Step| {
            let size = step.request().encode().len();
            sent.fetch_add(size, Ordering::Relaxed);
            largest.fetch_max(size, Ordering::Relaxed);
            async move { StepResult::Ok(json!({ "n": 1_234_567 })) }
        }
    };
    let split = move |_: Step| async move { StepResult::Ok(Batches::split(batches, 1)) };
    let handlers = Namespace::new("scale").step("step", handler).step("split", split);
    let before = resident_memory_kb().unwrap_or(0);
    let system = System::open_with(kind, Catalog::from_templates(vec![template]), vec![handlers]).await;
    let started = Instant::now();
    let task_uuid = system.submit("scale", "large", json!({})).await;
    let task = system.client.wait(task_uuid, PATIENCE).await.expect("the orchestrator answers");
    println!(
        "{kind:?}, {what}: read in {parsing:.1?}, run in {:.1?}, requests {:.1} MB in all, {} kB at most, \
         memory {} MB more",
        started.elapsed(),
        sent.load(Ordering::Relaxed) as f64 / 1e6,
        largest.load(Ordering::Relaxed) / 1_000,
        resident_memory_kb().unwrap_or(0).saturating_sub(before) / 1_000,
    );
    system.close().await;
    assert_eq!((task.status.as_str(), task.completed_steps), ("complete", task.total_steps));
    task
}

/// A tenth of it; all of it for `make scale`.
fn size(full: usize) -> usize {
    #[expect(clippy::disallowed_methods, reason = "how large a test is is no setting of the product")]
    let all = std::env::var_os("SCALE").is_some_and(|scale| scale == "full");
    if all { full } else { full / 10 }
}

fn count(steps: usize) -> i64 {
    i64::try_from(steps).expect("that many steps can be counted")
}

async fn a_long_chain_runs_to_its_end(kind: Kind) {
    let length = size(1_000);
    let name = |step: usize| format!("s{step}");
    let steps = (0..length).map(|step| (name(step), after(step.checked_sub(1).into_iter().map(name))));
    let task = run(kind, &format!("chain of {length}"), parsed(steps), 0).await;
    assert_eq!(task.total_steps, count(length));
}

async fn a_wide_fan_out_runs_to_its_end(kind: Kind) {
    let width = size(10_000);
    let middle = || (0..width).map(|step| format!("s{step}"));
    let first = ("first".to_owned(), after(std::iter::empty()));
    let fan = middle().map(|name| (name, "dependencies: [first]".to_owned()));
    let last = ("last".to_owned(), after(middle()));
    let steps = std::iter::once(first).chain(fan).chain([last]);
    let task = run(kind, &format!("fan-out of {width}"), parsed(steps), 0).await;
    assert_eq!(task.total_steps, count(width) + 2);
}

async fn many_batches_run_to_their_end(kind: Kind) {
    let batches = size(10_000);
    let batchable = "type: batchable, batch_config: {worker_template: work, parallelism: 1000}";
    let steps = [
        ("split", batchable),
        ("work", "type: batch_worker, dependencies: [split]"),
        ("join", "type: deferred_convergence, dependencies: [work]"),
    ];
    let steps = steps.into_iter().map(|(name, rest)| (name.to_owned(), rest.to_owned()));
    let task = run(kind, &format!("{batches} batches"), parsed(steps), batches as u64).await;
    assert_eq!(task.total_steps, count(batches) + 2);
}

async fn a_request_that_would_be_too_large_fails_its_step_and_says_so(kind: Kind) {
    let middle = || (0..3).map(|step| format!("s{step}"));
    let steps = middle().map(|name| (name, "dependencies: []".to_owned()));
    let (template, _) = parsed(steps.chain([("last".to_owned(), after(middle()))]));
    let handler = async |_: Step| StepResult::Ok("x".repeat(4_000_000));
    let handlers = Namespace::new("scale").step("step", handler);
    let system = System::open_with(kind, Catalog::from_templates(vec![template]), vec![handlers]).await;
    let task = system.run("scale", "large", json!({})).await;
    assert_eq!((task.status.as_str(), task.completed_steps), ("error", 3));
    let error = system.step(task.task_uuid, "last").await.error.expect("it failed");
    let error = serde_json::to_value(error).expect("it encodes");
    let message = error["message"].as_str().expect("a message");
    let says =
        ["the request cannot be published: its body has 12000", "broker.max_message_bytes allows 8388608"];
    assert!(says.iter().all(|text| message.contains(text)), "{message}");
    system.close().await;
}
