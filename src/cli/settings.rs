//! `config`: the settings as the programs would use them.

use std::path::Path;

use clap::{Subcommand, ValueEnum};
use serde_json::json;
use tasker_worker_rust::config::Program;
use tasker_worker_rust::{Config, Error};

use super::{Answer, Output, output};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Report every mistake in files and environment, and exit with 64 if there is one.
    Check(Which),
    /// Print every setting in force, without secrets.
    Show(Which),
}

#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Whose settings.
    #[arg(long = "for", value_enum, default_value_t = Whose::Worker)]
    whose: Whose,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Whose {
    Worker,
    Orchestrator,
}

impl Command {
    pub(super) fn run(&self, file: Option<&Path>, output: Output) -> Result<Answer, Error> {
        let (Self::Check(which) | Self::Show(which)) = self;
        let program = match which.whose {
            Whose::Worker => Program::Worker,
            Whose::Orchestrator => Program::Orchestrator,
        };
        let config = Config::load_file(file, program)?;
        match (self, output) {
            (Self::Check(_), Output::Text) => println!("the settings are right"),
            (Self::Check(_), Output::Json) => output::json(&json!({ "mistakes": [] })),
            (Self::Show(_), Output::Text) => print!("{}", config.show()),
            (Self::Show(_), Output::Json) => output::json(&config),
        }
        Ok(Answer::Yes)
    }
}
