//! `pause`, `drain`, `resume`: whether workers take requests.

use serde_json::json;
use tasker_worker_rust::broker::Broker;
use tasker_worker_rust::broker::rabbit::RabbitBroker;
use tasker_worker_rust::pause::{pause, resume};
use tasker_worker_rust::{Config, Error};

use super::topology::{Namespaces, connected};
use super::{Answer, Output, output};

#[derive(Debug, clap::Args)]
pub(super) struct Targets {
    /// The namespaces [default: those of the templates and of worker.namespaces].
    #[arg(value_name = "NAMESPACE")]
    namespaces: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    Pause,
    Drain,
    Resume,
}

impl Targets {
    pub(super) async fn run(&self, order: Order, config: Config, output: Output) -> Result<Answer, Error> {
        let namespaces = Namespaces { namespaces: self.namespaces.clone() }.resolve(&config)?;
        let (names, kind) = (config.names(), config.broker.queue_kind);
        let broker = RabbitBroker::connect(&config.broker, "pause")?;
        let done = async {
            connected(&broker, &config).await?;
            for namespace in &namespaces {
                match order {
                    Order::Pause => pause(&broker, &names, kind, namespace, false).await?,
                    Order::Drain => pause(&broker, &names, kind, namespace, true).await?,
                    Order::Resume => resume(&broker, &names, kind, namespace).await?,
                }
            }
            Ok::<_, Error>(())
        };
        let done = done.await;
        broker.close().await;
        done?;
        let (state, text) = match order {
            Order::Pause => ("paused", "paused: workers finish what they have, and take nothing more"),
            Order::Drain => ("paused", "paused: workers finish what runs, and hand the rest back"),
            Order::Resume => ("running", "resumed"),
        };
        match output {
            Output::Json => output::json(&json!({ "namespaces": namespaces, "state": state })),
            Output::Text => namespaces.iter().for_each(|namespace| println!("{namespace}: {text}")),
        }
        Ok(Answer::Yes)
    }
}
