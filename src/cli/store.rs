//! `store`: copies of the orchestrator's store.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::json;
use tasker_worker_rust::orchestrator::store::backup::{Contents, backup, check, passing, restore};
use tasker_worker_rust::{Config, Error};

use super::{Answer, Output, output};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Copy the store while the orchestrator works.
    Backup {
        /// The new file, or - for standard output.
        file: PathBuf,
    },
    /// Read a copy from beginning to end, and count its tasks.
    Check {
        /// The copy.
        file: PathBuf,
    },
    /// Put a copy in the store's place. The orchestrator has to be stopped; what was there is kept beside it.
    Restore {
        /// The copy, or - for standard input.
        file: PathBuf,
    },
}

impl Command {
    pub(super) async fn run(&self, config: &Config, output: Output) -> Result<Answer, Error> {
        let store = config.orchestrator.database_url.as_str();
        match self {
            Self::Backup { file } if file == Path::new("-") => {
                let copy = passing(store)?;
                backup(store, &copy).await?;
                let sent = File::open(&copy).and_then(|mut copy| {
                    let mut out = io::stdout().lock();
                    io::copy(&mut copy, &mut out).and_then(|_| out.flush())
                });
                // Whatever became of it; the next one is written over what is left.
                let _ = std::fs::remove_file(copy);
                sent.map_err(broken)?;
            }
            Self::Backup { file } => {
                backup(store, file).await?;
                tell(file, check(file).await?, output);
            }
            Self::Check { file } => tell(file, check(file).await?, output),
            Self::Restore { file } if file == Path::new("-") => {
                let copy = passing(store)?;
                let received =
                    File::create(&copy).and_then(|mut to| io::copy(&mut io::stdin().lock(), &mut to));
                let restored = match received {
                    Ok(_) => restore(store, &copy).await,
                    Err(error) => Err(broken(error)),
                };
                let _ = std::fs::remove_file(copy);
                tell(file, restored?, output);
            }
            Self::Restore { file } => tell(file, restore(store, file).await?, output),
        }
        Ok(Answer::Yes)
    }
}

fn broken(source: io::Error) -> Error {
    Error::System { what: "the copy could not be passed on", source }
}

fn tell(file: &Path, Contents { tasks, unfinished }: Contents, output: Output) {
    match output {
        Output::Json => output::json(&json!({ "file": file, "tasks": tasks, "unfinished": unfinished })),
        Output::Text => println!("{}: {tasks} tasks, {unfinished} of them unfinished", file.display()),
    }
}
