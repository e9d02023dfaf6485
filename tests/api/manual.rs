//! What people do about steps, and what is on record about it.

use serde_json::{Value, json};
use tasker_worker_rust::message::{Json, StepExecutionError};
use uuid::Uuid;

use crate::orchestrator::answer_next_step;
use crate::server::{Answer, Server};

struct Failed {
    server: Server,
    task: String,
}

impl Failed {
    /// A task of three steps in a row, whose first has failed for good.
    async fn new() -> Self {
        let server = Server::start().await;
        let task = format!("/v1/tasks/{}", server.submit(json!({})).await);
        let failed = Self { server, task };
        failed.answer(Err(no_money())).await;
        assert_eq!(failed.ended().await["status"], "error");
        failed
    }

    async fn answer(&self, outcome: Result<Value, StepExecutionError>) {
        answer_next_step(&self.server.broker, "shop", outcome.map(Json::from)).await;
    }

    async fn ended(&self) -> Value {
        self.server.get(&format!("{}?wait=20", self.task)).await.json()
    }

    async fn act(&self, step: &str, action: Value) -> Answer {
        let path = format!("{}/workflow_steps/{step}", self.task);
        self.server.send("PATCH", &path, &[], action.to_string()).await
    }

    async fn audit(&self, step: &str) -> Vec<Value> {
        let answer = self.server.get(&format!("{}/workflow_steps/{step}/audit", self.task)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json().as_array().unwrap().clone()
    }
}

fn no_money() -> StepExecutionError {
    StepExecutionError {
        message: "no money".to_owned(),
        error_type: "PermanentError".to_owned(),
        code: None,
        retryable: false,
        details: Some(json!({"status_code": 402}).into()),
    }
}

#[tokio::test]
async fn a_failed_step_is_tried_again_and_its_task_goes_on() {
    let failed = Failed::new().await;
    let reset = json!({"action_type": "reset_for_retry", "reason": "the bank is back", "reset_by": "ann"});
    let answer = failed.act("validate", reset.clone()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(
        (&answer.json()["current_state"], &answer.json()["attempts"]),
        (&json!("enqueued"), &json!(0))
    );
    for step in 1..=3 {
        failed.answer(Ok(json!({"step": step}))).await;
    }
    assert_eq!(failed.ended().await["status"], "complete");
    // What has succeeded is not done again.
    let message = failed.act("validate", reset).await.refusal(400, "BAD_REQUEST");
    assert!(message.contains("\"validate\" is complete"), "{message}");

    let audit = failed.audit("validate").await;
    let states: Vec<_> = audit.iter().map(|change| change["to_state"].as_str().unwrap()).collect();
    assert_eq!(states, ["complete", "enqueued", "error", "enqueued"]);
    assert_eq!(audit[0]["success"], true);
    assert_eq!(audit[0]["result"]["result"], json!({"step": 1}));
    assert_eq!(audit[0]["execution_time_ms"], 12);
    assert_eq!(audit[0]["worker_id"], "w1");
    assert_eq!(audit[1]["reason"], "by ann: the bank is back");
    assert_eq!((&audit[1]["from_state"], &audit[1]["success"]), (&json!("error"), &json!(false)));
    assert_eq!(audit[2]["reason"], "no money");
    // Each attempt and each decision keeps its own result.
    let failed_with = &audit[2]["result"];
    assert_eq!(
        (&failed_with["error"]["message"], &failed_with["success"], &failed_with["result"]),
        (&json!("no money"), &json!(false), &json!(null))
    );
    assert_eq!((&audit[1]["result"], &audit[3]["result"]), (&json!(null), &json!(null)));
}

#[tokio::test]
async fn a_step_completed_by_hand_hands_its_result_on() {
    let failed = Failed::new().await;
    let action = json!({
        "action_type": "complete_manually", "reason": "paid in cash", "completed_by": "ann",
        "completion_data": {"result": {"total": 123456789012345678_u64}, "metadata": {"receipt": 7}},
    });
    let step = failed.act("validate", action).await.json();
    assert_eq!(step["current_state"], "complete", "{step}");
    assert_eq!(step["results"]["result"], json!({"total": 123456789012345678_u64}));
    assert_eq!(step["results"]["metadata"]["resolved_by"], "ann");
    assert_eq!(step["results"]["metadata"]["custom"], json!({"receipt": 7}));
    assert_eq!(step.get("error"), None);
    assert_eq!(failed.server.get(&failed.task).await.json()["status"], "steps_in_process");
    for _ in 0..2 {
        failed.answer(Ok(json!(null))).await;
    }
    let task = failed.ended().await;
    assert_eq!((&task["status"], &task["execution_status"]), (&json!("complete"), &json!("all_complete")));
    let audit = failed.audit("validate").await;
    assert_eq!(audit[0]["reason"], "by ann: paid in cash");
    assert_eq!(audit[0]["result"]["metadata"]["custom"], json!({"receipt": 7}));
    assert_eq!(audit[1]["result"]["error"]["message"], "no money", "{audit:?}");
}

#[tokio::test]
async fn steps_resolved_by_hand_one_after_the_other_end_their_task() {
    let failed = Failed::new().await;
    let step = failed
        .act("validate", json!({"action_type": "resolve_manually", "reason": "known", "resolved_by": "ann"}))
        .await
        .json();
    assert_eq!(step["current_state"], "resolved_manually", "{step}");
    // The next one is with a worker; the older form of the request is understood too.
    let older = json!({"resolution_data": {"reserved": true}, "resolved_by": "bob", "reason": "by phone"});
    let step = failed.act("reserve", older).await.json();
    assert_eq!(step["results"]["result"], json!({"reserved": true}), "{step}");
    let last = json!({"action_type": "resolve_manually", "reason": "sent", "resolved_by": "ann"});
    assert_eq!(failed.act("ship", last).await.status, 200);
    let task = failed.ended().await;
    assert_eq!((&task["status"], &task["completion_percentage"]), (&json!("complete"), &json!(100.0)));
    // The answer that comes later changes nothing.
    failed.answer(Err(no_money())).await;
    assert_eq!(failed.audit("ship").await[0]["to_state"], "resolved_manually");
}

#[tokio::test]
async fn an_action_that_makes_no_sense_is_refused_and_changes_nothing() {
    let failed = Failed::new().await;
    let before = failed.audit("validate").await;
    for (action, status, code, problem) in [
        (json!({"action_type": "reset_for_retry", "reason": "x"}), 400, "BAD_REQUEST", "reset_by is missing"),
        (
            json!({"action_type": "resolve_manually", "reason": "x", "resolved_by": " "}),
            400,
            "BAD_REQUEST",
            "resolved_by",
        ),
        (
            json!({"action_type": "complete_manually", "reason": "x", "completed_by": "ann"}),
            400,
            "BAD_REQUEST",
            "completion_data",
        ),
        (json!({"reason": "x"}), 400, "BAD_REQUEST", "action_type is missing"),
        (json!({"action_type": "explode", "reason": "x"}), 422, "JSON_ERROR", "action_type"),
        (json!({"action_type": "reset_for_retry", "reset_by": "ann"}), 422, "JSON_ERROR", "`reason`"),
    ] {
        let message = failed.act("validate", action.clone()).await.refusal(status, code);
        assert!(message.contains(problem), "{action}: {message}");
    }
    let reset = json!({"action_type": "reset_for_retry", "reason": "x", "reset_by": "ann"});
    let message = failed.act("ship", reset.clone()).await.refusal(400, "BAD_REQUEST");
    assert!(message.contains("\"ship\" is pending"), "{message}");
    failed.act("pack", reset.clone()).await.refusal(404, "NOT_FOUND");
    assert_eq!(failed.audit("validate").await, before);

    let nobody = format!("/v1/tasks/{}/workflow_steps/a", Uuid::new_v4());
    failed.server.send("PATCH", &nobody, &[], reset.to_string()).await.refusal(404, "NOT_FOUND");
    let other = failed.server.submit(json!({"other": true})).await;
    failed.server.delete(&format!("/v1/tasks/{other}")).await;
    let path = format!("/v1/tasks/{other}/workflow_steps/validate");
    failed.server.send("PATCH", &path, &[], reset.to_string()).await.refusal(400, "BAD_REQUEST");
}

#[tokio::test]
async fn what_was_undone_is_not_settled_any_more() {
    let server = Server::start().await;
    let task = format!("/v1/tasks/{}", server.submit(json!({})).await);
    let undone = Failed { server, task };
    for _ in 0..2 {
        undone.answer(Ok(json!(null))).await;
    }
    // `ship` fails, and `release` undoes `reserve`.
    undone.answer(Err(no_money())).await;
    undone.answer(Ok(json!(null))).await;
    assert_eq!(undone.ended().await["status"], "error");
    for action in [
        json!({"action_type": "reset_for_retry", "reason": "x", "reset_by": "ann"}),
        json!({"action_type": "resolve_manually", "reason": "x", "resolved_by": "ann"}),
    ] {
        undone.act("ship", action).await.refusal(400, "BAD_REQUEST");
    }
    assert_eq!(undone.ended().await["status"], "error");
}

#[tokio::test]
async fn the_summary_has_everything_but_the_texts() {
    let failed = Failed::new().await;
    let summary = failed.server.get(&format!("{}/summary", failed.task)).await.json();
    assert_eq!(summary["task"]["status"], "error", "{summary}");
    assert_eq!(summary["task"]["recommended_action"], "handle_failures");
    assert_eq!(summary["task"]["failed_steps"], 1);
    assert_eq!(summary["task"].get("context"), None);
    let reserve = json!({
        "name": "reserve", "step_type": "standard", "handler": "shop::reserve", "dependencies": ["validate"],
        "retryable": true, "max_attempts": 3,
    });
    assert_eq!(summary["template"]["steps"][1], reserve);
    let error = json!({"error_type": "PermanentError", "retryable": false, "status_code": 402});
    assert_eq!(summary["steps"][0]["error"], error);
    assert_eq!(summary["steps"][1]["current_state"], "pending");
    assert_eq!(summary["dlq"], json!({"in_dlq": false, "dlq_reason": null, "resolution_status": null}));
    assert_eq!(summary["links"]["steps"], format!("{}/workflow_steps", failed.task));
    failed.server.get(&format!("/v1/tasks/{}/summary", Uuid::new_v4())).await.refusal(404, "NOT_FOUND");
}
