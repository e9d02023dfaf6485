//! The operations endpoint, asked over HTTP.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tasker_worker_rust::broker::{BrokerStatus, ConsumerState};
use tasker_worker_rust::config::{Config, MetricsConfig};
use tasker_worker_rust::ops::health::{ConsumerHealth, Identity};
use tasker_worker_rust::ops::http::{self, Server};
use tasker_worker_rust::ops::metrics::METRICS;
use tasker_worker_rust::ops::monitor;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A worker that serves `orders`, seen from outside, and what it watches.
struct Worker {
    server: Server,
    broker: watch::Sender<BrokerStatus>,
    orders: watch::Sender<ConsumerState>,
    stopping: CancellationToken,
}

impl Worker {
    async fn start(with_metrics: bool) -> Self {
        let (broker, broker_status) = watch::channel(BrokerStatus::Connected);
        let (orders, orders_state) = watch::channel(ConsumerState::Consuming);
        let stopping = CancellationToken::new();
        let identity = Identity {
            id: "worker-7".to_owned(),
            kind: "rust_native".to_owned(),
            environment: "test".to_owned(),
            namespaces: vec!["orders".to_owned()],
            started: Instant::now(),
        };
        let health = ConsumerHealth {
            identity,
            target_steps_per_second: 1_000,
            broker: broker_status,
            consumers: BTreeMap::from([("orders".to_owned(), orders_state)]),
            registration: watch::channel(None).1,
            stopping: stopping.clone(),
        };
        let router = http::router(Arc::new(health), with_metrics);
        let server = http::serve("127.0.0.1:0", "worker.health_address", router).await.expect("a free port");
        Self { server, broker, orders, stopping }
    }

    async fn get(&self, path: &str) -> Answer {
        ask(&self.server, Method::GET, path).await
    }
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    content_type: String,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        assert_eq!(self.content_type, "application/json");
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is UTF-8")
    }
}

async fn ask(server: &Server, method: Method, path: &str) -> Answer {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let request = Request::builder().method(method).uri(format!("http://{}{path}", server.address()));
    let request = request.body(Empty::new()).expect("the request is right");
    let response = client.request(request).await.expect("the server answers");
    let content_type = response.headers().get(header::CONTENT_TYPE);
    let content_type =
        content_type.map(|value| value.to_str().expect("ASCII").to_owned()).unwrap_or_default();
    let status = response.status();
    let body = response.into_body().collect().await.expect("the body ends").to_bytes();
    Answer { status, content_type, body }
}

#[tokio::test]
async fn a_working_worker_is_healthy_everywhere() {
    let worker = Worker::start(true).await;
    let summary = worker.get("/health").await;
    assert_eq!(summary.status, StatusCode::OK);
    assert_eq!(summary.json()["status"], "healthy");
    assert_eq!(summary.json()["worker_id"], "worker-7");
    assert!(summary.json()["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());

    assert_eq!(worker.get("/health/live").await.json()["status"], "alive");

    let ready = worker.get("/health/ready").await;
    assert_eq!(ready.status, StatusCode::OK);
    let ready = ready.json();
    assert_eq!(ready["status"], "ready");
    assert_eq!(ready["checks"]["orders"]["status"], "healthy");
    assert_eq!(ready["checks"]["broker"]["message"], "connected");
    assert_eq!(ready["system_info"]["environment"], "test");
    assert_eq!(ready["system_info"]["supported_namespaces"], json!(["orders"]));
    assert_eq!(worker.get("/health/detailed").await.json()["status"], "healthy");
}

#[tokio::test]
async fn a_worker_without_its_broker_is_alive_but_not_ready_and_says_why() {
    let worker = Worker::start(true).await;
    worker.broker.send_replace(BrokerStatus::Connecting("connection refused".to_owned()));
    worker.orders.send_replace(ConsumerState::Connecting("queue not found".to_owned()));

    assert_eq!(worker.get("/health/live").await.status, StatusCode::OK);
    let summary = worker.get("/health").await;
    assert_eq!((summary.status, &summary.json()["status"]), (StatusCode::OK, &json!("degraded")));
    let ready = worker.get("/health/ready").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ready.json()["status"], "not_ready");
    assert_eq!(ready.json()["checks"]["orders"]["status"], "unhealthy");
    assert_eq!(ready.json()["checks"]["orders"]["message"], "not consuming: queue not found");
    assert_eq!(ready.json()["checks"]["broker"]["message"], "not connected: connection refused");
    let detailed = worker.get("/health/detailed").await;
    assert_eq!((detailed.status, &detailed.json()["status"]), (StatusCode::OK, &json!("degraded")));

    worker.broker.send_replace(BrokerStatus::Connected);
    worker.orders.send_replace(ConsumerState::Consuming);
    assert_eq!(worker.get("/health/ready").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_blocked_broker_and_a_shutdown_make_a_worker_unready() {
    let worker = Worker::start(false).await;
    worker.broker.send_replace(BrokerStatus::Blocked("low on disk".to_owned()));
    let ready = worker.get("/health/ready").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ready.json()["checks"]["broker"]["message"], "the broker takes no messages: low on disk");

    worker.broker.send_replace(BrokerStatus::Connected);
    worker.stopping.cancel();
    let ready = worker.get("/health/ready").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ready.json()["checks"]["shutdown"]["message"], "stopping: taking no new work");
    assert_eq!(worker.get("/health/live").await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_status_counts_steps_by_outcome_and_namespace() {
    let worker = Worker::start(false).await;
    let before = worker.get("/status").await.json();
    METRICS.steps.with_label_values(&["orders", "pay", "completed"]).inc_by(3);
    METRICS.steps.with_label_values(&["orders", "ship", "completed"]).inc();
    METRICS.steps.with_label_values(&["orders", "pay", "handed_back"]).inc();
    METRICS.in_flight.with_label_values(&["orders"]).set(2);
    let status = worker.get("/status").await.json();
    let count = |status: &Value, outcome: &str| status["steps"][outcome].as_u64().unwrap_or(0);
    assert_eq!(count(&status, "completed") - count(&before, "completed"), 4);
    assert_eq!(count(&status, "handed_back") - count(&before, "handed_back"), 1);
    assert_eq!(status["namespaces"]["orders"], json!({"state": "consuming", "reason": null, "in_flight": 2}));
    assert_eq!(status["in_flight"], 2);
    assert_eq!(status["target_steps_per_second"], 1_000);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert!(status["uptime_seconds"].is_u64() && status["steps_per_second"].is_i64());
    METRICS.in_flight.with_label_values(&["orders"]).set(0);
}

#[tokio::test]
async fn metrics_have_their_content_type_and_can_be_left_out() {
    let worker = Worker::start(true).await;
    let metrics = worker.get("/metrics").await;
    assert_eq!(metrics.status, StatusCode::OK);
    assert_eq!(metrics.content_type, "text/plain; version=0.0.4; charset=utf-8");
    assert!(metrics.text().contains("# TYPE tasker_broker_blocked gauge"), "{}", metrics.text());

    assert_eq!(Worker::start(false).await.get("/metrics").await.status, StatusCode::NOT_FOUND);

    let alone = http::serve("127.0.0.1:0", "worker.metrics.prometheus_port", http::metrics_router()).await;
    let alone = alone.expect("a free port");
    assert_eq!(ask(&alone, Method::GET, "/metrics").await.status, StatusCode::OK);
    assert_eq!(ask(&alone, Method::GET, "/health").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn unknown_routes_and_wrong_methods_are_refused_in_json() {
    let worker = Worker::start(true).await;
    let unknown = worker.get("/healthz").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert_eq!(unknown.json(), json!({"error": {"code": "NOT_FOUND", "message": "there is no /healthz"}}));
    for path in ["/health", "/metrics"] {
        let wrong = ask(&worker.server, Method::POST, path).await;
        assert_eq!(wrong.status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(wrong.json()["error"]["message"], format!("{path} does not answer POST"));
    }
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_names_the_setting() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let error = http::serve(&address, "worker.health_address", http::metrics_router()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot listen on {address}: Address already in use (os error 98); \
             set worker.health_address to a free port"
        )
    );
    assert_eq!(error.exit_code(), 69);
}

#[tokio::test]
async fn a_stopped_server_gives_its_port_back() {
    let worker = Worker::start(true).await;
    assert_eq!(worker.get("/health").await.status, StatusCode::OK);
    let address = worker.server.address();
    worker.server.stop().await;
    TcpListener::bind(address).await.expect("the port is free again");
}

#[tokio::test]
async fn stopping_does_not_wait_for_clients_that_say_nothing() {
    let worker = Worker::start(true).await;
    let mut silent = tokio::net::TcpStream::connect(worker.server.address()).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut silent, b"GET /health HTTP/1.1\r\n").await.unwrap();
    assert_eq!(worker.get("/health/live").await.status, StatusCode::OK);
    let stopped = tokio::time::timeout(Duration::from_secs(10), worker.server.stop()).await;
    assert!(stopped.is_ok(), "the server waits for half a request");
}

#[tokio::test(start_paused = true)]
async fn the_monitor_measures_memory_and_the_rate_until_it_is_stopped() {
    let stop = CancellationToken::new();
    let monitor = tokio::spawn(monitor::run(MetricsConfig::default(), stop.clone()));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while METRICS.steps_per_second.get() == 0 || METRICS.resident_memory_bytes.get() == 0 {
        assert!(tokio::time::Instant::now() < deadline, "a minute of measuring shows nothing");
        METRICS.steps.with_label_values(&["monitored", "a", "retried"]).inc_by(100);
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert!(METRICS.resident_memory_bytes.get() > 1 << 20);
    stop.cancel();
    monitor.await.expect("the monitor ends");
}

#[tokio::test]
async fn what_is_said_of_a_worker_once_is_exposed() {
    let config = Config::default();
    monitor::describe(&config.worker);
    let text = METRICS.render();
    assert!(text.contains("tasker_worker_target_steps_per_second 1000"), "{text}");
    assert!(text.contains("tasker_worker_info{version=\"0.1.0\",worker_type=\"rust_native\"} 1"), "{text}");
}
