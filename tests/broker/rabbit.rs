//! What RabbitMQ alone does.

mod endings;
mod outages;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lapin::options::{QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::{AMQPValue, FieldTable};
use tasker_worker_rust::broker::topology::{ExchangeKind, Topology};
use tasker_worker_rust::broker::{
    Broker, BrokerError, BrokerStatus, ConsumerState, Delivery, Disposition, Headers, Message, Properties,
    PublishError, Source, StaleDelivery, Subscription, rabbit::RabbitBroker,
};
use tasker_worker_rust::config::BrokerConfig;

use crate::support_rabbit::{becomes, bind, on_rabbit, soon, to, to_queue};

async fn next(subscription: &mut Subscription) -> Delivery {
    soon("a delivery", subscription.recv()).await.expect("the subscription goes on")
}

async fn consuming(subscription: &Subscription) {
    becomes(subscription.state(), |state| *state == ConsumerState::Consuming).await;
}

#[tokio::test]
async fn a_confirmed_message_arrives_with_all_its_properties() {
    on_rabbit(async |rabbit| {
        let broker = rabbit.broker();
        let exchange = rabbit.exchange("steps", ExchangeKind::Topic);
        let queue = rabbit.queue("steps.orders");
        let (exchange_name, queue_name) = (exchange.name.clone(), queue.name.clone());
        let topology = Topology {
            exchanges: vec![exchange],
            queues: vec![queue],
            bindings: vec![bind(&queue_name, &exchange_name, "*.orders.#")],
        };
        broker.declare(&topology).await.unwrap();

        let mut headers = Headers::default();
        headers.set("tasker-attempt", 3_u32);
        headers.set("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        let properties = Properties {
            message_id: Some("step-1:3:request".to_owned()),
            correlation_id: Some("task-1".to_owned()),
            kind: Some("step.request".to_owned()),
            timestamp: Some(1_764_000_000),
            expiration_ms: None,
            headers,
        };
        let message = Message {
            properties: properties.clone(),
            ..to(exchange_name.clone(), "step.orders.reserve", r#"{"answer":42}"#)
        };
        broker.publisher().publish(message).await.unwrap();

        let mut subscription = broker.subscribe(Source::Queue(queue_name.clone()), 10);
        let delivery = next(&mut subscription).await;
        assert_eq!(delivery.exchange, exchange_name);
        assert_eq!(delivery.routing_key, "step.orders.reserve");
        assert_eq!(&delivery.body[..], br#"{"answer":42}"#);
        assert_eq!(delivery.properties, properties);
        assert!(!delivery.redelivered && delivery.acker.is_usable());
        delivery.acker.settle(Disposition::Ack).unwrap();
        broker.close().await;

        assert_eq!(rabbit.broker().depth(&queue_name).await, Ok(Some(0)));
    })
    .await;
}

#[tokio::test]
async fn a_full_queue_refuses_until_there_is_room_and_harms_no_other() {
    on_rabbit(async |rabbit| {
        let config = BrokerConfig { publish_timeout_ms: 2_000, ..rabbit.config() };
        let broker = RabbitBroker::connect(&config, "test").unwrap();
        let open = rabbit.declared_queue(&broker, "open").await;
        let full = rabbit.queue("full").name;
        let (_connection, channel) = rabbit.channel().await;
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        channel.queue_declare(full.as_str().into(), durable, arguments).await.unwrap();

        // Longer than a channel that refuses is kept.
        let end = Instant::now() + Duration::from_secs(3);
        let mut refused = 0;
        while Instant::now() < end {
            let publisher = broker.publisher();
            let (full, open) = tokio::join!(
                publisher.publish(to_queue(&full, "x")),
                publisher.publish(to_queue(&open, "x"))
            );
            open.unwrap();
            refused += usize::from(full == Err(PublishError::Refused));
        }
        assert!(refused > 10, "{refused}");
        channel.queue_purge(full.as_str().into(), QueuePurgeOptions::default()).await.unwrap();
        broker.publisher().publish(to_queue(&full, "x")).await.unwrap();
        broker.close().await;
    })
    .await;
}

#[tokio::test]
async fn unroutable_messages_are_told_apart_among_many_at_once() {
    on_rabbit(async |rabbit| {
        let broker = rabbit.broker();
        let exchange = rabbit.exchange("results", ExchangeKind::Topic);
        let queue = rabbit.queue("results");
        let (exchange_name, queue_name) = (exchange.name.clone(), queue.name.clone());
        let topology = Topology {
            exchanges: vec![exchange],
            queues: vec![queue],
            bindings: vec![bind(&queue_name, &exchange_name, "known.#")],
        };
        broker.declare(&topology).await.unwrap();
        let publisher = broker.publisher();
        for _ in 0..5 {
            let publishes = (0..200).map(|number| {
                let key =
                    if number % 3 == 0 { format!("unknown.{number}") } else { format!("known.{number}") };
                let message = to(exchange_name.clone(), &key, number.to_string());
                let publisher = &publisher;
                async move { (number, publisher.publish(message).await) }
            });
            for (number, result) in join_all(publishes).await {
                let expected = if number % 3 == 0 {
                    Err(PublishError::Unroutable {
                        exchange: exchange_name.clone(),
                        routing_key: format!("unknown.{number}"),
                    })
                } else {
                    Ok(())
                };
                assert_eq!(result, expected, "message {number}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn what_can_never_be_published_is_refused_without_harm_to_the_others() {
    on_rabbit(async |rabbit| {
        let broker =
            RabbitBroker::connect(&BrokerConfig { max_message_bytes: 1_000, ..rabbit.config() }, "test")
                .unwrap();
        let queue = rabbit.declared_queue(&broker, "queue").await;
        let publisher = broker.publisher();
        let mut heavy = to_queue(&queue, "heavy");
        heavy.properties.headers.set("tasker-error", "e".repeat(200_000));
        let messages = [
            to_queue(&queue, "fine"),
            to_queue(&queue, "x".repeat(1_001)),
            to_queue(&"k".repeat(256), "long key"),
            heavy,
            to(format!("{queue}.no-such-exchange"), "key", "no exchange"),
            to_queue(&queue, "fine"),
        ];
        let results = join_all(messages.into_iter().map(|message| publisher.publish(message))).await;
        let text = |index: usize| results[index].clone().unwrap_err().to_string();
        assert_eq!((&results[0], &results[5]), (&Ok(()), &Ok(())));
        assert_eq!(
            text(1),
            "the message cannot be published: its body has 1001 bytes; broker.max_message_bytes allows 1000"
        );
        assert_eq!(
            text(2),
            "the message cannot be published: its routing key has 256 bytes; AMQP allows 255"
        );
        assert!(text(3).contains("fit into one frame"), "{}", text(3));
        assert!(matches!(&results[4], Err(PublishError::Unroutable { .. })), "{:?}", results[4]);
        assert_eq!(*broker.status().borrow(), BrokerStatus::Connected);
        assert_eq!(broker.depth(&queue).await, Ok(Some(2)));
    })
    .await;
}

#[tokio::test]
async fn every_disposition_does_what_it_says() {
    on_rabbit(async |rabbit| {
        let broker = rabbit.broker();
        let exchange = rabbit.exchange("dead_letters", ExchangeKind::Topic);
        let parked = rabbit.queue("parked");
        let mut requests = rabbit.queue("requests");
        requests.dead_letter_exchange = Some(exchange.name.clone());
        requests.delivery_limit = Some(20);
        let (requests_name, parked_name) = (requests.name.clone(), parked.name.clone());
        let topology = Topology {
            bindings: vec![bind(&parked.name, &exchange.name, "#")],
            exchanges: vec![exchange],
            queues: vec![requests, parked],
        };
        broker.declare(&topology).await.unwrap();
        let mut subscription = broker.subscribe(Source::Queue(requests_name.clone()), 1);
        broker.publisher().publish(to_queue(&requests_name, "work")).await.unwrap();

        let first = next(&mut subscription).await;
        assert_eq!((first.redelivered, first.properties.headers.integer("x-delivery-count")), (false, None));
        first.acker.settle(Disposition::Release).unwrap();
        let second = next(&mut subscription).await;
        assert!(second.redelivered);
        let released = second.properties.headers.integer("x-delivery-count").unwrap_or(0);
        second.acker.settle(Disposition::Retry).unwrap();
        let third = next(&mut subscription).await;
        assert_eq!(third.properties.headers.integer("x-delivery-count"), Some(released + 1));
        // Dropped without a word, it is retried, too.
        drop(third);
        let fourth = next(&mut subscription).await;
        assert_eq!(fourth.properties.headers.integer("x-delivery-count"), Some(released + 2));
        fourth.acker.settle(Disposition::Reject).unwrap();

        let mut dead = broker.subscribe(Source::Queue(parked_name), 1);
        let letter = next(&mut dead).await;
        assert_eq!(&letter.body[..], b"work");
        assert_eq!(letter.routing_key, requests_name);
        assert_eq!(letter.properties.headers.text("x-first-death-reason"), Some("rejected"));
        letter.acker.settle(Disposition::Ack).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_subscription_hands_out_what_it_has_and_lets_it_be_settled() {
    on_rabbit(async |rabbit| {
        let broker = rabbit.broker();
        let queue = rabbit.declared_queue(&broker, "queue").await;
        let publisher = broker.publisher();
        let mut subscription = broker.subscribe(Source::Queue(queue.clone()), 3);
        for number in 0..4 {
            publisher.publish(to_queue(&queue, number.to_string())).await.unwrap();
        }
        let first = next(&mut subscription).await;
        subscription.cancel();
        becomes(subscription.state(), |state| *state == ConsumerState::Draining).await;
        let second = next(&mut subscription).await;
        let third = next(&mut subscription).await;
        assert!(soon("the end", subscription.recv()).await.is_none());
        assert_eq!(*subscription.state().borrow(), ConsumerState::Draining);

        // A message that had not arrived yet is another consumer's.
        let mut other = broker.subscribe(Source::Queue(queue.clone()), 10);
        let fourth = next(&mut other).await;
        assert_eq!(&fourth.body[..], b"3");
        fourth.acker.settle(Disposition::Ack).unwrap();

        first.acker.settle(Disposition::Ack).unwrap();
        second.acker.settle(Disposition::Ack).unwrap();
        assert!(third.acker.is_usable());
        third.acker.settle(Disposition::Release).unwrap();
        becomes(subscription.state(), |state| *state == ConsumerState::Stopped).await;
        let released = next(&mut other).await;
        assert_eq!((&released.body[..], released.redelivered), (&b"2"[..], true));
        released.acker.settle(Disposition::Ack).unwrap();
        broker.close().await;
        assert_eq!(rabbit.broker().depth(&queue).await, Ok(Some(0)));
    })
    .await;
}

#[tokio::test]
async fn closing_gives_back_what_is_unsettled_and_ends_everything() {
    on_rabbit(async |rabbit| {
        let broker = rabbit.broker();
        let queue = rabbit.declared_queue(&broker, "queue").await;
        let publisher = broker.publisher();
        for body in ["done", "undone"] {
            publisher.publish(to_queue(&queue, body)).await.unwrap();
        }
        let mut subscription = broker.subscribe(Source::Queue(queue.clone()), 2);
        let (done, undone) = (next(&mut subscription).await, next(&mut subscription).await);
        done.acker.settle(Disposition::Ack).unwrap();
        soon("the close", broker.close()).await;
        assert_eq!(*broker.status().borrow(), BrokerStatus::Closed);
        assert_eq!(undone.acker.settle(Disposition::Ack), Err(StaleDelivery));
        assert!(subscription.recv().await.is_none());
        assert_eq!(*subscription.state().borrow(), ConsumerState::Stopped);
        assert_eq!(publisher.publish(to_queue(&queue, "late")).await, Err(PublishError::Closed));
        assert_eq!(broker.depth(&queue).await, Err(BrokerError::Closed));
        assert!(broker.subscribe(Source::Queue(queue.clone()), 1).recv().await.is_none());
        broker.close().await;

        let heir = rabbit.broker();
        let given_back = next(&mut heir.subscribe(Source::Queue(queue), 1)).await;
        assert_eq!((&given_back.body[..], given_back.redelivered), (&b"undone"[..], true));
    })
    .await;
}

#[tokio::test]
async fn declaring_twice_changes_nothing_and_other_settings_are_refused_by_name() {
    on_rabbit(async |rabbit| {
        let broker = rabbit.broker();
        let mut exchange = rabbit.exchange("steps", ExchangeKind::Topic);
        let mut queue = rabbit.queue("delay.500");
        queue.message_ttl = Some(Duration::from_millis(500));
        queue.dead_letter_exchange = Some(exchange.name.clone());
        let topology = |exchange: &_, queue: &_| Topology {
            exchanges: vec![Clone::clone(exchange)],
            queues: vec![Clone::clone(queue)],
            bindings: Vec::new(),
        };
        broker.declare(&topology(&exchange, &queue)).await.unwrap();
        broker.declare(&topology(&exchange, &queue)).await.unwrap();

        let mut other_queue = queue.clone();
        other_queue.message_ttl = Some(Duration::from_secs(1));
        let refusal = broker.declare(&topology(&exchange, &other_queue)).await.unwrap_err();
        let BrokerError::Refused(text) = &refusal else { panic!("{refusal:?}") };
        for part in
            [format!("queue {}", queue.name).as_str(), "x-message-ttl", "500", "\"verify\"", "broker.prefix"]
        {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
        exchange.kind = ExchangeKind::Fanout;
        let refusal = broker.declare(&topology(&exchange, &queue)).await.unwrap_err().to_string();
        assert!(refusal.contains(&format!("exchange {}", exchange.name)), "{refusal}");
    })
    .await;
}

#[tokio::test]
async fn verifying_names_everything_that_is_missing_and_creates_nothing() {
    on_rabbit(async |rabbit| {
        let broker = rabbit.broker();
        let present = rabbit.exchange("present", ExchangeKind::Topic);
        let missing = rabbit.exchange("missing", ExchangeKind::Topic);
        let queue = rabbit.queue("queue");
        let topology = Topology {
            exchanges: vec![missing.clone(), present.clone()],
            queues: vec![queue.clone()],
            bindings: Vec::new(),
        };
        broker.declare(&Topology { exchanges: vec![present], ..Topology::default() }).await.unwrap();
        let expected = vec![format!("exchange {}", missing.name), format!("queue {}", queue.name)];
        assert_eq!(broker.verify(&topology).await, Ok(expected.clone()));
        assert_eq!(broker.verify(&topology).await, Ok(expected));
        assert_eq!(broker.depth(&queue.name).await, Ok(None));
        broker.declare(&topology).await.unwrap();
        assert_eq!(broker.verify(&topology).await, Ok(Vec::new()));
    })
    .await;
}

#[tokio::test]
async fn a_broadcast_reaches_every_subscription_and_needs_no_ack() {
    on_rabbit(async |rabbit| {
        let broker = rabbit.broker();
        let control = rabbit.exchange("control", ExchangeKind::Fanout);
        let name = control.name.clone();
        broker.declare(&Topology { exchanges: vec![control], ..Topology::default() }).await.unwrap();
        let mut subscriptions = [
            broker.subscribe(Source::Broadcast(name.clone()), 1),
            broker.subscribe(Source::Broadcast(name.clone()), 1),
        ];
        for subscription in &subscriptions {
            consuming(subscription).await;
        }
        for body in ["pause", "resume"] {
            broker.publisher().publish(to(name.clone(), "", body)).await.unwrap();
        }
        for subscription in &mut subscriptions {
            let pause = next(subscription).await;
            assert_eq!(&next(subscription).await.body[..], b"resume", "although the first is not settled");
            pause.acker.settle(Disposition::Ack).unwrap();
        }
    })
    .await;
}

/// The only thread of the runtime that consumes is busy for longer than the broker waits for a sign of life.
#[tokio::test]
async fn a_busy_runtime_misses_no_heartbeat() {
    on_rabbit(async |rabbit| {
        let config = BrokerConfig { heartbeat_seconds: 1, ..rabbit.config() };
        let broker = RabbitBroker::connect(&config, "test").unwrap();
        let queue = rabbit.declared_queue(&broker, "queue").await;
        broker.publisher().publish(to_queue(&queue, "held")).await.unwrap();
        let mut subscription = broker.subscribe(Source::Queue(queue.clone()), 1);
        let held = next(&mut subscription).await;
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(5) {
            std::hint::spin_loop();
        }
        held.acker.settle(Disposition::Ack).unwrap();
        broker.publisher().publish(to_queue(&queue, "next")).await.unwrap();
        let second = next(&mut subscription).await;
        assert_eq!((&second.body[..], second.redelivered), (&b"next"[..], false));
        second.acker.settle(Disposition::Ack).unwrap();
        broker.close().await;
        assert_eq!(rabbit.broker().depth(&queue).await, Ok(Some(0)));
    })
    .await;
}
