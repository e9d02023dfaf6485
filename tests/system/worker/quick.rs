//! Handlers that are done at once run where their deliveries arrive, without a task of their own. Nothing else is
//! different for them.

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use serde_json::json;
use tasker_worker_rust::message::ResultStatus;
use tasker_worker_rust::{Namespace, Step, StepResult};
use tokio::sync::Semaphore;

use crate::on_both_brokers;
use crate::support::{Desk, Kind, NAMESPACE, within};

on_both_brokers! {
    a_handler_that_begins_to_block_holds_up_the_others_once
    those_that_wait_beside_one_that_blocks_go_on_without_it
    a_quick_handler_may_say_that_it_blocks
}

/// Enough for a namespace to be known as quick.
const MANY: i64 = 300;

async fn quick(step: Step<i64>) -> StepResult<i64> {
    Ok(step.context)
}

async fn ask_many(desk: &mut Desk, step: &str) {
    for number in 0..MANY {
        desk.ask(step, json!(number)).await;
    }
    for _ in 0..MANY {
        assert_eq!(desk.next_result().await.status, ResultStatus::Completed);
    }
}

fn hold_the_thread() {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(20) {
        std::hint::spin_loop();
    }
}

async fn a_handler_that_begins_to_block_holds_up_the_others_once(kind: Kind) {
    async fn blocking(_: Step<i64>) -> StepResult<()> {
        hold_the_thread();
        Ok(())
    }
    let meeting = Arc::new(Barrier::new(2));
    let meet = move |_: Step<i64>| {
        let meeting = meeting.clone();
        async move {
            meeting.wait();
            Ok(())
        }
    };
    let mut desk = Desk::open(kind).await;
    let namespace =
        Namespace::new(NAMESPACE).step("quick", quick).step("blocking", blocking).step("meet", meet);
    let worker = desk.worker(namespace).await;
    ask_many(&mut desk, "quick").await;
    desk.ask("blocking", json!(0)).await;
    desk.next_result().await;

    // Each waits for the other, and holds its thread meanwhile.
    desk.ask("meet", json!(0)).await;
    desk.ask("meet", json!(0)).await;
    for _ in 0..2 {
        assert_eq!(desk.next_result().await.status, ResultStatus::Completed);
    }
    worker.shutdown().await;
    desk.close().await;
}

async fn those_that_wait_beside_one_that_blocks_go_on_without_it(kind: Kind) {
    let gate = || Arc::new(Semaphore::new(0));
    let (begun, blocks, ends, meets) = (gate(), gate(), gate(), gate());
    let (first_begun, may_block, may_end) = (begun.clone(), blocks.clone(), ends.clone());
    let blocking = move |_: Step<i64>| {
        let (begun, may_block, may_end) = (first_begun.clone(), may_block.clone(), may_end.clone());
        async move {
            begun.add_permits(1);
            may_block.acquire().await?.forget();
            hold_the_thread();
            begun.add_permits(1);
            may_end.acquire().await?.forget();
            Ok(())
        }
    };
    let meeting = Arc::new(Barrier::new(2));
    let (others_begun, may_meet) = (begun.clone(), meets.clone());
    let meet = move |_: Step<i64>| {
        let (begun, may_meet, meeting) = (others_begun.clone(), may_meet.clone(), meeting.clone());
        async move {
            begun.add_permits(1);
            may_meet.acquire().await?.forget();
            meeting.wait();
            Ok(())
        }
    };
    let mut desk = Desk::open(kind).await;
    let namespace =
        Namespace::new(NAMESPACE).step("quick", quick).step("blocking", blocking).step("meet", meet);
    let worker = desk.worker(namespace).await;
    ask_many(&mut desk, "quick").await;
    for step in ["meet", "meet", "blocking"] {
        desk.ask(step, json!(0)).await;
    }
    within(begun.acquire_many(3)).await.unwrap().forget();
    blocks.add_permits(1);
    within(begun.acquire()).await.unwrap().forget();

    // Each waits for the other, and holds its thread meanwhile.
    meets.add_permits(2);
    for _ in 0..2 {
        assert_eq!(desk.next_result().await.step_name, "meet");
    }
    ends.add_permits(1);
    assert_eq!(desk.next_result().await.step_name, "blocking");
    worker.shutdown().await;
    desk.close().await;
}

async fn a_quick_handler_may_say_that_it_blocks(kind: Kind) {
    async fn saying_so(step: Step<i64>) -> StepResult<i64> {
        Ok(tokio::task::block_in_place(|| step.context * 2))
    }
    let mut desk = Desk::open(kind).await;
    let worker = desk.worker(Namespace::new(NAMESPACE).step("saying_so", saying_so)).await;
    ask_many(&mut desk, "saying_so").await;
    worker.shutdown().await;
    desk.close().await;
}
