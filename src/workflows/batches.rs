//! Batches: the squares of 1 to n are added up in parts, and the parts to the sum. 1,000 becomes 333,833,500.

use serde::{Deserialize, Serialize};

use super::within_json;
use crate::{Batch, Batches, Namespace, Step, StepResult};

/// The namespace `batch_workflow`.
pub fn namespace() -> Namespace {
    Namespace::new("batch_workflow")
        .step("divide_range", divide_range)
        .step("add_squares", add_squares)
        .step("add_parts", add_parts)
}

/// The task's context.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Range {
    /// The last number of the range, which begins at 1.
    last: u64,
}

/// Divides the range into batches of the size that the template gives.
///
/// # Errors
/// None; the context is read by the worker.
pub async fn divide_range(step: Step<Range>) -> StepResult<Batches> {
    Ok(Batches::split(step.context.last, step.batch_config().batch_size.into()))
}

/// Adds up the squares of one batch: of the numbers behind `start`, up to `end`.
///
/// # Errors
/// Permanent: without a readable batch, or `NUMBER_TOO_LARGE` beyond 2^53.
pub async fn add_squares(step: Step) -> StepResult<i64> {
    let Batch { start, end, .. } = step.batch::<i64>()?;
    let add = |sum: i64, n: i64| sum.checked_add(n.checked_mul(n)?);
    within_json((start + 1..=end).try_fold(0, add))
}

/// What `add_parts` returns.
#[derive(Debug, Serialize)]
pub struct Sum {
    parts: usize,
    sum: i64,
}

/// Adds up the batches.
///
/// # Errors
/// Permanent: without readable results of the batches, or `NUMBER_TOO_LARGE` beyond 2^53.
pub async fn add_parts(step: Step) -> StepResult<Sum> {
    let parts: Vec<i64> = step.results_of("add_squares")?;
    let sum = parts.iter().try_fold(0_i64, |sum, part| sum.checked_add(*part));
    Ok(Sum { parts: parts.len(), sum: within_json(sum)? })
}
