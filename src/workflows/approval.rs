//! A decision: which approvals a purchase needs depends on its amount. What is not needed is never created.

use serde::{Deserialize, Serialize};

use crate::{Decision, Namespace, Step, StepError, StepResult};

/// The namespace `approval_workflow`.
pub fn namespace() -> Namespace {
    Namespace::new("approval_workflow")
        .step("check_purchase", check_purchase)
        .step("choose_approvals", choose_approvals)
        .step("approve_by_rule", approve)
        .step("approve_by_manager", approve)
        .step("approve_by_finance", approve)
        .step("record_approvals", record_approvals)
}

/// The task's context.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Purchase {
    /// In whole units of money.
    amount: i64,
}

/// Finds out whether there is anything to approve.
///
/// # Errors
/// Permanent, `INVALID_AMOUNT`: for less than one unit of money.
pub async fn check_purchase(step: Step<Purchase>) -> StepResult<i64> {
    match step.context.amount {
        amount @ 1.. => Ok(amount),
        _ => Err(StepError::permanent("the amount has to be 1 or more").code("INVALID_AMOUNT")),
    }
}

/// Below 1,000 the rule decides, below 5,000 the manager, from there on the manager and the finance department.
///
/// # Errors
/// Permanent: without a readable result of `check_purchase`.
pub async fn choose_approvals(step: Step) -> StepResult<Decision> {
    Ok(match step.result_of("check_purchase")? {
        ..1_000_i64 => Decision::create(["approve_by_rule"]),
        1_000..5_000 => Decision::create(["approve_by_manager"]),
        _ => Decision::create(["approve_by_manager", "approve_by_finance"]),
    })
}

/// Tells who approved (setting `approver`).
///
/// # Errors
/// Permanent: without the setting.
pub async fn approve(step: Step) -> StepResult<String> {
    step.setting("approver")?.ok_or_else(|| StepError::permanent("the template names no approver"))
}

/// What `record_approvals` returns.
#[derive(Debug, Serialize)]
pub struct Approved {
    amount: i64,
    approved_by: Vec<String>,
}

/// Gathers the approvals there were.
///
/// # Errors
/// Permanent: without a readable result of `check_purchase`.
pub async fn record_approvals(step: Step) -> StepResult<Approved> {
    let mut approved_by = Vec::new();
    for approval in ["approve_by_rule", "approve_by_manager", "approve_by_finance"] {
        approved_by.extend(step.find_result_of::<String>(approval)?);
    }
    Ok(Approved { amount: step.result_of("check_purchase")?, approved_by })
}
