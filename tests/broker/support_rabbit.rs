//! A RabbitMQ for one test: its own names on a shared broker.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::{Channel, Connection, ConnectionProperties};
use tasker_worker_rust::broker::topology::{Binding, Exchange, ExchangeKind, Queue, QueueKind, Topology};
use tasker_worker_rust::broker::{Broker, BrokerStatus, Message, Properties, rabbit::RabbitBroker};
use tasker_worker_rust::config::BrokerConfig;
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

use crate::support::rabbitmq_url;

/// How long a test waits for something that shall happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for `future`, but not for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("still waiting after {PATIENCE:?}: {what}"))
}

/// Waits until a watched value is as wanted, and returns it.
pub(crate) async fn becomes<T: Clone + std::fmt::Debug>(
    mut watched: watch::Receiver<T>,
    wanted: impl Fn(&T) -> bool,
) -> T {
    let last = watched.clone();
    match timeout(PATIENCE, watched.wait_for(|value| wanted(value))).await {
        Ok(value) => value.expect("the broker is alive").clone(),
        Err(_) => panic!("still {:?} after {PATIENCE:?}", *last.borrow()),
    }
}

/// Runs a test with names of its own, and deletes afterwards what it used.
pub(crate) async fn on_rabbit(test: impl AsyncFnOnce(&Rabbit)) {
    let rabbit = Rabbit { prefix: format!("test-{}", Uuid::new_v4()), ..Rabbit::default() };
    let result = AssertUnwindSafe(test(&rabbit)).catch_unwind().await;
    soon("deleting what the test used", rabbit.delete_everything()).await;
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// One test's part of the broker.
#[derive(Debug, Default)]
pub(crate) struct Rabbit {
    prefix: String,
    queues: Mutex<Vec<String>>,
    exchanges: Mutex<Vec<String>>,
}

impl Rabbit {
    pub(crate) fn config(&self) -> BrokerConfig {
        BrokerConfig {
            urls: vec![rabbitmq_url().as_str().into()],
            prefix: self.prefix.clone(),
            ..BrokerConfig::default()
        }
    }

    /// A broker on the direct way.
    pub(crate) fn broker(&self) -> RabbitBroker {
        RabbitBroker::connect(&self.config(), "test").unwrap()
    }

    /// A queue as the topology declares it.
    pub(crate) fn queue(&self, name: &str) -> Queue {
        let name = format!("{}.{name}", self.prefix);
        self.queues.lock().unwrap().push(name.clone());
        Queue {
            name,
            kind: QueueKind::Quorum,
            message_ttl: None,
            dead_letter_exchange: None,
            delivery_limit: None,
        }
    }

    pub(crate) fn exchange(&self, name: &str, kind: ExchangeKind) -> Exchange {
        let name = format!("{}.{name}", self.prefix);
        self.exchanges.lock().unwrap().push(name.clone());
        Exchange { name, kind, alternate: None }
    }

    /// Declares one queue, and returns its name.
    pub(crate) async fn declared_queue(&self, broker: &RabbitBroker, name: &str) -> String {
        let queue = self.queue(name);
        let name = queue.name.clone();
        broker.declare(&Topology { queues: vec![queue], ..Topology::default() }).await.unwrap();
        name
    }

    /// The client library itself, for what the product never does.
    pub(crate) async fn channel(&self) -> (Connection, Channel) {
        let connection = Connection::connect(&rabbitmq_url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
    }

    pub(crate) async fn delete_queue(&self, name: &str) {
        let (_connection, channel) = self.channel().await;
        channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.unwrap();
    }

    async fn delete_everything(&self) {
        let (_connection, channel) = self.channel().await;
        let queues = std::mem::take(&mut *self.queues.lock().unwrap());
        for queue in queues {
            channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
        }
        let exchanges = std::mem::take(&mut *self.exchanges.lock().unwrap());
        for exchange in exchanges {
            channel
                .exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default())
                .await
                .unwrap();
        }
    }
}

pub(crate) fn bind(queue: &str, exchange: &str, routing_key: &str) -> Binding {
    Binding { queue: queue.to_owned(), exchange: exchange.to_owned(), routing_key: routing_key.to_owned() }
}

/// A message straight to a queue.
pub(crate) fn to_queue(queue: &str, body: impl Into<Bytes>) -> Message {
    to(String::new(), queue, body)
}

pub(crate) fn to(exchange: impl Into<String>, routing_key: &str, body: impl Into<Bytes>) -> Message {
    Message {
        exchange: exchange.into(),
        routing_key: routing_key.to_owned(),
        body: body.into(),
        properties: Properties::default(),
    }
}

pub(crate) async fn connected(broker: &RabbitBroker) {
    becomes(broker.status(), |status| *status == BrokerStatus::Connected).await;
}
