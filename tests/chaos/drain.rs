//! A worker told to stop with 500 steps in flight: those that can finish do, the rest goes to another worker.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::Answer;
use crate::node::Node;
use crate::product::{Site, free_port};
use crate::report::Report;
use crate::store::{self, Store};
use crate::tasks::{Tasks, Wanted};

/// Diamonds of two slow branches each: more branches than the first worker can run at once.
const TASKS: usize = 300;
const IN_FLIGHT: i64 = 500;
/// The worker's own limit is 5 s.
const DRAINED_WITHIN: i64 = 6_000;

pub(crate) async fn run(directory: &Path, report: &mut Report) -> Answer {
    let node = Node::started(directory.join("chaos")).await?;
    store::copy_results(&node.url()).await?;
    // Branches b end within the worker's limit and branches c do not.
    let slow = |line: &str| match line.trim_start() {
        delay if delay.starts_with("delay_ms: 100") => "        delay_ms: 3000".to_owned(),
        delay if delay.starts_with("delay_ms: 150") => "        delay_ms: 9000".to_owned(),
        _ => line.to_owned(),
    };
    let health = free_port()?;
    let site = Site::new(directory, &node.url(), slow)?
        .set("TASKER__WORKER__MAX_CONCURRENT_STEPS", IN_FLIGHT.to_string())
        .set("TASKER__WORKER__HEALTH_ADDRESS", format!("127.0.0.1:{health}"));
    let mut orchestrator = site.orchestrator()?;
    let mut tasks = Tasks::new(&site.api_url())?;
    for number in 0..TASKS {
        tasks.submit(Wanted::diamond(i64::try_from(number)?));
    }
    tasks.accepted().await?;

    let mut first = site.worker("first")?;
    let in_flight = busy(health).await?;
    let told = Instant::now();
    let code = first.terminate().await?;
    let took = i64::try_from(told.elapsed().as_millis())?;
    report.figure("steps in flight when told to stop", in_flight, "");
    report.at_most("drain time", took, DRAINED_WITHIN, "ms");
    report.expect("the worker's exit code", code.unwrap_or(-1), 0);
    for field in ["finished", "handed_back"] {
        let steps = first.said("\"Stopped\"", field).and_then(|steps| steps.as_i64());
        report.figure(
            format!("steps {}", field.replace('_', " ")),
            steps.ok_or("the worker did not say it stopped")?,
            "",
        );
    }

    let second = site.worker("second")?;
    tasks.check(Duration::from_secs(120), report).await?;
    orchestrator.terminate().await?;
    Store::read(&site.store(), report).await?;
    let executions = store::executions(&node.url()).await?;
    for worker in ["first", "second"] {
        let steps = executions.by_worker.get(worker).copied().unwrap_or(0);
        report.figure(format!("steps executed by the {worker} worker"), steps, "");
    }
    report.expect("steps executed to their end more than once", executions.repeated, 0);
    report.expect("results of a later attempt than the first", executions.later_attempts, 0);
    drop(second);
    Ok(())
}

/// Waits until the worker runs as many steps as it may, and returns how many that are.
async fn busy(health: u16) -> Answer<i64> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut most = 0;
    while Instant::now() < deadline {
        // Not listening yet, at first.
        let in_flight = in_flight(health).await.unwrap_or(0);
        if in_flight >= IN_FLIGHT {
            return Ok(in_flight);
        }
        most = most.max(in_flight);
        sleep(Duration::from_millis(5)).await;
    }
    Err(format!("the worker never had more than {most} steps in flight, expected {IN_FLIGHT}").into())
}

/// How many steps a worker runs.
async fn in_flight(health: u16) -> Answer<i64> {
    metric(health, "tasker_worker_steps_in_flight").await
}

/// A metric of a worker, added up over its labels.
pub(crate) async fn metric(health: u16, name: &str) -> Answer<i64> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, health)).await?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nConnection: close\r\n\r\n").await?;
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics).await?;
    let lines = metrics.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
    Ok(lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<i64>().ok()).sum())
}
