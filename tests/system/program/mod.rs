//! The program as people and scripts run it.

mod commands;
mod dead_letters;
mod services;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use tasker_worker_rust::Config;

use crate::support::{DEADLINE, coverage};

/// The program, in an empty directory of its own, with nothing in its environment that we did not put there.
pub(crate) struct Program {
    directory: tempfile::TempDir,
    environment: Vec<(String, String)>,
    /// What it is started with, before its own name.
    launcher: Vec<String>,
}

impl Program {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), environment: Vec::new(), launcher: Vec::new() }
    }

    pub(crate) fn set(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Uses these broker settings.
    pub(crate) fn broker(self, config: &Config) -> Self {
        let ladder = &config.broker.delay_ladder;
        let urls: Vec<&str> = config.broker.urls.iter().map(|url| url.expose()).collect();
        self.set("RABBITMQ_URL", urls.join(","))
            .set("TASKER__BROKER__PREFIX", config.broker.prefix.as_str())
            .set("TASKER__BROKER__DELAY_LADDER__FIRST_MS", ladder.first_ms.to_string())
            .set("TASKER__BROKER__DELAY_LADDER__RUNGS", ladder.rungs.to_string())
    }

    /// Starts it by way of this command, which gets the program's path as its last argument.
    pub(crate) fn under(mut self, launcher: &[&str]) -> Self {
        self.launcher = launcher.iter().map(|part| (*part).to_owned()).collect();
        self
    }

    pub(crate) fn write(self, name: &str, text: &str) -> Self {
        let file = self.directory.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
        self
    }

    pub(crate) fn environment(&self) -> impl Iterator<Item = (&String, &String)> {
        self.environment.iter().map(|(name, value)| (name, value))
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let words = self.launcher.iter().map(String::as_str);
        let mut words = words.chain([env!("CARGO_BIN_EXE_tasker-worker-rust")]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(arguments).current_dir(self.path()).env_clear().stdin(Stdio::null());
        command.envs(coverage());
        command.envs(self.environment());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        let mut child = self.command(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (lines, log) = channel();
        let stderr = child.stderr.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // The test may have seen enough.
                let _ = lines.send(line);
            }
        });
        Running { child, log, seen: Vec::new() }
    }
}

/// A started program; killed at the end if it still runs.
pub(crate) struct Running {
    child: Child,
    log: Receiver<String>,
    seen: Vec<String>,
}

impl Running {
    /// Waits for a line of the log with `text` in it, written small.
    pub(crate) fn says(&mut self, text: &str) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.log.recv_timeout(left) else {
                panic!("the program never said {text:?}; it said:\n{}", self.seen.join("\n"));
            };
            let found = line.to_lowercase().contains(text);
            let value = serde_json::from_str(&line).unwrap_or(Value::Null);
            self.seen.push(line);
            if found {
                return value;
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    fn terminate(&self) {
        let status = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Ends it in order, and returns all it said.
    pub(crate) fn finish(mut self) -> Vec<String> {
        self.terminate();
        assert_eq!(self.exit_code(), Some(0));
        let mut said = std::mem::take(&mut self.seen);
        said.extend(self.log.iter());
        said
    }

    fn exit_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        panic!("the program did not end; it said:\n{}", self.seen.join("\n"));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A request as any HTTP client would send it.
pub(crate) fn get(address: &str, path: &str) -> (u16, String) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status =
        answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("an HTTP answer has a status");
    (status, answer)
}
