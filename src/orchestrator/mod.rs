//! The reference orchestrator: accepts tasks, decides which steps may run, applies results.
//!
//! [`advance`](advance::advance) decides, without I/O. One task (`apply`) owns what it decides about: it takes
//! whatever waits (submissions, cancellations, deliveries), applies it in memory, writes one transaction, and
//! only then acks and answers. Messages go through the outbox: written in that transaction, sent afterwards,
//! removed once confirmed. So a crash at any point loses nothing and applies nothing twice.

pub mod advance;
mod answer;
pub mod api;
mod apply;
pub mod by_hand;
mod cache;
mod changes;
mod checkpoint;
pub mod dag;
mod declare;
mod growth;
mod health;
pub mod identity;
mod incoming;
mod intake;
mod outbox;
pub mod outgoing;
mod overdue;
mod progress;
mod queries;
mod record;
mod shared;
mod stages;
mod stale;
pub mod store;
mod submit;
pub mod task;
mod templates;
mod trace;
mod versions;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::Error;
use crate::broker::Broker;
use crate::broker::topology::Names;
use crate::catalog::Catalog;
use crate::clock;
use crate::config::Config;
use crate::ops::metrics::METRICS;
use crate::retry::Ladder;
use crate::template::lease::Lease;

use advance::{Event, Outcome};
use apply::{Limits, Writer};
use by_hand::ByHand;
use cache::Cache;
use declare::Declare;
use intake::{Command, Confirmed, Heard, Told};
use outbox::Outbox;
use overdue::Overdue;
use shared::Shared;
use store::Store;
use task::TaskState;
use templates::Prepared;

pub use health::Health;
pub use submit::SubmitError;
pub use templates::RegisterError;

/// Callers that wait for the writer; more of them wait outside.
const COMMANDS: usize = 1_024;

/// A running orchestrator, without its HTTP API. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Orchestrator {
    inner: Arc<Inner>,
}

/// Namespace, name and version.
type TemplateKey = (String, String, String);

#[derive(Debug)]
struct Inner {
    store: Store,
    catalog: Catalog,
    lease: Lease,
    broker: Arc<dyn Broker>,
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    environment: String,
    enforce_input_schema: bool,
    prepared: Mutex<HashMap<TemplateKey, Arc<Prepared>>>,
    registering: tokio::sync::Mutex<()>,
    stop: CancellationToken,
    running: TaskTracker,
    /// The same tasks, to be ended at once.
    parts: [AbortHandle; 4],
}

impl Orchestrator {
    /// Opens the store and starts working. The broker need not be reachable: tasks are accepted, and their
    /// requests sent once it is.
    ///
    /// # Errors
    /// When the store cannot be opened, or a step may hold its delivery for longer than the broker lets it.
    pub async fn start(config: &Config, broker: Arc<dyn Broker>, catalog: Catalog) -> Result<Self, Error> {
        // How many namespaces share a worker is the worker's to check.
        let lease = config.lease(1);
        let too_long = lease.exceeded(&catalog.all());
        if !too_long.is_empty() {
            return Err(Error::Templates(too_long));
        }
        let store = Store::open(&config.orchestrator.database_url).await?;
        templates::load_registered(&store, &catalog).await?;
        METRICS.outbox_depth.set(store.unsent_count().await?);
        let in_use = store.unfinished().await?;
        let unfinished: i64 = in_use.values().sum();
        tracing::info!(store = store.name(), unfinished_tasks = unfinished, "The orchestrator is starting");

        let names = Names::new(&config.broker.prefix);
        let ladder = &config.broker.delay_ladder;
        let ladder = Ladder::new(Duration::from_millis(ladder.first_ms), ladder.ratio, ladder.rungs);
        let limits = Limits {
            batch: config.orchestrator.apply_batch.max(1),
            default_timeout: Duration::from_secs(config.worker.step_timeout_seconds),
            overdue_after: Duration::from_secs(config.orchestrator.overdue_after_seconds),
            resends: config.orchestrator.overdue_resends,
        };
        let shared = Arc::new(Shared::default());
        let stop = CancellationToken::new();
        let running = TaskTracker::new();
        let (commands, commands_receiver) = mpsc::channel(COMMANDS);
        let (declared, declared_receiver) = watch::channel(0);

        let (outbox, outbox_handle, reports) = Outbox::new(
            store.clone(),
            &*broker,
            &names,
            config.broker.max_message_bytes,
            Arc::clone(&shared),
            declared_receiver.clone(),
        );
        let outbox = running.spawn(outbox.run()).abort_handle();
        let overdue = Overdue {
            store: store.clone(),
            broker: Arc::clone(&broker),
            names: names.clone(),
            overdue_after: limits.overdue_after,
            commands: commands.clone(),
            shared: Arc::clone(&shared),
            stop: stop.clone(),
        };
        let overdue = running.spawn(overdue.run()).abort_handle();
        let declare = Declare {
            broker: Arc::clone(&broker),
            names: names.clone(),
            ladder,
            kind: config.broker.queue_kind,
            mode: config.broker.topology,
            catalog: catalog.clone(),
            in_use: in_use.into_keys().collect(),
            shared: Arc::clone(&shared),
            declared,
            stop: stop.clone(),
        };
        let declare = running.spawn(declare.run()).abort_handle();
        let writer = Writer {
            store: store.clone(),
            cache: Cache::new(store.clone()),
            broker: Arc::clone(&broker),
            names,
            limits,
            commands: commands_receiver,
            reports,
            outbox: outbox_handle,
            declared: declared_receiver,
            subscription: None,
            confirmed: Confirmed::default(),
            requests: HashMap::new(),
            shared: Arc::clone(&shared),
            stop: stop.clone(),
        };
        let writer = running.spawn(writer.run()).abort_handle();
        running.close();
        let parts = [outbox, overdue, declare, writer];
        let inner = Inner {
            store,
            catalog,
            lease,
            broker,
            environment: config.environment.clone(),
            enforce_input_schema: config.orchestrator.enforce_input_schema,
            commands,
            shared,
            prepared: Mutex::default(),
            registering: tokio::sync::Mutex::default(),
            stop,
            running,
            parts,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Cancels a task: no further step is started, running ones are told to stop, and what they answer is
    /// ignored.
    ///
    /// # Errors
    /// When there is no such task, it has ended, or the store does not take the change.
    pub async fn cancel(&self, task_uuid: Uuid) -> Result<(), CancelError> {
        match self.tell(task_uuid, Event::Cancel).await.map_err(CancelError::Store)? {
            None => Err(CancelError::NotFound),
            Some((_, Outcome::Applied)) => Ok(()),
            Some((state, _)) => Err(CancelError::Finished(state)),
        }
    }

    /// Does what a person decided about a step. Whether it made sense: a step can be tried again once it has
    /// failed, and resolved or completed until it has succeeded, unless its task is cancelled or was undone.
    ///
    /// # Errors
    /// When the store does not take the change.
    pub async fn act(&self, task_uuid: Uuid, decision: ByHand) -> Result<bool, Error> {
        let heard = self.tell(task_uuid, Event::ByHand(Box::new(decision))).await?;
        Ok(matches!(heard, Some((_, Outcome::Applied))))
    }

    async fn tell(&self, task_uuid: Uuid, event: Event) -> Result<Heard, Error> {
        let (reply, answer) = oneshot::channel();
        let closing = || SubmitError::closing(&self.inner.store);
        let command = Command::Tell(Told { task_uuid, event, reply });
        self.inner.commands.send(command).await.map_err(|_| closing())?;
        answer.await.unwrap_or_else(|_| Err(closing()))
    }

    /// Waits for a task's end: its terminal state, or `None` when there is no such task. Cancel-safe.
    ///
    /// # Errors
    /// When the store cannot be read, or the orchestrator shuts down first.
    pub async fn finished(&self, task_uuid: Uuid) -> Result<Option<TaskState>, Error> {
        // Before the look into the store, so that an end in between is not missed.
        let mut changes = self.changes(task_uuid);
        match self.inner.store.task_state(task_uuid).await? {
            None => Ok(None),
            Some(state) if state.is_terminal() => Ok(Some(state)),
            Some(_) => match changes.wait_for(Option::is_some).await {
                Ok(state) => Ok(*state),
                Err(_) => Err(SubmitError::closing(&self.inner.store)),
            },
        }
    }

    /// Changes whenever the task does. Its end is the last value; without one, the orchestrator has stopped.
    pub fn changes(&self, task_uuid: Uuid) -> watch::Receiver<Option<TaskState>> {
        self.inner.shared.watch(task_uuid)
    }

    /// The store, for reading.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The templates tasks can be made of.
    pub fn catalog(&self) -> &Catalog {
        &self.inner.catalog
    }

    /// The broker.
    pub fn broker(&self) -> &Arc<dyn Broker> {
        &self.inner.broker
    }

    /// What works and what does not.
    pub fn health(&self) -> Health {
        Health {
            store_problem: self.inner.shared.store_problem(),
            broker: self.inner.broker.status().borrow().clone(),
            topology_problem: self.inner.shared.topology_problem(),
            consumer: self.inner.shared.consumer(),
            stopping: self.inner.stop.is_cancelled(),
            writer_gone: self.inner.commands.is_closed(),
            saturation_percent: (COMMANDS - self.inner.commands.capacity()) * 100 / COMMANDS,
        }
    }

    /// The installation's name, such as `production`.
    pub fn environment(&self) -> &str {
        &self.inner.environment
    }

    /// Stops: what is being applied is written, what was not begun goes back to the broker, what was sent is
    /// waited for up to two seconds. Then the store is closed. The broker stays open.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.close().await;
    }

    /// Stops as a crash would: nothing more is written, acked or sent, and what is being written is either
    /// on the disk or not. The next start goes on from there. The broker stays open.
    pub async fn abort(&self) {
        self.inner.parts.iter().for_each(AbortHandle::abort);
        self.close().await;
    }

    async fn close(&self) {
        self.inner.running.wait().await;
        self.inner.shared.stop_waiting();
        self.inner.store.close().await;
    }
}

/// Why a task was not cancelled.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    /// There is no such task.
    #[error("there is no such task")]
    NotFound,
    /// It has ended already.
    #[error("the task has ended already; its state is {0}")]
    Finished(TaskState),
    /// The store does not take the change now.
    #[error(transparent)]
    Store(Error),
}

/// Now, in milliseconds since 1970.
fn now() -> i64 {
    clock::now().as_millisecond()
}

/// Pauses between tries, each twice as long as the one before.
#[derive(Debug)]
struct Pause {
    first: Duration,
    next: Duration,
    longest: Duration,
}

impl Pause {
    fn new(first: Duration, longest: Duration) -> Self {
        Self { first, next: first, longest }
    }

    fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause
    }

    fn reset(&mut self) {
        self.next = self.first;
    }
}
