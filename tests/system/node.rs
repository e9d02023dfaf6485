//! A RabbitMQ node of one test's own, to be ill-treated.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A private RabbitMQ; gone when its input ends.
pub(crate) struct Node {
    child: Child,
    directory: tempfile::TempDir,
    pub(crate) url: String,
}

impl Node {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/with-rabbitmq"))
            .args(["bash", "-c", "echo $RABBITMQ_URL; exec cat"])
            .env_remove("RABBITMQ_URL")
            .env("TMPDIR", directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut url).unwrap();
        assert!(!url.is_empty(), "no private RabbitMQ: see what scripts/with-rabbitmq said");
        Self { child, directory, url: url.trim().to_owned() }
    }

    /// `rabbitmqctl` for this node.
    pub(crate) fn ctl(&self, arguments: &[&str]) {
        let mut folders = self.directory.path().read_dir().unwrap().map(|entry| entry.unwrap());
        let data = folders.find(|folder| folder.file_name().to_string_lossy().starts_with("with-rabbitmq"));
        let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/rabbitmq-node"))
            .arg("ctl")
            .arg(data.expect("with-rabbitmq keeps its node there").path())
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It may have failed by itself.
        let _ = self.child.wait();
    }
}
