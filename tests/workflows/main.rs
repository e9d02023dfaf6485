//! The example workflows, step by step, without a broker.

#![cfg(feature = "all-workflows")]

mod diamond;
mod linear;
mod order_fulfillment;
mod powers;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tasker_worker_rust::{HandlerRegistry, Namespace, Step, StepError, StepHandler, StepResult, workflows};

/// Earlier steps and what they returned.
type Earlier<'a> = &'a [(&'a str, Value)];

fn step<In: Serialize + DeserializeOwned>(context: Value, earlier: Earlier) -> Step<In> {
    let context = serde_json::from_value(context).expect("the context fits the handler");
    earlier.iter().fold(Step::for_test(context), |step, (name, result)| step.with_result(name, result))
}

/// Runs a handler and hands back its result as it would go over the wire.
async fn call<In, Out: Serialize>(handler: &impl StepHandler<In, Out>, step: Step<In>) -> StepResult<Value> {
    let result = handler.call(step).await?;
    Ok(serde_json::from_str(&serde_json::to_string(&result)?)?)
}

fn code<T: std::fmt::Debug>(result: Result<T, StepError>) -> String {
    result.expect_err("the step fails").error_code().expect("the error has a code").to_owned()
}

fn steps_of(namespace: Namespace) -> Vec<String> {
    let name = namespace.name().to_owned();
    let mut registry = HandlerRegistry::new();
    registry.add(namespace);
    registry.steps(&name).into_iter().map(str::to_owned).collect()
}

/// Drops what differs from run to run.
fn without_timestamps(mut result: Value) -> Value {
    let fields = result.as_object_mut().expect("the result is an object");
    let before = fields.len();
    fields.retain(|name, value| {
        !name.ends_with("_timestamp")
            || value.as_str().is_none_or(|text| text.parse::<jiff::Timestamp>().is_err())
    });
    assert_eq!(fields.len(), before - 1, "every result tells when it was made");
    result
}

#[test]
fn all_workflows_are_offered() {
    let names: Vec<_> = workflows::all().iter().map(|namespace| namespace.name().to_owned()).collect();
    assert_eq!(
        names,
        [
            "linear_workflow",
            "diamond_workflow",
            "tree_workflow",
            "mixed_dag_workflow",
            "order_fulfillment",
            "approval_workflow",
            "batch_workflow"
        ]
    );
}
