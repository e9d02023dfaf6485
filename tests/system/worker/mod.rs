//! The worker, seen from the orchestrator's side of the broker.

mod quick;
mod running;
mod settling;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tasker_worker_rust::broker::Source;
use tasker_worker_rust::message::{ResultStatus, header};
use tasker_worker_rust::{Namespace, RustWorker, Step, StepError, StepResult};

use crate::on_both_brokers;
use crate::support::{Desk, Kind, NAMESPACE, Report, settings, within};

on_both_brokers! {
    a_step_is_answered_with_its_result
    a_failing_step_is_retried_with_the_next_attempt_number_until_it_succeeds
    an_exhausted_step_fails_and_is_parked_with_its_reason
    a_permanent_error_is_never_retried
    an_unknown_step_fails_at_once_and_is_parked
    an_undecodable_body_is_parked_and_the_worker_goes_on
    a_body_above_the_limit_is_parked
    a_context_that_does_not_fit_is_never_retried
    a_panic_is_a_failed_attempt_and_harms_no_other_step
    a_step_that_runs_too_long_is_cut_off_and_retried
    a_longer_delay_than_the_ladder_has_is_kept
    a_result_above_the_limit_fails_the_step_with_the_reason
    an_ancestors_result_reaches_the_handler
}

async fn double(step: Step<i64>) -> StepResult<i64> {
    Ok(step.context * 2)
}

async fn a_step_is_answered_with_its_result(kind: Kind) {
    let mut desk = Desk::open(kind).await;
    let worker = desk.worker(Namespace::new(NAMESPACE).step("double", double)).await;
    let request = desk.ask("double", json!(21)).await;

    let Report::Result(result, properties) = desk.next().await else { panic!("a result comes first") };
    assert_eq!(properties.message_id, Some(format!("{}:1:result", request.step_uuid)));
    assert_eq!(properties.correlation_id.as_ref(), Some(&request.correlation_id));
    assert_eq!(properties.kind.as_deref(), Some("step.result"));
    assert_eq!(properties.headers.integer(header::ATTEMPT), Some(1));
    assert_eq!(properties.headers.integer(header::REPLAYS), None);
    assert!(properties.timestamp.is_some());
    assert_eq!(result.data.get(), "42");
    assert!(result.success && result.status == ResultStatus::Completed && result.error.is_none());
    assert_eq!((result.task_uuid, result.step_uuid), (request.task_uuid, request.step_uuid));
    assert_eq!((result.attempt, result.step_name.as_str()), (1, "double"));
    assert_eq!(result.metadata.execution_environment, "rust");
    assert!(result.metadata.started_at.is_some() && result.metadata.cpu_time_ms.is_some());
    assert!(result.metadata.memory_usage_kb.is_some_and(|kb| kb > 1_000));
    worker.shutdown().await;
    assert_eq!(desk.broker.depth(&desk.names.step_queue(NAMESPACE)).await, Ok(Some(0)));
    desk.close().await;
}

async fn a_failing_step_is_retried_with_the_next_attempt_number_until_it_succeeds(kind: Kind) {
    async fn third_time(step: Step) -> StepResult<u32> {
        match step.attempt() {
            3 => Ok(step.attempt()),
            attempt => Err(StepError::retryable(format!("attempt {attempt} fails")).code("NOT_YET")),
        }
    }
    let mut desk = Desk::open(kind).await;
    let worker = desk.worker(Namespace::new(NAMESPACE).step("third_time", third_time)).await;
    let request = desk.ask("third_time", json!({})).await;

    for attempt in [2, 3] {
        let Report::Retry(retry, properties) = desk.next().await else { panic!("a retry comes first") };
        assert_eq!(properties.message_id, Some(format!("{}:{attempt}:retry", request.step_uuid)));
        assert_eq!((retry.attempt, retry.step_uuid), (attempt, request.step_uuid));
        let error = retry.previous_error.expect("a retry says what went wrong");
        assert_eq!(error.message, format!("attempt {} fails", attempt - 1));
        assert_eq!(error.code.as_deref(), Some("NOT_YET"));
        assert!(retry.not_before > retry.previous_attempt_at);
    }
    let result = desk.next_result().await;
    assert_eq!((result.attempt, result.data.get()), (3, "3"));
    worker.shutdown().await;
    desk.close().await;
}

async fn an_exhausted_step_fails_and_is_parked_with_its_reason(kind: Kind) {
    async fn never(_: Step) -> StepResult<()> {
        Err(std::io::Error::other("the disk is on fire").into())
    }
    let mut desk = Desk::open(kind).await;
    let worker = desk.worker(Namespace::new(NAMESPACE).step("never", never)).await;
    let mut request = desk.request("never", json!({}));
    request.max_attempts = 2;
    desk.send(&request).await;

    assert_eq!(desk.next_retry().await.attempt, 2);
    let result = desk.next_result().await;
    let error = result.error.expect("a failed result has its error");
    assert_eq!((result.status, result.attempt), (ResultStatus::Failed, 2));
    assert_eq!(
        (error.error_type.as_str(), error.message.as_str()),
        ("UnexpectedError", "the disk is on fire")
    );
    desk.next_dead_letter().await;
    let (body, properties) = desk.parked().await;
    let parked: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&parked["step_uuid"], &parked["attempt"]), (&json!(request.step_uuid), &json!(2)));
    let headers = &properties.headers;
    assert_eq!(headers.text(header::REASON), Some("retries_exhausted"));
    assert_eq!(headers.text(header::ERROR), Some("the disk is on fire"));
    assert_eq!(headers.integer(header::ATTEMPT), Some(2));
    assert!(headers.text(header::FIRST_AT).is_some() && headers.text(header::LAST_AT).is_some());
    worker.shutdown().await;
    desk.close().await;
}

async fn a_permanent_error_is_never_retried(kind: Kind) {
    async fn declined(_: Step) -> StepResult<()> {
        Err(StepError::permanent("the card was declined").code("CARD_DECLINED").details(json!({ "bank": 7 })))
    }
    let mut desk = Desk::open(kind).await;
    let worker = desk.worker(Namespace::new(NAMESPACE).step("pay", declined)).await;
    desk.ask("pay", json!({})).await;

    let error = desk.next_result().await.error.expect("a failed result has its error");
    assert_eq!(error.code.as_deref(), Some("CARD_DECLINED"));
    assert_eq!(error.details.unwrap().get(), r#"{"bank":7}"#);
    assert!(!error.retryable);
    let (_, properties) = desk.next_dead_letter().await;
    assert_eq!(properties.headers.text(header::REASON), Some("permanent_error"));
    assert_eq!(properties.headers.text(header::ERROR_CODE), Some("CARD_DECLINED"));
    worker.shutdown().await;
    desk.close().await;
}

async fn an_unknown_step_fails_at_once_and_is_parked(kind: Kind) {
    let mut desk = Desk::open(kind).await;
    let worker = desk.worker(Namespace::new(NAMESPACE).step("double", double)).await;
    desk.ask("treble", json!(1)).await;

    let error = desk.next_result().await.error.expect("a failed result has its error");
    assert_eq!(error.error_type, "HandlerNotFound");
    assert_eq!(
        error.message,
        "no handler is registered for step \"treble\" of namespace \"orders\"; this worker has: double"
    );
    assert_eq!(desk.parked().await.1.headers.text(header::REASON), Some("handler_not_found"));
    worker.shutdown().await;
    desk.close().await;
}

async fn an_undecodable_body_is_parked_and_the_worker_goes_on(kind: Kind) {
    let mut desk = Desk::open(kind).await;
    let worker = desk.worker(Namespace::new(NAMESPACE).step("double", double)).await;
    for body in ["{not json", r#"{"step_name": "double"}"#, "\u{0}"] {
        desk.send_bytes(NAMESPACE, "double", body).await;
        let (letter, properties) = desk.next_dead_letter().await;
        assert_eq!(letter, body.as_bytes());
        assert_eq!(properties.headers.text("x-first-death-reason"), Some("rejected"));
        assert_eq!(desk.parked().await.0, body.as_bytes());
    }
    desk.ask("double", json!(2)).await;
    assert_eq!(desk.next_result().await.data.get(), "4");
    worker.shutdown().await;
    desk.close().await;
}

async fn a_body_above_the_limit_is_parked(kind: Kind) {
    // RabbitMQ 4 itself takes no more than 16 MiB.
    let huge = if kind == Kind::Embedded { 50 << 20 } else { 15 << 20 };
    let worker_config = settings(kind);
    let mut config = worker_config.clone();
    config.broker.max_message_bytes = 2 * huge;
    let mut desk = Desk::open_with(config, kind, &[NAMESPACE]).await;
    let worker = desk.worker_with(worker_config, Namespace::new(NAMESPACE).step("double", double)).await;
    desk.ask("double", json!("x".repeat(huge))).await;
    let (letter, properties) = desk.next_dead_letter().await;
    assert!(letter.len() > huge);
    assert_eq!(properties.headers.text("x-first-death-reason"), Some("rejected"));
    desk.ask("double", json!(2)).await;
    assert_eq!(desk.next_result().await.data.get(), "4");
    worker.shutdown().await;
    desk.close().await;
}

async fn a_context_that_does_not_fit_is_never_retried(kind: Kind) {
    let mut desk = Desk::open(kind).await;
    let worker = desk.worker(Namespace::new(NAMESPACE).step("double", double)).await;
    desk.ask("double", json!({ "number": "many" })).await;

    let error = desk.next_result().await.error.expect("a failed result has its error");
    assert_eq!(
        (error.error_type.as_str(), error.code.as_deref()),
        ("ValidationError", Some("INVALID_CONTEXT"))
    );
    assert!(error.message.contains("does not fit the handler of step \"double\""), "{}", error.message);
    assert_eq!(desk.parked().await.1.headers.text(header::REASON), Some("invalid_input"));
    worker.shutdown().await;
    desk.close().await;
}

async fn a_panic_is_a_failed_attempt_and_harms_no_other_step(kind: Kind) {
    async fn panics_once(step: Step) -> StepResult<&'static str> {
        assert!(step.attempt() > 1, "attempt {} panics", step.attempt());
        Ok("recovered")
    }
    let mut desk = Desk::open(kind).await;
    let handlers = Namespace::new(NAMESPACE).step("panics_once", panics_once).step("double", double);
    let worker = desk.worker(handlers).await;
    desk.ask("panics_once", json!({})).await;

    let error = desk.next_retry().await.previous_error.expect("a retry says what went wrong");
    assert_eq!(error.error_type, "HandlerPanicked");
    assert!(error.message.contains("attempt 1 panics"), "{}", error.message);
    assert_eq!(desk.next_result().await.data.get(), "\"recovered\"");
    desk.ask("double", json!(4)).await;
    assert_eq!(desk.next_result().await.data.get(), "8");
    worker.shutdown().await;
    desk.close().await;
}

async fn a_step_that_runs_too_long_is_cut_off_and_retried(kind: Kind) {
    async fn hangs_once(step: Step) -> StepResult<u32> {
        if step.attempt() == 1 {
            std::future::pending::<()>().await;
        }
        Ok(step.attempt())
    }
    let mut desk = Desk::open(kind).await;
    let worker = desk.worker(Namespace::new(NAMESPACE).step("hangs_once", hangs_once)).await;
    let mut request = desk.request("hangs_once", json!({}));
    request.timeout_ms = Some(60);
    desk.send(&request).await;

    let error = desk.next_retry().await.previous_error.expect("a retry says what went wrong");
    assert_eq!(
        (error.error_type.as_str(), error.message.as_str()),
        ("TimeoutError", "the step ran longer than its 60ms")
    );
    assert_eq!(desk.next_result().await.data.get(), "2");
    worker.shutdown().await;
    desk.close().await;
}

async fn a_longer_delay_than_the_ladder_has_is_kept(kind: Kind) {
    // The longest rung is 200 ms; the wanted delay takes several rounds.
    const WANTED: Duration = Duration::from_millis(900);
    async fn later(step: Step) -> StepResult<u32> {
        match step.attempt() {
            1 => Err(StepError::retryable("later, please").retry_after(WANTED)),
            attempt => Ok(attempt),
        }
    }
    let mut desk = Desk::open(kind).await;
    let worker = desk.worker(Namespace::new(NAMESPACE).step("later", later)).await;
    let request = desk.ask("later", json!({})).await;
    let asked = Instant::now();
    loop {
        match desk.next().await {
            Report::Retry(retry, _) => {
                assert_eq!((retry.attempt, retry.step_uuid), (2, request.step_uuid));
            }
            Report::Result(result, _) => {
                assert_eq!((result.attempt, result.data.get()), (2, "2"));
                break;
            }
            other => panic!("expected retries and a result, got {other:?}"),
        }
    }
    assert!(asked.elapsed() > WANTED - Duration::from_millis(300), "{:?}", asked.elapsed());
    worker.shutdown().await;
    desk.close().await;
}

async fn a_result_above_the_limit_fails_the_step_with_the_reason(kind: Kind) {
    const LIMIT: usize = 64 * 1024;
    // What is left for a result beside its envelope, its quotation marks and its step's name.
    const ROOM: usize = LIMIT - 4096 - 2 - "huge".len();
    async fn huge(step: Step<usize>) -> StepResult<String> {
        Ok("x".repeat(step.context))
    }
    let mut desk = Desk::open(kind).await;
    let mut config = desk.config.clone();
    config.broker.max_message_bytes = LIMIT;
    let worker = desk.worker_with(config, Namespace::new(NAMESPACE).step("huge", huge)).await;
    desk.ask("huge", json!(ROOM)).await;
    assert_eq!(desk.next_result().await.data.get().len(), ROOM + 2);
    desk.ask("huge", json!(ROOM + 1)).await;
    let error = desk.next_result().await.error.expect("a failed result has its error");
    assert_eq!(error.error_type, "ResultRefused");
    assert!(error.message.contains(&format!("{} bytes", ROOM + 3)), "{}", error.message);
    desk.next_dead_letter().await;
    worker.shutdown().await;
    desk.close().await;
}

async fn an_ancestors_result_reaches_the_handler(kind: Kind) {
    async fn sum(step: Step) -> StepResult<i64> {
        Ok(step.result_of::<i64>("left")? + step.result_of::<i64>("right")?)
    }
    let mut desk = Desk::open(kind).await;
    let worker = desk.worker(Namespace::new(NAMESPACE).step("sum", sum)).await;
    let mut request = desk.request("sum", json!({}));
    for (step_name, result) in [("left", json!(40)), ("right", json!(2))] {
        let output =
            tasker_worker_rust::message::StepOutput { step_name: step_name.into(), result: result.into() };
        request.sequence_data.push(output);
    }
    desk.send(&request).await;
    assert_eq!(desk.next_result().await.data.get(), "42");

    desk.ask("sum", json!({})).await;
    let error = desk.next_result().await.error.expect("a failed result has its error");
    assert_eq!(error.code.as_deref(), Some("MISSING_DEPENDENCY"));
    assert!(error.message.contains("\"sum\" needs the result of \"left\""), "{}", error.message);
    worker.shutdown().await;
    desk.close().await;
}

#[tokio::test]
async fn a_worker_that_cannot_run_leaves_its_requests_alone() {
    let desk = Desk::open(Kind::Embedded).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = desk.config.clone();
    config.worker.health_address = taken.local_addr().unwrap().to_string();
    config.worker.task_templates.validation_enabled = false;
    let worker = RustWorker::new(config).broker(desk.broker.clone());
    let error = within(worker.namespace(Namespace::new(NAMESPACE).step("double", double)).run()).await;
    assert!(error.is_err_and(|error| error.to_string().contains("worker.health_address")));

    desk.ask("double", json!(21)).await;
    let mut ours = desk.broker.subscribe(Source::Queue(desk.names.step_queue(NAMESPACE)), 1);
    let delivery = within(ours.recv()).await.expect("nobody else consumes it");
    assert!(!delivery.redelivered);
    drop(ours);
    desk.close().await;
}
