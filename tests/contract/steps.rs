//! What a handler can ask its step, and what a handler's test can give it.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tasker_worker_rust::{Step, StepError};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    id: String,
    /// Written by nobody, so that a value set before the round trip is gone after it.
    #[serde(skip)]
    note: Option<String>,
    #[serde(default = "first_class")]
    shipping: String,
}

fn first_class() -> String {
    "first class".to_owned()
}

fn order() -> Order {
    Order { id: "A-1".to_owned(), note: Some("in memory only".to_owned()), shipping: first_class() }
}

fn parts(error: &StepError) -> (String, Option<&str>, bool) {
    (error.message().to_owned(), error.error_code(), error.is_retryable())
}

#[test]
fn the_context_of_a_test_goes_through_json() {
    let step = Step::for_test(order());
    assert_eq!(step.context, Order { note: None, ..order() });
    assert_eq!(step.request().task_data.get(), r#"{"id":"A-1","shipping":"first class"}"#);
}

#[test]
fn a_context_that_json_cannot_carry_fails_the_test_at_once() {
    let panic = std::panic::catch_unwind(|| Step::for_test(f64::INFINITY)).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.starts_with("the context reads back from its own JSON"), "{text}");
}

#[test]
fn the_result_of_an_ancestor_is_read_into_any_type_that_fits() {
    let step = Step::for_test(order()).with_result("validate_order", json!({ "total": 12, "items": [1, 2] }));
    let whole: Value = step.result_of("validate_order").unwrap();
    assert_eq!(whole["total"], 12);

    #[derive(Deserialize)]
    struct Total {
        total: u64,
    }
    assert_eq!(step.result_of::<Total>("validate_order").unwrap().total, 12);
    assert_eq!(step.find_result_of::<Total>("validate_order").unwrap().map(|t| t.total), Some(12));
    assert!(step.find_result_of::<Total>("reserve_inventory").unwrap().is_none());
}

#[test]
fn a_missing_result_names_both_steps_and_the_ancestors_there_are() {
    let step = Step::for_test(order());
    let error = step.result_of::<Value>("validate_order").unwrap_err();
    assert_eq!(
        parts(&error),
        (
            r#"step "step_under_test" needs the result of "validate_order", which is not among its ancestors (it has none)"#.to_owned(),
            Some("MISSING_DEPENDENCY"),
            false
        )
    );

    let step = step.with_result("quote", 1).with_result("reserve", 2);
    let error = step.result_of::<Value>("validate_order").unwrap_err();
    assert!(error.message().ends_with("which is not among its ancestors (quote, reserve)"), "{error}");
}

#[test]
fn an_ill_typed_result_names_both_steps_and_what_was_expected() {
    let step = Step::for_test(order()).with_result("validate_order", "twelve");
    let expected = (
        r#"step "step_under_test" cannot read the result of "validate_order": invalid type: string "twelve", expected u64 at line 1 column 8"#.to_owned(),
        Some("INVALID_DEPENDENCY"),
        false,
    );
    assert_eq!(parts(&step.result_of::<u64>("validate_order").unwrap_err()), expected);
    assert_eq!(parts(&step.find_result_of::<u64>("validate_order").unwrap_err()), expected);
}

#[test]
fn settings_are_read_by_name_and_type() {
    let step =
        Step::for_test(order()).with_settings(json!({ "limit": 3, "url": null, "deep": { "a": [1] } }));
    assert_eq!(step.setting::<u8>("limit").unwrap(), Some(3));
    assert_eq!(step.setting::<String>("url").unwrap(), None);
    assert_eq!(step.setting::<String>("absent").unwrap(), None);
    assert_eq!(step.setting::<Value>("deep").unwrap(), Some(json!({ "a": [1] })));
    assert_eq!(Step::for_test(order()).setting::<u8>("limit").unwrap(), None);
    assert_eq!(Step::for_test(order()).with_settings(Value::Null).setting::<u8>("limit").unwrap(), None);
}

#[test]
fn an_ill_typed_setting_names_step_and_setting() {
    let step = Step::for_test(order()).with_settings(json!({ "limit": "three" }));
    assert_eq!(
        parts(&step.setting::<u8>("limit").unwrap_err()),
        (
            r#"step "step_under_test", handler setting "limit": invalid type: string "three", expected u8"#
                .to_owned(),
            Some("INVALID_SETTING"),
            false
        )
    );
    let step = Step::for_test(order()).with_settings(json!([1]));
    assert_eq!(step.setting::<u8>("limit").unwrap_err().error_code(), Some("INVALID_SETTING"));
}

#[test]
fn the_idempotency_key_is_stable_over_attempts_and_unlike_any_other_steps() {
    let step = Step::for_test(order());
    let key = step.idempotency_key();
    assert!(!key.is_empty());
    let step = step.with_attempt(2);
    assert_eq!((step.attempt(), step.idempotency_key()), (2, key.clone()));
    assert_ne!(Step::for_test(order()).idempotency_key(), key);
}

#[test]
fn a_step_tells_what_its_request_says() {
    let step = Step::for_test(order());
    let request = step.request();
    assert_eq!((step.name(), step.namespace()), ("step_under_test", "test"));
    assert_eq!((step.attempt(), step.max_attempts()), (1, 3));
    assert_eq!((step.task_uuid(), step.step_uuid()), (request.task_uuid, request.step_uuid));
    assert_eq!(step.correlation_id(), request.correlation_id);
    assert_eq!(step.deadline(), None);
}

#[test]
fn a_deadline_lies_as_far_ahead_as_asked_for() {
    let before = Instant::now();
    let deadline = Step::for_test(order()).with_deadline(Duration::from_secs(60)).deadline().unwrap();
    assert!(deadline >= before + Duration::from_secs(60));
    assert!(deadline <= Instant::now() + Duration::from_secs(60));
}

#[tokio::test]
async fn a_cancelled_step_tells_its_handler() {
    let step = Step::for_test(order());
    assert!(!step.is_cancelled());
    step.cancel();
    assert!(step.is_cancelled());
    step.cancelled().await;
}
