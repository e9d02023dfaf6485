//! The steps of a task and their results.

use std::time::Duration;

use serde_json::{Value, json};
use tasker_worker_rust::api::TaskRequest;
use tasker_worker_rust::client::Submitted;
use tasker_worker_rust::message::{Json, StepExecutionError};
use uuid::Uuid;

use crate::orchestrator::answer_next_step;
use crate::server::Server;

const RESULT: &str = r#"{"protocol_version":1,"success":true,"status":"completed","step_name":"validate",
    "metadata":{"worker_id":"w1"},"duration_ms":12,"data":null}"#;

async fn with_one_result() -> (Server, String) {
    let server = Server::start().await;
    let task_uuid = server.submit(json!({})).await.to_string();
    server
        .sql(
            "UPDATE steps SET state = 'complete', attempts = 1, completed_at = 1500, \
             output = '{\"total\": 123456789012345678901234567890}' \
             WHERE task_uuid = ? AND name = 'validate'",
            &[&task_uuid],
        )
        .await;
    server.record(&task_uuid, RESULT).await;
    (server, task_uuid)
}

#[tokio::test]
async fn steps_come_in_the_templates_order_with_whole_results() {
    let (server, task_uuid) = with_one_result().await;
    let answer = server.get(&format!("/v1/tasks/{task_uuid}/workflow_steps")).await;
    assert_eq!(answer.status, 200);
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    assert!(text.contains(r#""result":{"total": 123456789012345678901234567890}"#), "{text}");
    let steps = answer.json();
    let names: Vec<_> = steps.as_array().unwrap().iter().map(|step| step["name"].clone()).collect();
    assert_eq!(names, ["validate", "reserve", "ship"]);

    let done = &steps[0];
    assert_eq!(done["current_state"], "complete");
    assert_eq!(done["completed_at"], "1970-01-01T00:00:01.5Z");
    assert_eq!(done["retry_eligible"], false);
    let results = &done["results"];
    assert_eq!(results["result"], results["data"]);
    assert_eq!(results["success"], true);
    assert_eq!(results["status"], "completed");
    assert_eq!(results["metadata"]["worker_id"], "w1");
    assert_eq!(steps[2]["results"], json!(null));
    assert_eq!(steps[2]["dependencies_satisfied"], false);
}

#[tokio::test]
async fn what_a_worker_answered_is_what_clients_read() {
    let server = Server::start().await;
    let task = server.client().submit(&TaskRequest::new("reports", "daily", json!({}))).await.unwrap();
    let Submitted::Created(task) = task else { panic!("exists") };
    let output = Json::from(json!({"rows": 3}));
    answer_next_step(&server.broker, "reports", Ok(output.clone())).await;
    server.client().wait(task.task_uuid, Duration::from_secs(20)).await.unwrap();

    let step = server.client().step(task.task_uuid, "collect").await.unwrap();
    assert_eq!((step.current_state.as_str(), step.attempts), ("complete", 1));
    assert_eq!(step.output(), Some(output));
    let results: Value = step.results.unwrap().parse().unwrap();
    assert_eq!(results["result"], json!({"rows": 3}));
    assert_eq!(results["data"], json!({"rows": 3}));
    assert_eq!(results["success"], true);
    assert_eq!(results["status"], "completed");
    assert_eq!(results["step_uuid"], step.step_uuid.to_string());
    assert_eq!(results["metadata"]["worker_id"], "w1");
    assert_eq!(results["duration_ms"], 12);
}

#[tokio::test]
async fn why_a_worker_gave_up_is_what_clients_read() {
    let server = Server::start().await;
    let task = server.client().submit(&TaskRequest::new("reports", "daily", json!({}))).await.unwrap();
    let Submitted::Created(task) = task else { panic!("exists") };
    let error = StepExecutionError {
        message: "no such table".to_owned(),
        error_type: "PermanentError".to_owned(),
        code: Some("NO_TABLE".to_owned()),
        retryable: false,
        details: None,
    };
    answer_next_step(&server.broker, "reports", Err(error.clone())).await;
    let task = server.client().wait(task.task_uuid, Duration::from_secs(20)).await.unwrap();
    assert_eq!((task.status.as_str(), task.health_status.as_str()), ("error", "blocked"));

    let step = server.client().step(task.task_uuid, "collect").await.unwrap();
    assert_eq!((step.current_state.as_str(), step.retry_eligible), ("error", false));
    assert_eq!(step.output(), None);
    let results: Value = step.results.unwrap().parse().unwrap();
    assert_eq!(results["success"], false);
    assert_eq!(results["error"]["code"], "NO_TABLE");
    assert_eq!(results["result"], json!(null));
    assert_eq!(step.error, Some(error));
}

#[tokio::test]
async fn a_step_is_found_by_its_id_and_by_its_name() {
    let (server, task_uuid) = with_one_result().await;
    let by_name = server.get(&format!("/v1/tasks/{task_uuid}/workflow_steps/validate")).await;
    assert_eq!(by_name.status, 200);
    let step_uuid = by_name.json()["step_uuid"].as_str().unwrap().to_owned();
    let by_id = server.get(&format!("/v1/tasks/{task_uuid}/workflow_steps/{step_uuid}")).await;
    assert_eq!(by_id.json(), by_name.json());
    let upper = step_uuid.to_uppercase();
    let by_upper = server.get(&format!("/v1/tasks/{task_uuid}/workflow_steps/{upper}")).await;
    assert_eq!(by_upper.json(), by_name.json());
}

#[tokio::test]
async fn a_failed_attempt_shows_its_error() {
    let (server, task_uuid) = with_one_result().await;
    let error = r#"{"message":"no stock","error_type":"RetryableError","code":"NO_STOCK","retryable":true}"#;
    server
        .sql(
            "UPDATE steps SET state = 'waiting_for_retry', attempts = 1, error = ? \
             WHERE task_uuid = ? AND name = 'reserve'",
            &[error, &task_uuid],
        )
        .await;
    let step = server.get(&format!("/v1/tasks/{task_uuid}/workflow_steps/reserve")).await.json();
    assert_eq!(step["error"]["message"], "no stock");
    assert_eq!(step["error"]["code"], "NO_STOCK");
    assert_eq!(step["results"], json!(null));
    assert_eq!(step["retry_eligible"], true);
}

#[tokio::test]
async fn a_step_that_does_not_exist_is_refused_with_those_that_do() {
    let server = Server::start().await;
    let task_uuid = server.submit(json!({})).await;
    for step in ["sihp".to_owned(), Uuid::new_v4().to_string()] {
        let path = format!("/v1/tasks/{task_uuid}/workflow_steps/{step}");
        let message = server.get(&path).await.refusal(404, "NOT_FOUND");
        assert!(message.contains(&step) && message.contains("validate, reserve, ship"), "{message}");
    }
}

#[tokio::test]
async fn the_steps_of_no_task_are_not_found() {
    let server = Server::start().await;
    let nobody = Uuid::new_v4();
    server.get(&format!("/v1/tasks/{nobody}/workflow_steps")).await.refusal(404, "NOT_FOUND");
    server.get(&format!("/v1/tasks/{nobody}/workflow_steps/ship")).await.refusal(404, "NOT_FOUND");
    server.get("/v1/tasks/x/workflow_steps").await.refusal(400, "INVALID_UUID");
    server.get("/v1/tasks/x/workflow_steps/ship").await.refusal(400, "INVALID_UUID");
}

#[tokio::test]
async fn a_store_that_fails_is_said_to_without_its_details() {
    let (server, task_uuid) = with_one_result().await;
    server.record(&task_uuid, "no JSON").await;
    let answer = server.get(&format!("/v1/tasks/{task_uuid}/workflow_steps")).await;
    let message = answer.refusal(500, "DATABASE_ERROR");
    assert!(message.contains("x-request-id") && !message.contains("expected"), "{message}");
}
