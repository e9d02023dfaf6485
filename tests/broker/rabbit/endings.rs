//! What an orderly end leaves done.

use futures_util::future::join_all;
use tasker_worker_rust::broker::{Broker, Disposition, Source};

use super::next;
use crate::support_rabbit::{on_rabbit, soon, to_queue};

/// Each ack is one of its own, so that RabbitMQ has more of them than it hands on to the queue at a time.
#[tokio::test]
async fn acks_sent_just_before_the_end_are_done() {
    on_rabbit(async |rabbit| {
        let broker = rabbit.broker();
        let queue = rabbit.declared_queue(&broker, "queue").await;
        let publisher = broker.publisher();
        for cancelled in [false, true] {
            let publishes = (0..1_000).map(|number| publisher.publish(to_queue(&queue, number.to_string())));
            join_all(publishes).await.into_iter().collect::<Result<Vec<()>, _>>().unwrap();
            let consumer = rabbit.broker();
            let mut subscription = consumer.subscribe(Source::Queue(queue.clone()), 1_000);
            let mut held = Vec::new();
            while held.len() < 1_000 {
                held.push(next(&mut subscription).await);
            }
            if cancelled {
                subscription.cancel();
                assert!(soon("the end of the subscription", subscription.recv()).await.is_none());
            }
            while let Some(delivery) = held.pop() {
                delivery.acker.settle(Disposition::Ack).unwrap();
                tokio::task::yield_now().await;
            }
            consumer.close().await;
            assert_eq!(broker.depth(&queue).await, Ok(Some(0)), "cancelled before: {cancelled}");
        }
    })
    .await;
}
