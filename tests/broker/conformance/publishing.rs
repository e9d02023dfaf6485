//! From a publisher into a queue.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use tasker_worker_rust::broker::topology::{Binding, Names, result_key, step_key};
use tasker_worker_rust::broker::{Broker, Disposition, Headers, Message, Properties, PublishError};

use crate::support::*;

pub(crate) async fn a_confirmed_message_is_in_its_queue_as_it_was_sent(
    broker: Arc<dyn Broker>,
    names: Names,
) {
    declare(&*broker, &names).await;
    let mut headers = Headers::default();
    headers.set("tasker-attempt", 3u32);
    headers.set("tasker-error", "Straße 7: “geschlossen”");
    headers.set("lowest", i64::MIN);
    headers.set("highest", i64::MAX);
    let sent = Message {
        exchange: names.results(),
        routing_key: result_key("orders", "completed"),
        body: Bytes::from_static(b"{\"n\":1}"),
        properties: Properties {
            message_id: Some("0190:1:result".to_owned()),
            correlation_id: Some("correlation".to_owned()),
            kind: Some("step.result".to_owned()),
            timestamp: Some(1_764_000_000),
            expiration_ms: Some(3_600_000),
            headers,
        },
    };
    publish(&*broker, sent.clone()).await;
    depth_becomes(&*broker, &names.orchestrator_queue(), 1).await;

    let got = next(&mut consume(&*broker, names.orchestrator_queue(), 1)).await;
    assert_eq!((&got.exchange, &got.routing_key), (&sent.exchange, &sent.routing_key));
    assert_eq!(got.body, sent.body);
    assert!(!got.redelivered);
    assert_eq!(got.properties.message_id, sent.properties.message_id);
    assert_eq!(got.properties.correlation_id, sent.properties.correlation_id);
    assert_eq!(got.properties.kind, sent.properties.kind);
    assert_eq!(got.properties.timestamp, sent.properties.timestamp);
    assert_eq!(got.properties.expiration_ms, sent.properties.expiration_ms);
    assert_eq!(got.properties.headers.iter().filter(|(name, _)| !name.starts_with("x-")).count(), 4);
    for (name, value) in sent.properties.headers.iter() {
        assert_eq!(got.properties.headers.get(name), Some(value), "{name}");
    }
    got.acker.settle(Disposition::Ack).expect("it is ours");
}

pub(crate) async fn the_default_exchange_routes_by_queue_name(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    publish(&*broker, message_to(names.step_queue("orders"), "by name")).await;

    let got = next(&mut consume(&*broker, names.step_queue("orders"), 1)).await;
    assert_eq!((got.exchange.as_str(), got.routing_key.as_str()), ("", names.step_queue("orders").as_str()));
    assert_eq!(text(&got), "by name");
}

pub(crate) async fn requests_find_their_namespace_by_any_key(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    let keys = [step_key("orders", "pay"), step_key("orders", "pay.by.card"), "orders".to_owned()];
    for key in &keys {
        publish(&*broker, message(names.steps(), key, key)).await;
    }
    publish(&*broker, message(names.steps(), step_key("payments", "orders"), "not an order")).await;

    holds_exactly(&*broker, &names.step_queue("orders"), &[&keys[0], &keys[1], &keys[2]]).await;
    holds_exactly(&*broker, &names.step_queue("payments"), &["not an order"]).await;
}

pub(crate) async fn two_matching_bindings_give_one_copy(broker: Arc<dyn Broker>, names: Names) {
    let mut topology = topology(&names, &short_ladder());
    topology.bindings.push(Binding {
        queue: names.step_queue("orders"),
        exchange: names.steps(),
        routing_key: "step.#".to_owned(),
    });
    broker.declare(&topology).await.expect("nothing is there yet");
    publish(&*broker, message(names.steps(), step_key("orders", "pay"), "once")).await;

    holds_exactly(&*broker, &names.step_queue("orders"), &["once"]).await;
}

pub(crate) async fn what_no_queue_wants_goes_to_the_unroutable_queue(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    let key = step_key("nobody", "pay");
    publish(&*broker, message(names.steps(), &key, "lost")).await;

    let got = next(&mut consume(&*broker, names.unroutable(), 1)).await;
    assert_eq!((got.exchange, got.routing_key), (names.steps(), key));
}

pub(crate) async fn what_nothing_wants_is_not_confirmed(broker: Arc<dyn Broker>, names: Names) {
    let nowhere = names.step_queue("nobody");
    let answer = within("an answer", broker.publisher().publish(message_to(&nowhere, "lost"))).await;
    assert_eq!(answer, Err(PublishError::Unroutable { exchange: String::new(), routing_key: nowhere }));
}

pub(crate) async fn a_missing_exchange_is_reported_and_harms_nothing_else(
    broker: Arc<dyn Broker>,
    names: Names,
) {
    declare(&*broker, &names).await;
    let publisher = broker.publisher();
    let nowhere = format!("{}.missing", names.steps());
    let lost = publisher.publish(message(&nowhere, "key", "lost"));
    // A broker may close the channel over the other message: then this one has to be sent again.
    let kept = eventually("the other's answer", async || {
        match publisher.publish(message(names.steps(), "orders", "kept")).await {
            Err(PublishError::Disconnected(_)) => None,
            answer => Some(answer),
        }
    });
    let (lost, kept) = within("both answers", async { tokio::join!(lost, kept) }).await;
    assert_eq!(
        lost,
        Err(PublishError::Unroutable { exchange: nowhere, routing_key: "key".to_owned() }),
        "a missing exchange is no fault of the message"
    );
    assert_eq!(kept, Ok(()));
}

pub(crate) async fn every_message_gets_its_own_answer(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    let (wanted, nowhere) = (names.step_queue("orders"), names.step_queue("nobody"));
    let publisher = broker.publisher();
    let answers = (0..200).map(|n| {
        let queue = if n % 3 == 0 { &nowhere } else { &wanted };
        publisher.publish(message_to(queue, &n.to_string()))
    });
    for (n, answer) in within("all answers", join_all(answers)).await.into_iter().enumerate() {
        match answer {
            Ok(()) => assert_ne!(n % 3, 0, "message {n} has no queue, but was confirmed"),
            Err(PublishError::Unroutable { .. }) => {
                assert_eq!(n % 3, 0, "message {n} has a queue, but was returned");
            }
            Err(other) => panic!("message {n}: {other}"),
        }
    }
    depth_becomes(&*broker, &wanted, 133).await;
}

pub(crate) async fn publishers_share_a_broker(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    let tasks = (0..8).map(|task| {
        let (publisher, steps) = (broker.publisher(), names.steps());
        tokio::spawn(async move {
            for n in 0..50 {
                let sent = message(&steps, step_key("orders", "pay"), &format!("{task}:{n:02}"));
                publisher.publish(sent).await.expect("the broker takes the message");
            }
        })
    });
    for task in within("all publishers", join_all(tasks)).await {
        task.expect("no publisher fails");
    }

    let mut subscription = consume(&*broker, names.step_queue("orders"), 100);
    let mut bodies = Vec::new();
    for _ in 0..400 {
        bodies.push(next_body(&mut subscription).await);
    }
    bodies.sort();
    let expected: Vec<_> = (0..8).flat_map(|task| (0..50).map(move |n| format!("{task}:{n:02}"))).collect();
    assert_eq!(bodies, expected);
}

pub(crate) async fn a_thousand_messages_keep_their_order(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    let publisher = broker.publisher();
    let numbers: Vec<u32> = (0..1_000).collect();
    // Fewer at a time than the publisher takes without waiting: those that wait for room may overtake.
    for some in numbers.chunks(100) {
        let sent = some.iter().map(|n| {
            let queue = if n % 2 == 0 { "orders" } else { "payments" };
            publisher.publish(message(names.steps(), step_key(queue, "pay"), &n.to_string()))
        });
        // Handed to the publisher in this order: tokio must not hold some of them back.
        let confirms = tokio::task::unconstrained(join_all(sent));
        for answer in within("all confirms", confirms).await {
            answer.expect("the broker takes the message");
        }
    }
    for (first, queue) in [(0, "orders"), (1, "payments")] {
        let mut subscription = consume(&*broker, names.step_queue(queue), 100);
        for expected in (first..1_000).step_by(2) {
            assert_eq!(next_body(&mut subscription).await, expected.to_string());
        }
    }
}

pub(crate) async fn bodies_may_be_empty_or_large(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    let large: Bytes = (0..4 << 20).map(|n: u32| (n % 251) as u8).collect();
    let mut subscription = consume(&*broker, names.step_queue("orders"), 1);
    for body in [Bytes::new(), large, Bytes::from_static(b"x")] {
        publish(&*broker, Message { body: body.clone(), ..message(names.steps(), "orders", "") }).await;
        let got = next(&mut subscription).await;
        // Not assert_eq: nobody wants to read them.
        assert!(got.body == body, "got {} bytes, sent {}", got.body.len(), body.len());
        got.acker.settle(Disposition::Ack).expect("it is ours");
    }
}

pub(crate) async fn keys_too_long_for_the_protocol_are_refused(broker: Arc<dyn Broker>, names: Names) {
    declare(&*broker, &names).await;
    let key = "k".repeat(256);
    let answer = within("an answer", broker.publisher().publish(message(names.steps(), key, "lost"))).await;
    assert!(matches!(&answer, Err(PublishError::Invalid(why)) if why.contains("255")), "{answer:?}");
    publish(&*broker, message(names.steps(), "orders", "kept")).await;
}
