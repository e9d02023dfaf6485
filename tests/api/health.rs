//! What probes and operators ask.

use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::config::OrchestratorConfig;

use crate::orchestrator::until;
use crate::server::Server;

#[tokio::test]
async fn probes_are_answered_under_both_spellings() {
    let server = Server::start().await;
    for (path, status) in [
        ("/health", "healthy"),
        ("/health/live", "alive"),
        ("/live", "alive"),
        ("/health/ready", "ready"),
        ("/ready", "ready"),
        ("/health/detailed", "healthy"),
    ] {
        let answer = server.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert_eq!(answer.json()["status"], status, "{path}");
        assert!(answer.json()["timestamp"].is_string(), "{path}");
    }
}

#[tokio::test]
async fn readiness_shows_what_was_looked_at_and_what_is_running() {
    let server = Server::start().await;
    let answer = server.get("/health/ready").await.json();
    assert_eq!(answer["checks"]["web_database"]["status"], "healthy", "{answer}");
    assert!(answer["checks"]["web_database"]["duration_ms"].is_u64());
    assert_eq!(answer["info"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(answer["info"]["templates"], 5);
    assert_eq!(answer["info"]["operational_state"], "running");
    assert_eq!(answer["info"]["circuit_breaker_state"], "closed");
    assert_eq!(answer["info"]["environment"], "development");
}

#[tokio::test]
async fn without_its_store_the_orchestrator_is_alive_but_not_ready() {
    let server = Server::start().await;
    server.sql("ALTER TABLE tasks RENAME TO elsewhere", &[]).await;
    let answer = server.get("/ready").await;
    let message = answer.refusal(503, "SERVICE_UNAVAILABLE");
    assert_eq!(message, "not ready: web_database: it cannot be read; the orchestrator's log has the reason");
    assert_eq!(answer.json()["checks"]["web_database"]["status"], "unhealthy");
    assert_eq!(server.get("/live").await.status, 200);
    let detailed = server.get("/health/detailed").await;
    assert_eq!(detailed.status, 200);
    assert_eq!(detailed.json()["status"], "degraded");
}

#[tokio::test]
async fn without_its_broker_the_orchestrator_still_takes_tasks_and_says_so() {
    let server = Server::start().await;
    server.broker.set_down(Some("maintenance"));
    until("the orchestrator knows", || !server.orchestrator.health().is_ready()).await;
    assert_eq!(server.get("/ready").await.status, 200);
    server.submit(serde_json::json!({})).await;
    let detailed = server.get("/health/detailed").await.json();
    assert_eq!(detailed["status"], "degraded", "{detailed}");
    assert_eq!(detailed["checks"]["broker"]["status"], "degraded");
    let message = detailed["checks"]["broker"]["message"].as_str().unwrap();
    assert!(message.contains("maintenance"), "{message}");
}

#[tokio::test]
async fn a_template_file_that_broke_is_told_while_its_last_good_version_is_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("linear.yaml");
    std::fs::copy("config/workflows/linear_workflow_handler.yaml", &file).unwrap();
    let catalog = Catalog::load(directory.path(), None).unwrap();
    let server = Server::with_catalog(OrchestratorConfig::default(), catalog.clone()).await;
    assert_eq!(server.get("/health/detailed").await.json()["status"], "healthy");

    std::fs::write(&file, "steps: [").unwrap();
    catalog.reload();
    let detailed = server.get("/health/detailed").await.json();
    assert_eq!(detailed["status"], "degraded", "{detailed}");
    let check = &detailed["checks"]["templates"];
    assert!(check["message"].as_str().unwrap().contains("linear.yaml"), "{check}");
    assert_eq!(server.get("/ready").await.status, 200);
    assert_eq!(server.get("/v1/templates").await.json()["total_count"], 1);
}

#[tokio::test]
async fn metrics_are_valid_exposition_under_the_right_content_type() {
    let server = Server::start().await;
    server.get("/health").await;
    let answer = server.get("/metrics").await;
    assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    assert!(text.contains("# TYPE tasker_orchestrator_api_seconds histogram"), "{text}");
}
