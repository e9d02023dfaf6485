//! A RabbitMQ node of our own, started, stopped and killed by `scripts/rabbitmq-node`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lapin::options::QueueDeleteOptions;
use lapin::{Connection, ConnectionProperties};

use crate::Answer;
use crate::product::ended;

/// The names of the quorum queues without a leader, after five seconds in which they may find one.
const LEADERLESS: &str = "\
    Leaderless = fun() -> [element(4, amqqueue:get_name(Q)) || Q <- rabbit_amqqueue:list(), amqqueue:is_quorum(Q), \
        (catch ets:lookup_element(ra_state, element(1, amqqueue:get_pid(Q)), 2)) =/= leader] end, \
    Look = fun Look(Tries) -> case Leaderless() of \
        [_ | _] when Tries > 0 -> timer:sleep(100), Look(Tries - 1); \
        Names -> Names end end, \
    Look(50).";

/// How the broker ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    Stop,
    Kill,
}

/// A node; killed when dropped.
pub(crate) struct Node {
    directory: PathBuf,
    environment: Vec<(&'static str, String)>,
    /// The script, while it waits for the node to answer.
    script: Option<Child>,
    port: u16,
}

impl Node {
    /// Not running yet. The node is called as the last part of `directory`.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory, environment: Vec::new(), script: None, port: 0 }
    }

    pub(crate) async fn started(directory: PathBuf) -> Answer<Self> {
        let mut node = Self::new(directory);
        node.start().await?;
        Ok(node)
    }

    pub(crate) fn set(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// Starts it, with the data it has, and returns once it answers.
    pub(crate) async fn start(&mut self) -> Answer {
        self.script("start").await?;
        self.port = std::fs::read_to_string(self.directory.join("port"))?.trim().parse()?;
        Ok(())
    }

    pub(crate) async fn end(&mut self, end: End) -> Answer {
        self.script(match end {
            End::Stop => "stop",
            End::Kill => "kill",
        })
        .await
    }

    async fn script(&mut self, action: &str) -> Answer {
        let child = self.script.insert(script(&self.directory, action, &self.environment).spawn()?);
        let code = ended(child, Duration::from_secs(150)).await?;
        self.script = None;
        if code == Some(0) {
            Ok(())
        } else {
            Err(format!("rabbitmq-node {action}: exit code {code:?}").into())
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        url(self.port)
    }

    /// The quorum queues that nobody leads: killed right after declaring one, RabbitMQ can keep its name alone, or a
    /// member that never votes. `rabbitmqctl list_queues` calls that one running.
    pub(crate) fn broken_queues(&self) -> Answer<BTreeSet<String>> {
        let mut command = script(&self.directory, "ctl", &self.environment);
        let listed = command.args(["--silent", "eval", LEADERLESS]).stdout(Stdio::piped()).output()?;
        let listed = String::from_utf8(listed.stdout)?;
        // As Erlang writes a list of binaries.
        Ok(listed.split('"').skip(1).step_by(2).map(str::to_owned).collect())
    }

    /// Deletes a queue with everything in it, under its consumers.
    pub(crate) async fn delete_queue(&self, name: &str) -> Answer {
        let connection = Connection::connect(&self.url(), ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.queue_delete(name.into(), QueueDeleteOptions::default()).await?;
        connection.close(200, "done".into()).await?;
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(script) = &mut self.script {
            // It may have ended by now.
            let _ = script.kill();
            let _ = script.wait();
        }
        if let Err(error) = script(&self.directory, "kill", &self.environment).status() {
            eprintln!("chaos: the node in {} cannot be ended: {error}", self.directory.display());
        }
    }
}

pub(crate) fn url(port: u16) -> String {
    format!("amqp://guest:guest@127.0.0.1:{port}/%2f?heartbeat=10")
}

fn script(directory: &Path, action: &str, environment: &[(&'static str, String)]) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/rabbitmq-node"));
    command.arg(action).arg(directory).stdin(Stdio::null()).stdout(Stdio::null());
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command
}
