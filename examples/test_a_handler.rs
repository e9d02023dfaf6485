//! A handler and its tests. They need no broker: a `Step` is made by hand.
//!
//! The tests stand in a program here so that it can be run: `cargo run --example test_a_handler`. In a
//! project of your own each is a `#[tokio::test]`, and `main` is not there.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tasker_worker_rust::{Step, StepError, StepResult};

#[derive(Serialize, Deserialize)]
struct Order {
    address: String,
}

#[derive(Debug, PartialEq, Serialize)]
struct Label {
    address: String,
    grams: u32,
    carrier: String,
}

async fn print_label(step: Step<Order>) -> StepResult<Label> {
    let grams: u32 = step.result_of("weigh_parcel")?;
    if step.context.address.is_empty() {
        return Err(StepError::validation("the order has no address").code("NO_ADDRESS"));
    }
    let print = async {
        // Here a real handler would talk to a printer.
        let carrier = step.setting("carrier")?.unwrap_or_else(|| "pigeon".to_owned());
        Ok(Label { address: step.context.address.clone(), grams, carrier })
    };
    tokio::select! {
        biased;
        () = step.cancelled() => Err(StepError::retryable("cancelled before the label was printed")),
        label = print => label,
    }
}

fn order() -> Order {
    Order { address: "12 Analytical Row".to_owned() }
}

async fn a_label_has_the_weight_of_the_parcel() {
    // The context and the results go through JSON, as they would on their way through the broker.
    let step = Step::for_test(order()).with_result("weigh_parcel", 250);
    let label = print_label(step).await.expect("a weighed parcel gets a label");
    assert_eq!((label.grams, label.carrier.as_str()), (250, "pigeon"));
}

async fn the_template_chooses_the_carrier() {
    let step = Step::for_test(order())
        .with_result("weigh_parcel", 250)
        .with_settings(json!({ "carrier": "snail" }))
        .with_deadline(Duration::from_secs(5));
    let label = print_label(step).await.expect("a weighed parcel gets a label");
    assert_eq!(label.carrier, "snail");
}

async fn an_order_without_an_address_is_never_tried_again() {
    let step = Step::for_test(Order { address: String::new() }).with_result("weigh_parcel", 250);
    let error = print_label(step).await.expect_err("there is nowhere to send it");
    assert_eq!((error.error_code(), error.is_retryable()), (Some("NO_ADDRESS"), false));
}

async fn without_a_weight_the_error_names_both_steps() {
    let error = print_label(Step::for_test(order())).await.expect_err("nobody weighed the parcel");
    assert!(error.message().contains("step_under_test") && error.message().contains("weigh_parcel"));
}

async fn a_cancelled_step_prints_nothing() {
    let step = Step::for_test(order()).with_result("weigh_parcel", 250).with_attempt(2);
    step.cancel();
    let error = print_label(step).await.expect_err("it was cancelled");
    assert_eq!(error.message(), "cancelled before the label was printed");
}

#[tokio::main]
async fn main() {
    a_label_has_the_weight_of_the_parcel().await;
    the_template_chooses_the_carrier().await;
    an_order_without_an_address_is_never_tried_again().await;
    without_a_weight_the_error_names_both_steps().await;
    a_cancelled_step_prints_nothing().await;
    println!("5 tests passed");
}
