//! The program: runs workers and orchestrators, and talks to them.

mod cli;

use std::process::ExitCode;

/// A step's memory is taken on one thread and given back on another, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
