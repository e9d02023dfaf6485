//! Where the time of a task went.

use serde_json::{Value, json};
use tasker_worker_rust::api::{StepTiming, TaskTiming};
use tasker_worker_rust::ops::metrics::METRICS;
use tasker_worker_rust::{Namespace, Step, StepResult};

use crate::ledger::Lab;
use crate::on_both_brokers;
use crate::program::Program;
use crate::support::Kind;
use crate::system::System;

on_both_brokers! {
    the_stages_of_a_tasks_steps_add_up_to_its_time
}

async fn the_stages_of_a_tasks_steps_add_up_to_its_time(kind: Kind) {
    let system = System::open(kind).await;
    let task = system.run("diamond_workflow", "parallel_processing", json!({ "base_value": 10 })).await;
    let timing = system.client.timing(task.task_uuid).await.expect("the orchestrator answers");
    assert_eq!(timing.steps.len(), 4);
    let step = |name: &str| timing.steps.iter().find(|step| step.name == name).expect("it was requested");
    let spent = |step: &StepTiming| step.stages().into_iter().filter_map(|(_, time)| time).sum::<i64>();
    // The branch that ended last, not the other: c takes half as long again as b, unless the machine holds b up.
    let ended = |name: &str| step(name).begins_after_ms + spent(step(name)) - step(name).clamped_ms;
    let [b, c] = ["diamond_branch_b", "diamond_branch_c"];
    let slower = &*timing.critical_path[1];
    let other = if slower == c { b } else { c };
    assert_eq!(timing.critical_path, ["diamond_start", slower, "diamond_end"]);
    assert!(ended(slower) + 20 >= ended(other), "{timing:#?}");
    let mut begins = 0;
    for name in &timing.critical_path {
        let step = step(name);
        for (stage, time) in step.stages() {
            let measured = !matches!(stage, "enqueued" | "retries");
            assert!(time.is_some() || !measured, "{name} has no {stage}: {step:?}");
        }
        // Each stage is a whole number of milliseconds, and its two clocks are not read at the same instant.
        let apart = (step.begins_after_ms - begins).abs();
        assert!(apart <= 20 + step.clamped_ms, "{name} begins {apart} ms from the end of the one before");
        begins = step.begins_after_ms + spent(step) - step.clamped_ms;
    }
    let total = timing.total_ms.expect("the task has ended");
    assert!((total - begins).abs() <= 20, "{total} ms are not {begins} ms");
    assert!(step(b).run_ms >= Some(100) && step(c).run_ms >= Some(150), "{timing:#?}");
    for stage in ["enqueued", "broker_wait", "prefetch_wait", "run", "confirm", "apply"] {
        let observed = METRICS.stage_seconds.with_label_values(&["diamond_workflow", stage]);
        assert!(observed.get_sample_count() > 0, "{stage} is not in the histogram");
    }

    let id = task.task_uuid.to_string();
    let show = ["status", &id, "--timing", "--api-url", system.client.base_url()];
    let shown = tokio::task::block_in_place(|| Program::new().run(&show)).stdout;
    let shown = String::from_utf8(shown).unwrap();
    assert!(shown.contains(&format!("* critical path: diamond_start > {slower} > diamond_end")), "{shown}");
    assert!(shown.contains(&format!("{slower} *")) && !shown.contains(&format!("{other} *")), "{shown}");
    let output =
        tokio::task::block_in_place(|| Program::new().run(&[&show[..], &["--output", "json"]].concat()));
    let shown: Value = serde_json::from_slice(&output.stdout).expect("the output is JSON");
    let shown: TaskTiming = serde_json::from_value(shown["timing"].clone()).expect("with the timing in it");
    assert_eq!(shown, timing);
    system.close().await;
}

#[tokio::test]
async fn without_step_timing_steps_are_counted_and_no_times_are_kept() {
    let mut lab = Lab::open(Kind::Embedded).await;
    let mut config = lab.desk.config.clone();
    config.worker.metrics.step_timing_enabled = false;
    let echo = |step: Step| async move { StepResult::Ok(step.context) };
    let worker = lab.worker(config, Namespace::new(lab.namespace.as_str()).step("echo", echo)).await;
    lab.desk.send(&lab.request("echo", json!(1))).await;
    lab.result().await;
    worker.shutdown().await;

    let metrics = METRICS.render();
    let ours: Vec<_> = metrics.lines().filter(|line| line.contains(&lab.namespace)).collect();
    let counted = |line: &&&str| line.starts_with("tasker_worker_steps_total{") && line.ends_with(" 1");
    assert_eq!(ours.iter().filter(counted).count(), 1, "{ours:?}");
    assert!(!ours.iter().any(|line| line.contains("_seconds_count{")), "{ours:?}");
    lab.nothing_is_left().await;
}
