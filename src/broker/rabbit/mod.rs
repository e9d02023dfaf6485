//! RabbitMQ.
//!
//! Two connections, each kept up by a keeper (`connection`): one on which every subscription's supervisor
//! (`consume`, `deliveries`) has its channel, and one on which a single task publishes (`publish`, `window`,
//! `confirms`, `suspects`). No other folder names the client library.
//!
//! The connections and their heartbeats run on threads of their own, so that busy handlers cannot starve them.
//! Supervisors and publishing run in one task (`together`), beside what takes their deliveries ([`Broker::run_beside`]):
//! each time a message changes threads, waking one costs more than all else that is done for it.

mod address;
mod confirms;
mod connect;
mod connection;
mod consume;
mod declare;
mod deliveries;
mod failure;
mod link;
mod properties;
mod publish;
mod reconnect;
mod suspects;
mod tls;
mod together;
mod window;

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::runtime::{self, Handle};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::address::Address;
use self::connect::{Access, Object};
use self::connection::{GRACE, Keeper};
use self::consume::Supervisor;
use self::failure::Failure;
use self::link::{Health, Link, LinkState, Purpose, Up};
use self::publish::Lane;
use self::reconnect::Trouble;
use self::together::Together;
use super::topology::Topology;
use super::{
    BoxFuture, Broker, BrokerError, BrokerStatus, ConsumerState, PublishJob, Publisher, Source, Subscription,
};
use crate::config::{AmqpUrl, BrokerConfig};

/// How long declaring, verifying or looking may take: a thousand queues do in a quarter of it.
const OPERATION_LIMIT: Duration = Duration::from_secs(60);

/// The stack of the messages' thread, unless somebody wants another: as much as threads of a runtime have.
const STACK_BYTES: usize = 2 * 1024 * 1024;

/// Messages that wait for room in the publishing window. What they answer is bounded by its prefetch already: who
/// publishes is not put to sleep here besides.
const WAITING_PUBLISHES: usize = 1 << 16;

/// RabbitMQ, over AMQP 0-9-1. Dropping it closes the connections.
#[derive(Debug)]
pub struct RabbitBroker {
    shared: Arc<Shared>,
    /// Where the connections are.
    runtime: Handle,
    consuming: Link,
    publishing: Link,
    jobs: mpsc::Sender<PublishJob>,
    together: Together,
    /// Not on the connections' thread.
    in_callers_runtime: bool,
}

/// What the tasks of one broker have in common.
#[derive(Debug)]
struct Shared {
    access: Access,
    /// All addresses, for people.
    address: String,
    publish_timeout: Duration,
    publish_window: usize,
    max_message_bytes: usize,
    health: Arc<Health>,
    consumers: TaskTracker,
    /// What was last declared, for the day it is gone.
    declared: Mutex<Option<Topology>>,
    closing: CancellationToken,
    closed: CancellationToken,
}

impl RabbitBroker {
    /// Checks the settings and returns at once; connecting goes on in the background, for as long as it takes.
    /// Called in a runtime, it publishes and consumes there.
    /// `connection_name` is shown in the broker's management pages.
    ///
    /// # Errors
    /// [`BrokerError::Invalid`] when the settings make no sense. No password appears in it.
    pub fn connect(config: &BrokerConfig, connection_name: &str) -> Result<Self, BrokerError> {
        Self::connect_with(config, connection_name, STACK_BYTES)
    }

    /// The same, with a stack for what runs beside it ([`Broker::run_beside`]).
    pub(crate) fn connect_with(
        config: &BrokerConfig,
        connection_name: &str,
        stack_bytes: usize,
    ) -> Result<Self, BrokerError> {
        let shared = Arc::new(Shared::new(config, connection_name)?);
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| BrokerError::Invalid(format!("cannot start the broker's runtime: {error}")))?;
        let handle = runtime.handle().clone();
        let callers = Handle::try_current();
        let in_callers_runtime = callers.is_ok();
        let (jobs, waiting) = mpsc::channel(WAITING_PUBLISHES);
        let keeper = |purpose| {
            let _in_its_runtime = handle.enter();
            Keeper::new(purpose, &shared.access, shared.health.clone())
        };
        let (consumer, consuming) = keeper(Purpose::Consume);
        let (publisher, publishing) = keeper(Purpose::Publish);
        let lane = Lane::new(shared.clone(), publishing.clone(), waiting);
        let of_thread = shared.clone();
        let together = Together::start(callers.unwrap_or_else(|_| handle.clone()), stack_bytes)
            .map_err(|error| BrokerError::Invalid(format!("cannot start the messages' thread: {error}")))?;
        let (lane_ended, lane_end) = oneshot::channel::<()>();
        together.add(Box::pin(async move {
            lane.run().await;
            drop(lane_ended);
        }));
        thread::Builder::new()
            .name("rabbitmq".to_owned())
            .spawn(move || {
                runtime.block_on(run(&of_thread, consumer, publisher, lane_end));
                runtime.shutdown_background();
            })
            .map_err(|error| BrokerError::Invalid(format!("cannot start the broker's thread: {error}")))?;
        Ok(Self { shared, runtime: handle, consuming, publishing, jobs, together, in_callers_runtime })
    }

    /// Runs `operation` where the connections live, as soon as there is one.
    async fn connected<T, F, Fut>(&self, operation: F) -> Result<T, BrokerError>
    where
        T: Send + 'static,
        F: FnOnce(Arc<Object>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Failure>> + Send,
    {
        let (shared, mut link) = (self.shared.clone(), self.consuming.clone());
        let task = self.runtime.spawn(async move {
            let working = async {
                let up = reach(&mut link, shared.access.connect_timeout).await?;
                link.on(up.number, "asking RabbitMQ", OPERATION_LIMIT, operation(up.connection)).await
            };
            match shared.closing.run_until_cancelled(working).await {
                Some(result) => result.map_err(|failure| failure.into_error(&shared.address)),
                None => Err(BrokerError::Closed),
            }
        });
        task.await.unwrap_or(Err(BrokerError::Closed))
    }
}

impl Broker for RabbitBroker {
    fn publisher(&self) -> Publisher {
        Publisher::new(self.jobs.clone())
    }

    fn subscribe(&self, source: Source, prefetch: u16) -> Subscription {
        let (deliveries, receiver) = mpsc::unbounded_channel();
        let (state, watched) = watch::channel(ConsumerState::Connecting("starting".to_owned()));
        let cancel = CancellationToken::new();
        let supervisor = Supervisor {
            shared: self.shared.clone(),
            source,
            prefetch,
            link: self.consuming.clone(),
            publishing: self.publishing.clone(),
            deliveries,
            state,
            cancel: cancel.clone(),
        };
        self.together.add(Box::pin(self.shared.consumers.track_future(supervisor.run())));
        Subscription::new(receiver, watched, cancel)
    }

    fn run_beside(&self, work: BoxFuture<'static, ()>) {
        if self.in_callers_runtime {
            self.together.add(work);
        } else {
            // Handlers must not hold up heartbeats.
            tokio::spawn(work);
        }
    }

    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), BrokerError>> {
        let wanted = topology.clone();
        Box::pin(async move {
            self.connected(|connection| async move { declare::declare(&connection, &wanted).await }).await?;
            self.shared.remember(topology);
            Ok(())
        })
    }

    fn verify<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<Vec<String>, BrokerError>> {
        let wanted = topology.clone();
        Box::pin(self.connected(|connection| async move { declare::missing(&connection, &wanted).await }))
    }

    fn depth<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<Option<u64>, BrokerError>> {
        let queue = queue.to_owned();
        Box::pin(self.connected(|connection| async move { declare::queue_depth(&connection, &queue).await }))
    }

    fn status(&self) -> watch::Receiver<BrokerStatus> {
        self.shared.health.status()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.shared.closing.cancel();
        Box::pin(self.shared.closed.cancelled())
    }
}

impl Drop for RabbitBroker {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

impl Shared {
    fn new(config: &BrokerConfig, connection_name: &str) -> Result<Self, BrokerError> {
        if config.urls.is_empty() {
            return Err(BrokerError::Invalid(
                "broker.urls is empty; expected at least one, such as amqp://guest:guest@127.0.0.1:5672/%2f"
                    .to_owned(),
            ));
        }
        if let Some(path) = &config.password_file {
            address::read_password(path)?;
        }
        let parse = |(index, url): (usize, &AmqpUrl)| Address::parse(index, url.expose(), config);
        let addresses = config.urls.iter().enumerate().map(parse).collect::<Result<Vec<_>, _>>()?;
        if addresses.iter().any(Address::is_encrypted) {
            tls::connector(&config.tls).map_err(BrokerError::Invalid)?;
        }
        let places: Vec<&str> = addresses.iter().map(|address| address.place.as_str()).collect();
        Ok(Self {
            address: places.join(", "),
            access: Access {
                addresses,
                password_file: config.password_file.clone(),
                tls: config.tls.clone(),
                connect_timeout: Duration::from_millis(config.connect_timeout_ms.max(1)),
                name: connection_name.to_owned(),
            },
            publish_timeout: Duration::from_millis(config.publish_timeout_ms.max(1)),
            publish_window: config.publish_window.max(1),
            max_message_bytes: config.max_message_bytes,
            health: Arc::new(Health::new()),
            consumers: TaskTracker::new(),
            declared: Mutex::new(None),
            closing: CancellationToken::new(),
            closed: CancellationToken::new(),
        })
    }

    fn remember(&self, topology: &Topology) {
        *self.declared.lock().unwrap_or_else(PoisonError::into_inner) = Some(topology.clone());
    }

    fn declared(&self) -> Option<Topology> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Everything that runs for one broker, subscriptions aside.
async fn run(shared: &Shared, consumer: Keeper, publisher: Keeper, lane: oneshot::Receiver<()>) {
    let _closed = shared.closed.clone().drop_guard();
    let (stop_consuming, stop_publishing) = (consumer.closing.clone(), publisher.closing.clone());
    let consumer = tokio::spawn(consumer.run());
    let publisher = tokio::spawn(publisher.run());
    shared.closing.cancelled().await;

    // Consumers first, so that nothing new arrives; the publisher last, so that what is done gets out.
    shared.consumers.close();
    let _ = time::timeout(2 * GRACE, shared.consumers.wait()).await;
    stop_consuming.cancel();
    let _ = consumer.await;
    let _ = time::timeout(2 * GRACE, lane).await;
    stop_publishing.cancel();
    let _ = publisher.await;
}

/// A connection, waiting for one for no longer than connecting may take.
async fn reach(link: &mut Link, limit: Duration) -> Result<Up, Failure> {
    let waiting = async {
        loop {
            match link.state() {
                LinkState::Up(up) => return Ok(up),
                LinkState::Down(failure) if failure.trouble == Trouble::Refusal => return Err(failure),
                LinkState::Down(_) => link.changed().await,
            }
        }
    };
    match time::timeout(limit, waiting).await {
        Ok(reached) => reached,
        Err(_) => match link.state() {
            LinkState::Up(up) => Ok(up),
            LinkState::Down(failure) => Err(failure),
        },
    }
}
