//! What goes over the wire, against golden files that other languages can be tested with too.

use serde_json::{Value, json};
use tasker_worker_rust::message::{ControlMessage, StepExecutionRequest, StepExecutionResult};

use crate::values::{self, sent};

macro_rules! golden {
    ($name:literal) => {
        include_str!(concat!("golden/", $name, ".json"))
    };
}

fn value(golden: &str) -> Value {
    serde_json::from_str(golden).unwrap()
}

fn request_of(golden: &str) -> StepExecutionRequest {
    StepExecutionRequest::decode(golden.as_bytes()).unwrap()
}

/// The error for a minimal request with one field replaced, or taken out where `value` is null.
fn refusal(field: &str, value_instead: Value) -> String {
    let mut request = value(golden!("request_minimal"));
    match value_instead {
        Value::Null => drop(request.as_object_mut().unwrap().remove(field)),
        other => request[field] = other,
    }
    StepExecutionRequest::decode(request.to_string().as_bytes()).unwrap_err().to_string()
}

#[test]
fn golden_requests_read_as_expected() {
    for (golden, expected) in [
        (golden!("request_full"), values::request_full()),
        (golden!("request_minimal"), values::request_minimal()),
        (golden!("request_older_spelling"), values::request_older_spelling()),
        (golden!("request_retry"), values::request_retry()),
        (golden!("request_checkpoint"), values::request_checkpoint()),
    ] {
        assert_eq!(request_of(golden), expected);
    }
}

#[test]
fn requests_are_written_as_in_the_golden_files() {
    for (golden, message) in [
        (golden!("request_full"), values::request_full()),
        (golden!("request_retry"), values::request_retry()),
        (golden!("request_checkpoint"), values::request_checkpoint()),
    ] {
        assert_eq!(sent(&message), value(golden));
        assert_eq!(serde_json::from_slice::<Value>(&message.encode()).unwrap(), value(golden));
    }
}

#[test]
fn golden_results_read_and_are_written_as_expected() {
    for (golden, message) in [
        (golden!("result_completed"), values::result_completed()),
        (golden!("result_failed"), values::result_failed()),
        (golden!("result_cancelled"), values::result_cancelled()),
    ] {
        assert_eq!(StepExecutionResult::decode(golden.as_bytes()).unwrap(), message);
        assert_eq!(serde_json::from_slice::<Value>(&message.encode()).unwrap(), value(golden));
    }
}

#[test]
fn the_golden_control_message_reads_and_is_written_as_expected() {
    let golden = golden!("control_cancel_task");
    let message: ControlMessage = serde_json::from_str(golden).unwrap();
    assert_eq!(message, values::control_cancel_task());
    assert_eq!(sent(&message), value(golden));
}

#[test]
fn context_results_and_settings_travel_byte_for_byte() {
    let golden = golden!("request_full");
    let written = String::from_utf8(request_of(golden).encode()).unwrap();
    for text in [
        r#"{"zeta": 12345678901234567890123, "alpha": 1.10, "list": [ 1e2, -0.0 ], "text": "caf\u00e9 é"}"#,
        r#"{"total": 98765432109876543210.50, "items": []}"#,
        r#"{"gateway": "test", "limit": 1.10}"#,
    ] {
        assert!(golden.contains(text), "the golden file has no {text}");
        assert!(written.contains(text), "{text} is not in {written}");
    }

    let golden = golden!("result_completed");
    let text = r#"{"zeta": 12345678901234567890123, "alpha": 1.10}"#;
    let written =
        String::from_utf8(StepExecutionResult::decode(golden.as_bytes()).unwrap().encode()).unwrap();
    assert!(golden.contains(text) && written.contains(text), "{text} is not in {written}");
}

#[test]
fn a_context_of_null_stays_null_and_an_absent_one_is_empty() {
    let mut request = value(golden!("request_minimal"));
    assert_eq!(request_of(&request.to_string()).task_data.get(), "{}");
    request["task_data"] = Value::Null;
    assert_eq!(request_of(&request.to_string()).task_data.get(), "null");
}

#[test]
fn an_older_request_is_passed_on_in_todays_spelling() {
    let written = sent(&request_of(golden!("request_older_spelling")));
    for older in ["task_context", "previous_results", "handler_class", "handler_config", "metadata"] {
        assert!(written.get(older).is_none(), "{older} is still in {written}");
    }
    assert_eq!(written["handler"]["initialization"], json!({ "operation": "square" }));
    assert_eq!(
        written["sequence_data"][0],
        json!({ "step_name": "linear_step_1", "result": { "generated_value": 12 } })
    );
    assert_eq!((&written["attempt"], &written["max_attempts"]), (&json!(2), &json!(4)));
}

#[test]
fn todays_spelling_wins_over_the_older_one() {
    let mut request = value(golden!("request_older_spelling"));
    request["attempt"] = json!(3);
    request["max_attempts"] = json!(9);
    request["timeout_ms"] = json!(77);
    request["handler"] = json!({ "callable": "linear_step_3" });
    let request = request_of(&request.to_string());
    assert_eq!((request.attempt, request.max_attempts, request.timeout_ms), (3, 9, Some(77)));
    assert_eq!(request.handler.callable, "linear_step_3");
    assert_eq!(request.handler.initialization.get(), "{}");
}

#[test]
fn context_or_results_in_both_spellings_are_refused() {
    let mut request = value(golden!("request_older_spelling"));
    request["task_data"] = json!({});
    let error = StepExecutionRequest::decode(request.to_string().as_bytes()).unwrap_err().to_string();
    assert!(error.starts_with("duplicate field `task_data`"), "{error}");
    let mut request = value(golden!("request_older_spelling"));
    request["sequence_data"] = json!([]);
    let error = StepExecutionRequest::decode(request.to_string().as_bytes()).unwrap_err().to_string();
    assert!(error.starts_with("duplicate field `sequence_data`"), "{error}");
}

#[test]
fn unknown_fields_are_ignored() {
    // As text, so that nothing else changes.
    let mut request = golden!("request_full").to_owned();
    for (object, unknown) in [
        ("{\n", r#""priority": {"of": ["a", "later", "version"]}, "metadata": null,"#),
        (r#""handler": {"#, r#""timeout": 1,"#),
        (r#""retry": {"#, r#""jitter": "full","#),
        (r#"{"step_name": "validate_order","#, r#""step_uuid": "x","#),
    ] {
        assert!(request.contains(object), "{object}");
        request = request.replacen(object, &format!("{object}{unknown}"), 1);
    }
    assert_eq!(request_of(&request), values::request_full());

    let mut result = value(golden!("result_failed"));
    result["orchestration_metadata"] = json!({});
    result["error"]["backtrace"] = json!([]);
    result["metadata"]["custom"] = json!({});
    let read = StepExecutionResult::decode(result.to_string().as_bytes()).unwrap();
    assert_eq!(read.error.as_ref().map(|e| e.message.as_str()), Some("the card was declined"));
    assert_eq!(read.metadata, values::result_failed().metadata);
}

#[test]
fn only_an_object_is_taken_for_a_whole_result() {
    let mut request = value(golden!("request_minimal"));
    request["previous_results"] = json!({
        "whole": { "success": true, "result": 1 },
        "list": [true, 2],
        "bare": { "success": true },
    });
    let read = request_of(&request.to_string()).sequence_data;
    let results: Vec<_> = read.iter().map(|o| (o.step_name.as_str(), o.result.get())).collect();
    assert_eq!(results, [("bare", r#"{"success":true}"#), ("list", "[true,2]"), ("whole", "1")]);
}

#[test]
fn optional_objects_may_be_incomplete_or_null() {
    let mut request = value(golden!("request_minimal"));
    for field in ["handler", "retry", "timeout_ms", "sequence_data", "correlation_id", "created_at"] {
        request[field] = Value::Null;
    }
    assert_eq!(request_of(&request.to_string()), values::request_minimal());
    request["retry"] = json!({ "base_ms": 5 });
    request["handler"] = json!({});
    let read = request_of(&request.to_string());
    assert_eq!((read.retry.base_ms, read.retry.max_ms), (5, 30_000));
    assert_eq!(read.handler, values::request_minimal().handler);
}

#[test]
fn a_result_may_come_from_a_worker_that_says_less() {
    let read = StepExecutionResult::decode(
        br#"{
            "task_uuid": "0198a3c0-5b7e-7d10-9c52-6f6a0a5d1e01",
            "step_uuid": "0198a3c0-5b7e-7d10-9c52-6f6a0a5d1e02",
            "namespace": "a", "step_name": "b", "success": false, "status": "error",
            "result": {}, "error": {"message": "no"}
        }"#,
    )
    .unwrap();
    assert_eq!((read.attempt, read.status.as_str(), read.data.get()), (1, "failed", "{}"));
    let error = read.error.unwrap();
    assert_eq!((error.error_type.as_str(), error.retryable), ("UnexpectedError", false));
}

#[test]
fn a_missing_field_is_named() {
    for field in ["task_uuid", "step_uuid", "namespace", "step_name"] {
        let error = refusal(field, Value::Null);
        assert!(error.starts_with(&format!("missing field `{field}`")), "{error}");
    }
    let mut result = value(golden!("result_completed"));
    result.as_object_mut().unwrap().remove("status");
    let error = StepExecutionResult::decode(result.to_string().as_bytes()).unwrap_err().to_string();
    assert!(error.starts_with("missing field `status`"), "{error}");
}

#[test]
fn requests_that_make_no_sense_are_refused_in_a_sentence() {
    let too_long = "n".repeat(65);
    for (field, value, expected) in [
        (
            "namespace",
            json!("a.b"),
            r#"namespace "a.b" is not 1 to 64 characters of A-Z a-z 0-9 _ -"#.to_owned(),
        ),
        ("namespace", json!(""), r#"namespace "" is not 1 to 64 characters of A-Z a-z 0-9 _ -"#.to_owned()),
        (
            "namespace",
            json!(too_long),
            format!("namespace {too_long:?} is not 1 to 64 characters of A-Z a-z 0-9 _ -"),
        ),
        ("step_name", json!(""), "step_name is empty".to_owned()),
        ("attempt", json!(0), "attempt is 0; attempts are counted from 1".to_owned()),
        (
            "correlation_id",
            json!("é".repeat(128)),
            "correlation_id has 256 bytes; 255 are allowed".to_owned(),
        ),
        (
            "protocol_version",
            json!(2),
            "protocol_version 2 is not understood; this worker speaks up to 1".to_owned(),
        ),
    ] {
        assert_eq!(refusal(field, value), expected);
    }
}

#[test]
fn values_of_the_wrong_type_are_refused_with_what_was_expected() {
    for (field, value, expected) in [
        ("attempt", json!(-1), "invalid value: integer `-1`, expected u32"),
        ("step_uuid", json!("7"), "UUID parsing failed"),
        ("retry", json!({ "backoff": "sometimes" }), "unknown variant `sometimes`, expected one of"),
        (
            "sequence_data",
            json!("linear_step_1"),
            r#"invalid type: string "linear_step_1", expected a list of {step_name, result}, or a map of step name to result"#,
        ),
    ] {
        let error = refusal(field, value);
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn broken_json_is_refused_with_its_position() {
    for (body, expected) in [
        ("", "EOF while parsing a value at line 1 column 0"),
        ("not json", "expected ident at line 1 column 2"),
        ("[]", "invalid length 1, expected struct Request"),
        ("\"text\"", r#"invalid type: string "text", expected struct Request"#),
    ] {
        let error = StepExecutionRequest::decode(body.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{body:?}: {error}");
    }
    assert!(StepExecutionRequest::decode(b"\xff\xfe").is_err());
    let two = format!("{} {{}}", golden!("request_minimal"));
    let error = StepExecutionRequest::decode(two.as_bytes()).unwrap_err().to_string();
    assert!(error.starts_with("trailing characters at line "), "{error}");
}

#[test]
fn a_request_cut_off_anywhere_is_refused() {
    let golden = golden!("request_full").trim_end().as_bytes();
    for end in 0..golden.len() {
        assert!(StepExecutionRequest::decode(&golden[..end]).is_err(), "cut after {end} bytes");
    }
}

#[test]
fn an_unknown_control_message_is_refused_by_name() {
    let error = serde_json::from_str::<ControlMessage>(r#"{"command": "explode"}"#).unwrap_err().to_string();
    assert!(error.starts_with("unknown variant `explode`, expected one of `cancel_task`"), "{error}");
}

#[test]
fn a_message_id_is_the_same_however_often_it_is_published() {
    let request = values::request_retry();
    assert_eq!(request.message_id("result"), format!("{}:2:result", values::STEP));
    assert_eq!(request.message_id("result"), request_of(golden!("request_retry")).message_id("result"));
}
