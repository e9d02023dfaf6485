//! The ladder of delay queues.

use std::sync::Arc;
use std::time::Instant;

use tasker_worker_rust::broker::topology::{Names, retry_key};
use tasker_worker_rust::broker::{Broker, Disposition};
use tasker_worker_rust::retry::Ladder;

use crate::support::*;

pub(crate) async fn a_retry_waits_its_rung_and_is_reported_at_once(broker: Arc<dyn Broker>, names: Names) {
    let ladder = Ladder::new(ms(200), NEVER.div_duration_f64(ms(200)), 2);
    broker.declare(&topology(&names, &ladder)).await.expect("nothing is there yet");
    let mut requests = consume(&*broker, names.step_queue("orders"), 1);
    let mut reports = consume(&*broker, names.orchestrator_queue(), 1);

    let never = retry_key("orders", NEVER);
    publish(&*broker, message(names.retries(), &never, "much later")).await;
    depth_becomes(&*broker, &names.delay_queue(NEVER), 1).await;
    assert_eq!(next_body(&mut reports).await, "much later");

    let key = retry_key("orders", ms(200));
    let published = Instant::now();
    let mut sent = message(names.retries(), &key, "again");
    sent.properties.headers.set("tasker-attempt", 2u32);
    publish(&*broker, sent.clone()).await;
    let report = next(&mut reports).await;
    assert_eq!((text(&report).as_str(), &report.exchange), ("again", &names.retries()));
    report.acker.settle(Disposition::Ack).expect("it is ours");

    let retry = next(&mut requests).await;
    assert!(published.elapsed() >= ms(200), "it came after {:?}", published.elapsed());
    assert_eq!(text(&retry), "again");
    assert_eq!((&retry.exchange, &retry.routing_key), (&names.steps(), &key));
    assert_eq!(retry.properties.message_id, sent.properties.message_id);
    assert_eq!(retry.properties.headers.integer("tasker-attempt"), Some(2));
    retry.acker.settle(Disposition::Ack).expect("it is ours");
    holds_exactly(&*broker, &names.step_queue("payments"), &[]).await;
}

pub(crate) async fn rungs_do_not_wait_for_each_other(broker: Arc<dyn Broker>, names: Names) {
    let ladder = Ladder::new(ms(50), 20.0, 2);
    broker.declare(&topology(&names, &ladder)).await.expect("nothing is there yet");
    for (rung, body) in [(1_000, "slow"), (50, "quick")] {
        publish(&*broker, message(names.retries(), retry_key("orders", ms(rung)), body)).await;
    }
    let mut requests = consume(&*broker, names.step_queue("orders"), 1);
    assert_eq!(next_body(&mut requests).await, "quick");
    assert_eq!(next_body(&mut requests).await, "slow");
}

pub(crate) async fn a_rung_that_does_not_exist_is_unroutable_and_unreported(
    broker: Arc<dyn Broker>,
    names: Names,
) {
    declare(&*broker, &names).await;
    let key = retry_key("orders", ms(77));
    publish(&*broker, message(names.retries(), &key, "astray")).await;
    let astray = next(&mut consume(&*broker, names.unroutable(), 1)).await;
    assert_eq!((astray.exchange, astray.routing_key), (names.retries(), key));
    holds_exactly(&*broker, &names.orchestrator_queue(), &[]).await;
}

pub(crate) async fn the_sooner_of_rung_and_expiration_ends_the_wait(broker: Arc<dyn Broker>, names: Names) {
    let ladder = Ladder::new(ms(50), NEVER.div_duration_f64(ms(50)), 2);
    broker.declare(&topology(&names, &ladder)).await.expect("nothing is there yet");
    let mut requests = consume(&*broker, names.step_queue("orders"), 1);
    for (rung, expiration) in [(NEVER, ms(50)), (ms(50), NEVER)] {
        let body = format!("{rung:?}, {expiration:?}");
        let mut sent = message(names.retries(), retry_key("orders", rung), &body);
        sent.properties.expiration_ms = Some(expiration.as_millis() as u64);
        publish(&*broker, sent).await;
        assert_eq!(next_body(&mut requests).await, body);
    }
}
