//! Any message survives the wire.

use jiff::Timestamp;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use tasker_worker_rust::message::{
    ExecutionMetadata, HandlerSpec, Json, ResultStatus, StepExecutionError, StepExecutionRequest,
    StepExecutionResult, StepOutput,
};
use tasker_worker_rust::retry::{Backoff, RetryPolicy};
use tasker_worker_rust::template::{BatchConfig, FailureStrategy};
use tasker_worker_rust::{Batch, Checkpoint};
use uuid::Uuid;

use crate::values::text;

/// JSON texts, with numbers that fit no machine type, spaces, and keys in any order.
fn json_text() -> impl Strategy<Value = String> {
    let string = any::<String>().prop_map(|s| serde_json::to_string(&s).unwrap());
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|b| b.to_string()),
        "-?(0|[1-9][0-9]{0,40})([.][0-9]{1,20})?([eE][+-]?[0-9]{1,3})?",
        string.clone(),
        r#""\\u[0-9a-c][0-9a-f]{3}""#,
    ];
    leaf.prop_recursive(4, 32, 5, move |inner| {
        let member = (string.clone(), inner.clone()).prop_map(|(key, value)| format!("{key} : {value}"));
        prop_oneof![
            vec(inner, 0..5).prop_map(|items| format!("[{}]", items.join(" ,\n"))),
            vec(member, 0..5).prop_map(|members| format!("{{ {}}}", members.join(", "))),
        ]
    })
}

fn json() -> impl Strategy<Value = Json> {
    json_text().prop_map(|json| text(&json))
}

fn uuids() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn timestamps() -> impl Strategy<Value = Timestamp> {
    let seconds = Timestamp::MIN.as_second() + 1..Timestamp::MAX.as_second();
    (seconds, 0..1_000_000_000).prop_map(|(second, nano)| Timestamp::new(second, nano).unwrap())
}

fn namespaces() -> impl Strategy<Value = String> {
    "[A-Za-z0-9_-]{1,64}"
}

fn names() -> impl Strategy<Value = String> {
    any::<String>().prop_filter("a step has a name", |name| !name.is_empty())
}

fn errors() -> impl Strategy<Value = StepExecutionError> {
    let details = option::of(json().prop_filter("null is no details", |json| json.get() != "null"));
    (any::<String>(), any::<String>(), option::of(any::<String>()), any::<bool>(), details).prop_map(
        |(message, error_type, code, retryable, details)| StepExecutionError {
            message,
            error_type,
            code,
            retryable,
            details,
        },
    )
}

fn policies() -> impl Strategy<Value = RetryPolicy> {
    let backoff = prop_oneof![
        Just(Backoff::None),
        Just(Backoff::Linear),
        Just(Backoff::Exponential),
        Just(Backoff::Fibonacci)
    ];
    (any::<bool>(), backoff, any::<u64>(), any::<u64>())
        .prop_map(|(retryable, backoff, base_ms, max_ms)| RetryPolicy { retryable, backoff, base_ms, max_ms })
}

fn outputs() -> impl Strategy<Value = Vec<StepOutput>> {
    vec((any::<String>(), json()).prop_map(|(step_name, result)| StepOutput { step_name, result }), 0..4)
}

prop_compose! {
    fn batch_configs()(
        (batch_size, parallelism, checkpoint_interval) in (any::<u32>(), any::<u32>(), option::of(any::<u32>())),
        (cursor_field, worker_template) in (any::<String>(), option::of(any::<String>())),
    ) -> BatchConfig {
        BatchConfig {
            batch_size, parallelism, checkpoint_interval, cursor_field, worker_template,
            failure_strategy: FailureStrategy::FailFast,
        }
    }
}

prop_compose! {
    fn batches()((id, start, end, size) in (any::<String>(), any::<u64>(), any::<String>(), any::<u64>())) -> Batch {
        Batch { id, start: start.into(), end: end.into(), size }
    }
}

prop_compose! {
    fn checkpoints()((cursor, items_processed, accumulated_results) in (json(), any::<u64>(), json())) -> Checkpoint {
        Checkpoint { cursor, items_processed, accumulated_results }
    }
}

prop_compose! {
    fn requests()(
        (task_uuid, step_uuid, namespace, task_name, task_version, step_name) in
            (uuids(), uuids(), namespaces(), any::<String>(), any::<String>(), names()),
        (protocol_version, attempt, max_attempts, timeout_ms) in
            (0..=1u32, 1..=u32::MAX, any::<u32>(), option::of(any::<u64>())),
        (callable, initialization, retry, task_data, sequence_data, correlation_id) in
            (any::<String>(), json(), policies(), json(), outputs(), any::<String>()),
        (created_at, previous_error, previous_attempt_at, not_before) in
            (option::of(timestamps()), option::of(errors()), option::of(timestamps()), option::of(timestamps())),
        (batch_config, batch) in (option::of(batch_configs()), option::of(batches())),
        (part, checkpoint) in (any::<u32>(), option::of(checkpoints())),
    ) -> StepExecutionRequest {
        StepExecutionRequest {
            protocol_version, task_uuid, step_uuid, namespace, task_name, task_version, step_name,
            handler: HandlerSpec { callable, initialization },
            attempt, part, checkpoint, max_attempts, timeout_ms, retry, task_data, sequence_data, correlation_id, created_at,
            previous_error, previous_attempt_at, not_before, batch_config, batch,
        }
    }
}

prop_compose! {
    fn results()(
        (task_uuid, step_uuid, namespace, step_name) in (uuids(), uuids(), namespaces(), names()),
        (protocol_version, attempt, part, success, duration_ms) in
            (any::<u32>(), any::<u32>(), any::<u32>(), any::<bool>(), any::<u64>()),
        status in prop_oneof![
            Just(ResultStatus::Completed), Just(ResultStatus::Failed), Just(ResultStatus::Cancelled)
        ],
        (data, error) in (json(), option::of(errors())),
        (executed_at, started_at, memory_usage_kb, cpu_time_ms, broker_wait_ms, queue_wait_ms) in (
            timestamps(), option::of(timestamps()), option::of(any::<u64>()), option::of(any::<u64>()),
            option::of(any::<u64>()), option::of(any::<u64>()),
        ),
        (execution_environment, worker_id, worker_hostname, worker_version) in
            (any::<String>(), any::<String>(), any::<String>(), any::<String>()),
    ) -> StepExecutionResult {
        StepExecutionResult {
            protocol_version, task_uuid, step_uuid, namespace, step_name, attempt, part, success, status, data, error,
            metadata: ExecutionMetadata {
                executed_at, started_at, execution_environment, memory_usage_kb, cpu_time_ms, worker_id,
                worker_hostname, worker_version, broker_wait_ms, queue_wait_ms,
            },
            duration_ms,
        }
    }
}

proptest! {
    #[test]
    fn every_request_survives_the_wire(request in requests()) {
        let body = request.encode();
        let read = StepExecutionRequest::decode(&body).unwrap();
        prop_assert_eq!(&read, &request);
        prop_assert_eq!(read.encode(), body, "read and written again, not a byte differs");
    }

    #[test]
    fn every_result_survives_the_wire(result in results()) {
        let body = result.encode();
        let read = StepExecutionResult::decode(&body).unwrap();
        prop_assert_eq!(&read, &result);
        prop_assert_eq!(read.encode(), body);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in vec(any::<u8>(), 0..200)) {
        // Bytes made by chance are no request: it has required fields.
        prop_assert!(StepExecutionRequest::decode(&bytes).is_err());
        prop_assert!(StepExecutionResult::decode(&bytes).is_err());
    }

    #[test]
    fn ancestors_as_a_map_read_as_ancestors_in_a_list(outputs in outputs()) {
        let mut outputs = outputs;
        outputs.dedup_by(|a, b| a.step_name == b.step_name);
        let map: Vec<_> = outputs
            .iter()
            .map(|o| format!("{}:{}", serde_json::to_string(&o.step_name).unwrap(), o.result.get()))
            .collect();
        let body = format!(
            r#"{{"task_uuid":"{id}","step_uuid":"{id}","namespace":"n","step_name":"s","previous_results":{{{}}}}}"#,
            map.join(","),
            id = Uuid::nil(),
        );
        prop_assert_eq!(StepExecutionRequest::decode(body.as_bytes()).unwrap().sequence_data, outputs);
    }
}
