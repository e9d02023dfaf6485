//! The program, as processes of their own.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::Answer;

/// Where a scenario's processes run, and the settings they share.
#[derive(Clone)]
pub(crate) struct Site {
    directory: PathBuf,
    program: PathBuf,
    environment: Vec<(String, String)>,
    api: u16,
}

impl Site {
    /// Uses the brokers at these addresses, and the templates of the five workflows with `change` done to them.
    pub(crate) fn new(directory: &Path, urls: &str, change: impl Fn(&str) -> String) -> Answer<Self> {
        let templates = directory.join("templates");
        fs::create_dir(&templates)?;
        for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/config/workflows"))? {
            let file = file?;
            let lines: Vec<String> = fs::read_to_string(file.path())?.lines().map(&change).collect();
            fs::write(templates.join(file.file_name()), lines.join("\n"))?;
        }
        let api = free_port()?;
        let program = env!("CARGO_BIN_EXE_tasker-worker-rust").into();
        let site = Self { directory: directory.to_owned(), program, environment: Vec::new(), api };
        Ok(site
            .set("RABBITMQ_URL", urls)
            .set("RUST_LOG", "info,tasker_worker_rust::worker::settle=error")
            .set("TASKER__ORCHESTRATOR__LISTEN_ADDRESS", format!("127.0.0.1:{api}"))
            .set("TASKER__ORCHESTRATOR__OVERDUE_AFTER_SECONDS", "2")
            .set("TASKER__ORCHESTRATOR__TEMPLATE_DIRECTORY", "templates")
            .set("TASKER__WORKER__TASK_TEMPLATES__TEMPLATE_DIRECTORY", "templates")
            .set("TASKER__WORKER__HEALTH_ADDRESS", "127.0.0.1:0")
            .set("TASKER__WORKER__METRICS__PROMETHEUS_PORT", "0"))
    }

    pub(crate) fn set(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// The same site with another version of the program.
    pub(crate) fn running(&self, program: &Path) -> Self {
        Self { program: program.to_owned(), ..self.clone() }
    }

    pub(crate) fn api_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.api)
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.directory.join("tasker.sqlite")
    }

    pub(crate) fn orchestrator(&self) -> Answer<Process> {
        self.start("orchestrator", "orchestrator")
    }

    pub(crate) fn worker(&self, name: &str) -> Answer<Process> {
        self.start("worker", name)
    }

    /// `topology declare`, as the operator runs it.
    pub(crate) fn declare(&self) -> Answer {
        let mut command = Command::new(&self.program);
        command.args(["topology", "declare"]).current_dir(&self.directory).stdout(Stdio::null());
        let status = command.envs(self.environment.iter().map(|(name, value)| (name, value))).status()?;
        if status.success() { Ok(()) } else { Err(format!("topology declare: {status}").into()) }
    }

    fn start(&self, command: &str, name: &str) -> Answer<Process> {
        let log = self.directory.join(format!("{name}.log"));
        let mut process = Command::new(&self.program);
        process
            .arg(command)
            .current_dir(&self.directory)
            .env_clear()
            .envs(Some("LLVM_PROFILE_FILE").zip(tasker_worker_rust::config::variable("LLVM_PROFILE_FILE")))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        process.envs(self.environment.iter().map(|(name, value)| (name, value)));
        process.env("TASKER_WORKER_ID", name).stderr(File::options().create(true).append(true).open(&log)?);
        Ok(Process { child: process.spawn()?, log })
    }
}

/// A started process; killed when dropped.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// As `kill -9` does.
    pub(crate) fn kill(&mut self) {
        // It may have ended by now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// As `kill -TERM` does; returns the exit code.
    pub(crate) async fn terminate(&mut self) -> Answer<Option<i32>> {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        ended(&mut self.child, Duration::from_secs(60)).await
    }

    /// Waits until this worker has executed a step.
    pub(crate) async fn has_worked(&self) -> Answer {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if let Some(address) = self.said("\"worker.health_address\"", "address")
                && metrics(address.as_str().ok_or("an address is text")?)?.contains("outcome=\"completed\"")
            {
                return Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Err(format!("process {} has executed nothing within a minute", self.child.id()).into())
    }

    /// The last value of `field` in a line of the log that has `text` in it.
    pub(crate) fn said(&self, text: &str, field: &str) -> Option<serde_json::Value> {
        let log = fs::read_to_string(&self.log).ok()?;
        let line = log.lines().rev().find(|line| line.contains(text))?;
        serde_json::from_str::<serde_json::Value>(line).ok()?.get_mut(field).map(serde_json::Value::take)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn metrics(address: &str) -> Answer<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    Ok(io::read_to_string(stream)?)
}

/// The exit code of a process that ends within `limit`.
pub(crate) async fn ended(child: &mut Child, limit: Duration) -> Answer<Option<i32>> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        sleep(Duration::from_millis(10)).await;
    }
    Err(format!("process {} did not end within {limit:?}", child.id()).into())
}

pub(crate) fn free_port() -> Answer<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
