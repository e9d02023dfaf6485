//! From a queue to its consumers.

use std::collections::BTreeSet;
use std::sync::Arc;

use tasker_worker_rust::broker::topology::Names;
use tasker_worker_rust::broker::{Broker, ConsumerState, Disposition, PublishError, Source};

use crate::support::*;

pub(crate) async fn prefetch_bounds_what_is_handed_out(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    for n in 0..10 {
        publish(&*broker, message(names.steps(), "orders", &n.to_string())).await;
    }
    let mut bounded = consume(&*broker, names.step_queue("orders"), 3);
    let mut held = Vec::new();
    for n in 0..3 {
        held.push(next(&mut bounded).await);
        assert_eq!(text(&held[n]), n.to_string());
    }
    // All the others are still the queue's to give, so the first consumer never had them.
    let mut other = consume(&*broker, names.step_queue("orders"), 100);
    for n in 3..10 {
        let got = next(&mut other).await;
        assert_eq!((text(&got), got.redelivered), (n.to_string(), false));
        got.acker.settle(Disposition::Ack).expect("it is ours");
    }
}

pub(crate) async fn an_ack_makes_room_for_the_next_message(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    for body in ["first", "second", "third"] {
        publish(&*broker, message(names.steps(), "orders", body)).await;
    }
    let mut subscription = consume(&*broker, names.step_queue("orders"), 2);
    let first = next(&mut subscription).await;
    let second = next(&mut subscription).await;
    assert_eq!((text(&first), text(&second)), ("first".to_owned(), "second".to_owned()));
    // In any order.
    second.acker.settle(Disposition::Ack).expect("it is ours");
    assert_eq!(next_body(&mut subscription).await, "third");
    assert!(first.acker.is_usable());
    first.acker.settle(Disposition::Ack).expect("it is ours");
}

pub(crate) async fn two_consumers_share_a_queue(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    let mut one = consume(&*broker, names.step_queue("orders"), 5);
    let mut two = consume(&*broker, names.step_queue("orders"), 5);
    state_becomes(&one, &ConsumerState::Consuming).await;
    state_becomes(&two, &ConsumerState::Consuming).await;
    for n in 0..10 {
        publish(&*broker, message(names.steps(), "orders", &n.to_string())).await;
    }
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(next(&mut one).await);
        held.push(next(&mut two).await);
    }
    let bodies: BTreeSet<_> = held.iter().map(text).collect();
    assert_eq!(bodies.len(), 10, "each message goes to one consumer");
    for delivery in held {
        delivery.acker.settle(Disposition::Ack).expect("it is ours");
    }
}

pub(crate) async fn an_acked_message_is_forgotten(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    publish(&*broker, message(names.steps(), "orders", "done")).await;
    let mut subscription = consume(&*broker, names.step_queue("orders"), 5);
    let delivery = next(&mut subscription).await;
    assert!(delivery.acker.is_usable());
    delivery.acker.settle(Disposition::Ack).expect("it is ours");
    drop(subscription);

    holds_exactly(&*broker, &names.step_queue("orders"), &[]).await;
}

pub(crate) async fn acks_in_any_order_leave_the_others_unsettled(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    for n in 0..60 {
        publish(&*broker, message(names.steps(), "orders", &n.to_string())).await;
    }
    let mut subscription = consume(&*broker, names.step_queue("orders"), 60);
    let mut held = Vec::new();
    for _ in 0..60 {
        held.push(next(&mut subscription).await);
    }
    // From the front, the back and the middle.
    let (mut kept, mut acked) = (Vec::new(), Vec::new());
    for (n, delivery) in held.into_iter().enumerate() {
        if n % 7 == 5 { kept.push(delivery) } else { acked.push(delivery) }
    }
    let (back, front): (Vec<_>, Vec<_>) = acked.into_iter().enumerate().partition(|(n, _)| n % 3 == 0);
    for part in [front, back.into_iter().rev().collect()] {
        for (_, delivery) in part {
            delivery.acker.settle(Disposition::Ack).expect("it is ours");
        }
        // There is room for it once the broker has heard of an ack.
        publish(&*broker, message(names.steps(), "orders", "another")).await;
        let another = next(&mut subscription).await;
        assert_eq!(text(&another), "another");
        another.acker.settle(Disposition::Ack).expect("it is ours");
    }
    let left: Vec<String> = kept.iter().map(text).collect();
    for delivery in kept {
        assert!(delivery.acker.is_usable());
        delivery.acker.settle(Disposition::Release).expect("it is ours");
    }
    drop(subscription);
    let mut others = consume(&*broker, names.step_queue("orders"), 60);
    let mut returned = BTreeSet::new();
    for _ in &left {
        let delivery = next(&mut others).await;
        returned.insert(text(&delivery));
        delivery.acker.settle(Disposition::Ack).expect("it is ours");
    }
    assert_eq!(returned, left.into_iter().collect());
    drop(others);
    holds_exactly(&*broker, &names.step_queue("orders"), &[]).await;
}

pub(crate) async fn a_released_message_comes_back_first(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    publish(&*broker, message(names.steps(), "orders", "handed back")).await;
    publish(&*broker, message(names.steps(), "orders", "later")).await;
    let mut subscription = consume(&*broker, names.step_queue("orders"), 1);
    let delivery = next(&mut subscription).await;
    assert_eq!((text(&delivery).as_str(), delivery.redelivered), ("handed back", false));
    delivery.acker.settle(Disposition::Release).expect("it is ours");

    let again = next(&mut subscription).await;
    assert_eq!((text(&again).as_str(), again.redelivered), ("handed back", true));
    again.acker.settle(Disposition::Ack).expect("it is ours");
    assert_eq!(next_body(&mut subscription).await, "later");
}

pub(crate) async fn a_dropped_delivery_comes_back_and_counts(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    publish(&*broker, message(names.steps(), "orders", "unlucky")).await;
    let mut subscription = consume(&*broker, names.step_queue("orders"), 1);
    for count in [None, Some(1), Some(2)] {
        let delivery = next(&mut subscription).await;
        assert_eq!(delivery.redelivered, count.is_some());
        assert_eq!(delivery.properties.headers.integer("x-delivery-count"), count);
        drop(delivery);
    }
    let last = next(&mut subscription).await;
    last.acker.settle(Disposition::Ack).expect("it is ours");
}

pub(crate) async fn a_control_message_reaches_every_subscriber(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    let mut one = broker.subscribe(Source::Broadcast(names.control()), 10);
    let mut two = broker.subscribe(Source::Broadcast(names.control()), 10);
    state_becomes(&one, &ConsumerState::Consuming).await;
    state_becomes(&two, &ConsumerState::Consuming).await;
    // More than the prefetch, none of them settled: these deliveries need no ack.
    for n in 0..25 {
        publish(&*broker, message(names.control(), "", &n.to_string())).await;
    }
    for subscriber in [&mut one, &mut two] {
        for n in 0..25 {
            let delivery = next(subscriber).await;
            assert_eq!((text(&delivery), delivery.redelivered), (n.to_string(), false));
            if n % 2 == 0 {
                delivery.acker.settle(Disposition::Ack).expect("an ack does no harm");
            }
        }
    }
}

pub(crate) async fn a_control_message_without_subscribers_is_not_confirmed(
    broker: Arc<dyn Broker>,
    names: Names,
) {
    declare(&*broker, &names).await;
    let subscriber = broker.subscribe(Source::Broadcast(names.control()), 10);
    state_becomes(&subscriber, &ConsumerState::Consuming).await;
    publish(&*broker, message(names.control(), "", "heard")).await;
    drop(subscriber);

    // Its queue goes soon after it.
    let unheard = eventually("the queue to go", async || {
        match broker.publisher().publish(message(names.control(), "", "unheard")).await {
            // While it goes, RabbitMQ 4.3 refuses what it was to get.
            Ok(()) | Err(PublishError::Refused) => None,
            Err(error) => Some(error),
        }
    });
    assert!(matches!(unheard.await, PublishError::Unroutable { .. }));
}
