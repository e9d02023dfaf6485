//! `health`: asks a running worker or orchestrator, for probes in images without a shell.

use std::time::Duration;

use serde_json::Value;
use tasker_worker_rust::Error;
use tasker_worker_rust::client::Client;

use super::{Answer, Output, output};

#[derive(Debug, clap::Args)]
pub(super) struct Health {
    /// The program's address; an orchestrator's default is http://127.0.0.1:8080.
    #[arg(default_value = "http://127.0.0.1:8081")]
    url: String,
    /// Ask whether the process lives, not whether it can work.
    #[arg(long)]
    live: bool,
    /// How long the answer may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    timeout: u64,
}

impl Health {
    pub(super) async fn run(&self, output: Output) -> Result<Answer, Error> {
        let client = Client::new(&self.url)?;
        let asked = tokio::time::timeout(Duration::from_secs(self.timeout), client.health(self.live)).await;
        let Ok(Ok((healthy, report))) = asked else {
            return Err(Error::Api(format!(
                "no worker or orchestrator answered at {} within {} s",
                client.base_url(),
                self.timeout
            )));
        };
        match output {
            Output::Json => output::json(&report),
            Output::Text => print_text(&report),
        }
        Ok(if healthy { Answer::Yes } else { Answer::No })
    }
}

/// The status, and what each part says of itself.
fn print_text(report: &Value) {
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or("?").to_owned();
    match report["error"]["message"].as_str() {
        Some(message) => println!("{message}"),
        None => println!("{}", text(report, "status")),
    }
    for (name, check) in report["checks"].as_object().into_iter().flatten() {
        println!("  {name}: {} ({})", text(check, "status"), text(check, "message"));
    }
}
