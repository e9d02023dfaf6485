//! An answer, until the broker has it: when it is published again, and when its request goes back instead.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::broker::rabbit::RabbitBroker;
use tasker_worker_rust::broker::topology::DELIVERY_LIMIT;
use tasker_worker_rust::broker::{Broker, BrokerStatus};
use tasker_worker_rust::config::BrokerConfig;
use tasker_worker_rust::message::{ControlMessage, StepExecutionRequest};
use tasker_worker_rust::ops::metrics::METRICS;
use tasker_worker_rust::{Checkpoint, Namespace, RunningWorker, RustWorker, Step, StepError, StepResult};
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::time::{Instant, sleep};

use super::double;
use crate::ledger::Lab;
use crate::proxy::Proxy;
use crate::support::{Desk, Kind, NAMESPACE, eventually, settings, within};

async fn on_embedded() -> (Arc<MemoryBroker>, Desk) {
    let broker = MemoryBroker::new();
    let desk = Desk::on(broker.clone(), settings(Kind::Embedded), Kind::Embedded, &[NAMESPACE]).await;
    (broker, desk)
}

/// Whose steps are cut off as soon as it stops.
async fn impatient_worker(desk: &Desk, steps: Namespace) -> RunningWorker {
    let mut config = desk.config.clone();
    config.worker.shutdown.shutdown_timeout_seconds = 0;
    desk.worker_with(config, steps).await
}

/// A step that tells when it has begun, and ends when it is let, as its context says.
fn held() -> (Namespace, mpsc::UnboundedReceiver<()>, Arc<Semaphore>) {
    let (begun, has_begun) = mpsc::unbounded_channel();
    let end = Arc::new(Semaphore::new(0));
    let may_end = end.clone();
    let handler = move |step: Step| {
        let (begun, may_end) = (begun.clone(), may_end.clone());
        async move {
            begun.send(())?;
            may_end.acquire().await?.forget();
            if step.context == "fail" { Err(StepError::permanent("never")) } else { Ok("done") }
        }
    };
    (Namespace::new(NAMESPACE).step("held", handler), has_begun, end)
}

#[tokio::test(start_paused = true)]
async fn a_refused_answer_is_published_again_after_pauses_that_double_up_to_the_longest() {
    let (broker, mut desk) = on_embedded().await;
    let worker = desk.worker(Namespace::new(NAMESPACE).step("double", double)).await;
    let queue = desk.names.orchestrator_queue();
    // Tried after 0, 0.1, 0.3, 0.7, 1.5, 3.1, 6.3, 12.7 seconds, and from there on every ten.
    for (taken_after_ms, heard_after_ms) in [(50, 100), (1_000, 1_500), (20_000, 22_700), (30_000, 32_700)] {
        broker.limit_queue(&queue, Some(0)).unwrap();
        let asked = Instant::now();
        desk.ask("double", json!(21)).await;
        sleep(Duration::from_millis(taken_after_ms)).await;
        broker.limit_queue(&queue, None).unwrap();
        assert_eq!(desk.next_result().await.data.get(), "42");
        let heard = asked.elapsed().as_millis();
        assert!((heard_after_ms..heard_after_ms + 20).contains(&heard), "{heard} ms");
    }
    worker.shutdown().await;
    desk.close().await;
}

#[tokio::test(start_paused = true)]
async fn once_the_broker_is_back_an_answer_waits_for_no_long_pause() {
    let (broker, mut desk) = on_embedded().await;
    let (steps, mut has_begun, end) = held();
    let worker = desk.worker(steps).await;
    desk.ask("held", json!({})).await;
    has_begun.recv().await.unwrap();
    broker.set_down(Some("a test"));
    end.add_permits(1);
    // Between two tries that are ten seconds apart.
    sleep(Duration::from_secs(15)).await;
    broker.set_down(None);
    let back = Instant::now();
    assert_eq!(desk.next_result().await.data.get(), "\"done\"");
    assert!(back.elapsed() < Duration::from_millis(150), "{:?}", back.elapsed());
    worker.shutdown().await;
    assert!(has_begun.try_recv().is_err(), "it was run again");
    assert_eq!(desk.broker.depth(&desk.names.step_queue(NAMESPACE)).await, Ok(Some(0)));
    desk.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn once_an_alarm_of_rabbitmq_is_over_an_answer_waits_for_no_long_pause() {
    let proxy = Proxy::open();
    let mut desk = Desk::open(Kind::RabbitMq).await;
    let config = BrokerConfig {
        urls: vec![proxy.url().into()],
        publish_timeout_ms: 500,
        ..desk.config.broker.clone()
    };
    let broker = Arc::new(RabbitBroker::connect(&config, "worker").unwrap());
    let (steps, mut has_begun, end) = held();
    let worker = RustWorker::new(desk.config.clone()).namespace(steps).broker(broker.clone());
    let worker = worker.start().await.unwrap();
    within(worker.ready()).await;
    desk.ask("held", json!({})).await;
    within(has_begun.recv()).await.unwrap();
    proxy.block("low on memory");
    within(broker.status().wait_for(|status| matches!(status, BrokerStatus::Blocked(_)))).await.unwrap();
    let refused = METRICS.publish_failures.with_label_values(&["timeout"]);
    let before = refused.get();
    end.add_permits(1);
    // Its next pause takes 6.4 seconds.
    eventually("seven refusals", async || (refused.get() >= before + 7).then_some(())).await;
    proxy.unblock();
    let over = Instant::now();
    assert_eq!(desk.next_result().await.data.get(), "\"done\"");
    assert!(over.elapsed() < Duration::from_secs(4), "{:?}", over.elapsed());
    within(worker.shutdown()).await;
    within(broker.close()).await;
    desk.close().await;
}

#[tokio::test]
async fn a_worker_that_stops_hands_back_what_it_cannot_answer() {
    let (broker, mut desk) = on_embedded().await;
    let orchestrator = desk.names.orchestrator_queue();
    broker.limit_queue(&orchestrator, Some(0)).unwrap();
    let (steps, mut has_begun, end) = held();
    let worker = impatient_worker(&desk, steps).await;
    let request = desk.ask("held", json!({})).await;
    within(has_begun.recv()).await.unwrap();
    end.add_permits(1);
    // It has ended before it hears that it should stop, or ends then.
    eventually("it ends", async || (end.available_permits() == 0).then_some(())).await;
    let drained = within(worker.shutdown()).await;
    // What is left then is given up after two seconds.
    assert!(drained.took < Duration::from_secs(2), "{:?}", drained.took);
    assert_eq!(desk.broker.depth(&desk.names.step_queue(NAMESPACE)).await, Ok(Some(1)));

    broker.limit_queue(&orchestrator, None).unwrap();
    let worker = desk.worker(Namespace::new(NAMESPACE).step("held", |_: Step| async { Ok(2) })).await;
    let result = desk.next_result().await;
    assert_eq!((result.step_uuid, result.attempt, result.data.get()), (request.step_uuid, 1, "2"));
    worker.shutdown().await;
    desk.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_stops_says_the_rest_of_an_answer_that_it_has_begun_to_give() {
    let (broker, mut desk) = on_embedded().await;
    let (steps, mut has_begun, end) = held();
    let worker = impatient_worker(&desk, steps).await;
    desk.ask("held", json!("fail")).await;
    within(has_begun.recv()).await.unwrap();
    broker.set_blocked(Some("a test"));
    end.add_permits(1);
    // Simulated seconds, in which everything else comes to a standstill: the result is on its way, the dead letter waits.
    sleep(Duration::from_secs(1)).await;
    let stopping = tokio::spawn(worker.shutdown());
    sleep(Duration::from_secs(1)).await;
    broker.set_blocked(None);
    stopping.await.unwrap();
    assert!(desk.next_result().await.error.is_some());
    desk.next_dead_letter().await;
    assert_eq!(desk.broker.depth(&desk.names.step_queue(NAMESPACE)).await, Ok(Some(0)));
    desk.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_may_be_handed_back_more_often_than_one_that_failed_may_come_back() {
    let (_, mut desk) = on_embedded().await;
    let (begun, mut has_begun) = mpsc::unbounded_channel();
    let until_told = move |step: Step| {
        let begun = begun.clone();
        async move {
            begun.send(())?;
            step.cancelled().await;
            StepResult::<()>::Err(StepError::permanent("stopped half-way"))
        }
    };
    let request = desk.ask("step", json!({})).await;
    for _ in 0..=DELIVERY_LIMIT {
        let steps = Namespace::new(NAMESPACE).step("step", until_told.clone());
        let worker = impatient_worker(&desk, steps).await;
        within(has_begun.recv()).await.unwrap();
        assert_eq!(worker.shutdown().await.handed_back, 1);
    }
    let worker = desk.worker(Namespace::new(NAMESPACE).step("step", |_: Step| async { Ok(()) })).await;
    let result = desk.next_result().await;
    assert_eq!((result.step_uuid, result.attempt, result.success), (request.step_uuid, 1, true));
    worker.shutdown().await;
    desk.close().await;
}

#[tokio::test]
async fn a_step_is_counted_once_by_what_became_of_it() {
    let mut lab = Lab::open(Kind::Embedded).await;
    let (begun, mut has_begun) = mpsc::unbounded_channel();
    let steps = Namespace::new(lab.namespace.as_str())
        .step("answers", |_: Step| async { Ok(1) })
        .step("retries", |step: Step| async move {
            if step.attempt() == 1 { Err(StepError::retryable("not yet")) } else { Ok(2) }
        })
        .step("fails", |_: Step| async { StepResult::<()>::Err(StepError::permanent("never")) })
        .step("goes_on", |step: Step| async move {
            match step.checkpoint::<u8, u8>()? {
                None => {
                    Err(StepError::checkpoint(Checkpoint { cursor: 1_u8, ..Checkpoint::<_, u8>::default() }))
                }
                Some(reached) => Ok(reached.cursor),
            }
        })
        .step("waits", move |step: Step| {
            let begun = begun.clone();
            async move {
                begun.send(())?;
                step.cancelled().await;
                StepResult::<()>::Err(StepError::retryable("told to stop"))
            }
        });
    let mut config = lab.desk.config.clone();
    config.worker.shutdown.shutdown_timeout_seconds = 0;
    let worker = lab.worker(config, steps).await;
    for step in ["answers", "retries", "fails", "goes_on", "nobodys"] {
        lab.desk.send(&lab.request(step, json!({}))).await;
        // Results end retries and checkpoints, dead letters failures.
        let last = if matches!(step, "fails" | "nobodys") { "DeadLetter" } else { "Result" };
        while !format!("{:?}", lab.desk.next().await).starts_with(last) {}
    }
    let again = lab.request("answers", json!({}));
    lab.desk.send(&again).await;
    lab.result().await;
    lab.send_until("replayed", &again).await;
    lab.result().await;
    let waiting = lab.request("waits", json!({}));
    lab.desk.send(&waiting).await;
    within(has_begun.recv()).await.unwrap();
    let cancel = serde_json::to_vec(&ControlMessage::CancelTask { task_uuid: waiting.task_uuid }).unwrap();
    lab.desk.publish(lab.desk.names.control(), String::new(), cancel).await;
    lab.result().await;
    lab.desk.send(&lab.request("waits", json!({}))).await;
    within(has_begun.recv()).await.unwrap();
    within(worker.shutdown()).await;

    let mut counted = Vec::new();
    for step in ["answers", "retries", "fails", "goes_on", "nobodys", "unknown", "waits"] {
        for outcome in ["completed", "retried", "failed", "checkpointed", "cancelled", "handed_back"] {
            let count = METRICS.steps.with_label_values(&[lab.namespace.as_str(), step, outcome]).get();
            counted.extend((count > 0).then_some((step, outcome, count)));
        }
    }
    let expected = [
        ("answers", "completed", 2),
        ("retries", "completed", 1),
        ("retries", "retried", 1),
        ("fails", "failed", 1),
        ("goes_on", "completed", 1),
        ("goes_on", "checkpointed", 1),
        ("unknown", "failed", 1),
        ("waits", "cancelled", 1),
        ("waits", "handed_back", 1),
    ];
    assert_eq!(counted, expected);
}

#[tokio::test]
async fn an_errors_text_and_details_are_told_whole_up_to_a_limit_each() {
    const TEXT: usize = 16 * 1024;
    const DETAILS: usize = 64 * 1024;
    async fn tells_much((text, details): (usize, usize)) -> StepResult<()> {
        let quoted = "d".repeat(details - 2);
        Err(StepError::permanent("t".repeat(text)).details(json!(quoted)))
    }
    let (_, mut desk) = on_embedded().await;
    let steps = Namespace::new(NAMESPACE).step("tells_much", |step: Step<_>| tells_much(step.context));
    let worker = desk.worker(steps).await;
    desk.ask("tells_much", json!([TEXT, DETAILS])).await;
    let error = desk.next_result().await.error.unwrap();
    assert_eq!((error.message, error.details.unwrap().get().len()), ("t".repeat(TEXT), DETAILS));
    desk.next_dead_letter().await;
    desk.ask("tells_much", json!([TEXT + 1, DETAILS + 1])).await;
    let error = desk.next_result().await.error.unwrap();
    assert_eq!(error.message, format!("{} … (16385 bytes in all)", "t".repeat(TEXT)));
    assert!(error.details.is_none());
    desk.next_dead_letter().await;
    worker.shutdown().await;
    desk.close().await;
}

#[tokio::test]
async fn a_checkpoint_may_be_as_large_as_its_request_leaves_room_for() {
    const LIMIT: usize = 10_000;
    /// How many bytes of checkpoint fit into the request for the rest, where the one before had so many.
    fn room(request: &StepExecutionRequest, earlier: usize) -> usize {
        LIMIT - 256 - (request.encode().len() - earlier)
    }
    let (sizes, to_report) = mpsc::unbounded_channel::<(u8, usize)>();
    let to_report = Arc::new(Mutex::new(to_report));
    let reports = move |_: Step| {
        let to_report = to_report.clone();
        async move {
            let (cursor, bytes) = to_report.lock().await.recv().await.unwrap();
            // The cursor is one, its quotation marks are two.
            let accumulated_results = "x".repeat(bytes - 3);
            let reached = Checkpoint { cursor, accumulated_results, ..Checkpoint::default() };
            StepResult::<()>::Err(StepError::checkpoint(reached))
        }
    };
    let (_, mut desk) = on_embedded().await;
    let mut config = desk.config.clone();
    config.broker.max_message_bytes = LIMIT;
    let worker = desk.worker_with(config, Namespace::new(NAMESPACE).step("reports", reports)).await;
    let request = desk.ask("reports", json!({})).await;
    let first = room(&request, 0);
    sizes.send((1, first)).unwrap();
    let second = room(&desk.next_checkpoint().await, first);
    sizes.send((2, second)).unwrap();
    let third = room(&desk.next_checkpoint().await, second);
    sizes.send((3, third + 1)).unwrap();
    let error = desk.next_result().await.error.unwrap();
    assert!(
        error.message.starts_with(&format!("the checkpoint has {} bytes", third + 1)),
        "{}",
        error.message
    );
    desk.next_dead_letter().await;
    worker.shutdown().await;
    desk.close().await;
}
