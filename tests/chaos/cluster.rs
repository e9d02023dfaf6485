//! Three RabbitMQ nodes, and one of them killed under load: clients go over to another, nothing is lost.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::future::try_join3;
use tokio::time::{Instant, interval, timeout_at};

use crate::node::{End, Node};
use crate::product::{Site, free_port};
use crate::report::Report;
use crate::store::{self, Store};
use crate::tasks::{Tasks, Wanted};
use crate::{Answer, Run};

const NAMES: [&str; 3] = ["chaos-1", "chaos-2", "chaos-3"];

/// How long there is load before the node is killed, and after.
const LOAD: Duration = Duration::from_secs(8);

pub(crate) async fn run(run: &Run, directory: &Path, report: &mut Report) -> Answer {
    let mapper = free_port()?;
    let _mapper = PortMapper::start(mapper)?;
    let [mut first, mut second, mut third] = NAMES.map(|name| node(directory, name, mapper));
    // At once: each waits for the others.
    try_join3(first.start(), second.start(), third.start()).await?;
    store::copy_results(&first.url()).await?;

    let urls = [first.url(), second.url(), third.url()].join(",");
    let site = Site::new(directory, &urls, str::to_owned)?;
    let mut orchestrator = site.orchestrator()?;
    let _workers = [site.worker("worker-0")?, site.worker("worker-1")?];
    let mut tasks = Tasks::new(&site.api_url())?;
    let mut random = run.random();
    let mut ticks = interval(Duration::from_millis(50));
    let mut load = async |tasks: &mut Tasks| {
        let end = Instant::now() + LOAD;
        while timeout_at(end, ticks.tick()).await.is_ok() {
            tasks.submit(Wanted::any(&mut random, false));
        }
    };
    load(&mut tasks).await;
    // Where everybody is connected, and where the queues were declared and have their leaders.
    let killed = store::now();
    first.end(End::Kill).await?;
    load(&mut tasks).await;

    tasks.check(Duration::from_secs(120), report).await?;
    orchestrator.terminate().await?;
    let store = Store::read(&site.store(), report).await?;
    let gap = |from: i64, to: i64| {
        let during = store.applied.windows(2).filter(|pair| pair[1] >= from && pair[0] <= to);
        during.map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
    };
    let load = i64::try_from(LOAD.as_millis())?;
    report.figure(
        "longest time without a result before the kill",
        gap(killed - load / 2, killed - 500),
        "ms",
    );
    report.figure("longest time without a result after it", gap(killed, killed + load), "ms");
    let executions = store::executions(&second.url()).await?;
    report.figure("steps executed to their end", executions.started.len(), "");
    report.figure("of these, more than once", executions.repeated, "");
    Ok(())
}

/// A node of the cluster: all of them share a cookie, a port mapper and a list of members.
fn node(directory: &Path, name: &str, mapper: u16) -> Node {
    let folder = directory.join(name);
    let home = folder.join("home");
    let mut settings = "cluster_formation.peer_discovery_backend = classic_config\n\
                        cluster_partition_handling = pause_minority\n"
        .to_owned();
    for (number, name) in (1..).zip(NAMES) {
        settings += &format!("cluster_formation.classic_config.nodes.{number} = {name}@localhost\n");
    }
    fs::create_dir_all(&home)
        .and_then(|()| {
            fs::write(folder.join("extra.conf"), settings)?;
            let cookie = home.join(".erlang.cookie");
            fs::write(&cookie, directory.file_name().unwrap_or_default().as_encoded_bytes())?;
            fs::set_permissions(cookie, std::os::unix::fs::PermissionsExt::from_mode(0o400))
        })
        .expect("the scenario's directory is empty and ours");
    Node::new(folder).set("ERL_EPMD_PORT", mapper.to_string()).set("ERL_EPMD_ADDRESS", "127.0.0.1")
}

/// Erlang's `epmd`, which tells the nodes each other's ports.
struct PortMapper(Child);

impl PortMapper {
    fn start(port: u16) -> Answer<Self> {
        let mut command = Command::new("epmd");
        command.args(["-address", "127.0.0.1", "-port", &port.to_string()]);
        Ok(Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }
}

impl Drop for PortMapper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
