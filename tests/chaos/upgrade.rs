//! An older version replaced by this one under load, part by part and in either order: nothing may be lost, and nothing
//! may be executed twice.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::time::sleep;

use crate::node::Node;
use crate::product::{Process, Site};
use crate::report::Report;
use crate::store::{self, Store};
use crate::tasks::{Tasks, Wanted};
use crate::{Answer, Run};

/// Tasks submitted while each of the mixtures runs.
const TASKS: usize = 40;

/// What is replaced at once.
#[derive(Debug, Clone, Copy)]
enum Part {
    Worker(usize),
    Orchestrator,
}

pub(crate) const WORKERS_FIRST: &str = "upgrade, workers first";
pub(crate) const ORCHESTRATOR_FIRST: &str = "upgrade, orchestrator first";

pub(crate) async fn run(
    name: &str,
    run: &Run,
    old: Option<&Path>,
    directory: &Path,
    report: &mut Report,
) -> Answer {
    let old = fs::canonicalize(old.ok_or("say which program is the older one: --old PROGRAM")?)?;
    let workers = [Part::Worker(0), Part::Worker(1)];
    let order = match name {
        WORKERS_FIRST => [&workers[..], &[Part::Orchestrator]],
        _ => [&[Part::Orchestrator], &workers[..]],
    }
    .concat();
    let mut random = run.random();
    let node = Node::started(directory.join("chaos")).await?;
    store::copy_results(&node.url()).await?;
    let new = Site::new(directory, &node.url(), str::to_owned)?;
    // Templates that an older version may not understand; their tasks are not submitted here.
    for template in ["approval", "batch"] {
        fs::remove_file(directory.join(format!("templates/{template}_workflow_handler.yaml")))?;
    }
    let old = new.running(&old);
    let mut orchestrator = old.orchestrator()?;
    let mut workers = [old.worker("old-0")?, old.worker("old-1")?];
    let mut tasks = Tasks::new(&new.api_url())?;
    let mut load = async |tasks: &mut Tasks| {
        tasks.submit(Wanted::retried_order());
        for _ in 0..TASKS {
            tasks.submit(Wanted::any(&mut random, false));
            sleep(Duration::from_millis(20)).await;
        }
    };
    load(&mut tasks).await;
    for part in order {
        // What is replaced next has work at this moment.
        for _ in 0..TASKS {
            tasks.submit(Wanted::diamond(10));
        }
        match part {
            Part::Worker(number) => {
                workers[number].has_worked().await?;
                let added = new.worker(&format!("new-{number}"))?;
                retire(std::mem::replace(&mut workers[number], added), report).await?;
            }
            Part::Orchestrator => {
                retire(orchestrator, report).await?;
                orchestrator = new.orchestrator()?;
            }
        }
        load(&mut tasks).await;
    }
    tasks.check(Duration::from_secs(180), report).await?;
    retire(orchestrator, report).await?;
    Store::read(&new.store(), report).await?;
    let executions = store::executions(&node.url()).await?;
    for worker in ["old-0", "old-1", "new-0", "new-1"] {
        let steps = executions.by_worker.get(worker).copied().unwrap_or(0);
        report.figure(format!("steps executed by worker {worker}"), steps, "");
        if steps == 0 {
            report.problem(format!("worker {worker} has executed nothing, so nothing was shown"));
        }
    }
    report.expect("steps executed to their end more than once", executions.repeated, 0);
    Ok(())
}

/// Ends a process in order.
async fn retire(mut process: Process, report: &mut Report) -> Answer {
    match process.terminate().await? {
        Some(0) => {}
        code => report.problem(format!("a process that was replaced ended with {code:?}")),
    }
    Ok(())
}
