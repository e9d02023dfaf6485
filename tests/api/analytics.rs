//! How much is done, how fast, and what is slow; and that no list reads everything.

use serde_json::json;
use sqlx::Row;
use tasker_worker_rust::message::{Json, StepExecutionError};

use crate::orchestrator::answer_next_step;
use crate::server::Server;

#[tokio::test]
async fn what_was_done_is_counted_and_timed() {
    let server = Server::start().await;
    for n in 0..4 {
        let request = json!({"namespace": "reports", "name": "daily", "context": {"n": n}});
        let task = server.post("/v1/tasks", &request).await.json();
        let outcome = match n {
            0 => Err(StepExecutionError {
                message: "no".to_owned(),
                error_type: "PermanentError".to_owned(),
                code: None,
                retryable: false,
                details: None,
            }),
            _ => Ok(Json::null()),
        };
        answer_next_step(&server.broker, "reports", outcome).await;
        server.get(&format!("/v1/tasks/{}?wait=20", task["task_uuid"].as_str().unwrap())).await;
    }
    let old = server.submit(json!({})).await.to_string();
    server.sql("UPDATE tasks SET created_at = 0 WHERE task_uuid = ?", &[&old]).await;
    server.sql("UPDATE tasks SET completed_at = created_at + 3000 WHERE namespace = 'reports'", &[]).await;
    server
        .sql("UPDATE steps SET last_attempted_at = 1000, completed_at = 3500 WHERE name = 'collect'", &[])
        .await;

    let figures = server.get("/v1/analytics/performance?hours=2").await.json();
    for (field, value) in [
        ("total_tasks", json!(4)),
        ("active_tasks", json!(0)),
        ("completed_tasks", json!(3)),
        ("failed_tasks", json!(1)),
        ("completion_rate", json!(0.75)),
        ("error_rate", json!(0.25)),
        ("average_task_duration_seconds", json!(3.0)),
        ("average_step_duration_seconds", json!(2.5)),
        ("tasks_per_hour", json!(2.0)),
        ("steps_per_hour", json!(1.5)),
        ("system_health_score", json!(0.75)),
    ] {
        assert_eq!(figures[field], value, "{field}: {figures}");
    }

    let slow = server.get("/v1/analytics/bottlenecks?min_executions=4").await.json();
    assert_eq!(slow["slow_steps"].as_array().unwrap().len(), 1, "{slow}");
    let step = &slow["slow_steps"][0];
    assert_eq!((&step["step_name"], &step["execution_count"]), (&json!("collect"), &json!(4)));
    assert_eq!((&step["average_duration_seconds"], &step["error_rate"]), (&json!(2.5), &json!(0.25)));
    assert_eq!(slow["slow_tasks"][0]["average_step_count"], 1.0);
    let counts = &slow["resource_utilization"]["system_health"];
    assert_eq!(
        (&counts["complete_tasks"], &counts["total_tasks"], &counts["total_steps"]),
        (&json!(3), &json!(5), &json!(7))
    );
    assert_eq!(slow["recommendations"].as_array().unwrap().len(), 2, "{slow}");
    let none = server.get("/v1/analytics/bottlenecks?min_executions=5").await.json();
    assert_eq!((&none["slow_steps"], &none["slow_tasks"]), (&json!([]), &json!([])));
    server.get("/v1/analytics/performance?hours=0").await.refusal(400, "BAD_REQUEST");
}

#[tokio::test]
async fn lists_and_counts_are_read_from_indices() {
    let server = Server::start().await;
    for (what, index) in [
        ("namespace = 'shop'", "tasks_by_namespace"),
        ("state = 'error'", "tasks_by_state"),
        ("initiator = 'ann'", "tasks_by_initiator"),
        ("source_system = 'web'", "tasks_by_source"),
    ] {
        let list =
            format!("SELECT * FROM tasks WHERE {what} ORDER BY created_at DESC, task_uuid DESC LIMIT 25");
        let count = format!("SELECT COUNT(*) FROM tasks WHERE {what}");
        for (sql, using) in
            [(list, format!("USING INDEX {index}")), (count, format!("USING COVERING INDEX {index}"))]
        {
            let plan = sqlx::query(sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}")))
                .fetch_all(&server.store)
                .await
                .unwrap();
            let plan: Vec<String> = plan.iter().map(|row| row.get("detail")).collect();
            assert!(plan[0].starts_with("SEARCH tasks") && plan[0].contains(&using), "{sql}: {plan:?}");
        }
    }
}
