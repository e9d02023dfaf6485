//! The program: runs workers and orchestrators, and talks to them.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
