//! `bench`: this worker beside the least that can do its job, on your broker, in the same run.
//!
//! Figures are ratios: each round measures ours and the bare twin one after the other, and which is first alternates.
//! Every worker is a process of its own, so that its processor time and memory are its alone.

mod documents;
mod figure;
mod flows;
mod growth;
mod job;
mod machine;
mod rounds;
mod steps;
mod svg;

#[path = "../../../benches/caller.rs"]
mod caller;
#[path = "../../../benches/twin.rs"]
mod twin;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;
use tasker_worker_rust::{Config, Error};

use super::output::Table;
use super::{Answer as Exit, Output, output};
use figure::{COLUMNS, Figure, Origin};
use job::Job;
use rounds::Bench;

type Answer<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// Throughput, processor time and memory.
    W1,
    /// Latency at a steady pace.
    W2,
    /// Many sleeping steps at once.
    W3,
    /// Workflows one at a time, through the API and the store.
    W4,
    /// Many workflows at once.
    W5,
    /// What grows, and how.
    W6,
    /// Start and stop.
    W7,
    /// What cumulative acks, and no task for each step, are worth to the bare twin.
    W8,
}

/// The arguments of `bench`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The workloads [default: all].
    workloads: Vec<Workload>,
    /// Only the cases with this in their names, such as "quorum, 1 namespaces" or "1,000 at once"; may be given several times.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// W1, W2 and W4 in a minute; exit with 1 when a ratio is worse than half its goal.
    #[arg(long)]
    quick: bool,
    /// Rounds of each case that count.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How far the store grows in W6; a million tasks take 10 GB and a quarter of an hour.
    #[arg(long, default_value_t = 100_000)]
    stored_tasks: u32,
    /// Write results.json, the plots and the tables into this directory of documents, too. What it holds of other
    /// workloads and cases stays, so that a long bench can be run in pieces.
    #[arg(long, value_name = "DIRECTORY")]
    write: Option<PathBuf>,
    /// What a process started by the bench does.
    #[arg(long, hide = true)]
    job: Option<String>,
}

impl Arguments {
    pub(super) fn run(&self, config: Config, settings: Vec<String>, output: Output) -> Result<Exit, Error> {
        let measured = match &self.job {
            Some(job) => serde_json::from_str::<Job>(job).map_err(Into::into).and_then(|job| job.run(config)),
            None => return self.measure(config, settings, output).map_err(failed),
        };
        measured.map(|()| Exit::Yes).map_err(failed)
    }

    fn measure(&self, config: Config, settings: Vec<String>, output: Output) -> Answer<Exit> {
        let mut bench = Bench::new(config, settings, self.quick, self.rounds as usize, self.stored_tasks)?;
        bench.only.clone_from(&self.only);
        let started: String = jiff::Timestamp::now().to_string().chars().take(16).collect();
        let wanted = self.workloads();
        let mut figures = super::block_on(async {
            let mut figures = Vec::new();
            for workload in &wanted {
                figures.extend(match workload {
                    Workload::W1 => steps::throughput(&bench).await?,
                    Workload::W2 => steps::latency(&bench).await?,
                    Workload::W3 => steps::concurrency(&bench).await?,
                    Workload::W4 => flows::one_at_a_time(&bench).await?,
                    Workload::W5 => flows::at_once(&bench).await?,
                    Workload::W6 => growth::growth(&bench).await?,
                    Workload::W7 => steps::life(&bench).await?,
                    Workload::W8 => steps::habits(&bench).await?,
                });
            }
            Answer::Ok(figures)
        })?;
        if figures.is_empty() {
            return Err(format!("no case has {:?} in its name", bench.only.join("\", \"")).into());
        }
        let origin = Origin {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            broker: bench.broker_version(),
            machine: machine::description(),
            started,
            quick: self.quick,
        };
        figures.iter_mut().for_each(|figure| figure.origin = Some(origin.clone()));
        match output {
            Output::Json => output::json(&json!({ "figures": figures })),
            Output::Text => print(&figures),
        }
        if let Some(directory) = &self.write {
            let everything = self.workloads.is_empty() && self.only.is_empty() && !self.quick;
            documents::write(directory, &figures, everything)?;
        }
        let far_off = self.quick && figures.iter().any(Figure::missed_by_half);
        Ok(if far_off { Exit::No } else { Exit::Yes })
    }

    fn workloads(&self) -> Vec<Workload> {
        match (self.workloads.is_empty(), self.quick) {
            (false, _) => self.workloads.clone(),
            (true, true) => vec![Workload::W1, Workload::W2, Workload::W4],
            (true, false) => Workload::value_variants().to_vec(),
        }
    }
}

fn print(figures: &[Figure]) {
    let mut table = Table::new(COLUMNS);
    for figure in figures {
        table.row(figure.cells());
    }
    table.print();
}

fn failed(problem: Box<dyn std::error::Error + Send + Sync>) -> Error {
    match problem.downcast::<Error>() {
        Ok(error) => *error,
        Err(problem) => {
            Error::System { what: "the bench cannot go on", source: std::io::Error::other(problem) }
        }
    }
}
