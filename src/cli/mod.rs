//! The command line: what it accepts, and which command does it.
#![expect(clippy::print_stderr, reason = "a command line prints")]

/// As the standard macro, but a reader that has seen enough, such as `head`, is no reason to panic.
macro_rules! println {
    () => { println!("") };
    ($($text:tt)*) => { $crate::cli::output::write(format_args!("{}\n", format_args!($($text)*))) };
}

/// See [`println!`] above.
macro_rules! print {
    ($($text:tt)*) => { $crate::cli::output::write(format_args!($($text)*)) };
}

mod bench;
mod dead_letters;
mod demo;
mod health;
mod manual;
mod messages;
mod new;
mod output;
mod pause;
mod serve;
mod settings;
mod store;
mod tasks;
mod templates;
mod timing;
mod topology;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tasker_worker_rust::client::Client;
use tasker_worker_rust::config::{Program, Secret};
use tasker_worker_rust::{Config, Error};

use self::pause::Order;

/// What whoever has never used it does first.
const BEGIN: &str =
    "Begin with `tasker-worker-rust demo`, or `tasker-worker-rust new my-worker` for a crate of your own.";

/// Runs workflow steps written in Rust from RabbitMQ.
///
/// Exit codes: 0 done, 1 the answer is no (a task failed, something is missing), 64 wrong arguments or
/// settings, 69 broker, orchestrator or store cannot be reached, 70 a bug, 75 not finished in the given time.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, arg_required_else_help = true, after_help = BEGIN)]
struct Arguments {
    /// The settings file [default: TASKER_CONFIG, or config/worker.toml or config/orchestrator.toml where present].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Text for people, or JSON for scripts.
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

impl Arguments {
    /// What gives a child of this process the same settings.
    fn repeated(&self) -> Vec<String> {
        self.config.iter().flat_map(|path| ["--config".to_owned(), path.display().to_string()]).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the five workflows on the embedded broker, with nothing installed.
    Demo,
    /// Run a worker with the handlers of the example workflows, until SIGTERM or Ctrl-C.
    Worker,
    /// Run the orchestrator, until SIGTERM or Ctrl-C.
    Orchestrator,
    /// Start a task.
    Submit(tasks::Submit),
    /// Show a task and its steps.
    Status(tasks::Status),
    /// Cancel a task: its running steps are told to stop, its waiting ones never start.
    Cancel(tasks::Cancel),
    /// Have every worker take no more requests; they wait in their queues, over restarts too.
    Pause(pause::Targets),
    /// Pause, and have workers hand back what they have taken but not begun.
    Drain(pause::Targets),
    /// Have workers take requests again.
    Resume(pause::Targets),
    /// Check, convert and draw task templates.
    #[command(subcommand)]
    Template(templates::Command),
    /// Create, check or export the broker's queues and exchanges.
    #[command(subcommand)]
    Topology(topology::Command),
    /// Look at dead letters, replay or discard them.
    #[command(subcommand)]
    DeadLetters(dead_letters::Command),
    /// Copy the orchestrator's store, check a copy, put one in its place.
    #[command(subcommand)]
    Store(store::Command),
    /// Check and show the settings.
    #[command(subcommand)]
    Config(settings::Command),
    /// Ask a running worker or orchestrator whether it can work; the exit code is 1 when it cannot.
    Health(health::Health),
    /// Measure this worker beside a bare program that does the same broker work, on your broker.
    Bench(bench::Arguments),
    /// Show which steps have a handler, and which of the templates' steps lack one.
    Handlers,
    /// Write a crate with one handler, its template, a test, a Dockerfile and values for the Helm chart.
    New(new::New),
    /// Print the documents that describe the messages, for programs in other languages.
    #[command(subcommand)]
    Messages(messages::Command),
    /// Print the completions of a shell
    ///
    /// bash: source <(tasker-worker-rust completions bash), in ~/.bashrc
    /// zsh:  to a file _tasker-worker-rust in a directory of $fpath
    /// fish: to ~/.config/fish/completions/tasker-worker-rust.fish
    #[command(verbatim_doc_comment)]
    Completions(manual::Completions),
    /// Print the manual page, or write one for every command into a directory.
    Man(manual::Man),
}

/// Where the orchestrator's API is.
#[derive(Debug, Args)]
struct Api {
    /// The orchestrator's address [default: ORCHESTRATION_API_URL, or http://127.0.0.1:8080].
    #[arg(long, value_name = "URL")]
    api_url: Option<String>,
    /// A file with the key to show there [default: TASKER_API_KEY, or the file named by TASKER_API_KEY_FILE].
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
}

impl Api {
    fn client(&self, config: &Config) -> Result<Client, Error> {
        let configured = self.api_url.as_deref().or(config.worker.orchestration_api_url.as_deref());
        let client = Client::new(configured.unwrap_or("http://127.0.0.1:8080"))?;
        let from_file = match &self.api_key_file {
            None => None,
            Some(path) => {
                let text = std::fs::read_to_string(path);
                let text = text.map_err(|source| Error::File { path: path.clone(), source })?;
                Some(Secret::from(text.trim().to_owned()))
            }
        };
        client.with_api_key(from_file.as_ref().or(config.worker.orchestration_api_key.as_ref()))
    }
}

/// How a command ended that did what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Yes,
    /// The task failed, something is missing.
    No,
    /// Not in the given time.
    NotYet,
}

/// Parses the arguments, runs the command, prints what went wrong.
pub(crate) fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no mistakes.
            let code = if error.use_stderr() { 64 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match run(&arguments) {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Ok(Answer::NotYet) => ExitCode::from(75),
        Err(error) => {
            let code = error.exit_code();
            match arguments.output {
                Output::Text => eprintln!("error: {error}"),
                Output::Json => {
                    eprintln!("{}", serde_json::json!({ "error": error.to_string(), "exit_code": code }))
                }
            }
            ExitCode::from(code)
        }
    }
}

fn run(arguments: &Arguments) -> Result<Answer, Error> {
    let load = |program| Config::load_file(arguments.config.as_deref(), program);
    let output = arguments.output;
    match &arguments.command {
        Command::Demo => demo::run(output),
        Command::Worker => serve::worker(load(Program::Worker)?),
        Command::Orchestrator => serve::orchestrator(load(Program::Orchestrator)?),
        Command::Submit(submit) => block_on(submit.run(&load(Program::Worker)?, output)),
        Command::Status(status) => block_on(status.run(&load(Program::Worker)?, output)),
        Command::Cancel(cancel) => block_on(cancel.run(&load(Program::Worker)?, output)),
        Command::Pause(targets) => block_on(targets.run(Order::Pause, load(Program::Worker)?, output)),
        Command::Drain(targets) => block_on(targets.run(Order::Drain, load(Program::Worker)?, output)),
        Command::Resume(targets) => block_on(targets.run(Order::Resume, load(Program::Worker)?, output)),
        Command::Template(command) => command.run(output),
        Command::Topology(command) => block_on(command.run(load(Program::Worker)?, output)),
        Command::DeadLetters(command) => block_on(command.run(load(Program::Worker)?, output)),
        Command::Store(command) => block_on(command.run(&load(Program::Orchestrator)?, output)),
        Command::Config(command) => command.run(arguments.config.as_deref(), output),
        Command::Health(health) => block_on(health.run(output)),
        Command::Bench(bench) => bench.run(load(Program::Worker)?, arguments.repeated(), output),
        Command::Handlers => templates::handlers(load(Program::Worker)?, output),
        Command::New(new) => new.run(output),
        Command::Messages(command) => Ok(command.run()),
        Command::Completions(completions) => completions.run(),
        Command::Man(man) => man.run(),
    }
}

/// Runs a short command's future.
fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the system gives the process a timer and an event queue")
        .block_on(future)
}
