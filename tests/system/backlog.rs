//! What a worker says of the work that waits for it.

use std::sync::Arc;

use serde_json::json;
use tasker_worker_rust::ops::metrics::METRICS;
use tasker_worker_rust::{Namespace, Step, StepResult};
use tokio::sync::Semaphore;

use crate::on_both_brokers;
use crate::support::{Desk, Kind, eventually, settings};

on_both_brokers! {
    what_waits_is_counted_and_weighed_by_how_long_steps_have_run
}

async fn what_waits_is_counted_and_weighed_by_how_long_steps_have_run(kind: Kind) {
    // The metrics are the process's: a namespace that no other test has.
    let namespace = format!("backlog-{kind:?}");
    let mut config = settings(kind);
    config.worker.max_concurrent_steps = 2;
    let mut desk = Desk::open_with(config, kind, &[&namespace]).await;
    let may_end = Arc::new(Semaphore::new(0));
    let handler = {
        let may_end = may_end.clone();
        move |_: Step| {
            let may_end = may_end.clone();
            async move {
                may_end.acquire().await?.forget();
                StepResult::Ok(())
            }
        }
    };
    let worker = desk.worker(Namespace::new(&namespace).step("hold", handler)).await;
    for _ in 0..6 {
        let mut request = desk.request("hold", json!({}));
        request.namespace.clone_from(&namespace);
        desk.send(&request).await;
    }
    may_end.add_permits(1);
    desk.next_result().await;

    let waiting = METRICS.queue_messages.with_label_values(&[namespace.as_str()]);
    let backlog = METRICS.work_seconds_backlog.with_label_values(&[namespace.as_str()]);
    let told = eventually("three waiting requests are told", async || {
        // One has run, two are held; the weight is set after the count.
        (waiting.get() == 3 && backlog.get() > 0.0).then(|| backlog.get())
    });
    let told = told.await;
    let (runs, seconds) = METRICS.runs(&namespace);
    assert_eq!(runs, 1);
    assert!((told - 3.0 * seconds / 2.0).abs() < 1e-9, "{told} s for 3 requests of {seconds} s on 2 slots");

    may_end.add_permits(5);
    for _ in 0..5 {
        desk.next_result().await;
    }
    eventually("nothing waits any more", async || (waiting.get() == 0 && backlog.get() == 0.0).then_some(()))
        .await;
    worker.shutdown().await;
    desk.close().await;
}
