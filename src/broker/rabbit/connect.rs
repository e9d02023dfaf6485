//! One try to connect: socket, TLS where the address asks for it, login.

use std::path::PathBuf;
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};
use lapin::runtime::default_runtime;
use lapin::uri::SASLMechanism;
use lapin::{AsyncTcpStream, Connection, ConnectionProperties};

use super::address::{Address, PasswordFile};
use super::failure::Failure;
use super::link::Purpose;
use super::tls;
use crate::config::TlsConfig;

pub(super) type Pool = managed::Pool<Dialer>;

/// A connection that is checked out.
pub(super) type Object = managed::Object<Dialer>;

/// The frame size we ask for where we only publish: 1 MB of buffers, 8 by RabbitMQ's own.
const PUBLISH_FRAME_BYTES: u32 = 16 * 1024;

/// What connecting takes.
#[derive(Debug, Clone)]
pub(super) struct Access {
    pub(super) addresses: Vec<Address>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) tls: TlsConfig,
    pub(super) connect_timeout: Duration,
    /// Shown in the broker's management pages.
    pub(super) name: String,
}

/// Connects to one address. Files with passwords, certificates and keys are read every time: whoever changes
/// them need not restart anything.
#[derive(Debug)]
pub(super) struct Dialer {
    address: Address,
    password_file: Option<PathBuf>,
    tls: TlsConfig,
    name: String,
}

pub(super) fn pool(purpose: Purpose, access: &Access, address: &Address) -> Pool {
    let mut address = address.clone();
    if purpose == Purpose::Publish {
        // The client's two buffers have 32 frames each, and a message's headers have to fit into one. Whatever headers the
        // broker takes may arrive on the other connection, but here only what we have sent.
        address.uri.query.frame_max.get_or_insert(PUBLISH_FRAME_BYTES);
    }
    let dialer = Dialer {
        address,
        password_file: access.password_file.clone(),
        tls: access.tls.clone(),
        name: format!("{}/{}", access.name, purpose.name()),
    };
    managed::Pool::builder(dialer)
        // One is in use. The others are for whoever still waits for an answer on a broken predecessor: each holds it for
        // as long as an operation may take, and a network that flaps breaks many meanwhile.
        .max_size(64)
        .runtime(Runtime::Tokio1)
        // The client has no time limit of its own for connecting.
        .create_timeout(Some(access.connect_timeout))
        .wait_timeout(Some(access.connect_timeout))
        .build()
        .expect("a pool with time limits has a runtime")
}

impl managed::Manager for Dialer {
    type Type = Connection;
    type Error = Failure;

    async fn create(&self) -> Result<Connection, Failure> {
        let address = &self.address;
        let encryption = match address.is_encrypted() {
            true => Some(tls::connector(&self.tls).map_err(|text| Failure::refusal(text, "tls"))?),
            false => None,
        };
        let server_name = self.tls.server_name.clone().unwrap_or_else(|| address.uri.authority.host.clone());
        let runtime = default_runtime().expect("the client is built with its tokio runtime");
        let connected = Connection::connector(
            address.uri.clone(),
            runtime,
            async move |uri, runtime| {
                let place = runtime.to_socket_addrs((uri.authority.host, uri.authority.port));
                let stream = AsyncTcpStream::connect(&runtime, place).await?;
                match &encryption {
                    Some(encryption) => Ok(stream.into_rustls(encryption, &server_name).await?),
                    None => Ok(stream),
                }
            },
            self.properties(),
        );
        connected.await.map_err(|error| {
            let failure = Failure::connecting(address, &error);
            if !address.is_encrypted() || self.tls.certificate_file.is_none() || failure.cause != "connection_lost" {
                return failure;
            }
            // A broker that refuses a certificate says so and hangs up, and the second may arrive first.
            let hint = "does the broker refuse our certificate? Then renew broker.tls.certificate_file, or have its \
                        authority trusted by the broker";
            Failure { text: format!("{}; {hint}", failure.text), ..failure }
        })
    }

    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<Failure> {
        match connection.status().connected() {
            true => Ok(()),
            false => Err(RecycleError::message("the connection is closed")),
        }
    }
}

impl Dialer {
    fn properties(&self) -> ConnectionProperties {
        let properties = ConnectionProperties::default().with_connection_name(self.name.as_str().into());
        match &self.password_file {
            Some(path) if self.address.uri.query.auth_mechanism != Some(SASLMechanism::External) => {
                let user = self.address.user.clone();
                properties.with_auth_provider(PasswordFile { user, path: path.clone() })
            }
            _ => properties,
        }
    }
}
