//! What one server takes in, and what every answer says.

use std::time::Duration;

use tasker_worker_rust::config::{AuthConfig, OrchestratorConfig};
use tasker_worker_rust::ops::http;
use tasker_worker_rust::orchestrator::api;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::server::Server;

const REQUEST: &[u8] = b"GET /health HTTP/1.1\r\nhost: here\r\n\r\n";

async fn connection(server: &Server) -> TcpStream {
    TcpStream::connect(server.base_url.strip_prefix("http://").unwrap()).await.unwrap()
}

/// The start of the next answer.
async fn answer(connection: &mut TcpStream) -> String {
    let mut start = vec![0; 2_048];
    let read =
        tokio::time::timeout(Duration::from_secs(20), connection.read(&mut start)).await.unwrap().unwrap();
    String::from_utf8_lossy(&start[..read]).into_owned()
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let config = OrchestratorConfig { max_header_bytes: 8 << 10, ..OrchestratorConfig::default() };
    let server = Server::configured(config).await;
    for (length, status) in [(4 << 10, 200), (16 << 10, 431)] {
        let answer = server.send("GET", "/health", &[("x-long", &"x".repeat(length))], "").await;
        assert_eq!(answer.status, status);
    }
}

#[tokio::test]
async fn a_connection_too_many_waits_until_one_has_ended() {
    let server =
        Server::configured(OrchestratorConfig { max_connections: 1, ..OrchestratorConfig::default() }).await;
    let mut first = connection(&server).await;
    first.write_all(REQUEST).await.unwrap();
    assert!(answer(&mut first).await.starts_with("HTTP/1.1 200"));
    let mut second = connection(&server).await;
    second.write_all(REQUEST).await.unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(300), second.readable()).await;
    assert!(waiting.is_err(), "the second is served beside the first");
    drop(first);
    assert!(answer(&mut second).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn requests_above_the_rate_are_refused_and_probes_are_not() {
    let config = OrchestratorConfig { max_requests_per_second: 1, ..OrchestratorConfig::default() };
    let server = Server::configured(config).await;
    let mut refused = None;
    for _ in 0..100 {
        let answer = server.get("/v1/templates").await;
        if answer.status == 429 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("a hundred requests in a second");
    assert!(refused.refusal(429, "RATE_LIMITED").contains("orchestrator.max_requests_per_second"));
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(server.get("/health/ready").await.status, 200);
}

/// Asks from an address of this machine until the rate is reached.
async fn exhaust(server: &Server, from: &str, header: &str) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(from.parse().unwrap()).unwrap();
    let address = server.base_url.strip_prefix("http://").unwrap().parse().unwrap();
    let mut connection = socket.connect(address).await.unwrap();
    let request = format!("GET /v1/templates HTTP/1.1\r\nhost: here\r\n{header}\r\n");
    let mut first = None;
    for _ in 0..100 {
        connection.write_all(request.as_bytes()).await.unwrap();
        let status = answer(&mut connection).await[9..12].to_owned();
        if status == "429" {
            return first.expect("the first request is answered");
        }
        first.get_or_insert(status);
    }
    panic!("a hundred requests in a second");
}

#[tokio::test]
async fn one_caller_above_the_rate_takes_nothing_from_another() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    let entry = |key: &str| format!("[[api_keys]]\nkey = {key:?}\npermissions = [\"templates:read\"]\n");
    std::fs::write(keys.path(), ["key-of-the-first-caller", "key-of-the-second-caller"].map(entry).concat())
        .unwrap();
    let auth = AuthConfig { api_keys_file: Some(keys.path().to_owned()), ..AuthConfig::default() };
    let config = OrchestratorConfig { max_requests_per_second: 1, auth, ..OrchestratorConfig::default() };
    let server = Server::configured(config).await;
    for (from, header, first) in [
        ("127.0.0.1:0", "", "401"),
        ("127.0.0.1:0", "x-api-key: key-of-the-first-caller\r\n", "200"),
        ("127.0.0.1:0", "x-api-key: key-of-the-second-caller\r\n", "200"),
        ("127.0.0.2:0", "x-api-key: a-key-that-is-guessed\r\n", "401"),
    ] {
        assert_eq!(exhaust(&server, from, header).await, first, "{from} {header}");
    }
}

#[tokio::test]
async fn every_answer_forbids_browsers_to_do_anything_with_it() {
    let server = Server::start().await;
    for path in ["/health", "/v1/tasks", "/v1/tasks/none", "/nowhere", "/metrics"] {
        let headers = server.get(path).await.headers;
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
            ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
        ] {
            assert_eq!(headers[name], value, "{path}");
        }
        assert!(!headers.contains_key("server"), "{path}: {headers:?}");
    }
}

#[tokio::test]
async fn metrics_and_details_can_have_an_address_of_their_own() {
    let config = OrchestratorConfig {
        health_address: Some("127.0.0.1:0".to_owned()),
        ..OrchestratorConfig::default()
    };
    let server = Server::configured(config.clone()).await;
    let router = api::operations_router(server.orchestrator.clone(), &config).unwrap();
    let apart = http::serve("127.0.0.1:0", "orchestrator.health_address", router).await.unwrap();
    let at = |path: &str| format!("http://{}{path}", apart.address());
    for (path, beside, own) in [
        ("/health", 200, 200),
        ("/health/ready", 200, 200),
        ("/health/detailed", 404, 200),
        ("/metrics", 404, 200),
        ("/v1/tasks", 200, 404),
    ] {
        assert_eq!(server.get(path).await.status, beside, "{path} beside the API");
        assert_eq!(server.get_at(&at(path)).await.status, own, "{path} at its own address");
    }
}
