use std::time::Duration;

use serde_json::{Value, json};
use tasker_worker_rust::workflows::diamond::{
    Context, diamond_branch_b, diamond_branch_c, diamond_end, diamond_start, namespace,
};
use tasker_worker_rust::{Step, StepResult};
use tokio::time::Instant;

use crate::{call, step, steps_of, without_timestamps};

async fn run(context: Value) -> StepResult<[Value; 4]> {
    let start = call(&diamond_start, step(context, &[])).await?;
    let earlier = [("diamond_start", start.clone())];
    let b = call(&diamond_branch_b, step(json!({}), &earlier));
    let c = call(&diamond_branch_c, step(json!({}), &earlier));
    let (b, c) = tokio::try_join!(b, c)?;
    let earlier =
        [("diamond_start", start.clone()), ("diamond_branch_b", b.clone()), ("diamond_branch_c", c.clone())];
    let end = call(&diamond_end, step(json!({}), &earlier)).await?;
    Ok([start, b, c, end])
}

fn branch() -> Step {
    let start = json!({
        "branch_data": { "value_for_b": 20, "value_for_c": 30 },
        "start_timestamp": "2025-01-01T00:00:00Z",
        "processing_info": "",
    });
    step(json!({}), &[("diamond_start", start)])
}

#[tokio::test(start_paused = true)]
async fn ten_becomes_120_and_60_and_180() {
    let [start, b, c, end] = run(json!({ "base_value": 10 })).await.unwrap();
    assert_eq!(
        without_timestamps(start),
        json!({
            "branch_data": { "value_for_b": 20, "value_for_c": 30 },
            "processing_info": "Started by Rust diamond start",
        })
    );
    assert_eq!(
        without_timestamps(b),
        json!({ "branch_b_result": 120, "processing_info": "Processed by Rust diamond branch B" })
    );
    assert_eq!(
        without_timestamps(c),
        json!({ "branch_c_result": 60, "processing_info": "Processed by Rust diamond branch C" })
    );
    assert_eq!(
        without_timestamps(end),
        json!({
            "final_result": 180,
            "branch_results": { "branch_b": 120, "branch_c": 60 },
            "processing_info": "Combined by Rust diamond end",
        })
    );
}

#[tokio::test(start_paused = true)]
async fn the_number_is_ten_where_missing() {
    let [_, _, _, end] = run(json!({})).await.unwrap();
    assert_eq!(end["final_result"], 180);
}

#[test]
fn a_number_of_the_wrong_type_does_not_fit_the_handler() {
    for wrong in [json!("10"), json!(0.5), json!(null), json!({})] {
        let read = serde_json::from_value::<Context>(json!({ "base_value": wrong }));
        assert!(read.is_err(), "{wrong}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_branches_work_100_and_150_ms_unless_a_setting_says_otherwise() {
    async fn took(run: impl Future<Output = StepResult<Value>>) -> Duration {
        let started = Instant::now();
        run.await.unwrap();
        started.elapsed()
    }
    assert_eq!(took(call(&diamond_branch_b, branch())).await, Duration::from_millis(100));
    assert_eq!(took(call(&diamond_branch_c, branch())).await, Duration::from_millis(150));
    let set = |delay| branch().with_settings(json!({ "delay_ms": delay }));
    assert_eq!(took(call(&diamond_branch_b, set(7))).await, Duration::from_millis(7));
    assert_eq!(took(call(&diamond_branch_c, set(9))).await, Duration::from_millis(9));
    assert_eq!(took(call(&diamond_branch_c, set(0))).await, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_setting_that_is_no_delay_is_a_permanent_error() {
    let error = call(&diamond_branch_b, branch().with_settings(json!({ "delay_ms": -1 }))).await.unwrap_err();
    assert_eq!((error.error_code(), error.is_retryable()), (Some("INVALID_SETTING"), false));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_branch_stops_at_once_without_a_result() {
    let started = Instant::now();
    let step = branch().with_settings(json!({ "delay_ms": 60_000 }));
    let running = call(&diamond_branch_b, step.clone());
    let (result, ()) = tokio::join!(running, async { step.cancel() });
    assert!(result.unwrap_err().is_retryable());
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_result_that_json_cannot_hold_exactly_is_a_permanent_error() {
    for number in [i64::MAX, i64::MIN, 1 << 52, (1 << 53) / 6 + 1, (1 << 53) / 8] {
        let error = run(json!({ "base_value": number })).await.unwrap_err();
        assert_eq!((error.error_code(), error.is_retryable()), (Some("NUMBER_TOO_LARGE"), false), "{number}");
    }
}

#[tokio::test]
async fn the_end_needs_both_branches() {
    let b =
        json!({ "branch_b_result": 1, "branch_b_timestamp": "2025-01-01T00:00:00Z", "processing_info": "" });
    let error = call(&diamond_end, step(json!({}), &[("diamond_branch_b", b)])).await.unwrap_err();
    assert_eq!((error.error_code(), error.is_retryable()), (Some("MISSING_DEPENDENCY"), false));
    assert!(error.message().contains("diamond_branch_c"), "{error}");
}

#[test]
fn the_namespace_has_the_four_steps() {
    assert_eq!(
        steps_of(namespace()),
        ["diamond_branch_b", "diamond_branch_c", "diamond_end", "diamond_start"]
    );
}
