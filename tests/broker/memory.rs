//! What only the embedded broker does: failing on demand, and keeping paused time.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::broker::topology::{Binding, Names, Topology, retry_key, step_key};
use tasker_worker_rust::broker::{
    Broker, BrokerError, BrokerStatus, ConsumerState, Disposition, PublishError, Source, StaleDelivery,
};
use tasker_worker_rust::retry::Ladder;
use tokio::time::Instant;

use crate::support::*;

/// An embedded broker with namespaces `orders` and `payments`.
async fn broker() -> (Arc<MemoryBroker>, Names) {
    let (broker, names) = (MemoryBroker::new(), Names::default());
    declare(&*broker, &names).await;
    (broker, names)
}

async fn publish_request(broker: &dyn Broker, names: &Names, body: &str) {
    publish(broker, message(names.steps(), step_key("orders", "pay"), body)).await;
}

#[tokio::test(start_paused = true)]
async fn retries_come_back_to_the_millisecond_on_paused_time() {
    let (broker, names) = (MemoryBroker::new(), Names::default());
    let ladder = Ladder::default();
    broker.declare(&topology(&names, &ladder)).await.expect("nothing is there yet");
    let mut requests = consume(&*broker, names.step_queue("orders"), 100);
    let start = Instant::now();
    for rung in ladder.rungs().iter().rev() {
        publish(&*broker, message(names.retries(), retry_key("orders", *rung), "again")).await;
    }
    for rung in ladder.rungs() {
        let retry = requests.recv().await.expect("the subscription goes on");
        assert_eq!((retry.routing_key, start.elapsed()), (retry_key("orders", *rung), *rung));
        retry.acker.settle(Disposition::Ack).expect("it is ours");
    }
}

#[tokio::test(start_paused = true)]
async fn expirations_far_beyond_the_clock_are_no_expirations() {
    let (broker, names) = broker().await;
    let mut eternal = message(names.steps(), "orders", "eternal");
    eternal.properties.expiration_ms = Some(u64::MAX);
    publish(&*broker, eternal).await;
    tokio::time::advance(Duration::from_secs(86_400 * 365)).await;
    holds_exactly(&*broker, &names.step_queue("orders"), &["eternal"]).await;
}

#[tokio::test]
async fn a_cut_connection_gives_back_what_was_handed_out_and_goes_on() {
    let (broker, names) = broker().await;
    for body in ["held", "unread", "waiting"] {
        publish_request(&*broker, &names, body).await;
    }
    let mut subscription = consume(&*broker, names.step_queue("orders"), 2);
    let held = next(&mut subscription).await;
    assert!(held.acker.is_usable());

    broker.disconnect();
    assert!(!held.acker.is_usable());
    assert_eq!(held.acker.settle(Disposition::Ack), Err(StaleDelivery));
    let unread = next(&mut subscription).await;
    assert_eq!((text(&unread).as_str(), unread.acker.is_usable()), ("unread", false));
    drop(unread);

    state_becomes(&subscription, &ConsumerState::Consuming).await;
    for (body, count) in [("held", Some(1)), ("unread", Some(1)), ("waiting", None)] {
        let delivery = next(&mut subscription).await;
        assert_eq!(text(&delivery), body);
        assert_eq!(delivery.properties.headers.integer("x-delivery-count"), count);
        assert_eq!(delivery.redelivered, count.is_some());
        delivery.acker.settle(Disposition::Ack).expect("it is ours");
    }
}

#[tokio::test]
async fn a_message_that_is_cut_off_too_often_is_a_dead_letter() {
    let (broker, names) = (MemoryBroker::new(), Names::default());
    let mut topology = topology(&names, &short_ladder());
    queue_named(&mut topology, &names.step_queue("orders")).delivery_limit = Some(2);
    broker.declare(&topology).await.expect("nothing is there yet");
    publish_request(&*broker, &names, "deadly").await;
    let mut subscription = consume(&*broker, names.step_queue("orders"), 1);
    for _ in 0..3 {
        next(&mut subscription).await;
        broker.disconnect();
    }
    let letter = next(&mut consume(&*broker, names.dead_letter_queue("orders"), 1)).await;
    assert_eq!(letter.properties.headers.text("x-first-death-reason"), Some("delivery_limit"));
}

#[tokio::test]
async fn a_released_message_never_reaches_the_delivery_limit() {
    let (broker, names) = broker().await;
    publish_request(&*broker, &names, "patient").await;
    let mut subscription = consume(&*broker, names.step_queue("orders"), 1);
    for _ in 0..50 {
        let delivery = next(&mut subscription).await;
        assert_eq!(delivery.properties.headers.integer("x-delivery-count"), None);
        delivery.acker.settle(Disposition::Release).expect("it is ours");
    }
    assert_eq!(next_body(&mut subscription).await, "patient");
}

#[tokio::test]
async fn nothing_is_handed_out_from_the_moment_of_cancelling() {
    let (broker, names) = broker().await;
    publish_request(&*broker, &names, "handed out").await;
    publish_request(&*broker, &names, "too late").await;
    let mut subscription = consume(&*broker, names.step_queue("orders"), 1);
    let held = next(&mut subscription).await;
    subscription.cancel();
    held.acker.settle(Disposition::Ack).expect("a delivery outlives its subscription");
    assert!(subscription.recv().await.is_none());
    holds_exactly(&*broker, &names.step_queue("orders"), &["too late"]).await;
}

#[tokio::test]
async fn a_cut_connection_loses_its_broadcasts_and_subscribes_again() {
    let (broker, names) = broker().await;
    let mut control = broker.subscribe(Source::Broadcast(names.control()), 10);
    broker.set_down(Some("maintenance"));
    state_becomes(&control, &ConsumerState::Connecting("maintenance".to_owned())).await;
    broker.set_down(None);
    state_becomes(&control, &ConsumerState::Consuming).await;
    publish(&*broker, message(names.control(), "", "heard")).await;
    assert_eq!(next_body(&mut control).await, "heard");
}

#[tokio::test]
async fn publishes_wait_while_the_broker_is_blocked() {
    let (broker, names) = broker().await;
    broker.set_blocked(Some("low on disk"));
    assert_eq!(*broker.status().borrow(), BrokerStatus::Blocked("low on disk".to_owned()));
    let publishing = tokio::spawn({
        let broker = Arc::clone(&broker);
        let names = names.clone();
        async move { publish_request(&*broker, &names, "patient").await }
    });
    // Acks and deliveries go on.
    let mut subscription = consume(&*broker, names.step_queue("orders"), 1);
    tokio::task::yield_now().await;
    assert_eq!(broker.depth(&names.step_queue("orders")).await, Ok(Some(0)));

    broker.set_blocked(None);
    assert_eq!(*broker.status().borrow(), BrokerStatus::Connected);
    within("the publish", publishing).await.expect("it is confirmed");
    assert_eq!(next_body(&mut subscription).await, "patient");
}

#[tokio::test]
async fn publishes_under_way_fail_with_their_connection_and_no_others() {
    let (broker, names) = broker().await;
    broker.set_blocked(Some("low on disk"));
    let publisher = broker.publisher();
    let mut under_way = Box::pin(join_all(
        (0..200).map(|n| publisher.publish(message(names.steps(), "orders", &n.to_string()))),
    ));
    assert!(tokio::time::timeout(ms(20), &mut under_way).await.is_err(), "the broker is blocked");
    broker.disconnect();
    broker.set_blocked(None);
    publish_request(&*broker, &names, "after").await;
    for answer in within("all answers", under_way).await {
        assert!(matches!(answer, Err(PublishError::Disconnected(_))), "{answer:?}");
    }
    holds_exactly(&*broker, &names.step_queue("orders"), &["after"]).await;
}

#[tokio::test]
async fn a_broker_that_is_down_answers_so_and_keeps_its_messages() {
    let (broker, names) = broker().await;
    publish_request(&*broker, &names, "kept").await;
    let mut subscription = consume(&*broker, names.step_queue("orders"), 1);
    let held = next(&mut subscription).await;

    broker.set_down(Some("maintenance"));
    assert_eq!(*broker.status().borrow(), BrokerStatus::Connecting("maintenance".to_owned()));
    assert_eq!(held.acker.settle(Disposition::Ack), Err(StaleDelivery));
    let late = broker.publisher().publish(message(names.steps(), "orders", "lost")).await;
    assert_eq!(late, Err(PublishError::Disconnected("maintenance".to_owned())));
    let unreachable = broker.depth(&names.unroutable()).await;
    assert!(matches!(unreachable, Err(BrokerError::Unreachable { .. })), "{unreachable:?}");

    broker.set_down(None);
    assert_eq!(*broker.status().borrow(), BrokerStatus::Connected);
    assert_eq!(next_body(&mut subscription).await, "kept");
}

#[tokio::test]
async fn a_lost_confirm_leaves_its_message_in_the_queue() {
    let (broker, names) = broker().await;
    broker.lose_confirms(1);
    let answer = broker.publisher().publish(message(names.steps(), "orders", "stored")).await;
    assert!(matches!(answer, Err(PublishError::Disconnected(_))), "{answer:?}");
    publish_request(&*broker, &names, "confirmed").await;
    holds_exactly(&*broker, &names.step_queue("orders"), &["stored", "confirmed"]).await;
}

#[tokio::test]
async fn a_full_queue_refuses_while_others_keep_their_copy() {
    let (broker, names) = broker().await;
    broker.limit_queue(&names.orchestrator_queue(), Some(0)).expect("it is declared");
    let answer =
        broker.publisher().publish(message(names.retries(), retry_key("orders", ms(50)), "again")).await;
    assert_eq!(answer, Err(PublishError::Refused));
    assert_eq!(next_body(&mut consume(&*broker, names.step_queue("orders"), 1)).await, "again");
    let refused = broker.limit_queue("nowhere", Some(1));
    assert!(matches!(&refused, Err(BrokerError::Refused(why)) if why.contains("nowhere")), "{refused:?}");
}

#[tokio::test]
async fn a_dead_letter_that_no_queue_wants_is_kept_until_one_does() {
    let (broker, names) = (MemoryBroker::new(), Names::default());
    let whole = topology(&names, &short_ladder());
    let mut partial = whole.clone();
    partial.bindings.retain(|binding| binding.exchange != names.dead_letters());
    partial.exchanges.retain(|exchange| exchange.name != names.dead_letters());
    broker.declare(&partial).await.expect("nothing is there yet");
    publish_request(&*broker, &names, "kept").await;
    let delivery = next(&mut consume(&*broker, names.step_queue("orders"), 1)).await;
    delivery.acker.settle(Disposition::Reject).expect("it is ours");
    assert_eq!(broker.depth(&names.step_queue("orders")).await, Ok(Some(0)));

    broker.declare(&whole).await.expect("the rest fits");
    let letter = next(&mut consume(&*broker, names.dead_letter_queue("orders"), 1)).await;
    assert_eq!(text(&letter), "kept");
    assert_eq!(letter.properties.headers.text("x-first-death-reason"), Some("rejected"));
}

#[tokio::test]
async fn a_subscription_begins_when_its_queue_is_declared() {
    let (broker, names) = (MemoryBroker::new(), Names::default());
    let mut requests = consume(&*broker, names.step_queue("orders"), 1);
    let mut control = broker.subscribe(Source::Broadcast(names.control()), 1);
    for state in [requests.state(), control.state()] {
        assert!(matches!(&*state.borrow(), ConsumerState::Connecting(why) if why.contains("declare")));
    }
    declare(&*broker, &names).await;
    publish_request(&*broker, &names, "first").await;
    publish(&*broker, message(names.control(), "", "heard")).await;
    assert_eq!(next_body(&mut requests).await, "first");
    assert_eq!(next_body(&mut control).await, "heard");
}

#[tokio::test]
async fn a_binding_to_what_does_not_exist_is_refused() {
    let (broker, names) = broker().await;
    for (queue, exchange) in [("nowhere", names.steps()), (&*names.unroutable(), "nowhere".to_owned())] {
        let binding = Binding { queue: queue.to_owned(), exchange, routing_key: String::new() };
        let refused = broker.declare(&Topology { bindings: vec![binding], ..Topology::default() }).await;
        assert!(matches!(&refused, Err(BrokerError::Refused(why)) if why.contains("nowhere")), "{refused:?}");
    }
}

#[tokio::test]
async fn connections_close_one_by_one() {
    let (orchestrator, names) = broker().await;
    let worker = orchestrator.connect();
    publish_request(&*orchestrator, &names, "unfinished").await;
    let mut working = consume(&*worker, names.step_queue("orders"), 1);
    let held = next(&mut working).await;

    worker.close().await;
    assert_eq!(held.acker.settle(Disposition::Ack), Err(StaleDelivery));
    assert!(working.recv().await.is_none());
    assert_eq!(*worker.status().borrow(), BrokerStatus::Closed);
    assert_eq!(worker.depth(&names.unroutable()).await, Err(BrokerError::Closed));
    assert_eq!(*orchestrator.status().borrow(), BrokerStatus::Connected);
    let again = next(&mut consume(&*orchestrator, names.step_queue("orders"), 1)).await;
    assert_eq!((text(&again).as_str(), again.redelivered), ("unfinished", true));
}

#[tokio::test]
async fn nothing_runs_on_after_the_last_connection() {
    let (broker, names) = broker().await;
    let other = broker.connect();
    let publisher = other.publisher();
    let mut subscription = consume(&*broker, names.step_queue("orders"), 1);
    publish(&*broker, message(names.retries(), retry_key("orders", ms(200)), "never again")).await;
    drop((broker, other));
    assert_eq!(publisher.publish(message_to("nowhere", "late")).await, Err(PublishError::Closed));
    assert!(subscription.recv().await.is_none());
    let metrics = tokio::runtime::Handle::current().metrics();
    within("all tasks to end", async {
        while metrics.num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
