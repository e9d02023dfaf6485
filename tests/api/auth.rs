//! Who may ask the API what.

use std::path::PathBuf;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Value, json};
use tasker_worker_rust::config::{AuthConfig, OrchestratorConfig};
use tasker_worker_rust::{Error, api::TaskRequest};
use tempfile::NamedTempFile;

use crate::openapi::{document, operations};
use crate::server::{Answer, Server};

/// The permission that each operation of the public API wants there.
const PUBLISHED: [(&str, &str, &str); 20] = [
    ("post", "/v1/tasks", "tasks:create"),
    ("get", "/v1/tasks", "tasks:list"),
    ("get", "/v1/tasks/{task_uuid}", "tasks:read"),
    ("delete", "/v1/tasks/{task_uuid}", "tasks:cancel"),
    ("get", "/v1/tasks/{task_uuid}/summary", "tasks:read"),
    ("get", "/v1/tasks/{task_uuid}/workflow_steps", "steps:read"),
    ("get", "/v1/tasks/{task_uuid}/workflow_steps/{step_uuid}", "steps:read"),
    ("patch", "/v1/tasks/{task_uuid}/workflow_steps/{step_uuid}", "steps:resolve"),
    ("get", "/v1/tasks/{task_uuid}/workflow_steps/{step_uuid}/audit", "steps:read"),
    ("get", "/v1/templates", "templates:read"),
    ("get", "/v1/templates/{namespace}/{name}/{version}", "templates:read"),
    ("get", "/v1/analytics/performance", "system:analytics_read"),
    ("get", "/v1/analytics/bottlenecks", "system:analytics_read"),
    ("get", "/v1/dlq", "dlq:read"),
    ("get", "/v1/dlq/task/{task_uuid}", "dlq:read"),
    ("patch", "/v1/dlq/entry/{dlq_entry_uuid}", "dlq:update"),
    ("get", "/v1/dlq/stats", "dlq:stats"),
    ("get", "/v1/dlq/investigation-queue", "dlq:read"),
    ("get", "/v1/dlq/staleness", "dlq:read"),
    ("get", "/v1/handlers", "system:handlers_read"),
];

/// What everybody may ask.
const PUBLIC: [&str; 8] = [
    "/health",
    "/health/live",
    "/live",
    "/health/ready",
    "/ready",
    "/health/detailed",
    "/metrics",
    "/api-docs/openapi.json",
];

const PERMISSIONS: [&str; 13] = [
    "tasks:create",
    "tasks:list",
    "tasks:read",
    "tasks:cancel",
    "steps:read",
    "steps:resolve",
    "templates:read",
    "templates:register",
    "system:analytics_read",
    "system:handlers_read",
    "dlq:read",
    "dlq:update",
    "dlq:stats",
];

fn only(permission: &str) -> String {
    format!("only-{permission}-0123456789abcdef")
}

fn all_but(permission: &str) -> String {
    format!("all-but-{permission}-0123456789abcdef")
}

/// For each permission a key that has it alone, and one that has all others.
fn keys() -> NamedTempFile {
    let mut text = String::new();
    for permission in PERMISSIONS {
        let others: Vec<&str> = PERMISSIONS.into_iter().filter(|other| *other != permission).collect();
        for (key, permissions) in [(only(permission), vec![permission]), (all_but(permission), others)] {
            text += &format!("[[api_keys]]\nkey = {key:?}\npermissions = {permissions:?}\n");
        }
    }
    text += "[[api_keys]]\nkey = \"everything-of-tasks\"\npermissions = [\"tasks:*\"]\ndescription = \"the shop\"\n";
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

pub(crate) async fn secured(auth: AuthConfig) -> Server {
    Server::configured(OrchestratorConfig { auth, ..OrchestratorConfig::default() }).await
}

async fn with_keys() -> Server {
    let file = keys();
    secured(AuthConfig { api_keys_file: Some(file.path().to_owned()), ..AuthConfig::default() }).await
}

async fn ask(server: &Server, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let path = path.replace("{task_uuid}", "9b2f1f52-6c3a-4f0e-8d2b-2f1f526c3a4f").replace(['{', '}'], "");
    server.send(&method.to_uppercase(), &path, headers, "").await
}

#[tokio::test]
async fn every_operation_wants_its_permission_and_no_other() {
    let server = with_keys().await;
    let document = document(&server).await;
    let operations = operations(&document);
    assert!(operations.len() >= 30);
    for (path, method) in &operations {
        let security = &document["paths"][path][method]["security"];
        let what = format!("{method} {path}");
        if PUBLIC.contains(&path.as_str()) {
            assert_eq!(*security, json!([{}]), "{what}");
            let answer = ask(&server, method, path, &[]).await;
            assert_eq!(answer.status, 200, "{what}: {answer:?}");
            continue;
        }
        let permission = security[0]["api_key"][0].as_str().unwrap_or_else(|| panic!("{what} says nothing"));
        assert_eq!(*security, json!([{ "api_key": [permission] }, { "token": [permission] }]), "{what}");

        let nothing = ask(&server, method, path, &[]).await;
        let advice = nothing.refusal(401, "UNAUTHORIZED");
        assert!(advice.contains("TASKER_API_KEY"), "{advice}");
        assert_eq!(nothing.headers["www-authenticate"], "Bearer", "{what}");
        assert_eq!(nothing.headers["x-auth-failure-reason"], "missing_credentials", "{what}");
        let unknown = ask(&server, method, path, &[("x-api-key", "only-tasks:create")]).await;
        unknown.refusal(401, "AUTHENTICATION_FAILED");
        assert_eq!(unknown.headers["x-auth-failure-reason"], "unknown_key", "{what}");
        let wrong = ask(&server, method, path, &[("x-api-key", &all_but(permission))]).await;
        assert!(wrong.refusal(403, "FORBIDDEN").contains(permission), "{what}");
        let right = ask(&server, method, path, &[("x-api-key", &only(permission))]).await;
        assert!(![401, 403].contains(&right.status.as_u16()), "{what}: {right:?}");
    }
    for (method, path, permission) in PUBLISHED {
        let wanted = &document["paths"][path][method]["security"][0]["api_key"][0];
        assert_eq!(wanted, permission, "{method} {path}");
    }
}

#[tokio::test]
async fn a_head_request_needs_what_the_get_needs_and_a_wildcard_is_enough() {
    let server = with_keys().await;
    for (key, status) in
        [("nobody's key at all", 401), (&all_but("tasks:list"), 403), ("everything-of-tasks", 200)]
    {
        let answer = ask(&server, "head", "/v1/tasks", &[("x-api-key", key)]).await;
        assert_eq!(answer.status, status, "{key}");
    }
    let other = ask(&server, "get", "/v1/dlq", &[("x-api-key", "everything-of-tasks")]).await;
    other.refusal(403, "FORBIDDEN");
}

#[tokio::test]
async fn without_files_of_keys_everybody_may() {
    let server = Server::start().await;
    assert_eq!(ask(&server, "get", "/v1/tasks", &[]).await.status, 200);
}

#[tokio::test]
async fn the_client_shows_its_key_and_says_what_to_do_without() {
    let server = with_keys().await;
    let request = TaskRequest::new("shop", "order", json!({}));
    let refused = server.client().submit(&request).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { status: 401, .. }), "{refused}");
    assert!(refused.to_string().contains("--api-key-file"), "{refused}");
    let key = only("tasks:create").into();
    let client = server.client().with_api_key(Some(&key)).unwrap();
    assert!(!format!("{client:?}").contains("0123456789"), "{client:?}");
    let task = client.submit(&request).await.unwrap().task_uuid();
    let refused = client.task(task).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { status: 403, .. }), "{refused}");
}

#[tokio::test]
async fn a_file_of_keys_that_cannot_be_used_is_an_error_at_the_start() {
    let server = Server::start().await;
    let refusal = |path: PathBuf| {
        let auth = AuthConfig { api_keys_file: Some(path), ..AuthConfig::default() };
        let config = OrchestratorConfig { auth, ..OrchestratorConfig::default() };
        tasker_worker_rust::orchestrator::api::router(server.orchestrator.clone(), &config).unwrap_err()
    };
    let missing = refusal("no/such/file".into());
    assert!(missing.to_string().contains("no/such/file") && missing.exit_code() == 64, "{missing}");
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[[api_keys]]\nkey = \"short\"\npermissions = []\n").unwrap();
    let short = refusal(file.path().to_owned()).to_string();
    assert!(short.contains("orchestrator.auth.api_keys_file") && short.contains("fewer than 16"), "{short}");
}

#[tokio::test]
async fn a_key_that_is_taken_out_of_the_file_opens_nothing_any_more() {
    let file = keys();
    let auth = AuthConfig { api_keys_file: Some(file.path().to_owned()), ..AuthConfig::default() };
    let server = secured(auth).await;
    let status = async |key: &str| server.send("GET", "/v1/tasks", &[("x-api-key", key)], "").await.status;
    let old = only("tasks:list");
    let new = "the-key-that-comes-instead";
    assert_eq!((status(&old).await, status(new).await), (StatusCode::OK, StatusCode::UNAUTHORIZED));
    let text = std::fs::read_to_string(file.path()).unwrap();
    std::fs::write(file.path(), text.replace(&old, new)).unwrap();
    let counts = async { while status(new).await != StatusCode::OK {} };
    tokio::time::timeout(Duration::from_secs(20), counts).await.expect("the new key counts");
    assert_eq!(status(&old).await, StatusCode::UNAUTHORIZED);
}

/// A document's operations may not lose their security on the way.
#[tokio::test]
async fn the_document_declares_both_ways_to_show_who_one_is() {
    let schemes: Value = document(&with_keys().await).await["components"]["securitySchemes"].take();
    assert_eq!(schemes["api_key"]["name"], "X-API-Key");
    assert_eq!(
        (&schemes["token"]["scheme"], &schemes["token"]["bearerFormat"]),
        (&json!("bearer"), &json!("JWT"))
    );
}
