//! A newcomer's first hour: the tutorial as it is written, and the crate that `new` writes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use tasker_worker_rust::Config;
use tasker_worker_rust::broker::topology::Topology;

use crate::cargo::forget_the_package;
use crate::support::{Kind, delete, settings};

/// A crate may have to be compiled in it.
const PATIENCE: Duration = Duration::from_secs(600);
/// What is looked at again and again has to be so by then.
const LOOKS: Duration = Duration::from_secs(60);

const PROGRAM: &str = env!("CARGO_BIN_EXE_tasker-worker-rust");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What the tests ask of these two decides how they, and all that need them, are built. Asked for here too, they are not
/// built anew.
const AS_FOR_TESTS: &str = "cargo add --quiet tempfile tokio --features tokio/test-util";

/// A shell in an empty directory, with the program in its path, a broker of its own prefix, and cargo set to build
/// with what the tests were built with, from what is on this machine.
struct Shell {
    directory: tempfile::TempDir,
    config: Config,
    /// Where the orchestrator will be.
    api: String,
    shell: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Shell {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let target = Path::new(PROGRAM).ancestors().nth(2).unwrap();
        fs::create_dir(directory.path().join(".cargo")).unwrap();
        let manifest = fs::read_to_string(Path::new(ROOT).join("Cargo.toml")).unwrap();
        let profiles = manifest.split_inclusive("\n\n").filter(|part| part.contains("[profile.dev"));
        let cargo = format!(
            "[build]\ntarget-dir = {target:?}\n[net]\noffline = true\n{}",
            profiles.collect::<String>()
        );
        fs::write(directory.path().join(".cargo/config.toml"), cargo).unwrap();

        let config = settings(Kind::RabbitMq);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let api = format!("http://127.0.0.1:{port}");
        let programs = Path::new(PROGRAM).parent().unwrap().display();
        let mut shell = forget_the_package(&mut Command::new("bash"))
            .current_dir(directory.path())
            .env("RABBITMQ_URL", config.broker.urls[0].expose())
            .env("TASKER__BROKER__PREFIX", &config.broker.prefix)
            .env("TASKER__ORCHESTRATOR__LISTEN_ADDRESS", format!("127.0.0.1:{port}"))
            .env("ORCHESTRATION_API_URL", &api)
            .env("TASKER__WORKER__HEALTH_ADDRESS", "127.0.0.1:0")
            .env("TASKER__WORKER__METRICS__PROMETHEUS_PORT", "0")
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(shell.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // The test may have seen enough.
                let _ = sender.send(line);
            }
        });
        let mut input = shell.stdin.take().unwrap();
        writeln!(input, "exec 2>&1; trap 'kill $(jobs -p)' EXIT; PATH={programs}:$PATH").unwrap();
        Self { directory, config, api, shell, input, lines }
    }

    /// Runs a command and returns what it printed.
    fn run(&mut self, command: &str) -> String {
        writeln!(self.input, "{command}\necho; echo '<done>'").unwrap();
        let mut printed = String::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let line = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|_| panic!("{command} did not end; it printed:\n{printed}"));
            if line == "<done>" {
                return printed;
            }
            printed.push_str(&line);
            printed.push('\n');
        }
    }

    /// Runs a command, again and again if it only looks, until it printed all of `wanted` in order.
    fn shows(&mut self, command: &str, wanted: &[&str]) {
        let only_looks = ["tasker-worker-rust health", "tasker-worker-rust status"];
        let only_looks = only_looks.iter().any(|start| command.starts_with(start));
        let deadline = Instant::now() + LOOKS;
        loop {
            let printed = self.run(command);
            let mut lines = printed.lines();
            let missing = wanted.iter().find(|wanted| !lines.any(|line| fits(line, wanted)));
            let Some(missing) = missing else { return };
            let again = only_looks && Instant::now() < deadline;
            assert!(again, "{command}\nshould print:\n{missing}\nbut printed:\n{printed}");
        }
    }

    /// Starts a command beside the others; its output goes to a file.
    fn start(&mut self, command: &str) {
        self.run(&format!("{command} >>terminal.log 2>&1 &"));
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    async fn close(mut self, namespace: &str) {
        drop(self.input);
        self.shell.wait().unwrap();
        let config = &self.config;
        let namespaces = std::collections::BTreeSet::from([namespace.to_owned()]);
        let topology =
            Topology::new(&config.names(), &config.ladder(), config.broker.queue_kind, &namespaces);
        delete(&topology).await;
    }
}

/// Whether a line has all parts of a wanted one, between its dots and its runs of spaces, in order.
fn fits(line: &str, wanted: &str) -> bool {
    let mut rest = line;
    wanted.split(['…', ' ']).filter(|part| !part.is_empty()).all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

/// The fenced blocks of a document: the words after the fence, and the text.
fn blocks(document: &str) -> Vec<(&str, &str)> {
    let blocks = document.split("\n```").skip(1).step_by(2);
    blocks.map(|block| block.split_once('\n').unwrap()).collect()
}

#[tokio::test]
async fn every_file_and_command_of_the_tutorial_does_what_it_says_rabbitmq() {
    let mut shell = Shell::new();
    let tutorial = include_str!("../../docs/tutorial.md");
    let (mut files, mut commands) = (0, 0);
    for (kind, text) in blocks(tutorial) {
        match kind.split_once(' ').unwrap_or((kind, "")) {
            ("console", "elsewhere") => {}
            ("console", terminal) => {
                let mut lines = text.lines().peekable();
                while let Some(command) = lines.next() {
                    let command = command.strip_prefix("$ ").expect("a block begins with a command");
                    let mut wanted = Vec::new();
                    while let Some(line) = lines.next_if(|line| !line.starts_with("$ ")) {
                        wanted.push(line);
                    }
                    let command = here(command, &shell);
                    if terminal.is_empty() {
                        shell.shows(&command, &wanted);
                    } else {
                        shell.start(&command);
                    }
                    commands += 1;
                }
            }
            (_, file) => {
                let file = shell.path("bookshop").join(file);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, format!("{text}\n")).unwrap();
                files += 1;
            }
        }
    }
    assert!(
        files == 2 && commands > 15,
        "{files} files and {commands} commands: the tutorial was not understood"
    );
    shell.close("bookshop").await;
}

/// A command of the tutorial as it is here: the library from its directory with the versions it was built with,
/// and the orchestrator on another port.
fn here(command: &str, shell: &Shell) -> String {
    match command {
        "cargo install tasker-worker-rust" => "tasker-worker-rust --version".to_owned(),
        "cargo add tasker-worker-rust" => {
            format!(
                "cp {ROOT}/Cargo.lock . && cargo add --quiet --path {ROOT} tasker-worker-rust; {AS_FOR_TESTS}"
            )
        }
        other => other.replace("http://127.0.0.1:8080", &shell.api),
    }
}

#[tokio::test]
async fn a_new_project_builds_passes_its_tests_and_greets_rabbitmq() {
    let mut shell = Shell::new();
    shell.shows(&format!("tasker-worker-rust new my-greeter --library {ROOT}"), &["my-greeter is ready"]);
    shell.run(&format!("cd my-greeter; cp {ROOT}/Cargo.lock .; {AS_FOR_TESTS}"));
    shell.shows("cargo test --quiet", &["test result: ok. 2 passed"]);
    shell.shows("tasker-worker-rust template validate", &["my_greeter welcome 1.0.0 1"]);
    shell.start("tasker-worker-rust orchestrator");
    shell.start("cargo run");
    let health = format!("tasker-worker-rust health {}", shell.api);
    shell.shows(&health, &["healthy"]);
    let submit = r#"tasker-worker-rust submit my_greeter/welcome --context '{"name": "Ada"}' --wait"#;
    shell.shows(submit, &["status complete", "greet complete 1/3 Hello Ada"]);
    for (name, refusal) in
        [("my-greeter/..", "is no name"), ("../my-greeter", "exists already"), ("Greeter", "is no name")]
    {
        shell.shows(&format!("tasker-worker-rust new {name}; echo $?"), &[refusal, "64"]);
    }
    let files = "find . -path ./Cargo.lock -prune -o -type f -print | xargs grep -l -e my-worker -e my_worker -e LIBRARY";
    assert_eq!(shell.run(files).trim(), "", "files that still have the name of the pattern");
    shell.close("my_greeter").await;
}

#[test]
fn the_values_of_a_new_project_are_values_of_the_chart() {
    let schema =
        fs::read_to_string(Path::new(ROOT).join("helm/tasker-worker-rust/values.schema.json")).unwrap();
    let schema = jsonschema::validator_for(&serde_json::from_str(&schema).unwrap()).unwrap();
    let mut values: Value = serde_saphyr::from_str(include_str!("../../src/cli/new/values.yaml")).unwrap();
    assert!(
        schema.is_valid(&values),
        "{:?}",
        schema.iter_errors(&values).map(|e| e.to_string()).collect::<Vec<_>>()
    );
    values["workers"]["pools"]["default"]["imgae"] = Value::Null;
    assert!(!schema.is_valid(&values), "an unknown key is taken");
}
