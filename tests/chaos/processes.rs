//! Two workers and an orchestrator, and everything that can be killed under them: nothing may be lost.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use tasker_worker_rust::broker::topology::Names;
use tokio::time::sleep;

use crate::node::{End, Node, url};
use crate::product::{Process, Site};
use crate::proxy::Proxy;
use crate::report::Report;
use crate::store::{self, Store};
use crate::tasks::{NAMESPACES, Tasks, Wanted};
use crate::{Answer, Run};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    WorkerKilled,
    OrchestratorKilled,
    BrokerKilled,
    BrokerRestarted,
    ConnectionsCut,
    QueueDeleted,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::WorkerKilled => "worker killed",
            Self::OrchestratorKilled => "orchestrator killed",
            Self::BrokerKilled => "broker killed",
            Self::BrokerRestarted => "broker restarted",
            Self::ConnectionsCut => "connections cut",
            Self::QueueDeleted => "queue deleted",
        }
    }

    fn ends_the_broker(self) -> bool {
        matches!(self, Self::BrokerKilled | Self::BrokerRestarted)
    }
}

/// How soon steps must be started again once the broker is back, in milliseconds.
const RESUMES_WITHIN: i64 = 2_000;

struct Scene {
    site: Site,
    orchestrator: Process,
    workers: Vec<Process>,
    proxy: Proxy,
    node: Node,
}

pub(crate) async fn run(run: &Run, directory: &Path, report: &mut Report) -> Answer {
    let mut random = run.random();
    let (tasks_wanted, counts) =
        if run.full { (2_000, [50, 20, 5, 5, 200, 10]) } else { (150, [4, 2, 1, 0, 10, 1]) };
    let kinds = [
        Fault::WorkerKilled,
        Fault::OrchestratorKilled,
        Fault::BrokerKilled,
        Fault::BrokerRestarted,
        Fault::ConnectionsCut,
        Fault::QueueDeleted,
    ];
    let mut faults: Vec<Fault> =
        kinds.iter().zip(counts).flat_map(|(fault, count)| std::iter::repeat_n(*fault, count)).collect();
    faults.shuffle(&mut random);

    let started = Instant::now();
    let mut scene = Scene::open(directory).await?;
    let mut tasks = Tasks::new(&scene.site.api_url())?;
    let mut submitted = 0;
    let mut suffered = Vec::new();
    let usual = 200..if run.full { 2_000 } else { 1_000 };
    let mut pause = usual.clone();
    let mut mended = 0;
    for (done, fault) in faults.iter().enumerate() {
        // Half of this round's tasks before the pause and half right before the fault, so that faults meet tasks at
        // every stage, and find work whenever they are over.
        for half in 1..=2 {
            let share = tasks_wanted * (2 * done + half) / (2 * faults.len());
            for _ in submitted..share {
                tasks.submit(Wanted::any(&mut random, run.full));
            }
            submitted = share;
            sleep(Duration::from_millis(random.random_range(std::mem::replace(&mut pause, 0..200)))).await;
        }
        let begin = store::now();
        scene.suffer(*fault, &mut random).await?;
        suffered.push((*fault, begin, store::now()));
        if fault.ends_the_broker() {
            mended += scene.mend().await?;
        }
        // The broker's return is not overtaken by the next fault before it can be judged.
        pause = if fault.ends_the_broker() { 2_500..4_000 } else { usual.clone() };
    }
    // Work for after the last fault.
    tasks.submit(Wanted::diamond(10));
    tasks.check(Duration::from_secs(180), report).await?;
    let took = started.elapsed();

    let code = scene.orchestrator.terminate().await?;
    report.expect("the orchestrator's exit code", code.unwrap_or(-1), 0);
    let store = Store::read(&scene.site.store(), report).await?;
    let executions = store::executions(&scene.node.url()).await?;
    report.figure("steps executed to their end", executions.started.len(), "");
    report.figure("of these, more than once", executions.repeated, "");
    let mut applied: BTreeMap<Fault, Vec<i64>> = BTreeMap::new();
    let (mut all, mut slowest) = (Vec::new(), 0);
    for (number, (fault, _, end)) in suffered.iter().enumerate() {
        let next_fault = suffered.get(number + 1).map_or(i64::MAX, |(_, begin, _)| *begin);
        let next = next_after(&store.applied, *end);
        if next < next_fault {
            applied.entry(*fault).or_default().push(next - end);
            all.push(next - end);
        }
        if fault.ends_the_broker() {
            slowest = slowest.max(next_after(&executions.started, *end).min(next_fault) - end);
        }
    }
    for (fault, times) in applied {
        report.times(format!("until the next result: {}", fault.name()), times);
    }
    report.figure("faults overtaken by the next one", suffered.len() - all.len(), "");
    report.times("until the next result: all other faults", all);
    if run.full {
        report.at_most("broker back, until the next step starts, at most", slowest, RESUMES_WITHIN, "ms");
    } else {
        report.figure("broker back, until the next step starts, at most", slowest, "ms");
    }
    report.figure("queues that the killed broker had lost, deleted and declared by hand", mended, "");
    report.figure("total time", took.as_secs(), "s");
    Ok(())
}

/// When the first of `events`, which are sorted, came after `moment`.
fn next_after(events: &[i64], moment: i64) -> i64 {
    events.get(events.partition_point(|at| *at < moment)).copied().unwrap_or(i64::MAX)
}

impl Scene {
    async fn open(directory: &Path) -> Answer<Self> {
        let node = Node::started(directory.join("chaos")).await?;
        store::copy_results(&node.url()).await?;
        let proxy = Proxy::to(node.port()).await?;
        // Short timeouts, so that what was in a deleted queue is soon found to be overdue.
        let short = |line: &str| match line.split_once("timeout_seconds: ") {
            Some((indent, _)) => format!("{indent}timeout_seconds: 3"),
            None => line.to_owned(),
        };
        let site = Site::new(directory, &url(proxy.port()), short)?;
        let orchestrator = site.orchestrator()?;
        let workers = vec![site.worker("worker-0")?, site.worker("worker-1")?];
        Ok(Self { site, orchestrator, workers, proxy, node })
    }

    /// What an operator does whose broker has kept no more than the name of a queue. Tells how often it was needed.
    async fn mend(&self) -> Answer<usize> {
        let broken = self.node.broken_queues()?;
        for queue in &broken {
            self.node.delete_queue(queue).await?;
        }
        if !broken.is_empty() {
            self.site.declare()?;
        }
        Ok(broken.len())
    }

    /// One fault, to its end: what was killed has been started again, what was cut or deleted may come back.
    async fn suffer(&mut self, fault: Fault, random: &mut StdRng) -> Answer {
        match fault {
            Fault::WorkerKilled => {
                let worker = random.random_range(0..self.workers.len());
                self.workers[worker].kill();
                self.workers[worker] = self.site.worker(&format!("worker-{worker}"))?;
            }
            Fault::OrchestratorKilled => {
                self.orchestrator.kill();
                self.orchestrator = self.site.orchestrator()?;
            }
            Fault::BrokerKilled | Fault::BrokerRestarted => {
                self.node.end(if fault == Fault::BrokerKilled { End::Kill } else { End::Stop }).await?;
                self.node.start().await?;
            }
            Fault::ConnectionsCut => self.proxy.cut(),
            Fault::QueueDeleted => {
                let namespace = NAMESPACES.choose(random).expect("there are five");
                self.node.delete_queue(&Names::new("tasker").step_queue(namespace)).await?;
            }
        }
        Ok(())
    }
}
