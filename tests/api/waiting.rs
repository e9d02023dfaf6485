//! Waiting for a task.

use std::time::{Duration, Instant};

use serde_json::json;
use tasker_worker_rust::api::is_finished;
use tasker_worker_rust::config::OrchestratorConfig;
use tasker_worker_rust::message::Json;

use crate::orchestrator::answer_next_step;
use crate::server::Server;

#[tokio::test]
async fn waiting_ends_after_the_asked_time_when_the_task_does_not() {
    let server = Server::start().await;
    let task_uuid = server.submit(json!({})).await;
    let started = Instant::now();
    let answer = server.get(&format!("/v1/tasks/{task_uuid}?wait=0.3")).await;
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert_eq!(answer.status, 200);
    assert!(!is_finished(answer.json()["status"].as_str().unwrap()));
}

#[tokio::test]
async fn waiting_ends_with_the_task() {
    let server = Server::start().await;
    let path = format!("/v1/tasks/{}", server.submit(json!({})).await);
    let started = Instant::now();
    let finish = async {
        // The wait was sent first; by the time these are answered it has begun.
        for _ in 0..5 {
            server.get("/health").await;
        }
        assert_eq!(server.delete(&path).await.status, 200);
    };
    let waiting = format!("{path}?wait=60");
    let (answer, ()) = tokio::join!(server.get(&waiting), finish);
    assert_eq!(answer.json()["status"], "cancelled");
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

#[tokio::test]
async fn waiting_ends_when_the_last_step_is_answered() {
    let server = Server::start().await;
    let task = server.post("/v1/tasks", &json!({"namespace": "reports", "name": "daily"})).await.json();
    let path = format!("/v1/tasks/{}?wait=60", task["task_uuid"].as_str().unwrap());
    let output = Json::from(json!({"rows": 3}));
    let (answer, ()) =
        tokio::join!(server.get(&path), answer_next_step(&server.broker, "reports", Ok(output)));
    let task = answer.json();
    assert_eq!(task["status"], "complete", "{task}");
    assert_eq!(task["execution_status"], "all_complete");
    assert_eq!(task["recommended_action"], "finalize_task");
    assert_eq!(task["completion_percentage"], 100.0);
    assert!(task["completed_at"].is_string());
}

#[tokio::test]
async fn a_wait_may_be_longer_than_other_requests_may_take() {
    let config = OrchestratorConfig { request_timeout_ms: 2_000, ..Default::default() };
    let server = Server::configured(config).await;
    let task_uuid = server.submit(json!({})).await;
    let answer = server.get(&format!("/v1/tasks/{task_uuid}?wait=2.5")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn a_wait_that_is_no_time_is_refused() {
    let server = Server::start().await;
    let task_uuid = server.submit(json!({})).await;
    for wait in ["-1", "nan", "soon"] {
        server.get(&format!("/v1/tasks/{task_uuid}?wait={wait}")).await.refusal(400, "BAD_REQUEST");
    }
}
