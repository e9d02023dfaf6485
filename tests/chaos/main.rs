//! Chaos on RabbitMQ: the real program as processes of their own, against brokers that are killed.
//!
//! `cargo test` runs the quick form of the scenarios that fit into a minute; `make chaos` runs all of them in full.
//! Whatever is started here is ended here, by its process id, also on Ctrl-C and when something panics.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test with its own main prints its own figures"
)]

mod cluster;
mod cuts;
mod drain;
mod node;
mod processes;
mod product;
mod proxy;
mod report;
mod store;
mod tasks;
mod upgrade;

use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;

use clap::Parser;
use futures_util::stream::{self, StreamExt};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use report::Report;
use upgrade::{ORCHESTRATOR_FIRST, WORKERS_FIRST};

type Answer<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Every scenario, and whether it is part of the quick form.
const SCENARIOS: [(&str, bool); 6] = [
    ("processes", true),
    ("drain", true),
    ("cuts", true),
    ("cluster", false),
    (WORKERS_FIRST, false),
    (ORCHESTRATOR_FIRST, false),
];

/// Kills processes, brokers and connections under load, and fails when anything is lost.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only scenarios whose name contains one of these: processes, drain, cuts, cluster, upgrade.
    scenarios: Vec<String>,
    /// Everything, as often as it takes to find what happens seldom.
    #[arg(long)]
    full: bool,
    /// Repeats a run's random choices.
    #[arg(long)]
    seed: Option<u64>,
    /// Writes the figures to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The program of an older version; without it, the upgrades are left out.
    #[arg(long, value_name = "PROGRAM")]
    old: Option<PathBuf>,
    /// What other tests know, so that `cargo test -- --nocapture` goes on working.
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    test_threads: Option<usize>,
}

/// What a scenario needs to know.
#[derive(Clone, Copy)]
struct Run {
    full: bool,
    seed: u64,
}

impl Run {
    fn random(&self) -> StdRng {
        StdRng::seed_from_u64(self.seed)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut terminated = signal(SignalKind::terminate()).expect("signals can be listened to");
    let stop = CancellationToken::new();
    let mut running = pin!(run(&arguments, &stop));
    let stopped = tokio::select! {
        passed = &mut running => return if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE },
        _ = tokio::signal::ctrl_c() => 130,
        _ = terminated.recv() => 143,
    };
    // Dropping a scenario half-way ends what it started.
    stop.cancel();
    running.await;
    ExitCode::from(stopped)
}

async fn run(arguments: &Arguments, stop: &CancellationToken) -> bool {
    let run = Run { full: arguments.full, seed: arguments.seed.unwrap_or_else(rand::random) };
    let wanted = |name: &str, quick: bool| {
        let named = arguments.scenarios.iter().any(|part| name.contains(part.as_str()));
        let upgrade = [WORKERS_FIRST, ORCHESTRATOR_FIRST].contains(&name);
        (arguments.old.is_some() || !upgrade)
            && (named || arguments.scenarios.is_empty() && (quick || run.full))
    };
    let chosen = SCENARIOS.into_iter().filter(|(name, quick)| wanted(name, *quick)).map(|(name, _)| name);
    println!("chaos: {} form, seed {}", if run.full { "full" } else { "quick" }, run.seed);
    // Side by side they wait for less, and disturb each other's figures, which only the full form is after.
    let together = if run.full { 1 } else { SCENARIOS.len() };
    let started = |name| {
        let scenario = stop.clone().run_until_cancelled_owned(scenario(name, run, arguments.old.clone()));
        // Scenarios wait for programs without giving their thread back, and timers stand still when that is one of
        // the runtime's.
        spawn_blocking(|| Handle::current().block_on(scenario))
    };
    let ended: Vec<_> = stream::iter(chosen).map(started).buffered(together).collect().await;
    let reports: Option<Vec<_>> =
        ended.into_iter().map(|report| report.expect("scenarios do not panic")).collect();
    let Some(reports) = reports else { return false };
    let passed = reports.iter().all(Report::passed);
    if let Some(path) = &arguments.json {
        let scenarios: Vec<_> = reports.iter().map(Report::json).collect();
        let all = json!({ "full": run.full, "seed": run.seed, "passed": passed, "scenarios": scenarios });
        if let Err(error) = std::fs::write(path, format!("{all:#}\n")) {
            eprintln!("chaos: {} cannot be written: {error}", path.display());
            return false;
        }
    }
    passed
}

async fn scenario(name: &'static str, run: Run, old: Option<PathBuf>) -> Report {
    let mut report = Report::new(name);
    let directory = tempfile::Builder::new().prefix("chaos-").tempdir().expect("there is room for files");
    let outcome = match name {
        "processes" => processes::run(&run, directory.path(), &mut report).await,
        "drain" => drain::run(directory.path(), &mut report).await,
        "cuts" => cuts::run(&run, directory.path(), &mut report).await,
        "cluster" => cluster::run(&run, directory.path(), &mut report).await,
        _ => upgrade::run(name, &run, old.as_deref(), directory.path(), &mut report).await,
    };
    if let Err(error) = outcome {
        report.problem(error.to_string());
    }
    report.print();
    if !report.passed() {
        eprintln!("chaos: {name} failed; logs and store are in {}", directory.keep().display());
    }
    report
}
