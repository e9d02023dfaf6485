//! A way to the broker that can be cut.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::Answer;

pub(crate) struct Proxy {
    port: u16,
    /// Ends the connections made so far.
    connections: Arc<Mutex<CancellationToken>>,
    /// How many there are.
    open: Arc<AtomicUsize>,
    _listening: DropGuard,
}

impl Proxy {
    pub(crate) async fn to(target: u16) -> Answer<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let (connections, listening) =
            (Arc::new(Mutex::new(CancellationToken::new())), CancellationToken::new());
        let (made, stop) = (connections.clone(), listening.clone());
        let open = Arc::new(AtomicUsize::new(0));
        let count = open.clone();
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            while let Ok((client, _)) = listener.accept().await {
                let cut = made.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let one = Open::new(count.clone());
                tokio::spawn(async move {
                    cut.run_until_cancelled_owned(carry(client, target)).await;
                    drop(one);
                });
            }
        }));
        Ok(Self { port, connections, open, _listening: listening.drop_guard() })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// How many connections are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Cuts every connection; new ones are welcome.
    pub(crate) fn cut(&self) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *connections).cancel();
    }
}

/// A connection, counted while it is open.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn carry(mut client: TcpStream, target: u16) {
    // While the broker is away, the client's connection ends at once.
    if let Ok(mut broker) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, target))).await {
        let _ = copy_bidirectional(&mut client, &mut broker).await;
    }
}
