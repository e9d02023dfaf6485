//! What becomes of it when the network or the broker fails.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tasker_worker_rust::broker::topology::Topology;
use tasker_worker_rust::broker::{
    Broker, BrokerError, BrokerStatus, ConsumerState, Disposition, PublishError, Source, StaleDelivery,
    Subscription, rabbit::RabbitBroker,
};
use tasker_worker_rust::config::BrokerConfig;
use tokio::time::timeout;

use super::{consuming, next};
use crate::proxy::Proxy;
use crate::support::eventually;
use crate::support_rabbit::{becomes, connected, on_rabbit, soon, to_queue};

/// Two seconds are promised; the rest is for a busy machine.
const RECOVERY: Duration = Duration::from_secs(5);

/// Acks everything until the messages `expected` have all arrived, and tells which came as redelivered.
async fn take_all(subscription: &mut Subscription, expected: &BTreeSet<String>) -> BTreeSet<String> {
    let (mut seen, mut redelivered) = (BTreeSet::new(), BTreeSet::new());
    while seen != *expected {
        let delivery = next(subscription).await;
        let body = String::from_utf8(delivery.body.to_vec()).unwrap();
        if delivery.redelivered {
            redelivered.insert(body.clone());
        }
        if delivery.acker.settle(Disposition::Ack).is_ok() {
            seen.insert(body);
        }
    }
    redelivered
}

fn numbered(numbers: std::ops::Range<usize>) -> BTreeSet<String> {
    numbers.map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn after_a_cut_consuming_and_publishing_go_on_and_nothing_is_lost() {
    on_rabbit(async |rabbit| {
        let proxy = Proxy::open();
        let config = BrokerConfig { urls: vec![proxy.url().into()], ..rabbit.config() };
        let broker = RabbitBroker::connect(&config, "test").unwrap();
        let queue = rabbit.declared_queue(&broker, "queue").await;
        let publisher = broker.publisher();
        for number in 0..20 {
            publisher.publish(to_queue(&queue, number.to_string())).await.unwrap();
        }
        let mut subscription = broker.subscribe(Source::Queue(queue.clone()), 5);
        let mut held = Vec::new();
        for _ in 0..5 {
            held.push(next(&mut subscription).await);
        }
        let held_bodies: BTreeSet<String> =
            held.iter().map(|delivery| String::from_utf8(delivery.body.to_vec()).unwrap()).collect();

        let in_flight = tokio::spawn({
            let (publisher, queue) = (publisher.clone(), queue.clone());
            async move {
                let publish = |number: usize| publisher.publish(to_queue(&queue, number.to_string()));
                join_all((20..220).map(publish)).await
            }
        });
        let mut state = subscription.state();
        state.borrow_and_update();
        proxy.cut().await;
        let cut_at = Instant::now();

        let results = soon("an answer to every publish", in_flight).await.unwrap();
        soon("the end of the channel", state.changed()).await.unwrap();
        consuming(&subscription).await;
        assert!(cut_at.elapsed() < RECOVERY, "back after {:?}", cut_at.elapsed());
        for delivery in held {
            assert!(!delivery.acker.is_usable());
            assert_eq!(delivery.acker.settle(Disposition::Ack), Err(StaleDelivery));
        }
        for (number, result) in (20..220).zip(results) {
            match result {
                Ok(()) => {}
                Err(PublishError::Disconnected(_)) => {
                    publisher.publish(to_queue(&queue, number.to_string())).await.unwrap();
                }
                Err(error) => panic!("message {number}: {error}"),
            }
        }
        let redelivered = take_all(&mut subscription, &numbered(0..220)).await;
        assert!(redelivered.is_superset(&held_bodies), "{redelivered:?} lacks some of {held_bodies:?}");
    })
    .await;
}

#[tokio::test]
async fn a_network_that_goes_silent_is_noticed_by_its_heartbeats() {
    on_rabbit(async |rabbit| {
        let proxy = Proxy::open();
        let config = BrokerConfig { urls: vec![proxy.url().into()], heartbeat_seconds: 1, ..rabbit.config() };
        let broker = RabbitBroker::connect(&config, "test").unwrap();
        let queue = rabbit.declared_queue(&broker, "queue").await;
        connected(&broker).await;
        proxy.stall();
        let result = soon("an answer", broker.publisher().publish(to_queue(&queue, "lost"))).await;
        let Err(PublishError::Disconnected(reason)) = result else { panic!("{result:?}") };
        assert!(reason.contains("silent for two heartbeats"), "{reason}");
        let status = becomes(broker.status(), |status| matches!(status, BrokerStatus::Connecting(_))).await;
        let BrokerStatus::Connecting(reason) = status else { unreachable!() };
        assert!(reason.contains(&proxy.place()), "{reason}");
    })
    .await;
}

/// It may have been delivered to by then.
#[tokio::test]
async fn a_subscription_dropped_while_it_is_opened_leaves_nothing_at_the_broker() {
    on_rabbit(async |rabbit| {
        let proxy = Proxy::open();
        let config = BrokerConfig { urls: vec![proxy.url().into()], ..rabbit.config() };
        let broker = RabbitBroker::connect(&config, "test").unwrap();
        let queue = rabbit.declared_queue(&broker, "queue").await;
        broker.publisher().publish(to_queue(&queue, "waiting")).await.unwrap();
        proxy.stall_the_answer_to_subscribing();
        let subscription = broker.subscribe(Source::Queue(queue.clone()), 5);
        soon("subscribing", proxy.stalls_answers()).await;
        let state = subscription.state();
        drop(subscription);
        becomes(state, |state| *state == ConsumerState::Stopped).await;
        proxy.flow();
        let mut another = broker.subscribe(Source::Queue(queue), 5);
        assert_eq!(next(&mut another).await.body, "waiting");
    })
    .await;
}

#[tokio::test]
async fn a_subscription_that_took_too_long_to_open_is_opened_again_and_gets_what_the_first_try_held() {
    on_rabbit(async |rabbit| {
        let proxy = Proxy::open();
        let config =
            BrokerConfig { urls: vec![proxy.url().into()], connect_timeout_ms: 1_000, ..rabbit.config() };
        let broker = RabbitBroker::connect(&config, "test").unwrap();
        let queue = rabbit.declared_queue(&broker, "queue").await;
        broker.publisher().publish(to_queue(&queue, "waiting")).await.unwrap();
        proxy.stall_the_answer_to_subscribing();
        let mut subscription = broker.subscribe(Source::Queue(queue), 5);
        let late = |state: &ConsumerState| state.reason().is_some_and(|reason| reason.contains("within 1s"));
        becomes(subscription.state(), late).await;
        proxy.flow();
        assert_eq!(next(&mut subscription).await.body, "waiting");
    })
    .await;
}

/// What is asked holds on to its connection, of which only so many may be held.
#[tokio::test]
async fn what_waits_for_an_answer_ends_with_its_connection_which_is_made_anew_each_time() {
    on_rabbit(async |rabbit| {
        let proxy = Proxy::open();
        let config = BrokerConfig { urls: vec![proxy.url().into()], ..rabbit.config() };
        let broker = RabbitBroker::connect(&config, "test").unwrap();
        let queue = rabbit.declared_queue(&broker, "queue").await;
        for _ in 0..5 {
            connected(&broker).await;
            proxy.stall();
            let (asked, ()) = tokio::join!(soon("an answer", broker.depth(&queue)), async {
                tokio::task::yield_now().await;
                proxy.cut().await;
            });
            assert!(matches!(asked, Ok(Some(0)) | Err(BrokerError::Unreachable { .. })), "{asked:?}");
            let again_at = Instant::now();
            assert_eq!(soon("a depth", broker.depth(&queue)).await.ok().flatten(), Some(0));
            assert!(again_at.elapsed() < RECOVERY, "after {:?}", again_at.elapsed());
        }
    })
    .await;
}

#[tokio::test]
async fn a_queue_that_was_declared_here_is_declared_again_when_it_is_gone() {
    on_rabbit(async |rabbit| {
        let broker = rabbit.broker();
        let queue = rabbit.declared_queue(&broker, "queue").await;
        let mut subscription = broker.subscribe(Source::Queue(queue.clone()), 5);
        consuming(&subscription).await;
        let state = subscription.state();
        let gone = becomes(state.clone(), |state| matches!(state, ConsumerState::Connecting(_)));
        tokio::join!(gone, rabbit.delete_queue(&queue));
        consuming(&subscription).await;
        broker.publisher().publish(to_queue(&queue, "again")).await.unwrap();
        assert_eq!(&next(&mut subscription).await.body[..], b"again");
    })
    .await;
}

#[tokio::test]
async fn a_missing_queue_is_named_and_consumed_as_soon_as_it_is_found() {
    on_rabbit(async |rabbit| {
        let broker = rabbit.broker();
        let queue = rabbit.queue("queue");
        let mut subscription = broker.subscribe(Source::Queue(queue.name.clone()), 5);
        let named = |state: &ConsumerState| {
            matches!(state, ConsumerState::Connecting(reason) if reason.contains(&queue.name)
                && reason.contains("NOT_FOUND") && reason.contains("it has to be declared"))
        };
        becomes(subscription.state(), named).await;
        let other = rabbit.broker();
        other.declare(&Topology { queues: vec![queue.clone()], ..Topology::default() }).await.unwrap();
        other.publisher().publish(to_queue(&queue.name, "found")).await.unwrap();
        assert_eq!(&next(&mut subscription).await.body[..], b"found");
        // The other connections and subscriptions were never disturbed.
        assert_eq!(*broker.status().borrow(), BrokerStatus::Connected);
    })
    .await;
}

#[tokio::test]
async fn a_broker_that_is_down_is_named_and_used_as_soon_as_it_is_up() {
    on_rabbit(async |rabbit| {
        let proxy = Proxy::closed();
        let config = BrokerConfig {
            urls: vec![proxy.url().into()],
            publish_timeout_ms: 300,
            connect_timeout_ms: 300,
            ..rabbit.config()
        };
        let broker = RabbitBroker::connect(&config, "test").unwrap();
        let reason = format!("cannot reach {}: connection refused", proxy.place());
        becomes(broker.status(), |status| *status == BrokerStatus::Connecting(reason.clone())).await;
        let queue = rabbit.queue("queue");
        let mut subscription = broker.subscribe(Source::Queue(queue.name.clone()), 5);
        becomes(subscription.state(), |state| *state == ConsumerState::Connecting(reason.clone())).await;

        let publisher = broker.publisher();
        let publish = || publisher.publish(to_queue(&queue.name, "hello"));
        assert_eq!(publish().await, Err(PublishError::Disconnected(reason.clone())));
        let asked_at = Instant::now();
        assert_eq!(publish().await, Err(PublishError::Disconnected(reason)));
        assert!(asked_at.elapsed() < Duration::from_millis(300), "a known outage is answered at once");
        let topology = Topology { queues: vec![queue.clone()], ..Topology::default() };
        let unreachable =
            BrokerError::Unreachable { address: proxy.place(), reason: "connection refused".to_owned() };
        assert_eq!(broker.declare(&topology).await, Err(unreachable));

        rabbit.broker().declare(&topology).await.unwrap();
        proxy.listen();
        let up_at = Instant::now();
        consuming(&subscription).await;
        connected(&broker).await;
        assert!(up_at.elapsed() < RECOVERY, "up after {:?}", up_at.elapsed());
        publish().await.unwrap();
        assert_eq!(&next(&mut subscription).await.body[..], b"hello");
    })
    .await;
}

#[tokio::test]
async fn addresses_are_tried_in_turn() {
    on_rabbit(async |rabbit| {
        let (first, second) = (Proxy::closed(), Proxy::open());
        let config = BrokerConfig { urls: vec![first.url().into(), second.url().into()], ..rabbit.config() };
        let broker = RabbitBroker::connect(&config, "test").unwrap();
        let queue = rabbit.declared_queue(&broker, "queue").await;
        first.listen();
        second.close().await;
        becomes(broker.status(), |status| *status != BrokerStatus::Connected).await;
        connected(&broker).await;
        broker.publisher().publish(to_queue(&queue, "by the first")).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn the_password_file_wins_and_is_read_at_every_connect() {
    on_rabbit(async |rabbit| {
        let proxy = Proxy::open();
        let file = tempfile::NamedTempFile::new().unwrap();
        let right: lapin::uri::AMQPUri = proxy.url().parse().unwrap();
        std::fs::write(file.path(), format!("{}\n", right.authority.userinfo.password)).unwrap();
        let mut wrong = right.clone();
        wrong.authority.userinfo.password = "hunter2".to_owned();
        let config = BrokerConfig {
            urls: vec![wrong.to_string().into()],
            password_file: Some(file.path().to_owned()),
            ..rabbit.config()
        };
        let broker = RabbitBroker::connect(&config, "test").unwrap();
        connected(&broker).await;

        std::fs::write(file.path(), "hunter2").unwrap();
        proxy.cut().await;
        let refused = |status: &BrokerStatus| {
            matches!(status, BrokerStatus::Connecting(reason) if reason.contains("refused user \"guest\"")
                && reason.contains("ACCESS_REFUSED") && !reason.contains("hunter2"))
        };
        becomes(broker.status(), refused).await;
        // Whose connection may be the last to be found cut.
        let error =
            eventually("looking is refused", async || broker.verify(&Topology::default()).await.err());
        let error = error.await;
        assert!(matches!(&error, BrokerError::Refused(reason) if reason.contains("refused user")), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_broker_can_be_dropped_while_it_connects() {
    on_rabbit(async |rabbit| {
        let proxy = Proxy::open();
        proxy.stall();
        let config =
            BrokerConfig { urls: vec![proxy.url().into()], connect_timeout_ms: 200, ..rabbit.config() };
        let broker = RabbitBroker::connect(&config, "test").unwrap();
        let reason = format!("cannot reach {}: no answer within 200ms", proxy.place());
        let status = broker.status();
        becomes(status.clone(), |status| *status == BrokerStatus::Connecting(reason.clone())).await;
        let publisher = broker.publisher();
        drop(broker);
        becomes(status, |status| *status == BrokerStatus::Closed).await;
        let late = soon("an answer", publisher.publish(to_queue("anywhere", "late"))).await;
        assert_eq!(late, Err(PublishError::Closed));
    })
    .await;
}

#[tokio::test]
async fn while_the_broker_takes_no_messages_none_is_sent_and_none_is_taken_in() {
    on_rabbit(async |rabbit| {
        let proxy = Proxy::open();
        let config = BrokerConfig { urls: vec![proxy.url().into()], ..rabbit.config() };
        let broker = RabbitBroker::connect(&config, "test").unwrap();
        let queue = rabbit.declared_queue(&broker, "queue").await;
        let mut subscription = broker.subscribe(Source::Queue(queue.clone()), 5);
        consuming(&subscription).await;
        connected(&broker).await;
        proxy.block("low on memory");
        let blocked = BrokerStatus::Blocked("low on memory".to_owned());
        becomes(broker.status(), |status| *status == blocked).await;

        let publisher = broker.publisher();
        let mut publish = Box::pin(publisher.publish(to_queue(&queue, "held")));
        rabbit.broker().publisher().publish(to_queue(&queue, "from elsewhere")).await.unwrap();
        let meanwhile = Duration::from_millis(300);
        assert!(timeout(meanwhile, &mut publish).await.is_err(), "published to a blocked broker");
        assert!(timeout(meanwhile, subscription.recv()).await.is_err(), "consumed from a blocked broker");

        proxy.unblock();
        soon("the confirmation", publish).await.unwrap();
        let expected = ["from elsewhere", "held"].map(str::to_owned).into();
        take_all(&mut subscription, &expected).await;
        connected(&broker).await;
    })
    .await;
}

#[tokio::test]
async fn a_broker_that_takes_no_messages_for_too_long_is_an_error_until_it_takes_them_again() {
    on_rabbit(async |rabbit| {
        let proxy = Proxy::open();
        let config =
            BrokerConfig { urls: vec![proxy.url().into()], publish_timeout_ms: 200, ..rabbit.config() };
        let broker = RabbitBroker::connect(&config, "test").unwrap();
        connected(&broker).await;
        proxy.block("low on disk");
        becomes(broker.status(), |status| matches!(status, BrokerStatus::Blocked(_))).await;
        let queue = rabbit.declared_queue(&rabbit.broker(), "queue").await;
        let publisher = broker.publisher();
        let publish = || publisher.publish(to_queue(&queue, "held"));
        let not_confirmed = Err(PublishError::NotConfirmed(Duration::from_millis(200)));
        assert_eq!(soon("an answer", publish()).await, not_confirmed);
        proxy.unblock();
        connected(&broker).await;
        eventually("messages are taken again", async || publish().await.ok()).await;
    })
    .await;
}
