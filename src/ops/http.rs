//! The operations endpoint: health, status and metrics over HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::health::{Health, Identity, Readiness};
use super::metrics::{CONTENT_TYPE, METRICS};
use crate::Error;

/// How long requests may still take once the server has been asked to stop.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// How long a client may take to send a request's head: one that dawdles must not hold a connection for ever.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The pause after a connection that could not be accepted, as when the process has no file handle left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What every answer says to browsers, though none should be here: nothing in it is to be run, framed,
/// guessed at or kept.
const SECURITY_HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
];

/// What one server takes in.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections served at once; further ones wait.
    pub connections: usize,
    /// How long a request's head may be; a longer one is answered with 431.
    pub header_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 256, header_bytes: 16 << 10 }
    }
}

/// The routes `/health`, `/health/live`, `/health/ready`, `/health/detailed` and `/status`, with `/metrics`
/// if asked for. Only `/health/ready` ever answers anything but 200, with 503 and the reasons: the others
/// stay green while the broker is away, so that nobody restarts a worker for it.
pub fn router(health: Arc<dyn Health>, with_metrics: bool) -> Router {
    let router = Router::new()
        .route("/health", get(summary))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/health/detailed", get(detailed))
        .route("/status", get(async |State(health): State<Arc<dyn Health>>| Json(health.status())))
        .with_state(health);
    with_refusals(if with_metrics { router.merge(metrics_routes()) } else { router })
}

/// `/metrics` alone.
pub fn metrics_router() -> Router {
    with_refusals(metrics_routes())
}

/// Adds JSON answers for unknown routes (404) and wrong methods (405).
pub fn with_refusals(router: Router) -> Router {
    router.fallback(not_found).method_not_allowed_fallback(wrong_method)
}

/// The body of a refusal: `{"error":{"code":…,"message":…}}`.
pub fn error_body(code: &str, message: impl Into<String>) -> Value {
    json!({ "error": { "code": code, "message": message.into() } })
}

fn metrics_routes() -> Router {
    Router::new().route("/metrics", get(async || ([(header::CONTENT_TYPE, CONTENT_TYPE)], METRICS.render())))
}

async fn not_found(uri: Uri) -> Response {
    (StatusCode::NOT_FOUND, Json(error_body("NOT_FOUND", format!("there is no {}", uri.path()))))
        .into_response()
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    let message = format!("{} does not answer {method}", uri.path());
    (StatusCode::METHOD_NOT_ALLOWED, Json(error_body("METHOD_NOT_ALLOWED", message))).into_response()
}

async fn live() -> Json<Value> {
    Json(json!({ "status": "alive", "timestamp": Timestamp::now() }))
}

async fn summary(State(health): State<Arc<dyn Health>>) -> Json<Value> {
    let status = if health.readiness().ready { "healthy" } else { "degraded" };
    Json(json!({ "status": status, "timestamp": Timestamp::now(), "worker_id": health.identity().id }))
}

async fn ready(State(health): State<Arc<dyn Health>>) -> (StatusCode, Json<Value>) {
    let readiness = health.readiness();
    let (code, status) = match readiness.ready {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
    };
    (code, Json(report(status, &readiness, health.identity())))
}

async fn detailed(State(health): State<Arc<dyn Health>>) -> Json<Value> {
    let readiness = health.readiness();
    let status = if readiness.ready { "healthy" } else { "degraded" };
    Json(report(status, &readiness, health.identity()))
}

fn report(status: &str, readiness: &Readiness, identity: &Identity) -> Value {
    json!({
        "status": status,
        "timestamp": Timestamp::now(),
        "worker_id": identity.id,
        "checks": readiness.checks,
        "system_info": identity.system_info(),
    })
}

/// An HTTP server that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Serves `router` at `address`, within the limits for health and metrics. The port is ours, and answers, once
/// this returns.
///
/// # Errors
/// [`Error::Listen`], naming `setting`, when the address cannot be listened on.
pub async fn serve(address: &str, setting: &'static str, router: Router) -> Result<Server, Error> {
    serve_within(Limits::default(), address, setting, router).await
}

/// As [`serve`], within limits of the caller's.
///
/// # Errors
/// See [`serve`].
pub async fn serve_within(
    limits: Limits,
    address: &str,
    setting: &'static str,
    router: Router,
) -> Result<Server, Error> {
    let refused = |source| Error::Listen { address: address.to_owned(), setting, source };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let stop = CancellationToken::new();
    let task = tokio::spawn(accept(listener, router.layer(map_response(secured)), limits, stop.clone()));
    info!(%address, setting, "Serving HTTP");
    Ok(Server { address, stop, task })
}

/// Answers connections until stopped, then finishes the requests that run. Dropping it cuts them off.
async fn accept(listener: TcpListener, router: Router, limits: Limits, stop: CancellationToken) {
    let free = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let place = free.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            (place, accepted) = next => match accepted {
                Ok((stream, peer)) => {
                    let _ = stream.set_nodelay(true);
                    let router = TowerToHyperService::new(router.clone());
                    let service = service_fn(move |mut request: Request<Incoming>| {
                        request.extensions_mut().insert(ConnectInfo(peer));
                        router.call(request)
                    });
                    let connection = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEAD_TIMEOUT)
                        .max_buf_size(limits.header_bytes)
                        .serve_connection(TokioIo::new(stream), service);
                    let connection = graceful.watch(connection);
                    connections.spawn(async move {
                        // Failed connections are the clients' affair.
                        let _ = connection.await;
                        drop(place);
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
    drop(listener);
    graceful.shutdown().await;
}

async fn secured(mut response: Response) -> Response {
    for (name, value) in SECURITY_HEADERS {
        response.headers_mut().insert(name, value);
    }
    response
}

impl Server {
    /// Where the server listens: the port is the real one where the setting said 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the port, lets running requests finish for up to a second, and returns.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(STOP_GRACE, &mut self.task).await.is_err() {
            debug!(address = %self.address, "Cutting off HTTP requests that did not end in time");
            self.task.abort();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
