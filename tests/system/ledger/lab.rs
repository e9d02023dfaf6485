//! Where the ledger's tests work: a worker, and a way between it and its broker that can fail.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tasker_worker_rust::broker::Broker;
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::broker::rabbit::RabbitBroker;
use tasker_worker_rust::message::{StepExecutionRequest, StepExecutionResult};
use tasker_worker_rust::ops::metrics::METRICS;
use tasker_worker_rust::{Config, Namespace, RunningWorker, RustWorker, Step, StepError, StepResult};
use tokio::sync::{Semaphore, mpsc};
use uuid::Uuid;

use crate::proxy::Proxy;
use crate::support::{Desk, Kind, Report, eventually, settings, within};

/// A desk with a namespace of its own, and a way between worker and broker that can fail.
pub(crate) struct Lab {
    pub(crate) desk: Desk,
    pub(super) line: Line,
    pub(crate) namespace: String,
    pub(super) runs: Runs,
}

pub(super) enum Line {
    Embedded(Arc<MemoryBroker>),
    RabbitMq(Proxy),
}

/// How often the handler was called, for which attempt.
pub(super) type Runs = Arc<Mutex<HashMap<(Uuid, u32), usize>>>;

impl Lab {
    pub(crate) async fn open(kind: Kind) -> Self {
        let namespace = format!("ledger-{}", Uuid::new_v4().simple());
        let (line, desk) = match kind {
            Kind::Embedded => {
                let broker = MemoryBroker::new();
                let desk = Desk::on(broker.clone(), settings(kind), kind, &[&namespace]).await;
                (Line::Embedded(broker), desk)
            }
            Kind::RabbitMq => {
                (Line::RabbitMq(Proxy::open()), Desk::open_with(settings(kind), kind, &[&namespace]).await)
            }
        };
        Self { desk, line, namespace, runs: Runs::default() }
    }

    /// Connections for one worker.
    pub(crate) fn connect(&self) -> Arc<dyn Broker> {
        match &self.line {
            Line::Embedded(broker) => broker.connect(),
            Line::RabbitMq(proxy) => {
                let mut config = self.desk.config.broker.clone();
                config.urls = vec![proxy.url().into()];
                Arc::new(RabbitBroker::connect(&config, "worker").unwrap())
            }
        }
    }

    pub(super) async fn cut(&self) {
        match &self.line {
            Line::Embedded(broker) => broker.disconnect(),
            Line::RabbitMq(proxy) => proxy.cut().await,
        }
    }

    /// Nothing that the worker publishes is confirmed from now on.
    pub(super) fn stall(&self) {
        match &self.line {
            Line::Embedded(broker) => broker.set_blocked(Some("a test")),
            Line::RabbitMq(proxy) => proxy.stall(),
        }
    }

    /// The end of [`stall`](Self::stall), and of what was under way.
    pub(super) async fn cut_and_flow(&self) {
        self.cut().await;
        if let Line::Embedded(broker) = &self.line {
            broker.set_blocked(None);
        }
    }

    /// Ends a worker as a crash does: nothing of it reaches the broker any more.
    pub(crate) async fn kill(&self, worker: RunningWorker, broker: Arc<dyn Broker>) {
        if let Line::RabbitMq(proxy) = &self.line {
            // It must not come back before it is closed, and say what it could not say.
            proxy.close().await;
        }
        drop(worker);
        within(broker.close()).await;
        match &self.line {
            Line::Embedded(broker) => broker.set_blocked(None),
            Line::RabbitMq(proxy) => {
                proxy.flow();
                proxy.listen();
            }
        }
    }

    pub(crate) async fn worker(&self, config: Config, handler: Namespace) -> RunningWorker {
        self.start(self.connect(), config, handler).await
    }

    pub(crate) async fn start(&self, on: Arc<dyn Broker>, config: Config, steps: Namespace) -> RunningWorker {
        // A worker that was killed in this process takes a moment to let go of its file.
        let worker = eventually("the worker starts", async || {
            let worker = RustWorker::new(config.clone()).namespace(steps.clone()).broker(on.clone());
            worker.start().await.ok()
        })
        .await;
        within(worker.ready()).await;
        worker
    }

    /// The steps of these tests, counted.
    pub(super) fn steps(&self) -> Namespace {
        let runs = self.runs.clone();
        let count = move |step: &Step| {
            *runs.lock().unwrap().entry((step.step_uuid(), step.attempt())).or_default() += 1;
        };
        let (count_flaky, count_hopeless) = (count.clone(), count.clone());
        Namespace::new(self.namespace.as_str())
            .step("answer", move |step: Step| {
                count(&step);
                async move { StepResult::Ok(step.context) }
            })
            .step("flaky", move |step: Step| {
                count_flaky(&step);
                async move { if step.attempt() == 1 { Err(StepError::retryable("not yet")) } else { Ok("done") } }
            })
            .step("hopeless", move |step: Step| {
                count_hopeless(&step);
                async { StepResult::<()>::Err(StepError::permanent("never").code("NEVER")) }
            })
    }

    /// A step that tells when it has started, and ends when it is let.
    pub(super) fn slow_step(&self) -> (Namespace, mpsc::UnboundedReceiver<()>, Arc<Semaphore>) {
        let (started, has_started) = mpsc::unbounded_channel();
        let finish = Arc::new(Semaphore::new(0));
        let (runs, may_finish) = (self.runs.clone(), finish.clone());
        let handler = move |step: Step| {
            let (runs, started, finish) = (runs.clone(), started.clone(), may_finish.clone());
            async move {
                *runs.lock().unwrap().entry((step.step_uuid(), step.attempt())).or_default() += 1;
                started.send(())?;
                finish.acquire().await?.forget();
                StepResult::Ok(step.context)
            }
        };
        (Namespace::new(self.namespace.as_str()).step("slow", handler), has_started, finish)
    }

    pub(crate) fn request(&self, step_name: &str, context: serde_json::Value) -> StepExecutionRequest {
        let mut request = self.desk.request(step_name, context);
        request.namespace.clone_from(&self.namespace);
        request
    }

    pub(super) async fn ask(&self, step_name: &str) -> StepExecutionRequest {
        let request = self.request(step_name, json!({ "a": 1 }));
        self.desk.send(&request).await;
        request
    }

    pub(crate) async fn result(&mut self) -> (StepExecutionResult, String) {
        match self.desk.next().await {
            Report::Result(result, properties) => (result, properties.message_id.unwrap()),
            other => panic!("expected a result, got {other:?}"),
        }
    }

    /// How often a request that came again ended like this.
    pub(crate) fn came_again(&self, outcome: &str) -> u64 {
        METRICS.redeliveries.with_label_values(&[self.namespace.as_str(), outcome]).get()
    }

    /// Sends the request again until it ends like this. An answer may have arrived here before its worker knows that it
    /// is confirmed: until then, a duplicate joins it.
    pub(crate) async fn send_until(&self, outcome: &str, request: &StepExecutionRequest) {
        let seen = || self.came_again("joined") + self.came_again(outcome);
        let before = self.came_again(outcome);
        while self.came_again(outcome) == before {
            let sent = seen() + 1;
            self.desk.send(request).await;
            eventually("the request comes again", async || (seen() >= sent).then_some(())).await;
        }
    }

    pub(super) async fn until_joined(&self, times: u64) {
        eventually("a delivery joins", async || (self.came_again("joined") == times).then_some(())).await;
    }

    pub(super) fn runs_of(&self, request: &StepExecutionRequest) -> usize {
        *self.runs.lock().unwrap().get(&(request.step_uuid, request.attempt)).unwrap_or(&0)
    }

    /// Everything was run once, nothing is left in the queue, and nothing was done twice on a channel.
    pub(super) async fn all_ran_once(self, steps: usize) {
        let runs = self.runs.lock().unwrap().clone();
        assert_eq!(runs.len(), steps);
        assert!(runs.values().all(|times| *times == 1), "{runs:?}");
        self.nothing_is_left().await;
    }

    pub(crate) async fn nothing_is_left(self) {
        let queue = self.desk.names.step_queue(&self.namespace);
        assert_eq!(self.desk.broker.depth(&queue).await, Ok(Some(0)));
        let channel_errors = METRICS.reconnects.with_label_values(&["precondition_failed"]).get();
        assert_eq!(channel_errors, 0, "a delivery was settled twice");
        self.desk.close().await;
    }
}
