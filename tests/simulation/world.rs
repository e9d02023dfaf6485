//! One run: the broker, the processes that live and die on it, the callers, and whoever makes the faults.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tasker_worker_rust::api::TaskRequest;
use tasker_worker_rust::broker::Broker;
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::broker::topology::{Names, Topology};
use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::config::LadderConfig;
use tasker_worker_rust::orchestrator::task::TaskState;
use tasker_worker_rust::orchestrator::{CancelError, Orchestrator, SubmitError};
use tasker_worker_rust::{Config, RustWorker};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::clock::Gate;
use crate::locked;
use crate::schedule::{Act, Moment, Outage, Schedule, Slip, Task, Who};
use crate::wire::{End, Flaw, Wire};
use crate::workflow::{Begun, WORKFLOWS, namespaces};

/// After this, what has not come to its end never will.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

pub(crate) struct World {
    pub(crate) schedule: Schedule,
    pub(crate) flaw: Flaw,
    pub(crate) names: Names,
    /// A connection of the world's own, for faults and for looking at the queues.
    pub(crate) broker: Arc<MemoryBroker>,
    pub(crate) begun: Begun,
    config: Config,
    gate: Arc<Gate>,
    started: Instant,
    verbose: bool,
    diary: Mutex<Vec<String>>,
    acts: Mutex<BTreeMap<Act, usize>>,
    slips: Mutex<BTreeMap<Moment, Slip>>,
    published: AtomicUsize,
    wires: Mutex<BTreeMap<Who, Arc<Wire>>>,
    orchestrator: watch::Sender<Option<Orchestrator>>,
    /// Everything is over; processes stop for good.
    closing: CancellationToken,
}

/// What the caller of a task was told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    pub(crate) task: Task,
    pub(crate) task_uuid: Uuid,
    /// The end it was told of when it wanted to cancel.
    pub(crate) cancelled: Option<TaskState>,
}

impl World {
    pub(crate) fn new(
        schedule: Schedule,
        flaw: Flaw,
        store: PathBuf,
        gate: Arc<Gate>,
        verbose: bool,
    ) -> Arc<Self> {
        let mut config = Config::default();
        config.orchestrator.database_url = format!("sqlite:{}", store.display());
        config.orchestrator.overdue_after_seconds = schedule.overdue_after_seconds;
        config.broker.delay_ladder = LadderConfig { first_ms: 50, ratio: 2.0, rungs: 4 };
        config.worker.max_concurrent_steps = schedule.concurrency;
        config.worker.retry.jitter = false;
        config.worker.metrics.memory_monitoring = false;
        Arc::new(Self {
            slips: Mutex::new(schedule.slips.clone()),
            schedule,
            flaw,
            names: config.names(),
            broker: MemoryBroker::new(),
            begun: Begun::default(),
            config,
            gate,
            started: Instant::now(),
            verbose,
            diary: Mutex::default(),
            acts: Mutex::default(),
            published: AtomicUsize::new(0),
            wires: Mutex::default(),
            orchestrator: watch::Sender::new(None),
            closing: CancellationToken::new(),
        })
    }

    /// Runs the schedule to its end; what is wrong then is told by `check`.
    pub(crate) async fn run(self: &Arc<Self>) -> Result<(), String> {
        let mut processes = JoinSet::new();
        processes.spawn(Arc::clone(self).keep_orchestrator());
        for number in 0..self.schedule.workers {
            processes.spawn(Arc::clone(self).keep_worker(number));
        }
        let mut callers = JoinSet::new();
        for (number, task) in self.schedule.tasks.clone().into_iter().enumerate() {
            callers.spawn(Arc::clone(self).call(number, task));
        }
        let mut faults = JoinSet::new();
        for (at_ms, outage) in self.schedule.outages.clone() {
            faults.spawn(Arc::clone(self).bring_about(at_ms, outage));
        }
        let quiet = async {
            let told = callers.join_all().await;
            faults.join_all().await;
            // Twice: at one instant, a message may be on its way from the broker to a process.
            let mut quiet = 0;
            while quiet < 2 {
                tokio::time::sleep(Duration::from_millis(if quiet == 0 { 250 } else { 1 })).await;
                quiet = if self.is_quiet().await { quiet + 1 } else { 0 };
            }
            told
        };
        let told = tokio::time::timeout(DEADLINE, quiet).await;
        self.log(|| "quiet, or given up".to_owned());
        locked(&self.slips).clear();
        let problems = self.check(told.as_deref().unwrap_or(&[]), told.is_err()).await;
        self.closing.cancel();
        while processes.join_next().await.is_some() {}
        let left = self.left_in_queues().await;
        locked(&self.wires).clear();
        let problems = problems.into_iter().chain(left).collect::<Vec<_>>();
        if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
    }

    pub(crate) fn diary(&self) -> String {
        locked(&self.diary).join("\n")
    }

    pub(crate) fn log(&self, line: impl FnOnce() -> String) {
        let at = self.started.elapsed().as_millis();
        locked(&self.diary).push(format!("{at:>7} ms  {}", line()));
    }

    /// Counts what processes do: what is to go wrong at this moment?
    pub(crate) fn act(&self, who: Who, act: Act, what: impl FnOnce() -> String) -> Option<Slip> {
        let moment = {
            let mut acts = locked(&self.acts);
            let count = acts.entry(act).or_default();
            *count += 1;
            (act, *count - 1)
        };
        let slip = locked(&self.slips).remove(&moment);
        if self.verbose || slip.is_some() {
            self.log(|| {
                let slip = slip.map(|slip| format!("  <<< {slip:?}")).unwrap_or_default();
                format!("{who:?}: {act:?} {}: {}{slip}", moment.1, what())
            });
        }
        slip
    }

    pub(crate) fn drops_this_publish(&self) -> bool {
        let number = self.published.fetch_add(1, Ordering::Relaxed) + 1;
        matches!(self.flaw, Flaw::Drops { one_in } if number.is_multiple_of(one_in))
    }

    /// The orchestrator that runs now.
    pub(crate) fn orchestrator(&self) -> Option<Orchestrator> {
        self.orchestrator.borrow().clone()
    }

    /// Every queue that must be empty at the end: all but those where dead letters are parked.
    pub(crate) fn queues(&self) -> Vec<String> {
        let namespaces = WORKFLOWS.iter().map(|workflow| workflow.namespace);
        let parked: Vec<_> = namespaces.clone().map(|name| self.names.dead_letter_queue(name)).collect();
        let ladder = self.config.ladder();
        let topology = Topology::new(&self.names, &ladder, self.config.broker.queue_kind, namespaces);
        let queues = topology.queues.into_iter().map(|queue| queue.name);
        queues.filter(|queue| !parked.contains(queue)).collect()
    }

    /// What waits in queues, as "name: count".
    pub(crate) async fn left_in_queues(&self) -> Vec<String> {
        let mut left = Vec::new();
        for queue in self.queues() {
            match self.broker.depth(&queue).await {
                Ok(Some(0)) => {}
                other => left.push(format!("queue {queue} holds {other:?}")),
            }
        }
        left
    }

    async fn is_quiet(&self) -> bool {
        let idle = locked(&self.wires).values().all(|wire| wire.is_idle());
        if !idle || !self.left_in_queues().await.is_empty() {
            return false;
        }
        let Some(orchestrator) = self.orchestrator() else { return false };
        let busy: Result<i64, _> = sqlx::query_scalar(
            "SELECT (SELECT COUNT(*) FROM outbox) + \
             (SELECT COUNT(*) FROM tasks WHERE state NOT IN ('complete', 'error', 'cancelled'))",
        )
        .fetch_one(orchestrator.store().readers())
        .await;
        matches!(busy, Ok(0))
    }

    fn connect(self: &Arc<Self>, who: Who) -> Arc<Wire> {
        let wire = Wire::connect(self, who);
        locked(&self.wires).insert(who, Arc::clone(&wire));
        wire
    }

    /// Waits for the end of this life, whoever calls for it.
    async fn end_of(&self, wire: &Wire) -> End {
        tokio::select! {
            end = wire.ended() => end,
            () = self.closing.cancelled() => End::Stop { down_ms: 0 },
        }
    }

    /// `false`: there is no next life.
    async fn rest(&self, end: End) -> bool {
        let (End::Crash { down_ms } | End::Stop { down_ms }) = end;
        tokio::select! {
            biased;
            () = self.closing.cancelled() => false,
            () = tokio::time::sleep(Duration::from_millis(down_ms)) => true,
        }
    }

    async fn keep_orchestrator(self: Arc<Self>) {
        let catalog = Catalog::from_templates(WORKFLOWS.iter().map(|workflow| workflow.template()).collect());
        loop {
            let wire = self.connect(Who::Orchestrator);
            let orchestrator = {
                let _held = self.gate.hold();
                let started = Orchestrator::start(&self.config, Arc::clone(&wire) as _, catalog.clone());
                started.await.expect("nobody else has the store")
            };
            self.gate.watch(orchestrator.store());
            self.orchestrator.send_replace(Some(orchestrator.clone()));
            let end = self.end_of(&wire).await;
            self.orchestrator.send_replace(None);
            if matches!(end, End::Crash { .. }) {
                orchestrator.abort().await;
            } else {
                orchestrator.shutdown().await;
                wire.close().await;
            }
            self.log(|| "Orchestrator: gone".to_owned());
            if !self.rest(end).await {
                return;
            }
        }
    }

    async fn keep_worker(self: Arc<Self>, number: usize) {
        loop {
            let wire = self.connect(Who::Worker(number));
            let worker = namespaces(&self.begun)
                .into_iter()
                .fold(RustWorker::new(self.config.clone()), RustWorker::namespace)
                .broker(Arc::clone(&wire) as _);
            let worker = worker.start().await.expect("the settings make sense");
            let end = self.end_of(&wire).await;
            if matches!(end, End::Crash { .. }) {
                // Nobody hears of it any more; it only goes away.
                tokio::spawn(worker.shutdown());
            } else {
                worker.shutdown().await;
                wire.close().await;
            }
            self.log(|| format!("Worker({number}): gone"));
            if !self.rest(end).await {
                return;
            }
        }
    }

    async fn bring_about(self: Arc<Self>, at_ms: u64, outage: Outage) {
        let pause = |ms| tokio::time::sleep(Duration::from_millis(ms));
        pause(at_ms).await;
        self.log(|| format!("{outage:?}"));
        let end = |who, end| {
            let wire = locked(&self.wires).get(&who).cloned();
            wire.inspect(|wire| wire.end(end));
        };
        match outage {
            Outage::Cut => self.broker.disconnect(),
            Outage::Down { for_ms } => {
                self.broker.set_down(Some("a simulated outage"));
                pause(for_ms).await;
                self.broker.set_down(None);
            }
            Outage::Blocked { for_ms } => {
                self.broker.set_blocked(Some("a simulated alarm"));
                pause(for_ms).await;
                self.broker.set_blocked(None);
            }
            Outage::ConfirmsLost { count } => self.broker.lose_confirms(count),
            Outage::QueueFull { queue, for_ms } => {
                let queues = [
                    self.names.orchestrator_queue(),
                    self.names.step_queue("shop"),
                    self.names.step_queue("bank"),
                ];
                // Where it is not declared yet, it cannot be full.
                let _ = self.broker.limit_queue(&queues[queue], Some(0));
                pause(for_ms).await;
                let _ = self.broker.limit_queue(&queues[queue], None);
            }
            Outage::Crash { who, down_ms } => end(who, End::Crash { down_ms }),
            Outage::Stop { who, down_ms } => end(who, End::Stop { down_ms }),
        }
    }

    /// A caller who wants a task, and will not take no for an answer.
    async fn call(self: Arc<Self>, number: usize, task: Task) -> Told {
        let pause = || tokio::time::sleep(Duration::from_millis(100));
        let workflow = &WORKFLOWS[task.workflow];
        let request = TaskRequest {
            idempotency_key: Some(format!("task {number}")),
            ..TaskRequest::new(
                workflow.namespace,
                workflow.name,
                serde_json::to_value(task.context).expect("it has string keys"),
            )
        };
        tokio::time::sleep_until(self.started + Duration::from_millis(task.at_ms)).await;
        let task_uuid = loop {
            match self.running().await.submit(request.clone()).await {
                Ok(task_uuid) | Err(SubmitError::Duplicate { task_uuid }) => break task_uuid,
                Err(SubmitError::Store(_)) => pause().await,
                Err(refused) => panic!("task {number} was refused: {refused}"),
            }
        };
        self.log(|| format!("task {number} is {task_uuid}"));
        let Some(at_ms) = task.cancelled_at_ms else { return Told { task, task_uuid, cancelled: None } };
        tokio::time::sleep_until(self.started + Duration::from_millis(at_ms)).await;
        let end = loop {
            match self.running().await.cancel(task_uuid).await {
                Ok(()) => break TaskState::Cancelled,
                Err(CancelError::Finished(state)) => break state,
                Err(CancelError::Store(_)) => pause().await,
                Err(CancelError::NotFound) => panic!("task {number} was accepted, and is not there"),
            }
        };
        Told { task, task_uuid, cancelled: Some(end) }
    }

    async fn running(&self) -> Orchestrator {
        let mut orchestrator = self.orchestrator.subscribe();
        let running = orchestrator.wait_for(Option::is_some).await.expect("the world holds the sender");
        running.clone().expect("just seen")
    }
}
