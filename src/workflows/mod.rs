//! The example workflows, written as a user would write them: each module uses only what the crate
//! exports at its root, and is compiled with the cargo feature of its name.
//!
//! | module | namespace | shows |
//! |---|---|---|
//! | `linear` | `linear_workflow` | a plain chain of typed steps |
//! | `diamond` | `diamond_workflow` | parallel branches, handler settings, cancellation |
//! | `tree`, `mixed_dag` | `tree_workflow`, `mixed_dag_workflow` | shared functions, exact big integers |
//! | `order_fulfillment` | `order_fulfillment` | shared state, error codes, idempotency, compensation |
//! | `approval` | `approval_workflow` | a decision that creates some of the steps behind it |
//! | `batches` | `batch_workflow` | work divided into batches, done side by side, brought together |

#[cfg(feature = "approval")]
pub mod approval;
#[cfg(feature = "batches")]
pub mod batches;
#[cfg(feature = "diamond")]
pub mod diamond;
#[cfg(any(feature = "tree", feature = "mixed-dag"))]
pub mod exact;
#[cfg(feature = "linear")]
pub mod linear;
#[cfg(feature = "mixed-dag")]
pub mod mixed_dag;
#[cfg(feature = "order-fulfillment")]
pub mod order_fulfillment;
#[cfg(feature = "tree")]
pub mod tree;

use crate::Namespace;

/// The workflows compiled in, each with state of its own: call it once per worker.
pub fn all() -> Vec<Namespace> {
    Vec::from([
        #[cfg(feature = "linear")]
        linear::namespace(),
        #[cfg(feature = "diamond")]
        diamond::namespace(),
        #[cfg(feature = "tree")]
        tree::namespace(),
        #[cfg(feature = "mixed-dag")]
        mixed_dag::namespace(),
        #[cfg(feature = "order-fulfillment")]
        order_fulfillment::namespace(),
        #[cfg(feature = "approval")]
        approval::namespace(),
        #[cfg(feature = "batches")]
        batches::namespace(),
    ])
}

/// The outcome of checked arithmetic, if every JSON reader can hold it exactly (up to 2^53).
#[cfg(any(feature = "linear", feature = "diamond", feature = "batches"))]
fn within_json(value: Option<i64>) -> crate::StepResult<i64> {
    const LIMIT: i64 = 1 << 53;
    value.filter(|value| (-LIMIT..=LIMIT).contains(value)).ok_or_else(|| {
        crate::StepError::permanent("the result would be larger than 2^53; submit a smaller number")
            .code("NUMBER_TOO_LARGE")
    })
}
