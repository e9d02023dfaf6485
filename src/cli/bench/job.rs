//! One worker, ours or the bare twin, in a process of its own.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use tasker_worker_rust::broker::topology::Names;
use tasker_worker_rust::config::QueueKind;
use tasker_worker_rust::ops::metrics::METRICS;
use tasker_worker_rust::{Config, Namespace, RustWorker, Step, ops};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;

use super::{Answer, machine, twin};

/// The step all requests are for.
pub(crate) const STEP: &str = "noop";

/// How long our worker's results are, so that the twin's are as long.
pub(crate) const RESULT_BYTES: usize = 640;

/// Few lines, but the span that every step has by default.
pub(super) const LOG: &str = "warn,tasker_worker_rust::worker=info,tasker_worker_rust::worker::running=warn,\
                              tasker_worker_rust::worker::supervise=warn";

/// How long a worker may take to say something.
const PATIENCE: Duration = Duration::from_secs(300);

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Who {
    Ours,
    Bare,
}

/// How the bare twin goes about it: as well as we know, or with one habit that others have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Habit {
    Best,
    /// Each delivery is acked alone, not all up to the oldest unfinished one at once.
    AckForEach,
    /// Each step is done in a task of its own.
    TaskForEach,
}

/// What a worker has to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(super) who: Who,
    pub(super) prefix: String,
    pub(super) kind: QueueKind,
    pub(super) namespaces: usize,
    pub(crate) prefetch: u16,
    /// Ends after so many; 0: when it is told to.
    pub(crate) steps: u64,
    /// How long a step takes.
    pub(crate) sleep_ms: u64,
    /// Of the twin.
    pub(crate) habit: Habit,
}

/// What a worker says at its end.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Done {
    /// From the first step's arrival to the last one's ack.
    pub(super) seconds: f64,
    /// Processor time in between, in seconds.
    pub(super) cpu: f64,
    /// The most memory in use, in megabytes.
    pub(super) memory: f64,
}

impl Job {
    pub(crate) fn names(&self) -> Names {
        Names::new(&self.prefix)
    }

    pub(super) fn namespaces(&self) -> Vec<String> {
        (0..self.namespaces).map(|number| format!("bench-{number}")).collect()
    }

    pub(crate) fn step_queues(&self) -> Vec<String> {
        let names = self.names();
        self.namespaces().iter().map(|namespace| names.step_queue(namespace)).collect()
    }

    /// The settings of our worker: the user's, but for what the job says.
    pub(super) fn config(&self, mut config: Config) -> Config {
        config.broker.prefix.clone_from(&self.prefix);
        config.broker.queue_kind = self.kind;
        config.worker.max_concurrent_steps = self.prefetch;
        config.worker.namespaces = Vec::new();
        config.worker.task_templates.validation_enabled = false;
        config.worker.health_address = "127.0.0.1:0".to_owned();
        config.worker.metrics.prometheus_port = 0;
        config.worker.ledger.path = None;
        config
    }

    /// The life of the worker process.
    pub(super) fn run(&self, config: Config) -> Answer {
        match self.who {
            Who::Ours if self.steps == 0 => Ok(self.worker(self.config(config), |_| {})?.run_blocking()?),
            Who::Ours => tokio::runtime::Builder::new_multi_thread()
                .worker_threads(config.worker.rust_runtime.threads())
                .enable_all()
                .build()?
                .block_on(self.run_ours(config)),
            Who::Bare => super::super::block_on(async {
                let url = config.broker.urls.first().ok_or("broker.urls is empty")?;
                self.say(twin::run(url.expose(), self).await?);
                Ok(())
            }),
        }
    }

    async fn run_ours(&self, config: Config) -> Answer {
        let begin = Arc::new(OnceCell::new());
        let (first, steps) = (begin.clone(), self.steps);
        let all = Arc::new(tokio::sync::Notify::new());
        let last = all.clone();
        let worker = self.worker(self.config(config), move |number| {
            if number == 1 {
                // Only once.
                let _ = first.set((Instant::now(), machine::own_cpu()));
            }
            if number == steps {
                last.notify_one();
            }
        })?;
        let worker = worker.start().await?;
        all.notified().await;
        let namespaces = self.namespaces();
        let confirmed = |namespace: &String| {
            METRICS.stage_seconds.with_label_values(&[namespace, "confirm"]).get_sample_count()
        };
        while namespaces.iter().map(confirmed).sum::<u64>() < self.steps {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.say(*begin.get().ok_or("no step was run")?);
        worker.shutdown().await;
        Ok(())
    }

    fn worker(
        &self,
        config: Config,
        each: impl Fn(u64) + Clone + Send + Sync + 'static,
    ) -> Answer<RustWorker> {
        ops::logging::init(&config.log)?;
        let mut worker = RustWorker::new(config);
        let sleep = Duration::from_millis(self.sleep_ms);
        let count = Arc::new(AtomicU64::new(0));
        for namespace in self.namespaces() {
            let (each, count) = (each.clone(), count.clone());
            let handler = move |_step: Step<IgnoredAny>| {
                each(count.fetch_add(1, Ordering::Relaxed) + 1);
                async move {
                    if !sleep.is_zero() {
                        tokio::time::sleep(sleep).await;
                    }
                    Ok(true)
                }
            };
            worker = worker.namespace(Namespace::new(namespace).step(STEP, handler));
        }
        Ok(worker)
    }

    fn say(&self, (begin, cpu): (Instant, f64)) {
        let done = Done {
            seconds: begin.elapsed().as_secs_f64(),
            cpu: machine::own_cpu() - cpu,
            memory: machine::peak_memory().unwrap_or(f64::NAN),
        };
        println!("{}", serde_json::to_string(&done).expect("numbers encode"));
    }
}

/// A worker process. Killed when dropped.
pub(super) struct Worker {
    child: Child,
}

impl Worker {
    /// Starts this program once more, with the same settings, to do `job`.
    pub(super) fn start(job: &Job, settings: &[String]) -> Answer<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(settings).arg("bench").arg("--job").arg(serde_json::to_string(job)?);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        Ok(Self { child: child.kill_on_drop(true).env("RUST_LOG", LOG).spawn()? })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// Waits for the end of a job with a number of steps.
    pub(super) async fn done(mut self) -> Answer<Done> {
        let output = self.child.stdout.take().ok_or("the worker has no output")?;
        let mut lines = BufReader::new(output).lines();
        let line =
            tokio::time::timeout(PATIENCE, lines.next_line()).await.map_err(|_| "a worker got stuck")??;
        let done = serde_json::from_str(&line.ok_or("a worker ended without a word")?)?;
        self.child.wait().await?;
        Ok(done)
    }

    /// Ends it as `kill -TERM` does, and returns how long that took, in milliseconds.
    pub(super) async fn terminate(mut self) -> Answer<f64> {
        let begin = Instant::now();
        Command::new("kill").arg("-TERM").arg(self.pid().to_string()).status().await?;
        tokio::time::timeout(PATIENCE, self.child.wait()).await??;
        Ok(begin.elapsed().as_secs_f64() * 1e3)
    }
}
