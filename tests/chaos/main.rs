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
use std::process::ExitCode;

use clap::Parser;
use futures_util::stream::{self, StreamExt};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::AbortOnDropHandle;

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

// Scenarios wait in places without giving their thread back, which must not hold up another one's clock.
#[tokio::main(worker_threads = 6)]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut terminated = signal(SignalKind::terminate()).expect("signals can be listened to");
    // Dropping a scenario half-way ends what it started.
    let passed = tokio::select! {
        passed = run(&arguments) => passed,
        _ = tokio::signal::ctrl_c() => return ExitCode::from(130),
        _ = terminated.recv() => return ExitCode::from(143),
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(arguments: &Arguments) -> bool {
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
    let started = |name| AbortOnDropHandle::new(tokio::spawn(scenario(name, run, arguments.old.clone())));
    let ended: Vec<_> = stream::iter(chosen).map(started).buffered(together).collect().await;
    let reports: Vec<_> = ended.into_iter().map(|report| report.expect("scenarios do not panic")).collect();
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
