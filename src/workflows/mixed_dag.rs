//! Seven steps with chains, a fork, and joins of different width: n to the 64th by another way than the tree.
//!
//! Steps before the last return the bare number.

use super::exact::{Context, Exact, Verified, even_number, product_squared, verified};
use crate::{Namespace, Step, StepResult};

/// The namespace `mixed_dag_workflow`.
pub fn namespace() -> Namespace {
    Namespace::new("mixed_dag_workflow")
        .step("dag_init", dag_init)
        .step("dag_process_left", dag_process)
        .step("dag_process_right", dag_process)
        .step("dag_validate", dag_validate)
        .step("dag_transform", dag_transform)
        .step("dag_analyze", dag_analyze)
        .step("dag_finalize", dag_finalize)
}

/// n².
///
/// # Errors
/// Permanent: `MISSING_CONTEXT_FIELD` without an `even_number`, `VALIDATION_ERROR` with an odd one.
pub async fn dag_init(step: Step<Context>) -> StepResult<Exact> {
    Ok(even_number(&step)?.squared())
}

/// The start squared: n⁴. Both sides.
///
/// # Errors
/// Permanent: without a readable result of `dag_init`.
pub async fn dag_process(step: Step) -> StepResult<Exact> {
    product_squared(&step, &["dag_init"])
}

/// Both sides multiplied, squared: n¹⁶.
///
/// # Errors
/// Permanent: without a readable result of both sides.
pub async fn dag_validate(step: Step) -> StepResult<Exact> {
    product_squared(&step, &["dag_process_left", "dag_process_right"])
}

/// The left side squared: n⁸.
///
/// # Errors
/// Permanent: without a readable result of `dag_process_left`.
pub async fn dag_transform(step: Step) -> StepResult<Exact> {
    product_squared(&step, &["dag_process_left"])
}

/// The right side squared: n⁸.
///
/// # Errors
/// Permanent: without a readable result of `dag_process_right`.
pub async fn dag_analyze(step: Step) -> StepResult<Exact> {
    product_squared(&step, &["dag_process_right"])
}

/// The three before it multiplied, squared: n⁶⁴.
///
/// # Errors
/// Permanent: without a readable result of all three.
pub async fn dag_finalize(step: Step<Context>) -> StepResult<Verified> {
    let actual = product_squared(&step, &["dag_validate", "dag_transform", "dag_analyze"])?;
    verified(&step, actual)
}
