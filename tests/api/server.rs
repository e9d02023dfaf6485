//! An orchestrator's API on a free port, and raw requests to it.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use sqlx::SqlitePool;
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::client::Client;
use tasker_worker_rust::config::OrchestratorConfig;
use tasker_worker_rust::message::{HandlerSpec, Json};
use tasker_worker_rust::ops::http::{self, Limits};
use tasker_worker_rust::orchestrator::{Orchestrator, api};
use tasker_worker_rust::retry::RetryPolicy;
use tasker_worker_rust::template::{IdentityStrategy, StepKind, StepTemplate, Template};
use tempfile::TempDir;
use uuid::Uuid;

use crate::orchestrator::start;

pub(crate) struct Server {
    pub(crate) base_url: String,
    /// Beside the orchestrator's own connections: for putting the store into any state.
    pub(crate) store: SqlitePool,
    pub(crate) orchestrator: Orchestrator,
    pub(crate) broker: Arc<MemoryBroker>,
    http: HttpClient<HttpConnector, Full<Bytes>>,
    _serving: http::Server,
    _directory: TempDir,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::configured(OrchestratorConfig::default()).await
    }

    pub(crate) async fn configured(config: OrchestratorConfig) -> Self {
        Self::with_catalog(config, Catalog::from_templates(templates())).await
    }

    pub(crate) async fn with_catalog(config: OrchestratorConfig, catalog: Catalog) -> Self {
        Self::listening("127.0.0.1:0", config, catalog).await
    }

    pub(crate) async fn listening(address: &str, config: OrchestratorConfig, catalog: Catalog) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.sqlite");
        let config = OrchestratorConfig { database_url: format!("sqlite:{}", path.display()), ..config };
        let (orchestrator, broker) = start(&config, catalog).await;
        let router = api::router(orchestrator.clone(), &config).unwrap();
        let limits = Limits { connections: config.max_connections, header_bytes: config.max_header_bytes };
        let serving =
            http::serve_within(limits, address, "orchestrator.listen_address", router).await.unwrap();
        let base_url = format!("http://{}", serving.address());
        let store = SqlitePool::connect(&config.database_url).await.unwrap();
        let http = HttpClient::builder(TokioExecutor::new()).build_http();
        Self { base_url, store, orchestrator, broker, http, _serving: serving, _directory: directory }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.base_url).unwrap()
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        self.send_to(&format!("{}{path}", self.base_url), method, headers, body).await
    }

    async fn send_to(
        &self,
        url: &str,
        method: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.http.request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Answer { status, headers, body }
    }

    /// The body of an answer that is still coming.
    pub(crate) async fn open(&self, path: &str) -> Incoming {
        let request = Request::builder().uri(format!("{}{path}", self.base_url));
        self.http.request(request.body(Full::default()).unwrap()).await.unwrap().into_body()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    /// Asks another server of the same orchestrator.
    pub(crate) async fn get_at(&self, url: &str) -> Answer {
        self.send_to(url, "GET", &[], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], "").await
    }

    /// Submits a task with this context, and returns its id.
    pub(crate) async fn submit(&self, context: Value) -> Uuid {
        let answer =
            self.post("/v1/tasks", &json!({"namespace": "shop", "name": "order", "context": context})).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        answer.json()["task_uuid"].as_str().unwrap().parse().unwrap()
    }

    /// Puts a result message on record for the task's step `validate`.
    pub(crate) async fn record(&self, task_uuid: &str, result: &str) {
        self.sql(
            "INSERT INTO transitions (task_uuid, step_uuid, to_state, result, at) \
             SELECT task_uuid, step_uuid, 'complete', ?, 1500 FROM steps WHERE task_uuid = ? AND name = 'validate'",
            &[result, task_uuid],
        )
        .await;
    }

    pub(crate) async fn sql(&self, sql: &'static str, values: &[&str]) {
        let mut query = sqlx::query(sql);
        for value in values {
            query = query.bind(value.to_string());
        }
        query.execute(&self.store).await.unwrap();
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Asserts that this is a refusal in the one shape there is, and returns its message.
    #[track_caller]
    pub(crate) fn refusal(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.headers["content-type"], "application/json", "{self:?}");
        assert!(self.headers.contains_key("x-request-id"), "{self:?}");
        let body = self.json();
        assert_eq!(body["error"]["code"], code, "{body}");
        body["error"]["message"].as_str().unwrap().to_owned()
    }
}

/// `shop/order` in three versions: validate -> reserve -> ship, and what undoes reserve. And two more.
pub(crate) fn templates() -> Vec<Template> {
    let order = |version| Template {
        input_schema: Some(json!({"type": "object"})),
        ..template("order", version, &[("validate", &[]), ("reserve", &["validate"]), ("ship", &["reserve"])])
    };
    let mut latest = order("1.10.0");
    latest.steps.push(StepTemplate { compensates: Some("reserve".to_owned()), ..step("release", &[]) });
    let wide = template("wide", "1.0.0", &[("a", &[]), ("b", &[]), ("join", &["a", "b"])]);
    vec![
        order("1.2.0"),
        latest,
        order("1.9.0"),
        wide,
        Template { namespace: "reports".to_owned(), ..template("daily", "2.0.0", &[("collect", &[])]) },
    ]
}

fn template(name: &str, version: &str, steps: &[(&str, &[&str])]) -> Template {
    Template {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        version: version.to_owned(),
        description: Some(format!("the {name}")),
        input_schema: None,
        identity_strategy: IdentityStrategy::default(),
        lifecycle: None,
        steps: steps.iter().map(|(name, dependencies)| step(name, dependencies)).collect(),
    }
}

fn step(name: &str, dependencies: &[&str]) -> StepTemplate {
    StepTemplate {
        name: name.to_owned(),
        description: None,
        kind: StepKind::Standard,
        handler: HandlerSpec { callable: format!("shop::{name}"), initialization: Json::empty_object() },
        dependencies: dependencies.iter().map(|name| (*name).to_owned()).collect(),
        compensates: None,
        max_attempts: 3,
        retry: RetryPolicy::default(),
        timeout: None,
    }
}
