//! What `docs/api.md` says of a task's needs holds.

use serde_json::json;

use crate::server::Server;

#[tokio::test]
async fn the_documented_precedence_is_the_one_that_is_answered() {
    let text = std::fs::read_to_string("docs/api.md").unwrap();
    let table = text.split_once("| a step | execution_status |").unwrap().1;
    let row = |line: &str| {
        let cells: Vec<_> = line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect();
        (cells[2].clone(), cells[3].clone())
    };
    let documented: Vec<_> =
        table.lines().skip(2).take_while(|line| line.starts_with('|')).map(row).collect();

    let server = Server::start().await;
    let task = server.post("/v1/tasks", &json!({"namespace": "shop", "name": "wide"})).await.json();
    let task_uuid = task["task_uuid"].as_str().unwrap();
    let mut answered = Vec::new();
    // Each has the reasons of all that follow, and one more.
    for (a, b, join) in [
        ("error", "pending", "enqueued"),
        ("complete", "pending", "enqueued"),
        ("complete", "complete", "waiting_for_retry"),
        ("complete", "complete", "resolved_manually"),
        ("cancelled", "complete", "pending"),
    ] {
        for (name, state) in [("a", a), ("b", b), ("join", join)] {
            let set = "UPDATE steps SET state = ? WHERE task_uuid = ? AND name = ?";
            server.sql(set, &[state, task_uuid, name]).await;
        }
        let task = server.get(&format!("/v1/tasks/{task_uuid}")).await.json();
        let text = |field: &str| task[field].as_str().unwrap().to_owned();
        answered.push((text("execution_status"), text("recommended_action")));
    }
    assert_eq!(answered, documented);
}
