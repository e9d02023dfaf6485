//! `topology`: the broker's queues and exchanges.

use std::collections::BTreeSet;

use clap::Subcommand;
use serde_json::json;
use tasker_worker_rust::broker::rabbit::RabbitBroker;
use tasker_worker_rust::broker::topology::Topology;
use tasker_worker_rust::broker::{Broker, BrokerError, BrokerStatus};
use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::{Config, Error};

use super::{Answer, Output, output};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create what is missing. What exists with other arguments is refused, never changed.
    Declare(Namespaces),
    /// Name what is missing, and exit with 1 if anything is.
    Verify(Namespaces),
}

#[derive(Debug, clap::Args)]
pub(super) struct Namespaces {
    /// The namespaces [default: those of the templates and of worker.namespaces].
    #[arg(long = "namespace", value_name = "NAME")]
    pub(super) namespaces: Vec<String>,
}

impl Command {
    pub(super) async fn run(&self, config: Config, output: Output) -> Result<Answer, Error> {
        let (Self::Declare(namespaces) | Self::Verify(namespaces)) = self;
        let namespaces = namespaces.resolve(&config)?;
        let topology =
            Topology::new(&config.names(), &config.ladder(), config.broker.queue_kind, &namespaces);
        let broker = RabbitBroker::connect(&config.broker, "topology")?;
        connected(&broker, &config).await?;
        let missing = match self {
            Self::Declare(_) => broker.declare(&topology).await.map(|()| Vec::new()),
            Self::Verify(_) => broker.verify(&topology).await,
        };
        broker.close().await;
        let missing = missing?;
        match output {
            Output::Json => output::json(&json!({
                "namespaces": namespaces,
                "exchanges": topology.exchanges.len(),
                "queues": topology.queues.len(),
                "missing": missing,
            })),
            Output::Text if missing.is_empty() => println!(
                "{} exchanges and {} queues are in place for {}",
                topology.exchanges.len(),
                topology.queues.len(),
                namespaces.into_iter().collect::<Vec<_>>().join(", ")
            ),
            Output::Text => {
                println!("missing on the broker (create them with `topology declare`):");
                for name in &missing {
                    println!("  {name}");
                }
            }
        }
        Ok(if missing.is_empty() { Answer::Yes } else { Answer::No })
    }
}

impl Namespaces {
    pub(super) fn resolve(&self, config: &Config) -> Result<BTreeSet<String>, Error> {
        if !self.namespaces.is_empty() {
            return Ok(self.namespaces.iter().cloned().collect());
        }
        let templates = &config.worker.task_templates.template_directory;
        let mut namespaces = Catalog::load(templates, Some(&config.environment))?.namespaces();
        namespaces.extend(config.worker.namespaces.iter().cloned());
        Ok(namespaces)
    }
}

/// Waits for the connection, but not for ever: a command is run by somebody who waits for it.
pub(super) async fn connected(broker: &dyn Broker, config: &Config) -> Result<(), Error> {
    let mut status = broker.status();
    let limit = std::time::Duration::from_millis(config.broker.connect_timeout_ms);
    let connected = status.wait_for(|status| *status == BrokerStatus::Connected);
    if tokio::time::timeout(limit, connected).await.is_ok_and(|status| status.is_ok()) {
        return Ok(());
    }
    let reason = match broker.status().borrow().clone() {
        BrokerStatus::Connecting(reason) | BrokerStatus::Blocked(reason) => reason,
        other => format!("{other:?}"),
    };
    let address = config.broker.urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Err(BrokerError::Unreachable { address, reason }.into())
}
