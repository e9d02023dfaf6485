//! `worker` and `orchestrator`: the programs that run until they are told to stop.

use std::sync::Arc;
use std::time::Duration;

use tasker_worker_rust::broker::Broker;
use tasker_worker_rust::broker::rabbit::RabbitBroker;
use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::config::{MetricsConfig, host_name};
use tasker_worker_rust::ops::http::Limits;
use tasker_worker_rust::orchestrator::{Orchestrator, api};
use tasker_worker_rust::{Config, Error, RustWorker, ops, workflows};
use tracing::{info, warn};

use super::Answer;

/// How long the last spans of a program that ends may take.
const LAST_SPANS: Duration = Duration::from_secs(1);

pub(super) fn worker(config: Config) -> Result<Answer, Error> {
    // Before the log, which tells spans of what handlers do.
    ops::spans::init(&config.tracing, &config.worker_id())?;
    ops::logging::init(&config.log)?;
    let mut worker = RustWorker::new(config);
    for namespace in workflows::all() {
        worker = worker.namespace(namespace);
    }
    let ended = worker.run_blocking();
    ops::spans::flush(LAST_SPANS);
    ended?;
    Ok(Answer::Yes)
}

pub(super) fn orchestrator(config: Config) -> Result<Answer, Error> {
    ops::spans::init(&config.tracing, host_name())?;
    ops::logging::init(&config.log)?;
    let runtime = tokio::runtime::Runtime::new().expect("the system gives the process threads");
    let ended = runtime.block_on(orchestrate(config));
    ops::spans::flush(LAST_SPANS);
    ended?;
    Ok(Answer::Yes)
}

async fn orchestrate(config: Config) -> Result<(), Error> {
    let signals = ops::shutdown::signals()?;
    let settings = &config.orchestrator;
    let catalog = Catalog::load(&settings.template_directory, Some(&config.environment))?;
    let _watching = if settings.auto_reload { Some(catalog.watch()?) } else { None };
    let broker: Arc<dyn Broker> = Arc::new(RabbitBroker::connect(&config.broker, "orchestrator")?);
    let orchestrator = Orchestrator::start(&config, broker.clone(), catalog).await?;
    let router = api::router(orchestrator.clone(), settings)?;
    let limits = Limits { connections: settings.max_connections, header_bytes: settings.max_header_bytes };
    let server =
        ops::http::serve_within(limits, &settings.listen_address, "orchestrator.listen_address", router)
            .await?;
    let operations = match &settings.health_address {
        None => None,
        Some(address) => {
            let router = api::operations_router(orchestrator.clone(), settings)?;
            Some(ops::http::serve(address, "orchestrator.health_address", router).await?)
        }
    };
    if !settings.auth.is_on() && !server.address().ip().is_loopback() {
        warn!(
            address = %server.address(),
            "The API obeys whoever reaches it: set orchestrator.auth.api_keys_file, or listen on 127.0.0.1"
        );
    }
    // Steps per second are the workers' to measure.
    let measured = MetricsConfig { performance_monitoring: false, ..MetricsConfig::default() };
    tokio::spawn(ops::monitor::run(measured, signals.graceful.clone()));
    signals.graceful.cancelled().await;
    info!("Stopping: finishing what has been received");
    let orderly = async {
        server.stop().await;
        if let Some(operations) = operations {
            operations.stop().await;
        }
        orchestrator.shutdown().await;
        broker.close().await;
    };
    tokio::select! {
        () = orderly => info!("Stopped"),
        () = signals.immediate.cancelled() => info!("Stopped at once; what was unfinished is resumed at the next start"),
    }
    Ok(())
}
