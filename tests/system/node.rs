//! A RabbitMQ node of the test's own, for what cannot be asked of a shared one.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// Ends, with all it holds, when dropped.
pub(crate) struct Node {
    directory: TempDir,
    pub(crate) port: u16,
}

impl Node {
    /// Starts one with these files in its folder; see `scripts/rabbitmq-node`.
    pub(crate) fn start(directory: TempDir, files: &[(&str, &str)]) -> Self {
        for (name, content) in files {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        let mut node = Self { directory, port: 0 };
        let started = script("start", node.directory.path(), &[]);
        assert!(started.status.success(), "{started:?}");
        let port = std::fs::read_to_string(node.directory.path().join("port")).unwrap();
        node.port = port.trim().parse().unwrap();
        node
    }

    /// Ends it in good order, and starts it again with what it has kept.
    pub(crate) fn restart(&self) {
        for action in ["stop", "start"] {
            let done = script(action, self.directory.path(), &[]);
            assert!(done.status.success(), "{action}: {done:?}");
        }
    }

    /// Runs rabbitmqctl, and returns what it says.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let done = script("ctl", self.directory.path(), arguments);
        assert!(done.status.success(), "rabbitmqctl {arguments:?}: {done:?}");
        String::from_utf8(done.stdout).unwrap()
    }

    /// The lines of its log with these words.
    pub(crate) fn logged(&self, words: &str) -> Vec<String> {
        let log = self.directory.path().join("log");
        let files =
            log.read_dir().unwrap().map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap());
        let text: String = files.collect();
        text.lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
    }

    /// A script that is `rabbitmqctl` for this node.
    pub(crate) fn wrapper(&self) -> String {
        format!("#!/bin/sh\nexec {SCRIPT} ctl {} \"$@\"\n", self.directory.path().display())
    }

    pub(crate) fn url(&self, user: &str, password: &str) -> String {
        format!("amqp://{user}:{password}@127.0.0.1:{}/%2f", self.port)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = script("kill", self.directory.path(), &[]);
    }
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/rabbitmq-node");

fn script(action: &str, directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(SCRIPT);
    command.env("RABBITMQ_ONE_CORE", "yes").arg(action).arg(directory).args(arguments).stdin(Stdio::null());
    // What the node leaves running must not keep our pipes open.
    if action == "start" {
        command.stdout(Stdio::null()).stderr(Stdio::null());
    }
    command.output().unwrap()
}
