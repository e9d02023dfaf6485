//! Tasks somebody has to look at.

use serde_json::json;
use uuid::Uuid;

use crate::server::Server;

/// Puts a task into the queue, so many minutes ago.
async fn put(server: &Server, reason: &str, minutes: i64) -> (String, String) {
    let task = server.submit(json!({"reason": reason, "minutes": minutes})).await.to_string();
    let entry = Uuid::new_v4().to_string();
    let at = jiff::Timestamp::now().as_millisecond() - minutes * 60_000;
    server
        .sql(
            "INSERT INTO dlq_entries (dlq_entry_uuid, task_uuid, original_state, dlq_reason, dlq_timestamp, \
             task_snapshot, metadata, created_at, updated_at) \
             VALUES (?, ?, 'waiting_for_retry', ?, CAST(? AS INTEGER), '{\"steps\":[]}', '{\"limit\":5}', 0, 0)",
            &[&entry, &task, reason, &at.to_string()],
        )
        .await;
    (entry, task)
}

#[tokio::test]
async fn entries_are_listed_newest_first_and_by_what_was_decided() {
    let server = Server::start().await;
    let (old, task) = put(&server, "staleness_timeout", 30).await;
    let (new, _) = put(&server, "worker_unavailable", 5).await;
    let ids = async |query: &str| {
        let answer = server.get(&format!("/v1/dlq?{query}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let id = |entry: &serde_json::Value| entry["dlq_entry_uuid"].as_str().unwrap().to_owned();
        answer.json().as_array().unwrap().iter().map(id).collect::<Vec<_>>()
    };
    assert_eq!(ids("").await, [new.clone(), old.clone()]);
    assert_eq!(ids("limit=1").await, [new.as_str()]);
    assert_eq!(ids("limit=1&offset=1").await, [old.as_str()]);

    let entry = server.get(&format!("/v1/dlq/task/{task}")).await.json();
    assert_eq!(
        (&entry["dlq_reason"], &entry["resolution_status"]),
        (&json!("StalenessTimeout"), &json!("Pending"))
    );
    assert_eq!((&entry["task_snapshot"], &entry["metadata"]), (&json!({"steps": []}), &json!({"limit": 5})));
    assert_eq!(entry["original_state"], "waiting_for_retry");
    let summary = server.get(&format!("/v1/tasks/{task}/summary")).await.json();
    assert_eq!(
        summary["dlq"],
        json!({"in_dlq": true, "dlq_reason": "StalenessTimeout", "resolution_status": "Pending"})
    );

    let update =
        json!({"resolution_status": "manually_resolved", "resolution_notes": "mended", "resolved_by": "ann"});
    let answer = server.send("PATCH", &format!("/v1/dlq/entry/{old}"), &[], update.to_string()).await;
    assert_eq!(
        answer.json(),
        json!({"dlq_entry_uuid": old, "message": "the entry was updated", "success": true})
    );
    let entry = server.get(&format!("/v1/dlq/task/{task}")).await.json();
    assert_eq!(
        (&entry["resolution_status"], &entry["resolution_notes"]),
        (&json!("ManuallyResolved"), &json!("mended"))
    );
    assert!(entry["resolution_timestamp"].is_string() && entry["metadata"] == json!({"limit": 5}), "{entry}");
    for status in ["ManuallyResolved", "manually_resolved"] {
        assert_eq!(ids(&format!("resolution_status={status}")).await, [old.as_str()]);
    }
    assert_eq!(ids("resolution_status=Pending").await, [new]);
}

#[tokio::test]
async fn what_waits_longest_or_matters_most_is_first_in_the_queue_and_the_rest_is_counted() {
    let server = Server::start().await;
    let (old, _) = put(&server, "staleness_timeout", 30).await;
    let (new, task) = put(&server, "staleness_timeout", 5).await;
    let queue = async || server.get("/v1/dlq/investigation-queue").await.json();
    assert_eq!(queue().await[0]["dlq_entry_uuid"], old);
    server.sql("UPDATE tasks SET priority = 1 WHERE task_uuid = ?", &[&task]).await;
    let first = &queue().await[0];
    assert_eq!(first["dlq_entry_uuid"], new);
    assert_eq!((&first["namespace_name"], &first["task_name"]), (&json!("shop"), &json!("order")));
    assert!((5.0..6.0).contains(&first["minutes_in_dlq"].as_f64().unwrap()), "{first}");
    assert!((65.0..66.0).contains(&first["priority_score"].as_f64().unwrap()), "{first}");

    server
        .sql("UPDATE dlq_entries SET resolution_status = 'cancelled' WHERE dlq_entry_uuid = ?", &[&old])
        .await;
    assert_eq!(queue().await.as_array().unwrap().len(), 1);
    let stats = server.get("/v1/dlq/stats").await.json();
    assert_eq!(stats.as_array().unwrap().len(), 1);
    assert_eq!(
        (&stats[0]["total_entries"], &stats[0]["pending"], &stats[0]["cancelled"]),
        (&json!(2), &json!(1), &json!(1))
    );
    assert!(stats[0]["oldest_entry"].as_str() < stats[0]["newest_entry"].as_str());
}

#[tokio::test]
async fn tasks_are_listed_by_how_near_they_are_to_being_stale() {
    let server = Server::start().await;
    let now = jiff::Timestamp::now().as_millisecond();
    for (minutes, stale_in) in [(8, 2), (2, 8), (20, -10)] {
        let task = server.submit(json!({"minutes": minutes})).await.to_string();
        server
            .sql(
                "UPDATE tasks SET updated_at = CAST(? AS INTEGER), stale_at = CAST(? AS INTEGER) WHERE task_uuid = ?",
                &[&(now - minutes * 60_000 - 1_000).to_string(), &(now + stale_in * 60_000 - 1_000).to_string(), &task],
            )
            .await;
    }
    server.submit(json!({"limits": null})).await;
    let list = server.get("/v1/dlq/staleness").await.json();
    let health: Vec<_> = list.as_array().unwrap().iter().map(|task| task["health_status"].clone()).collect();
    assert_eq!(health, ["stale", "warning", "healthy"], "{list}");
    assert_eq!(list[0]["staleness_threshold_minutes"], 10.0);
    assert_eq!(server.get("/v1/dlq/staleness?limit=1").await.json().as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_not_there_or_makes_no_sense_is_refused() {
    let server = Server::start().await;
    let nobody = Uuid::new_v4();
    server.get(&format!("/v1/dlq/task/{nobody}")).await.refusal(404, "NOT_FOUND");
    server.send("PATCH", &format!("/v1/dlq/entry/{nobody}"), &[], "{}").await.refusal(404, "NOT_FOUND");
    server.send("PATCH", "/v1/dlq/entry/7", &[], "{}").await.refusal(400, "INVALID_UUID");
    for query in ["limit=0", "limit=1001", "offset=-1", "resolution_status=done"] {
        server.get(&format!("/v1/dlq?{query}")).await.refusal(400, "BAD_REQUEST");
    }
    let (entry, task) = put(&server, "manual_dlq", 1).await;
    let decide = async |status: &str| {
        let update = json!({"resolution_status": status}).to_string();
        server.send("PATCH", &format!("/v1/dlq/entry/{entry}"), &[], update).await
    };
    assert_eq!(decide("PermanentlyFailed").await.status, 200);
    server
        .sql(
            "INSERT INTO dlq_entries SELECT 'another', task_uuid, original_state, dlq_reason, dlq_timestamp, \
             'pending', NULL, NULL, NULL, task_snapshot, metadata, 0, 0 FROM dlq_entries WHERE task_uuid = ?",
            &[&task],
        )
        .await;
    decide("Pending").await.refusal(409, "CONFLICT");
}
