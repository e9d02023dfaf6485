//! The whole product in one process: broker, orchestrator with its API, worker with the example workflows.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tasker_worker_rust::api::{StepResponse, TaskRequest, TaskResponse};
use tasker_worker_rust::broker::topology::Topology;
use tasker_worker_rust::broker::{Broker, ConsumerState};
use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::client::{Client, Submitted};
use tasker_worker_rust::ops::http::{Server, serve};
use tasker_worker_rust::orchestrator::{Orchestrator, api};
use tasker_worker_rust::{Config, Namespace, RunningWorker, RustWorker, workflows};
use uuid::Uuid;

use crate::support::{DEADLINE, Kind, connect, delete, settings, within};

/// The product, and the test as its client.
pub(crate) struct System {
    kind: Kind,
    pub(crate) config: Config,
    pub(crate) broker: Arc<dyn Broker>,
    catalog: Catalog,
    pub(crate) orchestrator: Orchestrator,
    server: Server,
    worker: Option<RunningWorker>,
    pub(crate) client: Client,
    _store: tempfile::TempDir,
}

impl System {
    /// With the example workflows.
    pub(crate) async fn open(kind: Kind) -> Self {
        let catalog = Catalog::load(&templates(), None).expect("our own templates are right");
        Self::open_with(kind, catalog, workflows::all()).await
    }

    /// With these templates and handlers.
    pub(crate) async fn open_with(kind: Kind, catalog: Catalog, handlers: Vec<Namespace>) -> Self {
        Self::start(settings(kind), kind, catalog, handlers, tempfile::tempdir().unwrap()).await
    }

    /// With the example workflows, on the file `store.sqlite` in this folder.
    pub(crate) async fn on_store(kind: Kind, config: Config, store: tempfile::TempDir) -> Self {
        let catalog = Catalog::load(&templates(), None).expect("our own templates are right");
        Self::start(config, kind, catalog, workflows::all(), store).await
    }

    /// With the example workflows, on the RabbitMQ of these settings.
    pub(crate) async fn on(config: Config) -> Self {
        Self::on_store(Kind::RabbitMq, config, tempfile::tempdir().unwrap()).await
    }

    async fn start(
        mut config: Config,
        kind: Kind,
        catalog: Catalog,
        handlers: Vec<Namespace>,
        store: tempfile::TempDir,
    ) -> Self {
        config.orchestrator.database_url = format!("sqlite:{}", store.path().join("store.sqlite").display());
        let broker = connect(kind, &config).await;
        let (orchestrator, server, client) = orchestrate(&config, &broker, &catalog).await;
        let mut worker = RustWorker::new(config.clone()).broker(broker.clone());
        for namespace in handlers {
            worker = worker.namespace(namespace);
        }
        let worker = worker.start().await.expect("the worker's settings are right");
        within(worker.ready()).await;
        Self {
            kind,
            config,
            broker,
            catalog,
            orchestrator,
            server,
            worker: Some(worker),
            client,
            _store: store,
        }
    }

    /// Ends the orchestrator in an orderly way and starts another on the same store.
    pub(crate) async fn restart_orchestrator(&mut self) {
        within(self.orchestrator.shutdown()).await;
        let (orchestrator, server, client) = orchestrate(&self.config, &self.broker, &self.catalog).await;
        let server = std::mem::replace(&mut self.server, server);
        within(server.stop()).await;
        self.orchestrator = orchestrator;
        self.client = client;
    }

    pub(crate) async fn submit(&self, namespace: &str, name: &str, context: Value) -> Uuid {
        match self
            .client
            .submit(&TaskRequest::new(namespace, name, context))
            .await
            .expect("the task is accepted")
        {
            Submitted::Created(task) => task.task_uuid,
            Submitted::Exists(task_uuid) => panic!("the test has submitted task {task_uuid} before"),
        }
    }

    /// The task, once it is finished.
    pub(crate) async fn finished(&self, task_uuid: Uuid) -> TaskResponse {
        let task = self.client.wait(task_uuid, DEADLINE).await.expect("the orchestrator answers");
        assert!(task.is_finished(), "the task should have ended by now: {task:#?}");
        task
    }

    /// Submits a task and waits for its end.
    pub(crate) async fn run(&self, namespace: &str, name: &str, context: Value) -> TaskResponse {
        let task_uuid = self.submit(namespace, name, context).await;
        self.finished(task_uuid).await
    }

    /// A step of a task.
    pub(crate) async fn step(&self, task_uuid: Uuid, step: &str) -> StepResponse {
        self.client.step(task_uuid, step).await.expect("the orchestrator answers")
    }

    /// What a step's handler returned.
    pub(crate) async fn output(&self, task_uuid: Uuid, step: &str) -> Value {
        let step = self.step(task_uuid, step).await;
        step.output().expect("the step has succeeded").parse().expect("an output is JSON")
    }

    /// Declares what is missing, as `topology declare` does.
    pub(crate) async fn declare(&self) {
        self.broker.declare(&self.topology()).await.expect("nothing is in the way");
    }

    fn topology(&self) -> Topology {
        let kind = self.config.broker.queue_kind;
        Topology::new(&self.config.names(), &self.config.ladder(), kind, self.catalog.namespaces())
    }

    /// What readiness says of a namespace's consumer.
    pub(crate) fn consumer(&self, namespace: &str) -> ConsumerState {
        self.worker.as_ref().expect("the worker runs").health().consumers[namespace].borrow().clone()
    }

    /// Ends everything, and removes what it made on a shared broker.
    pub(crate) async fn close(mut self) {
        let topology = self.topology();
        if let Some(worker) = self.worker.take() {
            within(worker.shutdown()).await;
        }
        within(self.server.stop()).await;
        within(self.orchestrator.shutdown()).await;
        self.broker.close().await;
        if self.kind == Kind::RabbitMq {
            delete(&topology).await;
        }
    }
}

fn templates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/workflows")
}

pub(crate) async fn orchestrate(
    config: &Config,
    broker: &Arc<dyn Broker>,
    catalog: &Catalog,
) -> (Orchestrator, Server, Client) {
    let started = Orchestrator::start(config, broker.clone(), catalog.clone()).await;
    let orchestrator = started.expect("the store opens");
    let router = api::router(orchestrator.clone(), &config.orchestrator).unwrap();
    let server = serve("127.0.0.1:0", "orchestrator.listen_address", router).await.expect("a port is free");
    let client = Client::new(&format!("http://{}", server.address())).expect("the address is right");
    (orchestrator, server, client)
}
