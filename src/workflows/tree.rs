//! A root, two branches with two leaves each, and a step that brings the leaves together: n to the 64th.
//!
//! Every step squares what it is given. Steps in between return the bare number.

use super::exact::{Context, Exact, Verified, even_number, product_squared, verified};
use crate::{Namespace, Step, StepResult};

/// The namespace `tree_workflow`.
pub fn namespace() -> Namespace {
    Namespace::new("tree_workflow")
        .step("tree_root", tree_root)
        .step("tree_branch_left", tree_branch)
        .step("tree_branch_right", tree_branch)
        .step("tree_leaf_d", tree_left_leaf)
        .step("tree_leaf_e", tree_left_leaf)
        .step("tree_leaf_f", tree_right_leaf)
        .step("tree_leaf_g", tree_right_leaf)
        .step("tree_final_convergence", tree_final_convergence)
}

/// n².
///
/// # Errors
/// Permanent: `MISSING_CONTEXT_FIELD` without an `even_number`, `VALIDATION_ERROR` with an odd one.
pub async fn tree_root(step: Step<Context>) -> StepResult<Exact> {
    Ok(even_number(&step)?.squared())
}

/// The root squared: n⁴. Both branches.
///
/// # Errors
/// Permanent: without a readable result of `tree_root`.
pub async fn tree_branch(step: Step) -> StepResult<Exact> {
    product_squared(&step, &["tree_root"])
}

/// The left branch squared: n⁸. Leaves d and e.
///
/// # Errors
/// Permanent: without a readable result of `tree_branch_left`.
pub async fn tree_left_leaf(step: Step) -> StepResult<Exact> {
    product_squared(&step, &["tree_branch_left"])
}

/// The right branch squared: n⁸. Leaves f and g.
///
/// # Errors
/// Permanent: without a readable result of `tree_branch_right`.
pub async fn tree_right_leaf(step: Step) -> StepResult<Exact> {
    product_squared(&step, &["tree_branch_right"])
}

/// The product of all leaves, squared: n⁶⁴.
///
/// # Errors
/// Permanent: without a readable result of every leaf.
pub async fn tree_final_convergence(step: Step<Context>) -> StepResult<Verified> {
    let leaves = ["tree_leaf_d", "tree_leaf_e", "tree_leaf_f", "tree_leaf_g"];
    verified(&step, product_squared(&step, &leaves)?)
}
