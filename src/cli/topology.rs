//! `topology`: the broker's queues and exchanges.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;
use tasker_worker_rust::broker::rabbit::RabbitBroker;
use tasker_worker_rust::broker::rights::{definitions, users};
use tasker_worker_rust::broker::topology::Topology;
use tasker_worker_rust::broker::{Broker, BrokerError, BrokerStatus};
use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::message::is_namespace;
use tasker_worker_rust::{Config, Error};

use super::{Answer, Output, output};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create what is missing. What exists with other arguments is refused, never changed.
    Declare(Namespaces),
    /// Name what is missing, and exit with 1 if anything is.
    Verify(Namespaces),
    /// Print all of it, with users and their rights, for `rabbitmqctl import_definitions`.
    Export(Export),
}

#[derive(Debug, clap::Args)]
pub(super) struct Export {
    #[command(flatten)]
    namespaces: Namespaces,
    /// A user for workers of these namespaces alone; may be given several times [default: tasker-worker for all of them].
    #[arg(long = "worker", value_name = "USER=NAMESPACE,...", value_parser = worker)]
    workers: Vec<(String, BTreeSet<String>)>,
    /// The virtual host.
    #[arg(long, default_value = "/")]
    vhost: String,
    /// A folder with a password for each user, in a file called as the user is. Who has no file can log in by
    /// certificate only.
    #[arg(long, value_name = "FOLDER")]
    passwords: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Namespaces {
    /// The namespaces [default: those of the templates and of worker.namespaces].
    #[arg(long = "namespace", value_name = "NAME", value_parser = namespace)]
    pub(super) namespaces: Vec<String>,
}

impl Command {
    pub(super) async fn run(&self, config: Config, output: Output) -> Result<Answer, Error> {
        let namespaces = match self {
            Self::Export(export) => return export.run(&config),
            Self::Declare(namespaces) | Self::Verify(namespaces) => namespaces,
        };
        let namespaces = namespaces.resolve(&config)?;
        let topology =
            Topology::new(&config.names(), &config.ladder(), config.broker.queue_kind, &namespaces);
        let broker = RabbitBroker::connect(&config.broker, "topology")?;
        connected(&broker, &config).await?;
        let missing = match self {
            Self::Declare(_) => broker.declare(&topology).await.map(|()| Vec::new()),
            Self::Verify(_) | Self::Export(_) => broker.verify(&topology).await,
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

/// `USER=NAMESPACE,NAMESPACE`
fn worker(text: &str) -> Result<(String, BTreeSet<String>), String> {
    let parts = text.split_once('=').filter(|(user, _)| !user.is_empty());
    let (user, namespaces) =
        parts.ok_or("expected USER=NAMESPACE,NAMESPACE, as in billing=invoices,refunds")?;
    let namespaces = namespaces.split(',').map(namespace).collect::<Result<_, _>>()?;
    Ok((user.to_owned(), namespaces))
}

fn namespace(text: &str) -> Result<String, String> {
    match is_namespace(text) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no namespace; expected 1 to 64 characters of A-Z a-z 0-9 _ -")),
    }
}

impl Export {
    fn run(&self, config: &Config) -> Result<Answer, Error> {
        let mut namespaces = match self.workers.is_empty() || !self.namespaces.namespaces.is_empty() {
            true => self.namespaces.resolve(config)?,
            false => BTreeSet::new(),
        };
        let workers = match self.workers.is_empty() {
            true => vec![("tasker-worker".to_owned(), namespaces.clone())],
            false => self.workers.clone(),
        };
        namespaces.extend(workers.iter().flat_map(|(_, served)| served.iter().cloned()));
        let names = config.names();
        let users = users(&names, &workers);
        let mut logins = BTreeMap::new();
        for (user, folder) in users.iter().zip(self.passwords.iter().cycle()) {
            let path = folder.join(&user.name);
            match std::fs::read_to_string(&path) {
                Ok(password) => drop(logins.insert(user.name.clone(), password.trim_end().to_owned())),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(source) => return Err(Error::File { path, source }),
            }
        }
        let topology = Topology::new(&names, &config.ladder(), config.broker.queue_kind, &namespaces);
        output::json(&definitions(&topology, &users, &logins, &self.vhost));
        Ok(Answer::Yes)
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
