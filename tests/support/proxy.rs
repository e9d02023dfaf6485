//! A network between a client and RabbitMQ that can fail.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use lapin::uri::AMQPUri;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;

use crate::support::{eventually, rabbitmq_url};

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

/// The class and the method.
const BASIC_CONSUME: [u8; 4] = [0, 60, 0, 20];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Traffic {
    Flows,
    /// Until a client subscribes.
    FlowsYet,
    /// The broker hears everything, and is not heard.
    AnswersStall,
    Stalls,
}

impl Proxy {
    /// Not listening yet.
    pub(crate) fn closed() -> Self {
        // On 127.0.0.1 an outgoing connection can take the port between a close and a listen.
        let socket = reserve("127.0.0.2:0".parse().unwrap()).unwrap();
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
                connections.spawn(carry(client, traffic.clone(), injected.subscribe()));
            }
        });
    }

    /// Cuts every connection, and accepts no more.
    pub(crate) async fn close(&self) {
        let mut running = std::mem::take(&mut *self.running.lock().unwrap());
        running.shutdown().await;
        // A child that another test has just begun holds a copy of the listener, until it has become its program.
        let free = eventually("the port is free again", async || reserve(self.address).ok()).await;
        *self.reserved.lock().unwrap() = Some(free);
    }

    /// Cuts every connection; new ones are welcome, and nothing stalls any more.
    pub(crate) async fn cut(&self) {
        self.close().await;
        self.traffic.send_replace(Traffic::Flows);
        self.listen();
    }

    /// Nothing gets through any more, but nobody is told.
    pub(crate) fn stall(&self) {
        self.traffic.send_replace(Traffic::Stalls);
    }

    /// Once a client subscribes, the broker hears it, and is not heard.
    pub(crate) fn stall_the_answer_to_subscribing(&self) {
        self.traffic.send_replace(Traffic::FlowsYet);
    }

    /// Waits until the broker is not heard any more.
    pub(crate) async fn stalls_answers(&self) {
        let mut traffic = self.traffic.subscribe();
        traffic.wait_for(|traffic| *traffic == Traffic::AnswersStall).await.unwrap();
    }

    /// What was held up goes on.
    pub(crate) fn flow(&self) {
        self.traffic.send_replace(Traffic::Flows);
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
fn reserve(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn carry(
    client: TcpStream,
    traffic: watch::Sender<Traffic>,
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
            let subscribes = buffer[..length].windows(4).any(|bytes| bytes == BASIC_CONSUME);
            traffic.send_if_modified(|traffic| {
                let held = subscribes && *traffic == Traffic::FlowsYet;
                if held {
                    *traffic = Traffic::AnswersStall;
                }
                held
            });
            flowing(&traffic, |traffic| traffic != Traffic::Stalls).await;
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
            flowing(&traffic, |traffic| matches!(traffic, Traffic::Flows | Traffic::FlowsYet)).await;
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

async fn flowing(traffic: &watch::Sender<Traffic>, flows: impl Fn(Traffic) -> bool) {
    traffic.subscribe().wait_for(|traffic| flows(*traffic)).await.expect("we hold the sender");
}
