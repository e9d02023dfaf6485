//! A way to the broker that can be cut.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::Answer;

pub(crate) struct Proxy {
    port: u16,
    /// Ends the connections made so far.
    connections: Arc<Mutex<CancellationToken>>,
    _listening: DropGuard,
}

impl Proxy {
    pub(crate) async fn to(target: u16) -> Answer<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let (connections, listening) =
            (Arc::new(Mutex::new(CancellationToken::new())), CancellationToken::new());
        let (open, stop) = (connections.clone(), listening.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            while let Ok((client, _)) = listener.accept().await {
                let cut = open.lock().unwrap_or_else(PoisonError::into_inner).clone();
                tokio::spawn(cut.run_until_cancelled_owned(carry(client, target)));
            }
        }));
        Ok(Self { port, connections, _listening: listening.drop_guard() })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Cuts every connection; new ones are welcome.
    pub(crate) fn cut(&self) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *connections).cancel();
    }
}

async fn carry(mut client: TcpStream, target: u16) {
    // While the broker is away, the client's connection ends at once.
    if let Ok(mut broker) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, target))).await {
        let _ = copy_bidirectional(&mut client, &mut broker).await;
    }
}
