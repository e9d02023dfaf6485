//! Whole workflows, end to end: HTTP API, orchestrator, store, broker, worker, and back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tasker_worker_rust::api::TaskRequest;
use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::{Namespace, Step, StepError, StepResult, template};
use tokio::sync::Semaphore;

use crate::on_both_brokers;
use crate::support::{Kind, within};
use crate::system::System;

on_both_brokers! {
    linear_answers_66_for_6
    diamond_runs_its_branches_in_parallel_and_answers_180_for_10
    tree_and_mixed_dag_answer_exactly
    a_decision_creates_the_approvals_that_an_amount_needs
    batches_add_up_to_the_sum
    an_order_is_fulfilled_to_the_cent
    a_declined_payment_releases_the_reservation
    a_failed_shipment_refunds_before_it_releases
    one_hundred_linear_tasks_at_once_take_seconds
    a_missing_number_takes_the_default_and_a_wrong_type_is_refused
    tasks_run_to_their_end_over_orchestrator_restarts
    a_cancelled_task_stops_its_running_step
}

async fn linear_answers_66_for_6(kind: Kind) {
    let system = System::open(kind).await;
    let task = system.run("linear_workflow", "mathematical_sequence", json!({ "even_number": 6 })).await;
    assert_eq!((task.status.as_str(), task.completed_steps, task.total_steps), ("complete", 4, 4));
    assert_eq!(task.execution_status, "all_complete");
    for (step, field, expected) in [
        ("linear_step_1", "generated_value", 12),
        ("linear_step_2", "processed_value", 22),
        ("linear_step_3", "transformed_value", 66),
        ("linear_step_4", "final_result", 66),
    ] {
        assert_eq!(system.output(task.task_uuid, step).await[field], expected, "{step}");
    }
    system.close().await;
}

async fn a_decision_creates_the_approvals_that_an_amount_needs(kind: Kind) {
    let system = System::open(kind).await;
    for (amount, approved_by) in
        [(999, json!(["rule"])), (1_000, json!(["manager"])), (5_000, json!(["manager", "finance"]))]
    {
        let task = system.run("approval_workflow", "purchase_approval", json!({ "amount": amount })).await;
        let steps = 3 + approved_by.as_array().unwrap().len() as i64;
        assert_eq!(
            (task.status.as_str(), task.completed_steps, task.total_steps),
            ("complete", steps, steps)
        );
        assert_eq!((task.execution_status.as_str(), task.completion_percentage), ("all_complete", 100.0));
        let recorded = system.output(task.task_uuid, "record_approvals").await;
        assert_eq!(recorded, json!({ "amount": amount, "approved_by": approved_by }));
        assert_eq!(system.step(task.task_uuid, "record_approvals").await.total_parents as i64, steps - 3);
    }
    system.close().await;
}

async fn batches_add_up_to_the_sum(kind: Kind) {
    let system = System::open(kind).await;
    for (last, parts, sum) in [(1_000_u64, 10, 333_833_500_u64), (250, 3, 5_239_625), (0, 0, 0)] {
        let task = system.run("batch_workflow", "sum_of_squares", json!({ "last": last })).await;
        assert_eq!((task.status.as_str(), task.total_steps), ("complete", parts + 2));
        assert_eq!(task.execution_status, "all_complete");
        let answer = system.output(task.task_uuid, "add_parts").await;
        assert_eq!(answer, json!({ "parts": parts, "sum": sum }));
        // In place of the worker: its instances, and the step that asked for them.
        let step = system.step(task.task_uuid, "add_parts").await;
        assert_eq!((step.total_parents as i64, step.completed_parents as i64), (parts + 1, parts + 1));
    }
    system.close().await;
}

async fn diamond_runs_its_branches_in_parallel_and_answers_180_for_10(kind: Kind) {
    let system = System::open(kind).await;
    let started = Instant::now();
    let task = system.run("diamond_workflow", "parallel_processing", json!({ "base_value": 10 })).await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(task.status, "complete");
    let end = system.output(task.task_uuid, "diamond_end").await;
    assert_eq!(
        (&end["final_result"], &end["branch_results"]),
        (&json!(180), &json!({ "branch_b": 120, "branch_c": 60 }))
    );

    // In parallel: each branch started before the other had ended.
    let mut spans = Vec::new();
    for branch in ["diamond_branch_b", "diamond_branch_c"] {
        let results: Value = system.step(task.task_uuid, branch).await.results.unwrap().parse().unwrap();
        let at =
            |field: &str| results["metadata"][field].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        spans.push((at("started_at"), at("executed_at")));
    }
    assert!(spans[0].0 < spans[1].1 && spans[1].0 < spans[0].1, "{spans:?}");
    system.close().await;
}

async fn tree_and_mixed_dag_answer_exactly(kind: Kind) {
    const TWO_TO_THE_64: &str = "18446744073709551616";
    const SIX_TO_THE_64: &str = "63340286662973277706162286946811886609896461828096";
    let system = System::open(kind).await;
    for (namespace, name, last) in [
        ("tree_workflow", "hierarchical_tree", "tree_final_convergence"),
        ("mixed_dag_workflow", "complex_dag", "dag_finalize"),
    ] {
        for (number, expected) in [(2, TWO_TO_THE_64), (6, SIX_TO_THE_64)] {
            let task = system.run(namespace, name, json!({ "even_number": number })).await;
            assert_eq!(task.status, "complete");
            let end = system.output(task.task_uuid, last).await;
            assert_eq!(
                (&end["final_result"], &end["verification"]["matches"]),
                (&json!(expected), &json!(true))
            );
        }
    }
    system.close().await;
}

fn order(token: &str) -> Value {
    let mut order: Value = serde_json::from_str(include_str!("../../config/samples/order.json")).unwrap();
    order["payment"]["token"] = token.into();
    order
}

async fn an_order_is_fulfilled_to_the_cent(kind: Kind) {
    let system = System::open(kind).await;
    let task = system.run("order_fulfillment", "business_workflow", order("tok_visa")).await;
    assert_eq!((task.status.as_str(), task.completed_steps, task.total_steps), ("complete", 4, 4));
    let uuid = task.task_uuid;
    assert_eq!(system.output(uuid, "validate_order").await["order_total"], 209.97);
    assert_eq!(system.output(uuid, "process_payment").await["amount_charged"], 209.97);
    assert_eq!(system.output(uuid, "ship_order").await["shipping_cost"], 10.24);
    system.close().await;
}

async fn a_declined_payment_releases_the_reservation(kind: Kind) {
    let system = System::open(kind).await;
    let task = system.run("order_fulfillment", "business_workflow", order("tok_declined")).await;
    let uuid = task.task_uuid;
    assert_eq!(task.status, "error");
    let error = system.step(uuid, "process_payment").await.error.expect("the failed step has its error");
    assert_eq!(error.code.as_deref(), Some("PAYMENT_DECLINED"));
    let reserved = system.output(uuid, "reserve_inventory").await;
    let released = system.output(uuid, "release_inventory").await;
    assert_eq!(
        (&released["released"], &released["reservation_id"]),
        (&json!(true), &reserved["reservation_id"])
    );
    // Nothing was charged, so nothing is refunded; nothing was shipped.
    let names: Vec<&str> = task.steps.iter().map(|step| step.name.as_str()).collect();
    assert!(!names.contains(&"refund_payment"), "{names:?}");
    system.close().await;
}

async fn a_failed_shipment_refunds_before_it_releases(kind: Kind) {
    let system = System::open(kind).await;
    let mut order = order("tok_visa");
    order["shipping"] = json!({ "method": "standard" });
    let task = system.run("order_fulfillment", "business_workflow", order).await;
    let uuid = task.task_uuid;
    assert_eq!(task.status, "error");
    let error = system.step(uuid, "ship_order").await.error.expect("the failed step has its error");
    assert_eq!(error.code.as_deref(), Some("MISSING_SHIPPING_ADDRESS"));
    assert_eq!(system.output(uuid, "refund_payment").await["amount_refunded"], 209.97);
    let refunded = system.step(uuid, "refund_payment").await.completed_at;
    let released = system.step(uuid, "release_inventory").await.completed_at;
    assert!(refunded.is_some() && refunded <= released, "{refunded:?} {released:?}");
    system.close().await;
}

async fn one_hundred_linear_tasks_at_once_take_seconds(kind: Kind) {
    let system = System::open(kind).await;
    let started = Instant::now();
    let submitted = (0..100).map(|run| {
        let context = json!({ "even_number": 6, "test_run_id": format!("perf_test_{run}") });
        system.submit("linear_workflow", "mathematical_sequence", context)
    });
    let tasks = within(futures_util::future::join_all(submitted)).await;
    for task_uuid in tasks {
        assert_eq!(system.finished(task_uuid).await.status, "complete");
    }
    // The 1,000 steps a second of the design document are what the bench holds an optimised build to; an unoptimised one,
    // on a machine that does much else, can be held to no more than this.
    let took = started.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?} for 400 steps");
    system.close().await;
}

async fn a_missing_number_takes_the_default_and_a_wrong_type_is_refused(kind: Kind) {
    let system = System::open(kind).await;
    let task = system.run("linear_workflow", "mathematical_sequence", json!({})).await;
    assert_eq!(system.output(task.task_uuid, "linear_step_4").await["final_result"], 66);

    let request =
        TaskRequest::new("linear_workflow", "mathematical_sequence", json!({ "even_number": "six" }));
    let refused = system.client.submit(&request).await.expect_err("it does not fit the input_schema");
    assert!(refused.to_string().contains("/even_number: \"six\" is not of type \"integer\""), "{refused}");
    system.close().await;
}

/// Two steps in a chain: the second waits for the test's permission.
fn gated(gate: &Arc<Semaphore>) -> (Catalog, Vec<Namespace>) {
    let parsed = template::parse(
        "name: gated\nnamespace_name: orders\nversion: 1.0.0\nsteps:\n\
         - {name: first, handler: {callable: first}}\n\
         - {name: second, handler: {callable: second}, dependencies: [first]}\n",
        None,
    );
    let catalog = Catalog::from_templates(vec![parsed.expect("the template is right").template]);
    let gate = gate.clone();
    let second = move |step: Step| {
        let gate = gate.clone();
        async move {
            tokio::select! {
                permit = gate.acquire() => permit?.forget(),
                () = step.cancelled() => return Err(StepError::permanent("the task was cancelled")),
            }
            step.result_of::<u32>("first")
        }
    };
    let first = |_: Step| async { StepResult::Ok(7) };
    (catalog, vec![Namespace::new("orders").step("first", first).step("second", second)])
}

async fn tasks_run_to_their_end_over_orchestrator_restarts(kind: Kind) {
    const TASKS: usize = 20;
    let gate = Arc::new(Semaphore::new(0));
    let (catalog, handlers) = gated(&gate);
    let mut system = System::open_with(kind, catalog, handlers).await;
    let mut tasks = Vec::new();
    for run in 0..TASKS {
        tasks.push(system.submit("orders", "gated", json!({ "run": run })).await);
    }
    system.restart_orchestrator().await;
    gate.add_permits(TASKS / 2);
    system.restart_orchestrator().await;
    gate.add_permits(TASKS - TASKS / 2);
    for task_uuid in tasks {
        let task = system.finished(task_uuid).await;
        assert_eq!((task.status.as_str(), task.completed_steps), ("complete", 2));
        assert_eq!(system.output(task_uuid, "second").await, 7);
    }
    system.close().await;
}

async fn a_cancelled_task_stops_its_running_step(kind: Kind) {
    let gate = Arc::new(Semaphore::new(0));
    let (catalog, handlers) = gated(&gate);
    let system = System::open_with(kind, catalog, handlers).await;
    let task_uuid = system.submit("orders", "gated", json!({})).await;
    within(async {
        while system.step(task_uuid, "first").await.current_state != "complete" {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let cancelled = system.client.cancel(task_uuid).await.expect("a running task can be cancelled");
    assert_eq!(cancelled.status, "cancelled");
    let task = system.finished(task_uuid).await;
    assert_eq!((task.status.as_str(), task.completed_steps), ("cancelled", 1));
    // Without the gate ever opening, the worker has nothing left to finish.
    let again = system.client.cancel(task_uuid).await.expect_err("it is finished");
    assert!(again.to_string().contains("cancelled"), "{again}");
    system.close().await;
}
