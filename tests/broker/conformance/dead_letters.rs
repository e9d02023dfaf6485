//! What becomes of messages that nobody could or would handle.

use std::sync::Arc;
use std::time::Instant;

use tasker_worker_rust::broker::topology::{Names, retry_key, step_key};
use tasker_worker_rust::broker::{Broker, Delivery, Disposition, Message, Properties};

use crate::support::*;

/// Both copies of the next dead letter of `orders`: the parked one, and the orchestrator's.
async fn dead_letters(broker: &dyn Broker, names: &Names) -> [Delivery; 2] {
    let mut parked = consume(broker, names.dead_letter_queue("orders"), 1);
    let mut reported = consume(broker, names.orchestrator_queue(), 1);
    [next(&mut parked).await, next(&mut reported).await]
}

fn assert_death(letter: &Delivery, names: &Names, reason: &str) {
    let headers = &letter.properties.headers;
    assert_eq!(letter.exchange, names.dead_letters());
    assert_eq!(headers.text("x-first-death-reason"), Some(reason));
    assert_eq!(headers.text("x-first-death-queue"), Some(names.step_queue("orders").as_str()));
    assert_eq!(headers.text("x-first-death-exchange"), Some(names.steps().as_str()));
}

pub(crate) async fn a_rejected_message_is_parked_and_reported(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    let key = step_key("orders", "pay");
    let sent = message(names.steps(), &key, "not json");
    publish(&*broker, sent.clone()).await;
    let delivery = next(&mut consume(&*broker, names.step_queue("orders"), 1)).await;
    delivery.acker.settle(Disposition::Reject).expect("it is ours");

    for letter in dead_letters(&*broker, &names).await {
        assert_death(&letter, &names, "rejected");
        assert_eq!((&letter.routing_key, text(&letter).as_str()), (&key, "not json"));
        assert_eq!(letter.properties.message_id, sent.properties.message_id);
        letter.acker.settle(Disposition::Ack).expect("it is ours");
    }
    holds_exactly(&*broker, &names.step_queue("orders"), &[]).await;
}

pub(crate) async fn a_rejected_message_without_a_dead_letter_exchange_is_gone(
    broker: Arc<dyn Broker>,
    names: Names,
) {
    declare(&*broker, &names).await;
    let parking = names.dead_letter_queue("orders");
    publish(&*broker, message_to(&parking, "seen")).await;
    let mut subscription = consume(&*broker, &parking, 1);
    next(&mut subscription).await.acker.settle(Disposition::Reject).expect("it is ours");
    drop(subscription);
    holds_exactly(&*broker, &parking, &[]).await;
}

pub(crate) async fn a_message_retried_too_often_is_parked_and_reported(
    broker: Arc<dyn Broker>,
    names: Names,
) {
    let mut topology = topology(&names, &short_ladder());
    queue_named(&mut topology, &names.step_queue("orders")).delivery_limit = Some(3);
    broker.declare(&topology).await.expect("nothing is there yet");
    publish(&*broker, message(names.steps(), "orders", "poison")).await;
    let mut subscription = consume(&*broker, names.step_queue("orders"), 1);
    for count in [None, Some(1), Some(2), Some(3)] {
        let delivery = next(&mut subscription).await;
        assert_eq!(delivery.properties.headers.integer("x-delivery-count"), count);
        delivery.acker.settle(Disposition::Retry).expect("it is ours");
    }

    for letter in dead_letters(&*broker, &names).await {
        assert_death(&letter, &names, "delivery_limit");
        assert_eq!(text(&letter), "poison");
    }
    publish(&*broker, message(names.steps(), "orders", "healthy")).await;
    assert_eq!(next_body(&mut subscription).await, "healthy");
}

pub(crate) async fn an_expired_message_is_parked_without_its_expiration(
    broker: Arc<dyn Broker>,
    names: Names,
) {
    declare(&*broker, &names).await;
    let published = Instant::now();
    publish(&*broker, expiring(&names, 100, "stale")).await;
    for letter in dead_letters(&*broker, &names).await {
        assert_death(&letter, &names, "expired");
        assert_eq!(letter.properties.expiration_ms, None);
        assert_eq!(text(&letter), "stale");
    }
    assert!(published.elapsed() >= ms(100));
}

pub(crate) async fn only_the_oldest_message_expires(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    let published = Instant::now();
    publish(&*broker, expiring(&names, 300, "oldest")).await;
    publish(&*broker, expiring(&names, 20, "hasty")).await;
    let mut parked = consume(&*broker, names.dead_letter_queue("orders"), 1);
    assert_eq!(next_body(&mut parked).await, "oldest");
    assert!(published.elapsed() >= ms(300));
    assert_eq!(next_body(&mut parked).await, "hasty");
}

fn expiring(names: &Names, expiration_ms: u64, body: &str) -> Message {
    let properties = Properties { expiration_ms: Some(expiration_ms), ..Properties::default() };
    Message { properties, ..message(names.steps(), "orders", body) }
}

/// The way of a replay: through the delay queue, back into the queue it died in.
pub(crate) async fn a_dead_letter_can_be_replayed(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    publish(&*broker, message(names.steps(), "orders", "second chance")).await;
    let mut requests = consume(&*broker, names.step_queue("orders"), 1);
    next(&mut requests).await.acker.settle(Disposition::Reject).expect("it is ours");

    for round in 1..=2 {
        let letter = next(&mut consume(&*broker, names.dead_letter_queue("orders"), 1)).await;
        let mut properties = letter.properties.clone();
        properties.headers.strip_broker_headers();
        properties.headers.set("tasker-replays", i64::from(round));
        let key = retry_key("orders", ms(50));
        publish(&*broker, Message { properties, ..message(names.retries(), key, "second chance") }).await;
        letter.acker.settle(Disposition::Ack).expect("it is ours");

        let replayed = next(&mut requests).await;
        let headers = &replayed.properties.headers;
        assert_eq!(text(&replayed), "second chance");
        assert_eq!(headers.integer("tasker-replays"), Some(i64::from(round)));
        assert_eq!(headers.integer("x-delivery-count"), None, "a replay starts afresh");
        // Its only death is the one in the delay queue: the earlier ones are forgotten.
        assert_eq!(headers.text("x-first-death-reason"), Some("expired"));
        assert_eq!(headers.text("x-first-death-queue"), Some(names.delay_queue(ms(50)).as_str()));
        replayed.acker.settle(Disposition::Reject).expect("it is ours");
    }
}

/// A retry has died once already, in its delay queue: the reason that counts is the last one.
pub(crate) async fn a_retry_that_dies_tells_its_first_death_and_its_last(
    broker: Arc<dyn Broker>,
    names: Names,
) {
    declare(&*broker, &names).await;
    publish(&*broker, message(names.retries(), retry_key("orders", ms(50)), "second attempt")).await;
    let retry = next(&mut consume(&*broker, names.step_queue("orders"), 1)).await;
    retry.acker.settle(Disposition::Reject).expect("it is ours");

    let letter = next(&mut consume(&*broker, names.dead_letter_queue("orders"), 1)).await;
    let headers = &letter.properties.headers;
    assert_eq!(headers.text("x-first-death-reason"), Some("expired"));
    assert_eq!(headers.text("x-first-death-queue"), Some(names.delay_queue(ms(50)).as_str()));
    assert_eq!(headers.text("x-last-death-reason"), Some("rejected"));
    assert_eq!(headers.text("x-last-death-queue"), Some(names.step_queue("orders").as_str()));
    assert_eq!(headers.text("x-last-death-exchange"), Some(names.steps().as_str()));
}
