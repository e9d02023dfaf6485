//! What the handler of a decision step returns.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which of the steps behind a decision are created. Those it does not name never exist, nor does what waits
/// for them; a deferred convergence waits for those of its dependencies that do.
///
/// ```
/// use serde::Deserialize;
/// use tasker_worker_rust::{Decision, Step, StepResult};
///
/// #[derive(Deserialize)]
/// struct Purchase { amount: u64 }
///
/// async fn route(step: Step<Purchase>) -> StepResult<Decision> {
///     Ok(match step.context.amount {
///         0 => Decision::none(),
///         1..1_000 => Decision::create(["auto_approve"]),
///         _ => Decision::create(["manager_approval", "finance_review"]),
///     })
/// }
/// # assert_eq!(
/// #     serde_json::to_string(&Decision::create(["a"])).unwrap(),
/// #     r#"{"decision_point_outcome":{"type":"create_steps","step_names":["a"]}}"#
/// # );
/// ```
///
/// A handler that has more to tell returns a struct of its own with a field of this type and
/// `#[serde(flatten)]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Decision {
    decision_point_outcome: Branches,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Branches {
    NoBranches,
    CreateSteps { step_names: Vec<String> },
}

impl Decision {
    /// Create these steps. They have to be direct dependents of the decision; otherwise it fails for good.
    pub fn create<S: Into<String>>(step_names: impl IntoIterator<Item = S>) -> Self {
        let step_names = step_names.into_iter().map(Into::into).collect();
        Self { decision_point_outcome: Branches::CreateSteps { step_names } }
    }

    /// Create none of them.
    pub fn none() -> Self {
        Self { decision_point_outcome: Branches::NoBranches }
    }

    /// The steps to create.
    pub fn step_names(&self) -> &[String] {
        match &self.decision_point_outcome {
            Branches::NoBranches => &[],
            Branches::CreateSteps { step_names } => step_names,
        }
    }
}
