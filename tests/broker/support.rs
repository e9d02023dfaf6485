//! Waiting with a deadline, and the topology the tests run on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::broker::rabbit::RabbitBroker;
use tasker_worker_rust::broker::topology::{Names, Queue, QueueKind, Topology};
use tasker_worker_rust::broker::{
    Broker, ConsumerState, Delivery, Disposition, Message, Properties, Source, Subscription,
};
use tasker_worker_rust::config::BrokerConfig;
use tasker_worker_rust::retry::Ladder;
use uuid::Uuid;

/// Nothing takes this long; what does is lost.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Longer than [`DEADLINE`]: a message that has to wait this long does not arrive in a test.
pub(crate) const NEVER: Duration = Duration::from_secs(60);

/// A fresh embedded broker.
pub(crate) async fn memory(_prefix: &str) -> Arc<dyn Broker> {
    MemoryBroker::new()
}

/// The embedded broker takes everything with it.
pub(crate) async fn nothing_is_left(_names: Names) {}

/// The tests' RabbitMQ.
///
/// # Panics
/// Without one, saying how to get it: a test that needs a broker never passes without.
pub(crate) fn rabbitmq_url() -> String {
    #[expect(clippy::disallowed_methods, reason = "the tests' broker is no setting of the product")]
    let url = std::env::var("RABBITMQ_URL");
    url.expect(
        "this test needs RabbitMQ: run `make test`, which starts one, \
         or set RABBITMQ_URL=amqp://user:password@host:port/vhost",
    )
}

/// A connection to the tests' RabbitMQ.
pub(crate) async fn rabbitmq(prefix: &str) -> Arc<dyn Broker> {
    let urls = vec![rabbitmq_url().as_str().into()];
    let config = BrokerConfig { urls, prefix: prefix.to_owned(), ..BrokerConfig::default() };
    Arc::new(RabbitBroker::connect(&config, "conformance").expect("the settings are right"))
}

/// Removes the topology of the tests from RabbitMQ.
pub(crate) async fn remove_from_rabbitmq(names: Names) {
    let url = rabbitmq_url();
    let connection = lapin::Connection::connect(&url, lapin::ConnectionProperties::default()).await;
    let connection = connection.expect("the broker answers");
    let channel = connection.create_channel().await.expect("a channel opens");
    let Topology { queues, exchanges, .. } = topology(&names, &short_ladder());
    for queue in queues {
        channel.queue_delete(queue.name.into(), Default::default()).await.expect("the queue can be deleted");
    }
    for exchange in exchanges {
        let deleted = channel.exchange_delete(exchange.name.into(), Default::default()).await;
        deleted.expect("the exchange can be deleted");
    }
    connection.close(200, "done".into()).await.expect("the connection closes");
}

/// Names that no other test has, in this run or another.
pub(crate) fn unique_prefix(test: &str) -> String {
    format!("conformance.{test}.{}", Uuid::new_v4().simple())
}

pub(crate) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// 50, 100 and 200 ms.
pub(crate) fn short_ladder() -> Ladder {
    Ladder::new(ms(50), 2.0, 3)
}

pub(crate) fn topology(names: &Names, ladder: &Ladder) -> Topology {
    Topology::new(names, ladder, QueueKind::Quorum, ["orders", "payments"])
}

pub(crate) fn queue_named<'a>(topology: &'a mut Topology, name: &str) -> &'a mut Queue {
    topology.queues.iter_mut().find(|queue| queue.name == name).expect("the topology has this queue")
}

/// Declares namespaces `orders` and `payments` on the short ladder.
pub(crate) async fn declare(broker: &dyn Broker, names: &Names) {
    within("declaring", broker.declare(&topology(names, &short_ladder())))
        .await
        .expect("nothing is there yet");
}

pub(crate) fn message(exchange: impl Into<String>, key: impl Into<String>, body: &str) -> Message {
    Message {
        exchange: exchange.into(),
        routing_key: key.into(),
        body: Bytes::copy_from_slice(body.as_bytes()),
        properties: Properties { message_id: Some(Uuid::new_v4().to_string()), ..Properties::default() },
    }
}

/// A message straight into a queue.
pub(crate) fn message_to(queue: impl Into<String>, body: &str) -> Message {
    message("", queue, body)
}

pub(crate) async fn publish(broker: &dyn Broker, message: Message) {
    within("a confirm", broker.publisher().publish(message)).await.expect("the broker takes the message");
}

pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {DEADLINE:?} for {what}"),
    }
}

pub(crate) fn consume(broker: &dyn Broker, queue: impl Into<String>, prefetch: u16) -> Subscription {
    broker.subscribe(Source::Queue(queue.into()), prefetch)
}

pub(crate) async fn next(subscription: &mut Subscription) -> Delivery {
    within("a delivery", subscription.recv()).await.expect("the subscription goes on")
}

/// The next delivery's body, acked.
pub(crate) async fn next_body(subscription: &mut Subscription) -> String {
    let delivery = next(subscription).await;
    let body = text(&delivery);
    delivery.acker.settle(Disposition::Ack).expect("a delivery just received is ours");
    body
}

pub(crate) fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.body.to_vec()).expect("the tests send text")
}

pub(crate) async fn state_becomes(subscription: &Subscription, wanted: &ConsumerState) {
    let mut state = subscription.state();
    let reached = within(&format!("{wanted:?}"), state.wait_for(|state| state == wanted)).await;
    assert!(reached.is_ok(), "the subscription ended before it was {wanted:?}");
}

/// Brokers may count a little late.
pub(crate) async fn depth_becomes(broker: &dyn Broker, queue: &str, wanted: u64) {
    let depth = async || broker.depth(queue).await.expect("the broker answers");
    eventually(&format!("{queue} to have {wanted} messages"), async || {
        (depth().await == Some(wanted)).then_some(())
    })
    .await;
}

/// Waits until `look` has an answer.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    within(what, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(ms(10)).await;
        }
    })
    .await
}

/// Asserts that the queue holds these bodies, in this order, and nothing else: a marker comes right after.
pub(crate) async fn holds_exactly(broker: &dyn Broker, queue: &str, bodies: &[&str]) {
    publish(broker, message_to(queue, "the end")).await;
    let mut subscription = consume(broker, queue, 10);
    for expected in bodies {
        assert_eq!(next_body(&mut subscription).await, *expected, "in {queue}");
    }
    assert_eq!(next_body(&mut subscription).await, "the end", "in {queue}");
}
