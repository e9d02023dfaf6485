//! What waits to be sent goes out by priority, wherever it waits.

use futures_util::future::join_all;
use serde_json::json;
use tasker_worker_rust::api::TaskRequest;
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::orchestrator::Orchestrator;

use crate::support::{Toy, config, start, task, template, texts, until};

/// More than the outbox keeps in memory.
const MANY: usize = 4_700;

async fn submit(orchestrator: &Orchestrator, numbers: std::ops::Range<usize>, priority: i32) {
    let submit = |number| {
        let request = TaskRequest { priority: Some(priority), ..task(json!([priority, number])) };
        orchestrator.submit(request)
    };
    for accepted in join_all(numbers.map(submit)).await {
        accepted.expect("a new task");
    }
}

/// The priority of what the worker was sent, in the order of its coming, runs of the same counted.
fn runs(toy: &Toy) -> Vec<(i32, usize)> {
    let mut runs: Vec<(i32, usize)> = Vec::new();
    for request in toy.ran() {
        let (priority, _): (i32, usize) = request.task_data.parse().expect("its context");
        match runs.last_mut() {
            Some((last, count)) if *last == priority => *count += 1,
            _ => runs.push((priority, 1)),
        }
    }
    runs
}

#[tokio::test]
async fn what_gathered_while_the_broker_was_away_goes_out_by_priority() {
    let broker = MemoryBroker::new();
    broker.set_down(Some("maintenance"));
    let one = template("shop", &[("a", vec![])]);
    let orchestrator = start(&config("sqlite::memory:"), &broker, one).await;
    for (count, priority) in [(MANY, 0), (3, -5), (20, 10), (2, 100)] {
        submit(&orchestrator, 0..count, priority).await;
    }
    broker.set_down(None);
    let toy = Toy::succeeding(&broker);
    toy.has_run(MANY + 25).await;
    assert_eq!(runs(&toy), [(100, 2), (10, 20), (0, MANY), (-5, 3)]);
}

#[tokio::test]
async fn an_urgent_task_overtakes_all_that_is_not_on_its_way_yet() {
    let broker = MemoryBroker::new();
    let one = template("shop", &[("a", vec![])]);
    let orchestrator = start(&config("sqlite::memory:"), &broker, one).await;
    until("everything to work", async || orchestrator.health().is_ready()).await;
    broker.set_blocked(Some("short of memory"));
    submit(&orchestrator, 0..MANY, 0).await;
    submit(&orchestrator, 0..5, 7).await;
    submit(&orchestrator, MANY..MANY + 10, 0).await;
    submit(&orchestrator, 0..1, -7).await;
    broker.set_blocked(None);
    let toy = Toy::succeeding(&broker);
    toy.has_run(MANY + 16).await;
    let runs = runs(&toy);
    let (on_its_way, rest) = (runs[0].1, runs[2].1);
    assert_eq!(runs, [(0, on_its_way), (7, 5), (0, rest), (-7, 1)]);
    assert!(on_its_way <= 512 && on_its_way + rest == MANY + 10, "{runs:?}");
    until("an empty outbox", async || texts(&orchestrator, "SELECT 'row' FROM outbox").await.is_empty())
        .await;
}
