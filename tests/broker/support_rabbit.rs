//! A RabbitMQ for one test: its own names on a shared broker, and a network between the two that can fail.

use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties};
use tasker_worker_rust::broker::topology::{Binding, Exchange, ExchangeKind, Queue, QueueKind, Topology};
use tasker_worker_rust::broker::{Broker, BrokerStatus, Message, Properties, rabbit::RabbitBroker};
use tasker_worker_rust::config::BrokerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
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

/// A way to the broker that can be cut, held up, and talked into.
pub(crate) struct Proxy {
    address: SocketAddr,
    /// Keeps the port while nobody listens there.
    reserved: Mutex<Option<TcpSocket>>,
    traffic: watch::Sender<Traffic>,
    /// Frames for the client of a publishing connection.
    injected: broadcast::Sender<Vec<u8>>,
    running: Mutex<JoinSet<()>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Traffic {
    Flows,
    Stalls,
}

impl Proxy {
    /// Not listening yet.
    pub(crate) fn closed() -> Self {
        let socket = reserve("127.0.0.1:0".parse().unwrap());
        Self {
            address: socket.local_addr().unwrap(),
            reserved: Mutex::new(Some(socket)),
            traffic: watch::Sender::new(Traffic::Flows),
            injected: broadcast::Sender::new(16),
            running: Mutex::default(),
        }
    }

    pub(crate) fn open() -> Self {
        let proxy = Self::closed();
        proxy.listen();
        proxy
    }

    pub(crate) fn listen(&self) {
        let listener = self.reserved.lock().unwrap().take().expect("closed").listen(128).unwrap();
        let (traffic, injected) = (self.traffic.clone(), self.injected.clone());
        self.running.lock().unwrap().spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                connections.spawn(carry(client, traffic.subscribe(), injected.subscribe()));
            }
        });
    }

    /// Cuts every connection, and accepts no more.
    pub(crate) async fn close(&self) {
        let mut running = std::mem::take(&mut *self.running.lock().unwrap());
        running.shutdown().await;
        *self.reserved.lock().unwrap() = Some(reserve(self.address));
    }

    /// Cuts every connection; new ones are welcome.
    pub(crate) async fn cut(&self) {
        self.close().await;
        self.listen();
    }

    /// Nothing gets through any more, but nobody is told.
    pub(crate) fn stall(&self) {
        self.traffic.send_replace(Traffic::Stalls);
    }

    /// What a broker short of memory says to a client that publishes.
    pub(crate) fn block(&self, reason: &str) {
        let mut arguments = vec![u8::try_from(reason.len()).unwrap()];
        arguments.extend(reason.as_bytes());
        self.inject(60, &arguments);
    }

    pub(crate) fn unblock(&self) {
        self.inject(61, &[]);
    }

    /// Sends a method of the class `connection`. Only sensible while the connection is quiet.
    fn inject(&self, method: u16, arguments: &[u8]) {
        let length = u32::try_from(4 + arguments.len()).unwrap();
        let mut frame = vec![1, 0, 0];
        frame.extend(length.to_be_bytes());
        frame.extend(10_u16.to_be_bytes());
        frame.extend(method.to_be_bytes());
        frame.extend(arguments);
        frame.push(0xCE);
        self.injected.send(frame).unwrap();
    }

    pub(crate) fn place(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self) -> String {
        let mut uri: AMQPUri = rabbitmq_url().parse().unwrap();
        uri.authority.host = self.address.ip().to_string();
        uri.authority.port = self.address.port();
        uri.to_string()
    }
}

/// A port that refuses connections, and that nobody else gets.
fn reserve(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

async fn carry(
    client: TcpStream,
    traffic: watch::Receiver<Traffic>,
    mut injected: broadcast::Receiver<Vec<u8>>,
) {
    let uri: AMQPUri = rabbitmq_url().parse().unwrap();
    let server = TcpStream::connect((uri.authority.host.as_str(), uri.authority.port)).await.unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let publishes = Arc::new(Mutex::new(false));
    let there = async {
        let (mut buffer, publishes) = (vec![0; 64 * 1024], publishes.clone());
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            // The name of the connection is in its greeting.
            if buffer[..length].windows(8).any(|bytes| bytes == b"/publish") {
                *publishes.lock().unwrap() = true;
            }
            flowing(&traffic).await;
            if to_server.write_all(&buffer[..length]).await.is_err() {
                break;
            }
        }
    };
    let back = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let bytes = tokio::select! {
                read = from_server.read(&mut buffer) => match read {
                    Ok(length @ 1..) => &buffer[..length],
                    _ => break,
                },
                frame = injected.recv() => {
                    let frame = frame.unwrap();
                    if *publishes.lock().unwrap() {
                        to_client.write_all(&frame).await.unwrap();
                    }
                    continue;
                }
            };
            flowing(&traffic).await;
            if to_client.write_all(bytes).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = there => {}
        () = back => {}
    }
}

async fn flowing(traffic: &watch::Receiver<Traffic>) {
    // The proxy may be gone by now; then nothing flows either.
    if traffic.clone().wait_for(|traffic| *traffic == Traffic::Flows).await.is_err() {
        std::future::pending::<()>().await;
    }
}
