//! `completions` and `man`: what a shell and a manual reader know of this program, from the program itself.

use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::Shell;
use tasker_worker_rust::Error;

use super::{Answer, Arguments};

#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// The shell.
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self) -> Result<Answer, Error> {
        let mut command = Arguments::command();
        let name = command.get_name().to_owned();
        // What is generated for Bash loses track of a program with hyphens in its name.
        let plain = if self.shell == Shell::Bash { name.replace('-', "_") } else { name.clone() };
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, &plain, &mut script);
        let script = String::from_utf8_lossy(&script);
        print!("{}", script.replace(&format!("default {plain}\n"), &format!("default {name}\n")));
        Ok(Answer::Yes)
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Man {
    /// Where to write the pages of all commands, such as ~/.local/share/man/man1.
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(&self) -> Result<Answer, Error> {
        let command = Arguments::command();
        let Some(directory) = &self.directory else {
            let mut page = Vec::new();
            let written = clap_mangen::Man::new(command).render(&mut page);
            written.expect("memory takes what is written to it");
            print!("{}", String::from_utf8_lossy(&page));
            return Ok(Answer::Yes);
        };
        let unwritten = |source| Error::Write { path: directory.clone(), source };
        std::fs::create_dir_all(directory).map_err(unwritten)?;
        clap_mangen::generate_to(command, directory).map_err(unwritten)?;
        Ok(Answer::Yes)
    }
}
