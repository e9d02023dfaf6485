//! One step, two branches side by side, one step that joins them. 10 becomes 120 and 60, together 180.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::within_json;
use crate::{Namespace, Step, StepError, StepResult};

/// The namespace `diamond_workflow`.
pub fn namespace() -> Namespace {
    Namespace::new("diamond_workflow")
        .step("diamond_start", diamond_start)
        .step("diamond_branch_b", diamond_branch_b)
        .step("diamond_branch_c", diamond_branch_c)
        .step("diamond_end", diamond_end)
}

/// The task's context: `base_value`, an integer, 10 where missing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Context {
    #[serde(default = "ten")]
    base_value: i64,
}

fn ten() -> i64 {
    10
}

/// What `diamond_start` returns.
#[derive(Debug, Serialize, Deserialize)]
pub struct Started {
    branch_data: BranchData,
    start_timestamp: Timestamp,
    processing_info: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct BranchData {
    value_for_b: i64,
    value_for_c: i64,
}

/// Gives each branch its number: twice and three times the task's.
///
/// # Errors
/// Permanent, `NUMBER_TOO_LARGE`: beyond 2^53. So do the steps after it.
pub async fn diamond_start(step: Step<Context>) -> StepResult<Started> {
    let base_value = step.context.base_value;
    Ok(Started {
        branch_data: BranchData {
            value_for_b: within_json(base_value.checked_mul(2))?,
            value_for_c: within_json(base_value.checked_mul(3))?,
        },
        start_timestamp: Timestamp::now(),
        processing_info: "Started by Rust diamond start".to_owned(),
    })
}

/// What `diamond_branch_b` returns.
#[derive(Debug, Serialize, Deserialize)]
pub struct BranchB {
    branch_b_result: i64,
    branch_b_timestamp: Timestamp,
    processing_info: String,
}

/// Adds a hundred, after 100 ms of work (setting `delay_ms`).
///
/// # Errors
/// Retryable when cut short. Permanent: without a readable result of `diamond_start`, or `NUMBER_TOO_LARGE`.
pub async fn diamond_branch_b(step: Step) -> StepResult<BranchB> {
    let Started { branch_data, .. } = step.result_of("diamond_start")?;
    work(&step, 100).await?;
    Ok(BranchB {
        branch_b_result: within_json(branch_data.value_for_b.checked_add(100))?,
        branch_b_timestamp: Timestamp::now(),
        processing_info: "Processed by Rust diamond branch B".to_owned(),
    })
}

/// What `diamond_branch_c` returns.
#[derive(Debug, Serialize, Deserialize)]
pub struct BranchC {
    branch_c_result: i64,
    branch_c_timestamp: Timestamp,
    processing_info: String,
}

/// Doubles, after 150 ms of work (setting `delay_ms`).
///
/// # Errors
/// Retryable when cut short. Permanent: without a readable result of `diamond_start`, or `NUMBER_TOO_LARGE`.
pub async fn diamond_branch_c(step: Step) -> StepResult<BranchC> {
    let Started { branch_data, .. } = step.result_of("diamond_start")?;
    work(&step, 150).await?;
    Ok(BranchC {
        branch_c_result: within_json(branch_data.value_for_c.checked_mul(2))?,
        branch_c_timestamp: Timestamp::now(),
        processing_info: "Processed by Rust diamond branch C".to_owned(),
    })
}

/// What `diamond_end` returns.
#[derive(Debug, Serialize)]
pub struct Ended {
    final_result: i64,
    branch_results: BranchResults,
    end_timestamp: Timestamp,
    processing_info: String,
}

#[derive(Debug, Serialize)]
struct BranchResults {
    branch_b: i64,
    branch_c: i64,
}

/// Adds up the branches.
///
/// # Errors
/// Permanent: without a readable result of both branches, or `NUMBER_TOO_LARGE`.
pub async fn diamond_end(step: Step) -> StepResult<Ended> {
    let BranchB { branch_b_result, .. } = step.result_of("diamond_branch_b")?;
    let BranchC { branch_c_result, .. } = step.result_of("diamond_branch_c")?;
    Ok(Ended {
        final_result: within_json(branch_b_result.checked_add(branch_c_result))?,
        branch_results: BranchResults { branch_b: branch_b_result, branch_c: branch_c_result },
        end_timestamp: Timestamp::now(),
        processing_info: "Combined by Rust diamond end".to_owned(),
    })
}

/// Stands for real work: waits, but not for a step that nobody wants any more.
async fn work(step: &Step, default_ms: u64) -> StepResult<()> {
    let delay = Duration::from_millis(step.setting("delay_ms")?.unwrap_or(default_ms));
    tokio::select! {
        biased;
        () = step.cancelled() => Err(StepError::retryable("told to stop before the branch's work was done")),
        () = sleep(delay) => Ok(()),
    }
}
