//! The messages of the golden files as values.
//!
//! Every field is spelled out, so that a new one does not compile until it has a golden file and a line
//! in the document.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use tasker_worker_rust::message::{
    ControlMessage, ExecutionMetadata, HandlerSpec, Json, ResultStatus, StepExecutionError,
    StepExecutionRequest, StepExecutionResult, StepOutput,
};
use tasker_worker_rust::retry::{Backoff, RetryPolicy};
use tasker_worker_rust::template::{BatchConfig, FailureStrategy};
use tasker_worker_rust::{Batch, Checkpoint};
use uuid::{Uuid, uuid};

pub(crate) const TASK: Uuid = uuid!("0198a3c0-5b7e-7d10-9c52-6f6a0a5d1e01");
pub(crate) const STEP: Uuid = uuid!("0198a3c0-5b7e-7d10-9c52-6f6a0a5d1e02");

/// A JSON value with exactly this text.
pub(crate) fn text(json: &str) -> Json {
    serde_json::from_str(json).unwrap()
}

/// A message as the JSON value it is sent as.
pub(crate) fn sent(message: &impl Serialize) -> Value {
    serde_json::from_slice(&serde_json::to_vec(message).unwrap()).unwrap()
}

pub(crate) fn at(time: &str) -> Timestamp {
    time.parse().unwrap()
}

pub(crate) fn request_full() -> StepExecutionRequest {
    StepExecutionRequest {
        protocol_version: 1,
        task_uuid: TASK,
        step_uuid: STEP,
        namespace: "order_fulfillment".to_owned(),
        task_name: "complete_order_fulfillment".to_owned(),
        task_version: "2.1.0".to_owned(),
        step_name: "process_payment".to_owned(),
        handler: HandlerSpec {
            callable: "OrderFulfillment::ProcessPaymentHandler".to_owned(),
            initialization: text(r#"{"gateway": "test", "limit": 1.10}"#),
        },
        attempt: 1,
        part: 0,
        checkpoint: None,
        max_attempts: 5,
        timeout_ms: Some(30_000),
        retry: RetryPolicy { retryable: true, backoff: Backoff::Fibonacci, base_ms: 250, max_ms: 60_000 },
        task_data: text(
            r#"{"zeta": 12345678901234567890123, "alpha": 1.10, "list": [ 1e2, -0.0 ], "text": "caf\u00e9 é"}"#,
        ),
        sequence_data: vec![
            StepOutput {
                step_name: "validate_order".to_owned(),
                result: text(r#"{"total": 98765432109876543210.50, "items": []}"#),
            },
            StepOutput { step_name: "reserve_inventory".to_owned(), result: Json::null() },
        ],
        correlation_id: "shop-4711".to_owned(),
        created_at: Some(at("2026-03-01T08:15:30.123456789Z")),
        previous_error: None,
        previous_attempt_at: None,
        not_before: None,
        batch_config: Some(BatchConfig {
            batch_size: 250,
            parallelism: 4,
            checkpoint_interval: Some(50),
            cursor_field: "order_id".to_owned(),
            worker_template: Some("process_payment".to_owned()),
            failure_strategy: FailureStrategy::Isolate,
        }),
        batch: Some(Batch {
            id: "002".to_owned(),
            start: json!("A-250"),
            end: json!({"until": 500}),
            size: 250,
        }),
    }
}

pub(crate) fn request_minimal() -> StepExecutionRequest {
    StepExecutionRequest {
        protocol_version: 1,
        task_uuid: TASK,
        step_uuid: STEP,
        namespace: "linear_workflow".to_owned(),
        task_name: String::new(),
        task_version: String::new(),
        step_name: "linear_step_1".to_owned(),
        handler: HandlerSpec { callable: String::new(), initialization: text("{}") },
        attempt: 1,
        part: 0,
        checkpoint: None,
        max_attempts: 3,
        timeout_ms: None,
        retry: RetryPolicy { retryable: true, backoff: Backoff::Exponential, base_ms: 1_000, max_ms: 30_000 },
        task_data: text("{}"),
        sequence_data: Vec::new(),
        correlation_id: TASK.to_string(),
        created_at: None,
        previous_error: None,
        previous_attempt_at: None,
        not_before: None,
        batch_config: None,
        batch: None,
    }
}

pub(crate) fn request_older_spelling() -> StepExecutionRequest {
    StepExecutionRequest {
        step_name: "linear_step_3".to_owned(),
        handler: HandlerSpec {
            callable: "LinearWorkflow::StepHandlers::LinearStep3Handler".to_owned(),
            initialization: text(r#"{"operation": "square"}"#),
        },
        attempt: 2,
        max_attempts: 4,
        timeout_ms: Some(1_500),
        task_data: text(r#"{"even_number": 6}"#),
        sequence_data: vec![
            StepOutput { step_name: "linear_step_1".to_owned(), result: text(r#"{"generated_value": 12}"#) },
            StepOutput { step_name: "linear_step_2".to_owned(), result: text("12345678901234567890123") },
            StepOutput {
                step_name: "a_bare_value".to_owned(),
                result: text(r#"{"generated_value": 22, "success": "yes"}"#),
            },
        ],
        created_at: Some(at("2026-03-01T08:15:30Z")),
        ..request_minimal()
    }
}

pub(crate) fn request_retry() -> StepExecutionRequest {
    StepExecutionRequest {
        namespace: "order_fulfillment".to_owned(),
        task_name: "complete_order_fulfillment".to_owned(),
        task_version: "2.1.0".to_owned(),
        step_name: "process_payment".to_owned(),
        attempt: 2,
        task_data: text(r#"{"order": {"id": "A-1"}}"#),
        correlation_id: "shop-4711".to_owned(),
        created_at: Some(at("2026-03-01T08:15:30Z")),
        previous_error: Some(StepExecutionError {
            message: "the gateway is busy".to_owned(),
            error_type: "RetryableError".to_owned(),
            code: Some("GATEWAY_BUSY".to_owned()),
            retryable: true,
            details: Some(text(r#"{"waited_ms": 1500.0}"#)),
        }),
        previous_attempt_at: Some(at("2026-03-01T08:15:31.5Z")),
        not_before: Some(at("2026-03-01T08:15:32.5Z")),
        ..request_minimal()
    }
}

pub(crate) fn request_checkpoint() -> StepExecutionRequest {
    StepExecutionRequest {
        part: 3,
        checkpoint: Some(Checkpoint {
            cursor: text(r#"{"after": 12345678901234567890123, "page":  4}"#),
            items_processed: 1_500,
            accumulated_results: text(r#"{"sum": 1.10}"#),
        }),
        ..request_retry()
    }
}

pub(crate) fn result_completed() -> StepExecutionResult {
    StepExecutionResult {
        protocol_version: 1,
        task_uuid: TASK,
        step_uuid: STEP,
        namespace: "linear_workflow".to_owned(),
        step_name: "linear_step_1".to_owned(),
        attempt: 1,
        part: 0,
        success: true,
        status: ResultStatus::Completed,
        data: text(r#"{"zeta": 12345678901234567890123, "alpha": 1.10}"#),
        error: None,
        metadata: ExecutionMetadata {
            executed_at: at("2026-03-01T08:15:30.25Z"),
            started_at: Some(at("2026-03-01T08:15:30.2Z")),
            execution_environment: "rust".to_owned(),
            memory_usage_kb: Some(20_480),
            cpu_time_ms: Some(7),
            worker_id: "worker-1".to_owned(),
            worker_hostname: "node-a".to_owned(),
            worker_version: "0.1.0".to_owned(),
            broker_wait_ms: Some(12),
            queue_wait_ms: Some(3),
        },
        duration_ms: 50,
    }
}

pub(crate) fn result_failed() -> StepExecutionResult {
    StepExecutionResult {
        namespace: "order_fulfillment".to_owned(),
        step_name: "process_payment".to_owned(),
        attempt: 3,
        success: false,
        status: ResultStatus::Failed,
        data: Json::null(),
        error: Some(StepExecutionError {
            message: "the card was declined".to_owned(),
            error_type: "PermanentError".to_owned(),
            code: Some("CARD_DECLINED".to_owned()),
            retryable: false,
            details: Some(text(r#"{"gateway": "test"}"#)),
        }),
        metadata: ExecutionMetadata {
            started_at: None,
            memory_usage_kb: None,
            cpu_time_ms: None,
            broker_wait_ms: None,
            queue_wait_ms: None,
            ..result_completed().metadata
        },
        duration_ms: 1,
        ..result_completed()
    }
}

pub(crate) fn result_cancelled() -> StepExecutionResult {
    StepExecutionResult {
        attempt: 1,
        status: ResultStatus::Cancelled,
        error: Some(StepExecutionError {
            message: "the task was cancelled".to_owned(),
            error_type: "Cancelled".to_owned(),
            code: None,
            retryable: false,
            details: None,
        }),
        duration_ms: 0,
        ..result_failed()
    }
}

pub(crate) fn control_cancel_task() -> ControlMessage {
    ControlMessage::CancelTask { task_uuid: TASK }
}

pub(crate) fn control_stop_step() -> ControlMessage {
    ControlMessage::StopStep { step_uuid: STEP, replays: 1 }
}

pub(crate) fn control_pause_namespace() -> ControlMessage {
    ControlMessage::PauseNamespace { namespace: "orders".to_owned(), hand_back: false }
}

pub(crate) fn control_resume_namespace() -> ControlMessage {
    ControlMessage::ResumeNamespace { namespace: "orders".to_owned() }
}
