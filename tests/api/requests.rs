//! What holds for every request: ids, limits, and one shape for every refusal.

use serde_json::json;
use tasker_worker_rust::config::OrchestratorConfig;
use tasker_worker_rust::ops::metrics::METRICS;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::server::Server;

#[tokio::test]
async fn an_unknown_address_is_refused_like_everything_else() {
    let server = Server::start().await;
    let message = server.get("/v2/tasks").await.refusal(404, "NOT_FOUND");
    assert!(message.contains("/v2/tasks"), "{message}");
}

#[tokio::test]
async fn a_method_that_a_route_does_not_have_is_refused() {
    let server = Server::start().await;
    let message = server.delete("/v1/tasks").await.refusal(405, "METHOD_NOT_ALLOWED");
    assert!(message.contains("/v1/tasks") && message.contains("DELETE"), "{message}");
}

#[tokio::test]
async fn a_path_that_is_no_text_is_refused() {
    let server = Server::start().await;
    server.get("/v1/tasks/%FF").await.refusal(400, "BAD_REQUEST");
    server.get("/v1/templates/a/b/%FF").await.refusal(400, "BAD_REQUEST");
}

#[tokio::test]
async fn a_body_that_is_not_json_is_refused_wherever_it_breaks() {
    let server = Server::start().await;
    for body in ["", "{", "{\"name\": \"order\",}", "name=order", "\"order\" \"order\""] {
        let answer = server.send("POST", "/v1/tasks", &[], body).await;
        let message = answer.refusal(400, "JSON_ERROR");
        assert!(!message.is_empty(), "{body:?}");
    }
}

#[tokio::test]
async fn the_field_that_is_missing_or_of_the_wrong_type_is_named() {
    let server = Server::start().await;
    for (body, field) in [
        (json!({"namespace": "shop"}), "`name`"),
        (json!({"name": "order"}), "`namespace`"),
        (json!({"namespace": "shop", "name": 5}), "name: invalid type"),
        (json!({"namespace": "shop", "name": "order", "priority": "high"}), "priority: invalid type"),
        (json!({"namespace": "shop", "name": "order", "tags": ["a", 2]}), "tags[1]: invalid type"),
        (json!({"namespace": "shop", "name": "order", "correlation_id": "x"}), "correlation_id: "),
        (json!(["order"]), "invalid"),
    ] {
        let message = server.post("/v1/tasks", &body).await.refusal(422, "JSON_ERROR");
        assert!(message.contains(field), "{body}: {message}");
    }
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused_with_the_limit() {
    let server = Server::configured(OrchestratorConfig { max_body_bytes: 1_000, ..Default::default() }).await;
    let task = |size| json!({"namespace": "shop", "name": "order", "context": {"text": "x".repeat(size)}});
    let message = server.post("/v1/tasks", &task(1_000)).await.refusal(413, "PAYLOAD_TOO_LARGE");
    assert!(message.contains("1000 bytes") && message.contains("max_body_bytes"), "{message}");
    assert_eq!(server.post("/v1/tasks", &task(800)).await.status, 201);
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_answered_all_the_same() {
    let server =
        Server::configured(OrchestratorConfig { request_timeout_ms: 50, ..Default::default() }).await;
    // The body never comes.
    let request = b"POST /v1/tasks HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n";
    let mut connection = TcpStream::connect(server.base_url.strip_prefix("http://").unwrap()).await.unwrap();
    connection.write_all(request).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\"TIMEOUT\"") && answer.contains("request_timeout_ms"), "{answer}");
}

#[tokio::test]
async fn the_callers_request_id_comes_back_and_a_missing_or_unusable_one_is_made_up() {
    let server = Server::start().await;
    let ask = async |id: &str| {
        let answer = server.send("GET", "/health", &[("x-request-id", id)], "").await;
        answer.headers["x-request-id"].to_str().unwrap().to_owned()
    };
    assert_eq!(ask("order-17/retry:2").await, "order-17/retry:2");
    for unusable in ["", "two words", &"x".repeat(129)] {
        let id = ask(unusable).await;
        assert!(uuid::Uuid::try_parse(&id).is_ok(), "{unusable:?} became {id:?}");
    }
    let (one, other) = (server.get("/nothing").await, server.get("/nothing").await);
    assert_ne!(one.headers["x-request-id"], other.headers["x-request-id"]);
}

#[tokio::test]
async fn every_request_is_measured_under_its_route_and_never_under_its_path() {
    let server = Server::start().await;
    let count = |route: &str, status: &str| {
        METRICS.api_seconds.with_label_values(&["GET", route, status]).get_sample_count()
    };
    let task_uuid = server.submit(json!({})).await;
    server.get(&format!("/v1/tasks/{task_uuid}/workflow_steps/ship")).await;
    server.get("/some/secret/path").await;
    assert!(count("/v1/tasks/{task_uuid}/workflow_steps/{step_uuid}", "200") >= 1);
    assert!(count("unmatched", "404") >= 1);
    let exposed = METRICS.render();
    assert!(!exposed.contains("secret") && !exposed.contains(&task_uuid.to_string()));
}
