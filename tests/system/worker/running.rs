//! Steps that run: how many at once, and what stops them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tasker_worker_rust::message::{ControlMessage, ResultStatus, StepExecutionRequest};
use tasker_worker_rust::{Namespace, Step, StepError, StepResult};
use tokio::sync::{Barrier, Notify, Semaphore, mpsc};

use super::double;
use crate::on_both_brokers;
use crate::support::{DEADLINE, Desk, Kind, NAMESPACE, within};

on_both_brokers! {
    as_many_steps_run_at_once_as_configured_and_no_more
    a_blocking_step_holds_up_no_other
    running_steps_finish_and_unstarted_ones_go_back_on_shutdown
    a_step_cut_off_by_shutdown_spends_no_attempt
    a_cancelled_task_stops_its_running_step_and_its_queued_ones_do_not_start
    a_step_that_is_told_to_stop_stops_and_another_of_its_task_goes_on
}

async fn as_many_steps_run_at_once_as_configured_and_no_more(kind: Kind) {
    const SLOTS: u16 = 4;
    let mut desk = Desk::open(kind).await;
    let (running, highest) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let together = Arc::new(Barrier::new(usize::from(SLOTS)));
    let handler = {
        let (running, highest, together) = (running.clone(), highest.clone(), together.clone());
        move |_: Step| {
            let (running, highest, together) = (running.clone(), highest.clone(), together.clone());
            async move {
                highest.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // Passed only by as many steps as there are slots, all running at once.
                together.wait().await;
                running.fetch_sub(1, Ordering::SeqCst);
                StepResult::Ok(())
            }
        }
    };
    let mut config = desk.config.clone();
    config.worker.max_concurrent_steps = SLOTS;
    let worker = desk.worker_with(config, Namespace::new(NAMESPACE).step("meet", handler)).await;
    for _ in 0..SLOTS * 3 {
        desk.ask("meet", json!({})).await;
    }
    for _ in 0..SLOTS * 3 {
        assert!(desk.next_result().await.success);
    }
    assert_eq!(highest.load(Ordering::SeqCst), usize::from(SLOTS));
    worker.shutdown().await;
    desk.close().await;
}

async fn a_blocking_step_holds_up_no_other(kind: Kind) {
    let mut desk = Desk::open(kind).await;
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = std::sync::Mutex::new(blocked);
    let handlers = Namespace::new(NAMESPACE)
        .blocking_step("block", move |_: Step| {
            blocked.lock().unwrap().recv_timeout(DEADLINE)?;
            Ok("released")
        })
        .step("double", double);
    let worker = desk.worker(handlers).await;
    desk.ask("block", json!({})).await;
    for number in 0..20 {
        desk.ask("double", json!(number)).await;
        assert_eq!(desk.next_result().await.data.get(), (number * 2).to_string());
    }
    release.send(()).unwrap();
    assert_eq!(desk.next_result().await.data.get(), "\"released\"");
    worker.shutdown().await;
    desk.close().await;
}

async fn running_steps_finish_and_unstarted_ones_go_back_on_shutdown(kind: Kind) {
    let mut desk = Desk::open(kind).await;
    let (started, mut has_started) = mpsc::unbounded_channel();
    let finish = Arc::new(Semaphore::new(0));
    let handler = {
        let finish = finish.clone();
        move |_: Step| {
            let (started, finish) = (started.clone(), finish.clone());
            async move {
                started.send(())?;
                finish.acquire().await?.forget();
                StepResult::Ok("finished")
            }
        }
    };
    let mut config = desk.config.clone();
    config.worker.max_concurrent_steps = 2;
    let worker = desk.worker_with(config, Namespace::new(NAMESPACE).step("wait", handler)).await;
    for _ in 0..5 {
        desk.ask("wait", json!({})).await;
    }
    for _ in 0..2 {
        within(has_started.recv()).await;
    }
    let told = worker.health().stopping;
    let stopping = tokio::spawn(worker.shutdown());
    // Before that, a step that ends makes room for another.
    within(told.cancelled()).await;
    // The unstarted ones go back at once, while the others still run.
    let queue = desk.names.step_queue(NAMESPACE);
    within(async {
        while desk.broker.depth(&queue).await != Ok(Some(3)) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    finish.add_permits(2);
    for _ in 0..2 {
        assert_eq!(desk.next_result().await.data.get(), "\"finished\"");
    }
    let drained = within(stopping).await.unwrap();
    assert_eq!((drained.finished, drained.handed_back), (2, 0));

    let worker = desk
        .worker(Namespace::new(NAMESPACE).step("wait", |_: Step| async { StepResult::Ok("later") }))
        .await;
    for _ in 0..3 {
        let result = desk.next_result().await;
        assert_eq!((result.data.get(), result.attempt), ("\"later\"", 1));
    }
    worker.shutdown().await;
    desk.close().await;
}

async fn a_step_cut_off_by_shutdown_spends_no_attempt(kind: Kind) {
    let mut desk = Desk::open(kind).await;
    let started = Arc::new(Notify::new());
    let handler = {
        let started = started.clone();
        move |step: Step| {
            let started = started.clone();
            async move {
                started.notify_one();
                step.cancelled().await;
                StepResult::<()>::Err(StepError::permanent("stopped half-way"))
            }
        }
    };
    let mut config = desk.config.clone();
    config.worker.shutdown.shutdown_timeout_seconds = 0;
    let worker = desk.worker_with(config, Namespace::new(NAMESPACE).step("slow", handler)).await;
    let request = desk.ask("slow", json!({})).await;
    within(started.notified()).await;
    let drained = within(worker.shutdown()).await;
    assert_eq!((drained.finished, drained.handed_back), (0, 1));

    let worker =
        desk.worker(Namespace::new(NAMESPACE).step("slow", |_: Step| async { StepResult::Ok(()) })).await;
    let result = desk.next_result().await;
    assert_eq!((result.step_uuid, result.attempt, result.success), (request.step_uuid, 1, true));
    worker.shutdown().await;
    desk.close().await;
}

async fn a_cancelled_task_stops_its_running_step_and_its_queued_ones_do_not_start(kind: Kind) {
    let mut desk = Desk::open(kind).await;
    let (started, mut has_started) = mpsc::unbounded_channel();
    let handler = move |step: Step| {
        let started = started.clone();
        async move {
            started.send(step.step_uuid())?;
            step.cancelled().await;
            StepResult::<()>::Err(StepError::permanent("stopped half-way"))
        }
    };
    let mut config = desk.config.clone();
    config.worker.max_concurrent_steps = 1;
    let worker = desk.worker_with(config, Namespace::new(NAMESPACE).step("slow", handler)).await;
    let first = desk.ask("slow", json!({})).await;
    let mut second = desk.request("slow", json!({}));
    second.task_uuid = first.task_uuid;
    desk.send(&second).await;
    assert_eq!(within(has_started.recv()).await, Some(first.step_uuid));

    let asked = Instant::now();
    let cancel = ControlMessage::CancelTask { task_uuid: first.task_uuid };
    desk.publish(desk.names.control(), String::new(), serde_json::to_vec(&cancel).unwrap()).await;
    for step_uuid in [first.step_uuid, second.step_uuid] {
        let result = desk.next_result().await;
        assert_eq!((result.status, result.step_uuid), (ResultStatus::Cancelled, step_uuid));
    }
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    assert!(has_started.try_recv().is_err(), "the queued step must not start");
    worker.shutdown().await;
    desk.close().await;
}

async fn a_step_that_is_told_to_stop_stops_and_another_of_its_task_goes_on(kind: Kind) {
    let (started, mut has_started) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |step: Step| {
        let started = started.clone();
        async move {
            started.send(step.step_uuid()).ok();
            if step.attempt() == 1 {
                step.cancelled().await;
                return Err(StepError::retryable("told to stop"));
            }
            StepResult::Ok(step.attempt())
        }
    };
    let mut desk = Desk::open(kind).await;
    let worker = desk.worker(Namespace::new(NAMESPACE).step("slow", handler)).await;
    let stopped = desk.ask("slow", json!({})).await;
    let mut other = desk.request("slow", json!({}));
    other.task_uuid = stopped.task_uuid;
    desk.send(&other).await;
    for _ in 0..2 {
        within(has_started.recv()).await.expect("it starts");
    }
    let tell = async |desk: &Desk, order: ControlMessage| {
        desk.publish(desk.names.control(), String::new(), serde_json::to_vec(&order).unwrap()).await;
    };
    tell(&desk, ControlMessage::StopStep { step_uuid: stopped.step_uuid, replays: 0 }).await;
    let result = desk.next_result().await;
    assert_eq!((result.status, result.step_uuid), (ResultStatus::Cancelled, stopped.step_uuid));
    // What is requested of the step later is wanted.
    let again = StepExecutionRequest { attempt: 2, ..stopped };
    desk.send(&again).await;
    let result = desk.next_result().await;
    assert_eq!((result.status, result.step_uuid), (ResultStatus::Completed, again.step_uuid));
    tell(&desk, ControlMessage::StopStep { step_uuid: other.step_uuid, replays: 0 }).await;
    let result = desk.next_result().await;
    assert_eq!((result.status, result.step_uuid), (ResultStatus::Cancelled, other.step_uuid));
    worker.shutdown().await;
    desk.close().await;
}
