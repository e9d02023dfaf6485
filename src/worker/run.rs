//! Start, run, drain: the worker as its users hold it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::control::{self, Cancellations};
use super::{Core, SharedCore, consume};
use crate::broker::rabbit::RabbitBroker;
use crate::broker::topology::Topology;
use crate::broker::{Broker, BrokerError, ConsumerState, Source};
use crate::config::{Config, TopologyMode};
use crate::error::Error;
use crate::handler::{HandlerRegistry, Namespace};
use crate::ops::metrics::METRICS;

/// After the shutdown timeout, how long cut-off steps may take to be handed back.
const LAST_SETTLEMENTS: Duration = Duration::from_secs(2);
/// The pause before the topology is tried again that the broker refused.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);
/// The pause before the topology is tried again when the broker could not be reached.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(500);

/// A worker: its settings and its handlers.
///
/// ```no_run
/// use tasker_worker_rust::{Config, Error, Namespace, RustWorker, Step, StepResult};
///
/// async fn greet(step: Step<String>) -> StepResult<String> {
///     Ok(format!("Hello {}", step.context))
/// }
///
/// #[tokio::main]
/// async fn main() -> Result<(), Error> {
///     RustWorker::new(Config::load()?).namespace(Namespace::new("greetings").step("greet", greet)).run().await
/// }
/// ```
#[derive(Debug)]
pub struct RustWorker {
    config: Config,
    registry: HandlerRegistry,
    broker: Option<Arc<dyn Broker>>,
}

impl RustWorker {
    /// A worker without handlers.
    pub fn new(config: Config) -> Self {
        Self { config, registry: HandlerRegistry::new(), broker: None }
    }

    /// Adds a namespace's handlers.
    ///
    /// # Panics
    /// At the caller's line, when one of its steps has a handler already.
    #[track_caller]
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.registry.add(namespace);
        self
    }

    /// Uses this broker instead of connecting to the configured one, and leaves it open at the end.
    #[must_use]
    pub fn broker(mut self, broker: Arc<dyn Broker>) -> Self {
        self.broker = Some(broker);
        self
    }

    /// The handlers registered so far.
    pub fn registry(&self) -> &HandlerRegistry {
        &self.registry
    }

    /// Starts consuming and returns. While the broker cannot be reached the worker waits for it, not ready.
    ///
    /// # Errors
    /// When the settings make no sense: an unknown namespace, a bad address.
    pub async fn start(self) -> Result<RunningWorker, Error> {
        let namespaces = self.served_namespaces()?;
        let worker_id = self.config.worker_id();
        let (broker, owned): (Arc<dyn Broker>, bool) = match self.broker {
            Some(broker) => (broker, false),
            None => (RabbitBroker::connect(&self.config.broker, &worker_id)?, true),
        };
        let core: SharedCore = Arc::new(Core {
            publisher: broker.publisher(),
            names: self.config.names(),
            ladder: self.config.ladder(),
            hostname: crate::config::hostname(),
            worker_id,
            registry: self.registry,
            cancellations: Cancellations::default(),
            stopping: CancellationToken::new(),
            interrupted: CancellationToken::new(),
            config: self.config,
        });
        METRICS
            .target_steps_per_second
            .set(i64::from(core.config.worker.performance_target_steps_per_second));
        METRICS
            .worker_info
            .with_label_values(&[env!("CARGO_PKG_VERSION"), &core.config.worker.worker_type])
            .set(1);
        let steps = TaskTracker::new();
        let consumers = TaskTracker::new();
        let (states, readable_states) = watch::channel(BTreeMap::new());
        for namespace in &namespaces {
            METRICS.consumer_up.with_label_values(&[namespace]).set(0);
        }
        let supervisor = supervise(
            core.clone(),
            broker.clone(),
            namespaces.clone(),
            states,
            steps.clone(),
            consumers.clone(),
        );
        consumers.spawn(supervisor);
        Ok(RunningWorker { core, namespaces, broker, owned, steps, consumers, states: readable_states })
    }

    /// Runs until SIGTERM or SIGINT, then drains: nothing new is started, running steps may finish within
    /// `worker.shutdown.shutdown_timeout_seconds`, the rest is handed back. A second signal ends it at once.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn run(self) -> Result<(), Error> {
        let signals = crate::ops::shutdown::signals();
        let worker = self.start().await?;
        signals.graceful.cancelled().await;
        worker.drain(&signals.immediate).await;
        Ok(())
    }

    fn served_namespaces(&self) -> Result<Vec<String>, Error> {
        let registered = self.registry.namespaces();
        let wanted = &self.config.worker.namespaces;
        if registered.is_empty() {
            return Err(Error::Config(vec![
                "the worker has no handlers; register a namespace before it runs".into(),
            ]));
        }
        let unknown: Vec<String> = wanted
            .iter()
            .filter(|name| !registered.contains(&name.as_str()))
            .map(|name| {
                format!(
                    "worker.namespaces: {name:?} has no handlers in this program; it has: {}",
                    registered.join(", ")
                )
            })
            .collect();
        if !unknown.is_empty() {
            return Err(Error::Config(unknown));
        }
        if wanted.is_empty() {
            return Ok(registered.into_iter().map(str::to_owned).collect());
        }
        let mut served = wanted.clone();
        served.sort_unstable();
        served.dedup();
        Ok(served)
    }
}

/// The consumers' states by namespace.
type States = BTreeMap<String, watch::Receiver<ConsumerState>>;

/// Makes sure of the topology, then consumes every namespace until the worker stops.
async fn supervise(
    core: SharedCore,
    broker: Arc<dyn Broker>,
    namespaces: Vec<String>,
    states: watch::Sender<States>,
    steps: TaskTracker,
    consumers: TaskTracker,
) {
    tokio::select! {
        () = core.stopping.cancelled() => return,
        () = ensure_topology(&core, broker.as_ref(), &namespaces) => {}
    }
    let control = broker.subscribe(Source::Broadcast(core.names.control()), 100);
    let control_cancel = core.stopping.clone();
    let slots = Arc::new(Semaphore::new(usize::from(core.config.worker.max_concurrent_steps)));
    for namespace in namespaces {
        let queue = core.names.step_queue(&namespace);
        let subscription = broker.subscribe(Source::Queue(queue), core.config.worker.max_concurrent_steps);
        let state = subscription.state();
        states.send_modify(|states| drop(states.insert(namespace.clone(), state.clone())));
        tokio::spawn(report(namespace.clone(), state));
        let namespace: Arc<str> = namespace.into();
        consumers.spawn(consume::consume(
            core.clone(),
            namespace,
            subscription,
            slots.clone(),
            steps.clone(),
        ));
    }
    tokio::select! {
        () = control::listen(core.clone(), control) => {}
        // Running steps may still be cancelled while the worker drains: the listener goes last.
        () = async { control_cancel.cancelled().await; core.interrupted.cancelled().await } => {}
    }
}

/// Keeps the `consumer_up` metric true, and says in the log when a consumer stops or resumes.
async fn report(namespace: String, mut state: watch::Receiver<ConsumerState>) {
    let up = METRICS.consumer_up.with_label_values(&[&namespace]);
    let mut consuming = false;
    loop {
        let now = state.borrow_and_update().clone();
        up.set(i64::from(now == ConsumerState::Consuming));
        match &now {
            ConsumerState::Consuming if !consuming => info!(namespace, "consuming"),
            ConsumerState::Connecting(reason) if consuming => {
                warn!(namespace, reason, "not consuming any more")
            }
            _ => {}
        }
        consuming = now == ConsumerState::Consuming;
        if now == ConsumerState::Stopped || state.changed().await.is_err() {
            up.set(0);
            return;
        }
    }
}

/// Declares or verifies until that succeeds.
async fn ensure_topology(core: &Core, broker: &dyn Broker, namespaces: &[String]) {
    let config = &core.config.broker;
    let topology = Topology::new(&core.names, &core.ladder, config.queue_kind, namespaces);
    let mut last_problem = None;
    loop {
        let outcome = match config.topology {
            TopologyMode::Declare => broker.declare(&topology).await,
            TopologyMode::Verify => match broker.verify(&topology).await {
                Ok(missing) if missing.is_empty() => Ok(()),
                Ok(missing) => Err(BrokerError::Refused(format!(
                    "missing on the broker: {}; create them with `tasker-worker-rust topology declare`",
                    missing.join(", ")
                ))),
                Err(error) => Err(error),
            },
        };
        let Err(problem) = outcome else { return };
        if last_problem.as_ref() != Some(&problem) {
            error!(%problem, "the queues cannot be used yet; trying again until they can");
        }
        let pause = match problem {
            BrokerError::Refused(_) | BrokerError::Invalid(_) => REFUSED_PAUSE,
            BrokerError::Unreachable { .. } | BrokerError::Closed => UNREACHABLE_PAUSE,
        };
        last_problem = Some(problem);
        tokio::time::sleep(pause).await;
    }
}

/// A started worker.
pub struct RunningWorker {
    core: SharedCore,
    namespaces: Vec<String>,
    broker: Arc<dyn Broker>,
    owned: bool,
    steps: TaskTracker,
    consumers: TaskTracker,
    states: watch::Receiver<States>,
}

impl RunningWorker {
    /// Waits until every namespace is consuming.
    pub async fn ready(&self) {
        let mut states = self.states.clone();
        let states = match states.wait_for(|states| states.len() == self.namespaces.len()).await {
            Ok(states) => states.clone(),
            Err(_) => return,
        };
        for mut state in states.into_values() {
            let _ = state.wait_for(|state| *state == ConsumerState::Consuming).await;
        }
    }

    /// Stops as [`RustWorker::run`] does on its first signal.
    pub async fn shutdown(self) -> Drained {
        self.drain(&CancellationToken::new()).await
    }

    async fn drain(self, immediate: &CancellationToken) -> Drained {
        let started = Instant::now();
        let limit = Duration::from_secs(self.core.config.worker.shutdown.shutdown_timeout_seconds);
        let running = self.steps.len();
        info!(
            running_steps = running,
            limit_seconds = limit.as_secs(),
            "stopping: finishing the running steps"
        );
        self.core.stopping.cancel();
        self.steps.close();
        tokio::select! {
            () = self.steps.wait() => {}
            () = tokio::time::sleep(limit) => {}
            () = immediate.cancelled() => {}
        }
        let handed_back = self.steps.len();
        self.core.interrupted.cancel();
        // Consumers first: one that has just taken a delivery hands it back.
        self.consumers.close();
        let settled = async {
            self.consumers.wait().await;
            self.steps.wait().await;
        };
        if tokio::time::timeout(LAST_SETTLEMENTS, settled).await.is_err() {
            warn!(steps = self.steps.len(), "some steps did not stop; the broker hands them out again");
        }
        if self.owned {
            self.broker.close().await;
        }
        let drained =
            Drained { finished: running.saturating_sub(handed_back), handed_back, took: started.elapsed() };
        info!(
            finished = drained.finished,
            handed_back = drained.handed_back,
            drain_ms = drained.took.as_millis() as u64,
            "stopped"
        );
        drained
    }
}

impl fmt::Debug for RunningWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningWorker")
            .field("worker_id", &self.core.worker_id)
            .field("namespaces", &self.namespaces)
            .field("running_steps", &self.steps.len())
            .finish()
    }
}

/// What a shutdown came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Steps that were running and finished in time.
    pub finished: usize,
    /// Steps that were cut off and handed back.
    pub handed_back: usize,
    /// How long it took.
    pub took: Duration,
}
