//! How consuming ends: cancelled, dropped, closed.

use std::collections::BTreeSet;
use std::sync::Arc;

use tasker_worker_rust::broker::topology::Names;
use tasker_worker_rust::broker::{
    Broker, BrokerStatus, ConsumerState, Delivery, Disposition, PublishError, StaleDelivery, Subscription,
};

use crate::support::*;

const SENT: usize = 6;

/// Six messages, and a subscription that has read one and may hold three.
async fn reading(broker: &dyn Broker, names: &Names) -> (Subscription, Delivery) {
    declare(broker, names).await;
    for n in 0..SENT {
        publish(broker, message(names.steps(), "orders", &n.to_string())).await;
    }
    let mut subscription = consume(broker, names.step_queue("orders"), 3);
    let first = next(&mut subscription).await;
    (subscription, first)
}

async fn rest_of(mut subscription: Subscription) -> Vec<Delivery> {
    let mut rest = Vec::new();
    while let Some(delivery) = within("a delivery or the end", subscription.recv()).await {
        rest.push(delivery);
    }
    rest
}

/// What another consumer finds, acked.
async fn found(broker: &dyn Broker, names: &Names, count: usize) -> BTreeSet<String> {
    let mut subscription = consume(broker, names.step_queue("orders"), 100);
    let mut bodies = BTreeSet::new();
    for _ in 0..count {
        bodies.insert(next_body(&mut subscription).await);
    }
    publish(broker, message(names.steps(), "orders", "the end")).await;
    assert_eq!(next_body(&mut subscription).await, "the end");
    bodies
}

pub(crate) async fn a_cancelled_subscription_drains_and_its_deliveries_can_be_settled(
    broker: Arc<dyn Broker>,
    names: Names,
) {
    let (subscription, first) = reading(&*broker, &names).await;
    subscription.cancel();
    let mut held = vec![first];
    held.extend(rest_of(subscription).await);
    assert!(held.len() <= 3, "prefetch holds to the end: {held:?}");

    let mut expected: BTreeSet<_> = (0..SENT).map(|n| n.to_string()).collect();
    for delivery in held {
        expected.remove(&text(&delivery));
        delivery.acker.settle(Disposition::Ack).expect("a delivery outlives its subscription");
    }
    assert_eq!(found(&*broker, &names, expected.len()).await, expected);
}

pub(crate) async fn a_cancelled_subscription_can_hand_back_what_it_has_not_started(
    broker: Arc<dyn Broker>,
    names: Names,
) {
    let (subscription, first) = reading(&*broker, &names).await;
    subscription.cancel();
    for delivery in rest_of(subscription).await {
        delivery.acker.settle(Disposition::Release).expect("a delivery outlives its subscription");
    }
    let others = found(&*broker, &names, SENT - 1).await;
    assert!(!others.contains(&text(&first)));
    first.acker.settle(Disposition::Ack).expect("a delivery outlives its subscription");
    holds_exactly(&*broker, &names.step_queue("orders"), &[]).await;
}

pub(crate) async fn a_dropped_subscription_gives_back_what_nobody_read(
    broker: Arc<dyn Broker>,
    names: Names,
) {
    let (subscription, first) = reading(&*broker, &names).await;
    drop(subscription);
    let others = found(&*broker, &names, SENT - 1).await;
    assert!(!others.contains(&text(&first)));
    first.acker.settle(Disposition::Ack).expect("a delivery outlives its subscription");
    holds_exactly(&*broker, &names.step_queue("orders"), &[]).await;
}

pub(crate) async fn a_subscription_tells_where_it_stands(broker: Arc<dyn Broker>, names: Names) {
    let (mut subscription, first) = reading(&*broker, &names).await;
    state_becomes(&subscription, &ConsumerState::Consuming).await;
    subscription.cancel();
    let mut held = vec![first];
    while let Some(delivery) = within("a delivery or the end", subscription.recv()).await {
        held.push(delivery);
    }
    assert_ne!(*subscription.state().borrow(), ConsumerState::Consuming);
    for delivery in held {
        delivery.acker.settle(Disposition::Ack).expect("a delivery outlives its subscription");
    }
    state_becomes(&subscription, &ConsumerState::Stopped).await;
}

pub(crate) async fn a_closed_broker_answers_that_it_is_closed(broker: Arc<dyn Broker>, names: Names) {
    let (mut subscription, first) = reading(&*broker, &names).await;
    let (publisher, mut status) = (broker.publisher(), broker.status());
    within("the connection", status.wait_for(|status| *status == BrokerStatus::Connected))
        .await
        .expect("the broker lives");

    within("closing", broker.close()).await;
    assert_eq!(*broker.status().borrow(), BrokerStatus::Closed);
    let answer = within("an answer", publisher.publish(message(names.steps(), "orders", "late"))).await;
    assert_eq!(answer, Err(PublishError::Closed));
    assert!(!first.acker.is_usable());
    assert_eq!(first.acker.settle(Disposition::Ack), Err(StaleDelivery));
    while let Some(unread) = within("the end", subscription.recv()).await {
        assert!(!unread.acker.is_usable());
    }
    let mut late = consume(&*broker, names.step_queue("orders"), 1);
    assert!(within("the end", late.recv()).await.is_none());
}

pub(crate) async fn every_submitted_message_is_heard_of_once_whatever_becomes_of_the_broker(
    broker: Arc<dyn Broker>,
    names: Names,
) {
    const SENT: usize = 300;
    declare(&*broker, &names).await;
    let publisher = broker.publisher();
    let (hear, mut heard) = tokio::sync::mpsc::unbounded_channel();
    for n in 0..SENT {
        let hear = hear.clone();
        let message = message(names.steps(), "orders", &n.to_string());
        publisher.submit(message, move |result| hear.send((n, result)).expect("the test listens")).await;
        if n == SENT / 2 {
            within("an answer", heard.recv()).await.expect("a sender is held").1.expect("it is confirmed");
            within("closing", broker.close()).await;
        }
    }
    drop(hear);
    let (mut count, mut refused) = (1, 0);
    while let Some((_, result)) = within("the end", heard.recv()).await {
        count += 1;
        refused += usize::from(result == Err(PublishError::Closed));
    }
    assert_eq!(count, SENT, "each is heard of once");
    assert!(refused >= SENT - SENT / 2 - 1, "{refused} were told of the end");
}
