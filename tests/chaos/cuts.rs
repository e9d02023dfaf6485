//! Connections cut under load, a thousand times in full: nothing is settled that is no longer ours to settle.

use std::path::Path;
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::time::sleep;

use crate::drain::metric;
use crate::node::{Node, url};
use crate::product::{Site, free_port};
use crate::proxy::Proxy;
use crate::report::Report;
use crate::store;
use crate::tasks::{Tasks, Wanted};
use crate::{Answer, Run};

/// Two of the worker and two of the orchestrator.
const CONNECTIONS: usize = 4;

pub(crate) async fn run(run: &Run, directory: &Path, report: &mut Report) -> Answer {
    let mut random = run.random();
    let cuts = if run.full { 1_000 } else { 25 };
    let node = Node::started(directory.join("chaos")).await?;
    store::copy_results(&node.url()).await?;
    let proxy = Proxy::to(node.port()).await?;
    let health = free_port()?;
    let site = Site::new(directory, &url(proxy.port()), str::to_owned)?
        .set("TASKER__WORKER__HEALTH_ADDRESS", format!("127.0.0.1:{health}"));
    let mut orchestrator = site.orchestrator()?;
    let worker = site.worker("worker")?;
    let mut tasks = Tasks::new(&site.api_url())?;
    let started = Instant::now();
    for cut in 0..cuts {
        for number in 0..2 {
            tasks.submit(Wanted::diamond(cut * 2 + number));
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while proxy.open() < CONNECTIONS {
            if Instant::now() > deadline {
                return Err(format!("only {} connections came back after cut {cut}", proxy.open()).into());
            }
            sleep(Duration::from_millis(5)).await;
        }
        // Deliveries are on their way, running and answered.
        sleep(Duration::from_millis(random.random_range(20..150))).await;
        proxy.cut();
    }
    tasks.submit(Wanted::diamond(10));
    tasks.check(Duration::from_secs(180), report).await?;
    let took = started.elapsed();
    report.figure("cuts, each of all four connections under load", cuts, "");
    let stale = metric(health, "tasker_worker_stale_settlements_total").await?;
    report.figure("settlements refused because their channel was gone", stale, "");
    orchestrator.terminate().await?;
    drop(worker);
    let store = store::Store::read(&site.store(), report).await?;
    report.figure("results applied", store.applied.len(), "");
    let log = broker_log(&directory.join("chaos"))?;
    let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    // Otherwise this is not the log that would tell.
    if i64::try_from(lines("closing AMQP connection"))? < cuts {
        report.problem("the broker's log does not tell of the cuts");
    }
    for text in ["unknown delivery tag", "PRECONDITION_FAILED"] {
        report.expect(&format!("lines of the broker's log with {text:?}"), i64::try_from(lines(text))?, 0);
    }
    report.figure("total time", took.as_secs(), "s");
    Ok(())
}

/// Everything the broker has logged.
fn broker_log(node: &Path) -> Answer<String> {
    let mut text = String::new();
    for file in std::fs::read_dir(node.join("log"))? {
        text += &String::from_utf8_lossy(&std::fs::read(file?.path())?);
    }
    Ok(text)
}
