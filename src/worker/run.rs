//! The worker as its users hold it: settings and handlers, then `run`.

use std::path::Path;
use std::sync::Arc;

use tokio::runtime;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::{info, warn};

use super::control::Cancellations;
use super::ledger::Ledger;
use super::pause::Pauses;
use super::register::Registration;
use super::running::RunningWorker;
use super::{Core, SharedCore, backlog, supervise};
use crate::broker::rabbit::RabbitBroker;
use crate::broker::{Broker, ConsumerState};
use crate::catalog::{Catalog, WatchGuard};
use crate::config::{Config, RuntimeConfig, RuntimeKind, WorkerConfig, host_name};
use crate::error::Error;
use crate::handler::{HandlerRegistry, Namespace};
use crate::ops::health::ConsumerHealth;
use crate::ops::http::Server;
use crate::ops::metrics::METRICS;
use crate::ops::{http, monitor, shutdown};
use crate::template::Template;
use crate::template::lease::Lease;

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

    /// Runs on a runtime made by `[worker.rust_runtime]`, until SIGTERM or SIGINT. See [`run`](Self::run).
    ///
    /// # Errors
    /// As [`run`](Self::run).
    ///
    /// # Panics
    /// Inside another runtime; use [`run`](Self::run) there.
    pub fn run_blocking(self) -> Result<(), Error> {
        let runtime = build_runtime(&self.config.worker.rust_runtime).map_err(|source| Error::System {
            what: "the runtime of [worker.rust_runtime] cannot be built",
            source,
        })?;
        runtime.block_on(self.run())
    }

    /// Runs until SIGTERM or SIGINT, with the health and metrics endpoints. Then it drains: nothing new is
    /// started, running steps may finish within `worker.shutdown.shutdown_timeout_seconds`, the rest is
    /// handed back to the broker. A second signal ends it at once.
    ///
    /// With `worker.orchestration_api_url` the templates of its namespaces are registered with the
    /// orchestrator, now and when they change; while that cannot be reached, steps run all the same.
    ///
    /// # Errors
    /// When settings or templates make no sense, a template's step has no handler or may hold its delivery
    /// for longer than the broker lets it, or a port is taken.
    pub async fn run(self) -> Result<(), Error> {
        let signals = shutdown::signals()?;
        let served = self.served_namespaces()?;
        let (_watching, catalog) = self.check_templates(&served)?;
        let settings = self.config.worker.clone();
        let (registration, _registering) = Registration::start(&settings, catalog, served)?;
        let worker = self.start().await?;
        let health = ConsumerHealth { registration, ..worker.health() };
        let servers = match serve(&settings, health).await {
            Ok(servers) => servers,
            // It consumes already; whoever called goes on without it.
            Err(error) => {
                worker.drain(&signals.immediate).await;
                return Err(error);
            }
        };
        let ended = CancellationToken::new();
        monitor::describe(&settings);
        let monitor = tokio::spawn(monitor::run(settings.metrics.clone(), ended.clone()));

        signals.graceful.cancelled().await;
        worker.drain(&signals.immediate).await;
        for server in servers {
            server.stop().await;
        }
        ended.cancel();
        // Its last round is of no interest.
        let _ = monitor.await;
        Ok(())
    }

    /// Starts consuming and returns, without endpoints and signals. While the broker cannot be reached the
    /// worker waits for it, not ready.
    ///
    /// # Errors
    /// When the settings make no sense: a namespace without handlers, a bad address, a ledger's file that
    /// cannot be used.
    pub async fn start(self) -> Result<RunningWorker, Error> {
        let namespaces = self.served_namespaces()?;
        let worker_id = self.config.worker_id();
        let ledger = Ledger::open(self.config.worker.ledger.clone())?;
        let (broker, owned): (Arc<dyn Broker>, bool) = match self.broker {
            Some(broker) => (broker, false),
            None => {
                // Handlers run on its thread, too.
                let stack_bytes = self.config.worker.rust_runtime.stack_size_kb * 1024;
                (Arc::new(RabbitBroker::connect_with(&self.config.broker, &worker_id, stack_bytes)?), true)
            }
        };
        let core: SharedCore = Arc::new(Core {
            publisher: broker.publisher(),
            broker: broker.status(),
            names: self.config.names(),
            ladder: self.config.ladder(),
            hostname: host_name().to_owned(),
            worker_id,
            registry: self.registry,
            slots: Semaphore::new(self.config.worker.max_concurrent_steps.into()),
            ledger: Arc::new(ledger),
            cancellations: Cancellations::default(),
            pauses: Pauses::new(&namespaces),
            steps: TaskTracker::new(),
            runtime: runtime::Handle::current(),
            stopping: CancellationToken::new(),
            interrupted: CancellationToken::new(),
            config: self.config,
        });
        let waiting = || watch::channel(ConsumerState::Connecting("waiting for the broker".to_owned())).0;
        let states: supervise::States =
            namespaces.into_iter().map(|namespace| (namespace, waiting())).collect();
        let mut consumer_states = std::collections::BTreeMap::new();
        for (namespace, state) in &states {
            METRICS.consumer_up.with_label_values(&[namespace]).set(0);
            METRICS.consumer_paused.with_label_values(&[namespace]).set(0);
            consumer_states.insert(namespace.clone(), state.subscribe());
        }
        let consumers = TaskTracker::new();
        let watched = consumer_states.keys().cloned().collect();
        consumers.spawn(backlog::watch(core.clone(), broker.clone(), watched));
        consumers.spawn(supervise::supervise(core.clone(), broker.clone(), states, consumers.clone()));
        Ok(RunningWorker { core, broker, owned, consumers, states: consumer_states })
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
                let registered = registered.join(", ");
                format!("worker.namespaces: {name:?} has no handlers in this program; it has: {registered}")
            })
            .collect();
        if !unknown.is_empty() {
            return Err(Error::Config(unknown));
        }
        if wanted.is_empty() {
            return Ok(registered.into_iter().map(str::to_owned).collect());
        }
        Ok(wanted.clone())
    }

    /// Compares templates with handlers, now and whenever a file changes. Nothing is watched any more once
    /// the answer's first part is dropped; the second are the templates, where there are some.
    fn check_templates(&self, served: &[String]) -> Result<(Option<Watching>, Option<Catalog>), Error> {
        let settings = &self.config.worker.task_templates;
        let compared = settings.validation_enabled;
        if !compared && self.config.worker.orchestration_api_url.is_none() {
            return Ok((None, None));
        }
        if !settings.template_directory.is_dir() {
            info!(
                directory = %settings.template_directory.display(),
                "There is no template directory, so no template is compared with the handlers"
            );
            return Ok((None, None));
        }
        let catalog = load(&settings.template_directory, &self.config)?;
        let missing = missing_handlers(&self.registry, &catalog, served);
        if compared && !missing.is_empty() {
            return Err(Error::MissingHandlers(missing));
        }
        let lease = self.config.lease(served.len());
        let too_long = exceeded(&lease, &catalog, served);
        if compared && !too_long.is_empty() {
            return Err(Error::Templates(too_long));
        }
        if !settings.auto_reload {
            return Ok((None, Some(catalog)));
        }
        let guard = catalog.watch()?;
        let (registry, served, known) = (self.registry.clone(), served.to_vec(), catalog.clone());
        let comparing = tokio::spawn(async move {
            let mut changes = catalog.changes();
            while compared && changes.changed().await.is_ok() {
                for step in missing_handlers(&registry, &catalog, &served) {
                    warn!(step, "A changed template has a step without a handler in this worker");
                }
                for problem in exceeded(&lease, &catalog, &served) {
                    warn!(problem, "A changed template has a step that the broker may hand out twice");
                }
            }
        });
        Ok((Some((guard, AbortOnDropHandle::new(comparing))), Some(known)))
    }
}

/// The health endpoints, and the metrics on a port of their own.
async fn serve(settings: &WorkerConfig, health: ConsumerHealth) -> Result<Vec<Server>, Error> {
    let metrics = &settings.metrics;
    let router = http::router(Arc::new(health), metrics.prometheus_enabled);
    let mut servers = vec![http::serve(&settings.health_address, "worker.health_address", router).await?];
    if metrics.prometheus_enabled {
        let host = settings.health_address.rsplit_once(':').map_or("0.0.0.0", |(host, _)| host);
        let address = format!("{host}:{}", metrics.prometheus_port);
        let setting = "worker.metrics.prometheus_port";
        servers.push(http::serve(&address, setting, http::metrics_router()).await?);
    }
    Ok(servers)
}

/// Template files being watched, and compared with the handlers when they change. Ends when dropped.
type Watching = (WatchGuard, AbortOnDropHandle<()>);

fn load(directory: &Path, config: &Config) -> Result<Catalog, Error> {
    Catalog::load(directory, Some(&config.environment))
}

/// What this worker's templates say that its broker does not allow.
fn exceeded(lease: &Lease, catalog: &Catalog, served: &[String]) -> Vec<String> {
    lease.exceeded(&served_templates(catalog, served))
}

pub(super) fn served_templates(catalog: &Catalog, served: &[String]) -> Vec<Arc<Template>> {
    catalog.all().into_iter().filter(|template| served.contains(&template.namespace)).collect()
}

/// The templates' steps in `served` namespaces that nobody registered, as `namespace/template/step`.
fn missing_handlers(registry: &HandlerRegistry, catalog: &Catalog, served: &[String]) -> Vec<String> {
    let mut missing = Vec::new();
    for template in served_templates(catalog, served) {
        for step in &template.steps {
            if !registry.contains(&template.namespace, &step.name, &step.handler.callable) {
                missing.push(format!("{}/{}/{}", template.namespace, template.name, step.name));
            }
        }
    }
    missing
}

fn build_runtime(settings: &RuntimeConfig) -> std::io::Result<runtime::Runtime> {
    if !settings.enabled {
        return runtime::Runtime::new();
    }
    let mut builder = match settings.async_runtime {
        RuntimeKind::MultiThreaded => runtime::Builder::new_multi_thread(),
        RuntimeKind::CurrentThread => runtime::Builder::new_current_thread(),
    };
    if settings.async_runtime == RuntimeKind::MultiThreaded {
        builder.worker_threads(settings.threads());
    }
    builder.thread_stack_size(settings.stack_size_kb * 1024).thread_name("steps").enable_all().build()
}
