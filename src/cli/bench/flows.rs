//! Whole workflows: the real orchestrator and worker as processes, through the HTTP API and the store.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};
use std::{fs, iter};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use tasker_worker_rust::api::{TaskQuery, TaskRequest};
use tasker_worker_rust::client::Client;
use tokio::process::{Child, Command};
use uuid::Uuid;

use super::super::demo::TEMPLATES;
use super::Answer;
use super::figure::{Figure, Goal, percentile};
use super::job::{Job, LOG, Who};
use super::machine::cpu_of;
use super::rounds::{Bench, Run};

/// A task that takes longer has got stuck.
const PATIENCE: Duration = Duration::from_secs(600);

/// Submissions on their way at once.
const SUBMITTERS: usize = 64;

/// The workflows, their context, how many steps stand one behind the other, and how long, in milliseconds, these sleep.
const WORKFLOWS: [(&str, &str, &str, &str, u32, f64); 4] = [
    ("linear", "linear_workflow", "mathematical_sequence", "even_number", 4, 0.0),
    ("diamond", "diamond_workflow", "parallel_processing", "base_value", 3, 150.0),
    ("tree", "tree_workflow", "hierarchical_tree", "even_number", 4, 0.0),
    ("mixed DAG", "mixed_dag_workflow", "complex_dag", "even_number", 4, 0.0),
];

/// An orchestrator and a worker of their own. Killed when dropped.
pub(super) struct Product {
    orchestrator: Child,
    worker: Child,
    pub(super) client: Client,
    directory: PathBuf,
}

impl Product {
    /// With these templates in its own directory; a store that is there already is used.
    pub(super) async fn start(
        bench: &Bench,
        prefix: &str,
        directory: PathBuf,
        templates: &[&str],
    ) -> Answer<Self> {
        let folder = directory.join("templates");
        fs::create_dir_all(&folder)?;
        for (number, template) in templates.iter().enumerate() {
            fs::write(folder.join(format!("{number}.yaml")), template)?;
        }
        let port = free_port().ok_or("no port is free")?;
        let start = |program: &str| {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(&bench.settings).arg(program).stdin(Stdio::null()).stdout(Stdio::null());
            command
                .env("RUST_LOG", LOG)
                .env("TASKER__BROKER__PREFIX", prefix)
                .env("TASKER__ORCHESTRATOR__LISTEN_ADDRESS", format!("127.0.0.1:{port}"))
                .env("TASKER__ORCHESTRATOR__TEMPLATE_DIRECTORY", &folder)
                .env("TASKER__WORKER__TASK_TEMPLATES__TEMPLATE_DIRECTORY", &folder)
                .env("TASKER__WORKER__TASK_TEMPLATES__VALIDATION_ENABLED", "false")
                .env("TASKER__WORKER__HEALTH_ADDRESS", "127.0.0.1:0")
                .env("TASKER__WORKER__METRICS__PROMETHEUS_PORT", "0")
                .env("DATABASE_URL", format!("sqlite:{}", directory.join("bench.sqlite").display()))
                .kill_on_drop(true)
                .spawn()
        };
        let (orchestrator, worker) = (start("orchestrator")?, start("worker")?);
        let client = Client::new(&format!("http://127.0.0.1:{port}"))?;
        Ok(Self { orchestrator, worker, client, directory })
    }

    pub(super) fn pids(&self) -> [u32; 2] {
        [self.orchestrator.id().unwrap_or(0), self.worker.id().unwrap_or(0)]
    }

    /// Runs one task, and returns how long that took, in milliseconds.
    pub(super) async fn task(&self, request: &TaskRequest) -> Answer<f64> {
        let begin = Instant::now();
        let task_uuid = self.client.submit(request).await?.task_uuid();
        let task = self.client.wait(task_uuid, PATIENCE).await?;
        let took = begin.elapsed().as_secs_f64() * 1e3;
        if task.status == "complete" {
            Ok(took)
        } else {
            Err(format!("a task ended as {}", task.status).into())
        }
    }

    /// Waits until both answer, and have run what they will be asked to.
    pub(super) async fn warm_up(&self, request: impl Fn() -> TaskRequest) -> Answer {
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Err(error) = self.client.tasks(&TaskQuery::default()).await {
            if Instant::now() > deadline {
                return Err(error.into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for _ in 0..20 {
            self.task(&request()).await?;
        }
        Ok(())
    }

    /// The size of the store, in megabytes.
    fn store_size(&self) -> f64 {
        let files = ["bench.sqlite", "bench.sqlite-wal"];
        let bytes = files.iter().filter_map(|file| Some(fs::metadata(self.directory.join(file)).ok()?.len()));
        bytes.sum::<u64>() as f64 / 1e6
    }

    pub(super) async fn stop(mut self) -> Answer {
        for child in [&mut self.worker, &mut self.orchestrator] {
            Command::new("kill").arg("-TERM").arg(child.id().unwrap_or(0).to_string()).status().await?;
            child.wait().await?;
        }
        Ok(())
    }
}

/// Below the range of those that the system gives to connections, so that none takes it before it is used.
fn free_port() -> Option<u16> {
    let port = || rand::random_range(10_000..30_000);
    iter::repeat_with(port).take(1_000).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
}

/// A directory for one store; removed when dropped.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn new() -> Answer<Self> {
        let path = std::env::temp_dir().join(format!("tasker-bench-{}", Uuid::new_v4().simple()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed stays; the system's own clean-up takes it.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A task of a workflow, unlike every other one.
pub(super) fn task(workflow: usize) -> TaskRequest {
    let (_, namespace, name, field, ..) = WORKFLOWS[workflow];
    let request = TaskRequest::new(namespace, name, json!({ field: 6 }));
    TaskRequest { idempotency_key: Some(Uuid::new_v4().to_string()), ..request }
}

/// W4: one workflow at a time, without the time it sleeps, beside a chain of as many bare calls as there are steps one behind the other.
pub(super) async fn one_at_a_time(bench: &Bench) -> Answer<Vec<Figure>> {
    let mut site = bench.site(bench.config.broker.queue_kind, 1).await?;
    let namespace = site.job.namespaces().remove(0);
    let twin = site.start(&Job { who: Who::Bare, ..site.job.clone() })?;
    let folder = Folder::new()?;
    let product_prefix = format!("{}-w4", site.job.prefix);
    let product = Product::start(bench, &product_prefix, folder.0.clone(), &TEMPLATES).await?;
    let [orchestrator, worker] = product.pids();
    let running = [orchestrator, worker, twin.pid()];
    let mut figures = Vec::new();
    for (workflow, (title, .., depth, sleeps)) in WORKFLOWS.into_iter().enumerate().take(bench.scaled(4, 1)) {
        if !bench.wants(title) {
            continue;
        }
        product.warm_up(|| task(workflow)).await?;
        site.caller.chain(&namespace, 50, 1_024).await?;
        let tasks = bench.scaled(200, 60);
        let rounds = bench
            .rounds(&format!("W4 {title}"), bench.rounds, true, async |who| {
                let run = bench
                    .watch(&running, async {
                        let mut latencies = Vec::with_capacity(tasks);
                        for _ in 0..tasks {
                            latencies.push(match who {
                                Who::Ours => product.task(&task(workflow)).await? - sleeps,
                                Who::Bare => site.caller.chain(&namespace, depth, 1_024).await?,
                            });
                        }
                        Ok(latencies)
                    })
                    .await?;
                Ok(run)
            })
            .await?;
        for (name, share, goal) in [("p50", 0.5, 2.0), ("p99", 0.99, 3.0)] {
            let case = format!("{title} / {depth} bare calls: {name}");
            let goal = (workflow == 0).then_some(Goal::AtMost(goal));
            let figure =
                Figure::new("W4", case, "ms", &rounds.numbers(|run| percentile(&run.value, share)), goal);
            figures.extend(figure.map(|figure| Figure { disturbed: rounds.disturbed, ..figure }));
        }
    }
    product.stop().await?;
    twin.terminate().await?;
    bench.remove(&product_prefix, &NAMESPACES).await?;
    site.close().await?;
    Ok(figures)
}

/// The namespaces of the product's worker.
pub(super) const NAMESPACES: [&str; 5] =
    ["linear_workflow", "diamond_workflow", "tree_workflow", "mixed_dag_workflow", "order_fulfillment"];

/// What a load of tasks came to.
pub(super) struct Load {
    pub(super) steps_per_second: f64,
    store: f64,
    orchestrator: f64,
    worker: f64,
    api_p50: f64,
    api_p99: f64,
}

/// W5: many workflows at once.
pub(super) async fn at_once(bench: &Bench) -> Answer<Vec<Figure>> {
    let mut figures = Vec::new();
    for (tasks, case) in [(1_000_i64, "1,000 linear tasks"), (10_000, "10,000 linear tasks")] {
        if !bench.wants(case) {
            continue;
        }
        let rounds = bench
            .rounds(&format!("W5 {case}"), bench.rounds, false, async |_| {
                let folder = Folder::new()?;
                let prefix = format!("bench-{}", Uuid::new_v4().simple());
                let product = Product::start(bench, &prefix, folder.0.clone(), &TEMPLATES).await?;
                product.warm_up(|| task(0)).await?;
                let run = load(bench, &product, tasks).await?;
                product.stop().await?;
                bench.remove(&prefix, &NAMESPACES).await?;
                Ok(run)
            })
            .await?;
        let steps = tasks as f64 * 4.0;
        let figure = |what: &str, unit, goal, number: &dyn Fn(&Run<Load>) -> f64| {
            let case = if what.is_empty() { case.to_owned() } else { format!("{case}: {what}") };
            let figure = Figure::new("W5", case, unit, &rounds.numbers(number), goal)?;
            Some(Figure { disturbed: rounds.disturbed, ..figure })
        };
        figures.extend(
            [
                figure("", "steps/s", Some(Goal::AtLeast(1_000.0)), &|run| run.value.steps_per_second),
                figure("orchestrator's processor", "s per 1,000 steps", None, &|run| {
                    run.value.orchestrator / steps * 1e3
                }),
                figure("worker's processor", "s per 1,000 steps", None, &|run| {
                    run.value.worker / steps * 1e3
                }),
                figure("broker's processor", "s per 1,000 steps", None, &|run| run.broker / steps * 1e3),
                figure("store", "KB per task", None, &|run| run.value.store * 1e3 / tasks as f64),
                figure("API meanwhile, p50", "ms", None, &|run| run.value.api_p50),
                figure("API meanwhile, p99", "ms", None, &|run| run.value.api_p99),
            ]
            .into_iter()
            .flatten(),
        );
    }
    Ok(figures)
}

/// Submits tasks as fast as the API takes them, and waits for their end.
pub(super) async fn load(bench: &Bench, product: &Product, tasks: i64) -> Answer<Run<Load>> {
    let pids = product.pids();
    // By these tasks' own name: the API counts no more than 100,000, and there may be as many of others.
    let initiator = Uuid::new_v4().to_string();
    let complete = TaskQuery {
        status: Some("complete".to_owned()),
        initiator: Some(initiator.clone()),
        per_page: Some(1),
        ..TaskQuery::default()
    };
    let finished = async || Answer::Ok(product.client.tasks(&complete).await?.pagination.total_count);
    let ours = || TaskRequest { initiator: initiator.clone(), ..task(0) };
    let cpu = pids.map(cpu_of);
    let begin = Instant::now();
    let submitting = stream::iter(0..tasks)
        .map(|_| async { product.client.submit(&ours()).await })
        .buffer_unordered(SUBMITTERS)
        .try_for_each(|_| std::future::ready(Ok(())));
    let waiting = async {
        let mut latencies = Vec::new();
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        loop {
            tick.tick().await;
            let asked = Instant::now();
            let done = finished().await?;
            latencies.push(asked.elapsed().as_secs_f64() * 1e3);
            if done >= tasks {
                return Answer::Ok((begin.elapsed().as_secs_f64(), latencies));
            }
            if begin.elapsed() > PATIENCE {
                return Err(format!("{done} of {tasks} tasks have ended in {PATIENCE:?}").into());
            }
        }
    };
    let work = async {
        let (submitted, waited) = tokio::join!(submitting, waiting);
        submitted?;
        waited
    };
    let run = bench.watch(&pids, work).await?;
    let (seconds, latencies) = run.value;
    let value = Load {
        steps_per_second: tasks as f64 * 4.0 / seconds,
        store: product.store_size(),
        orchestrator: cpu_of(pids[0]) - cpu[0],
        worker: cpu_of(pids[1]) - cpu[1],
        api_p50: percentile(&latencies, 0.5),
        api_p99: percentile(&latencies, 0.99),
    };
    Ok(Run { value, broker: run.broker, others: run.others })
}
