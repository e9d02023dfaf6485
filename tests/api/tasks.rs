//! Submitting, listing, looking at, waiting for and cancelling tasks.

use serde_json::{Value, json};
use tasker_worker_rust::api::{TASK_STATES, is_finished};
use tasker_worker_rust::orchestrator::task::TaskState;
use uuid::Uuid;

use crate::server::Server;

fn order(context: Value) -> Value {
    json!({"namespace": "shop", "name": "order", "version": "1.2.0", "context": context})
}

#[tokio::test]
async fn a_submitted_task_is_answered_with_its_steps_and_where_to_find_it() {
    let server = Server::start().await;
    let mut request = order(json!({"customer": 7}));
    let fields = json!({
        "initiator": "ann", "source_system": "web", "reason": "bought", "tags": ["vip"], "priority": 5,
        "correlation_id": "0198c1f2-0000-7000-8000-000000000001",
        "parent_correlation_id": "0198c1f2-0000-7000-8000-000000000002",
    });
    request.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let answer = server.post("/v1/tasks", &request).await;
    assert_eq!(answer.status, 201);
    let task = answer.json();
    assert_eq!(answer.headers["location"], format!("/v1/tasks/{}", task["task_uuid"].as_str().unwrap()));
    for (field, value) in request.as_object().unwrap() {
        assert_eq!(task[field], *value, "{field}");
    }
    assert_eq!(task["step_count"], 3);
    let mapping = task["step_mapping"].as_object().unwrap();
    for step in task["steps"].as_array().unwrap() {
        assert_eq!(mapping[step["name"].as_str().unwrap()], step["workflow_step_uuid"]);
    }
    assert_eq!(mapping.len(), 3);
    assert!(TASK_STATES.contains(&task["status"].as_str().unwrap()), "{task}");
}

#[tokio::test]
async fn name_and_namespace_are_enough_and_mean_the_latest_version() {
    let server = Server::start().await;
    let task = server.post("/v1/tasks", &json!({"namespace": "shop", "name": "order"})).await.json();
    assert_eq!(task["version"], "1.10.0", "{task}");
    assert_eq!(task["context"], json!({}));
    assert_eq!(task["initiator"], "unknown");
    assert_eq!(task["source_system"], "unknown");
    assert_eq!(task["reason"], "not given");
}

#[tokio::test]
async fn fields_of_older_clients_are_accepted_and_ignored() {
    let server = Server::start().await;
    let mut request = order(json!({}));
    let older = json!({
        "status": "PENDING", "complete": false, "bypass_steps": [], "claim_timeout_seconds": 300,
        "max_retries": 3, "timeout_seconds": 300, "requested_at": "2025-09-01T12:00:00",
    });
    request.as_object_mut().unwrap().extend(older.as_object().unwrap().clone());
    assert_eq!(server.post("/v1/tasks", &request).await.status, 201);
}

#[tokio::test]
async fn large_integers_in_a_context_come_back_as_they_were_sent() {
    let server = Server::start().await;
    let body =
        r#"{"namespace":"shop","name":"order","context":{"n":123456789012345678901234567890, "f":1.10}}"#;
    let answer = server.send("POST", "/v1/tasks", &[], body).await;
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    assert!(text.contains(r#"{"n":123456789012345678901234567890, "f":1.10}"#), "{text}");
}

#[tokio::test]
async fn the_same_task_twice_is_a_conflict_that_names_the_first() {
    let server = Server::start().await;
    let first = server.submit(json!({"customer": 7})).await;
    let again = json!({"namespace": "shop", "name": "order", "context": {"customer": 7}});
    let answer = server.post("/v1/tasks", &again).await;
    let message = answer.refusal(409, "CONFLICT");
    assert_eq!(answer.json()["task_uuid"], first.to_string());
    assert!(message.contains(&first.to_string()), "{message}");
}

#[tokio::test]
async fn an_unknown_template_is_refused_with_what_there_is() {
    let server = Server::start().await;
    for (namespace, name, version, expected) in [
        ("shop", "order", Some("3.0.0"), "has no version \"3.0.0\"; it has 1.2.0, 1.9.0, 1.10.0"),
        ("shop", "ordre", Some("1.2.0"), "did you mean \"order\"? There are order, wide"),
        ("shop", "zzz", None, "namespace \"shop\" has no template \"zzz\"; there are order, wide"),
        ("shops", "order", None, "there is no namespace \"shops\"; did you mean \"shop\"?"),
    ] {
        let request = json!({"namespace": namespace, "name": name, "version": version});
        let message = server.post("/v1/tasks", &request).await.refusal(404, "NOT_FOUND");
        assert!(message.contains(expected), "{message}");
    }
}

#[tokio::test]
async fn empty_names_are_refused_by_name() {
    let server = Server::start().await;
    for field in ["namespace", "name", "version"] {
        let mut request = order(json!({}));
        request[field] = json!("");
        let message = server.post("/v1/tasks", &request).await.refusal(400, "BAD_REQUEST");
        assert!(message.contains(&format!("{field} is empty")), "{message}");
    }
}

#[tokio::test]
async fn a_task_tells_how_far_it_is() {
    let server = Server::start().await;
    let task_uuid = server.submit(json!({})).await;
    let path = format!("/v1/tasks/{task_uuid}");
    let look = async || server.get(&path).await.json();

    let set = "UPDATE steps SET state = ?, attempts = 1 WHERE task_uuid = ? AND name = ?";
    let task_uuid = task_uuid.to_string();
    server.sql(set, &["complete", &task_uuid, "validate"]).await;
    server.sql(set, &["enqueued", &task_uuid, "reserve"]).await;
    let task = look().await;
    assert_eq!(task["total_steps"], 3, "{task}");
    assert_eq!(task["completed_steps"], 1);
    assert_eq!(task["in_progress_steps"], 1);
    assert_eq!(task["pending_steps"], 1);
    assert_eq!(task["ready_steps"], 0);
    assert_eq!(task["failed_steps"], 0);
    assert_eq!(task["execution_status"], "processing");
    assert_eq!(task["recommended_action"], "wait_for_completion");
    assert_eq!(task["completion_percentage"], 33.33);
    assert_eq!(task["health_status"], "healthy");

    server.sql(set, &["pending", &task_uuid, "reserve"]).await;
    let task = look().await;
    assert_eq!(task["ready_steps"], 1);
    assert_eq!(task["execution_status"], "has_ready_steps");
    assert_eq!(task["recommended_action"], "execute_ready_steps");

    server.sql(set, &["error", &task_uuid, "reserve"]).await;
    let task = look().await;
    assert_eq!(task["failed_steps"], 1);
    assert_eq!(task["execution_status"], "blocked_by_failures");
    assert_eq!(task["recommended_action"], "handle_failures");
    assert_eq!(task["health_status"], "blocked");
}

#[tokio::test]
async fn a_task_tells_how_ready_each_step_is() {
    let server = Server::start().await;
    let submitted = server.post("/v1/tasks", &json!({"namespace": "shop", "name": "wide"})).await.json();
    let task_uuid = submitted["task_uuid"].as_str().unwrap();
    server
        .sql(
            "UPDATE steps SET state = 'waiting_for_retry', attempts = 1, last_failure_at = 1000, \
             last_attempted_at = 900, next_retry_at = 3500 WHERE task_uuid = ? AND name = 'b'",
            &[task_uuid],
        )
        .await;
    server.sql("UPDATE steps SET state = 'complete' WHERE task_uuid = ? AND name = 'a'", &[task_uuid]).await;
    let task = server.get(&format!("/v1/tasks/{task_uuid}")).await.json();
    assert_eq!(task["health_status"], "recovering");
    let steps = task["steps"].as_array().unwrap();
    let names: Vec<_> = steps.iter().map(|step| step["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "b", "join"]);

    let waiting = &steps[1];
    assert_eq!(waiting["task_uuid"], task_uuid);
    assert_eq!(waiting["current_state"], "waiting_for_retry");
    assert_eq!((&waiting["attempts"], &waiting["max_attempts"]), (&json!(1), &json!(3)));
    assert_eq!(waiting["retry_eligible"], true);
    assert_eq!(waiting["last_attempted_at"], "1970-01-01T00:00:00.9Z");
    assert_eq!(waiting["last_failure_at"], "1970-01-01T00:00:01Z");
    assert_eq!(waiting["next_retry_at"], "1970-01-01T00:00:03.5Z");
    assert_eq!(waiting["backoff_request_seconds"], 3);
    assert_eq!(waiting["dependencies_satisfied"], true);
    assert_eq!(waiting["ready_for_execution"], false);

    let join = &steps[2];
    assert_eq!((&join["total_parents"], &join["completed_parents"]), (&json!(2), &json!(1)));
    assert_eq!(join["dependencies_satisfied"], false);
    assert_eq!(join["ready_for_execution"], false);

    let other = server
        .post("/v1/tasks", &json!({"namespace": "shop", "name": "wide", "context": {"other": true}}))
        .await
        .json();
    assert_eq!(other["steps"][0]["named_step_uuid"], steps[0]["named_step_uuid"]);
    assert_ne!(other["steps"][1]["named_step_uuid"], steps[0]["named_step_uuid"]);
}

#[tokio::test]
async fn a_finished_task_has_no_ready_steps() {
    let server = Server::start().await;
    let task_uuid = server.submit(json!({})).await.to_string();
    server.sql("UPDATE steps SET state = 'pending' WHERE task_uuid = ?", &[&task_uuid]).await;
    server.sql("UPDATE tasks SET state = 'error' WHERE task_uuid = ?", &[&task_uuid]).await;
    let task = server.get(&format!("/v1/tasks/{task_uuid}")).await.json();
    assert_eq!(task["ready_steps"], 0, "{task}");
    let list = server.get("/v1/tasks").await.json();
    assert_eq!(list["tasks"][0]["ready_steps"], 0, "{list}");
}

#[tokio::test]
async fn tasks_are_listed_newest_first_page_by_page() {
    let server = Server::start().await;
    let mut newest_first = Vec::new();
    for n in 0..5 {
        let task_uuid = server.submit(json!({"n": n})).await.to_string();
        let age = ["10", "20", "30", "40", "50"][n];
        server.sql("UPDATE tasks SET created_at = ? WHERE task_uuid = ?", &[age, &task_uuid]).await;
        newest_first.insert(0, task_uuid);
    }
    let mut seen = Vec::new();
    for page in 1..=4 {
        let list = server.get(&format!("/v1/tasks?page={page}&per_page=2")).await.json();
        let expected = json!({
            "page": page, "per_page": 2, "total_count": 5, "total_pages": 3,
            "has_next": page < 3, "has_previous": page > 1,
        });
        assert_eq!(list["pagination"], expected);
        let tasks = list["tasks"].as_array().unwrap();
        seen.extend(tasks.iter().map(|task| task["task_uuid"].as_str().unwrap().to_owned()));
    }
    assert_eq!(seen, newest_first);
}

#[tokio::test]
async fn a_list_of_more_tasks_than_are_counted_says_so_and_goes_on() {
    let server = Server::start().await;
    let task = server.submit(json!({})).await.to_string();
    let copies = async |count: i64| {
        server
            .sql(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < CAST(?2 AS INTEGER)) \
                 INSERT INTO tasks (task_uuid, template_id, namespace, name, version, state, identity, context, \
                 initiator, source_system, reason, tags, correlation_id, created_at, updated_at) \
                 SELECT printf('%08x-0000-4000-8000-%012x', ?2, i), template_id, 'many', name, version, 'complete', \
                 printf('%d/%d', ?2, i), context, initiator, source_system, reason, tags, correlation_id, i, i \
                 FROM tasks, n WHERE task_uuid = ?1",
                &[&task, &count.to_string()],
            )
            .await;
    };
    copies(100_000).await;
    let page =
        async |page: u32| server.get(&format!("/v1/tasks?namespace=many&per_page=100&page={page}")).await;
    let told = async |number: u32| {
        let list = page(number).await.json();
        let pages = &list["pagination"];
        let shown = list["tasks"].as_array().unwrap().len();
        (shown, pages["total_count"].clone(), pages["total_is_more"].clone(), pages["has_next"].clone())
    };
    assert_eq!(told(1_000).await, (100, json!(100_000), json!(null), json!(false)));
    copies(150).await;
    assert_eq!(told(1_000).await, (100, json!(100_000), json!(true), json!(true)));
    assert_eq!(told(1_001).await, (100, json!(100_000), json!(true), json!(true)));
    assert_eq!(told(1_002).await, (50, json!(100_000), json!(true), json!(false)));
}

#[tokio::test]
async fn listed_tasks_have_the_same_counts_as_single_ones() {
    let server = Server::start().await;
    let working = server.submit(json!({"n": 1})).await.to_string();
    let wide = server.post("/v1/tasks", &json!({"namespace": "shop", "name": "wide"})).await.json();
    let wide = wide["task_uuid"].as_str().unwrap();
    server.sql("UPDATE steps SET state = 'complete' WHERE task_uuid = ? AND position = 0", &[&working]).await;
    server.sql("UPDATE steps SET state = 'pending' WHERE task_uuid = ?", &[wide]).await;
    let list = server.get("/v1/tasks").await.json();
    assert_eq!(list["pagination"]["per_page"], 25);
    assert_eq!(list["tasks"].as_array().unwrap().len(), 2);
    for listed in list["tasks"].as_array().unwrap() {
        let mut single =
            server.get(&format!("/v1/tasks/{}", listed["task_uuid"].as_str().unwrap())).await.json();
        single["steps"] = json!([]);
        assert_eq!(*listed, single);
    }
}

#[tokio::test]
async fn a_list_shows_what_its_filters_let_through() {
    let server = Server::start().await;
    for (namespace, name, initiator, source_system) in [
        ("shop", "order", "ann", "web"),
        ("shop", "order", "bob", "app"),
        ("reports", "daily", "ann", "cron"),
    ] {
        let request = json!({
            "namespace": namespace, "name": name, "initiator": initiator, "source_system": source_system,
            "context": {"by": initiator},
        });
        assert_eq!(server.post("/v1/tasks", &request).await.status, 201);
    }
    server.sql("UPDATE tasks SET state = 'complete' WHERE initiator = 'bob'", &[]).await;
    server.sql("UPDATE tasks SET state = 'steps_in_process' WHERE initiator = 'ann'", &[]).await;
    for (filter, expected) in [
        ("", 3),
        ("namespace=shop", 2),
        ("namespace=nowhere", 0),
        ("initiator=ann", 2),
        ("initiator=ann&namespace=shop", 1),
        ("source_system=cron", 1),
        ("status=complete", 1),
        ("status=completed", 1),
        ("status=in_progress", 2),
        ("status=steps_in_process&namespace=reports", 1),
        ("status=cancelled", 0),
        ("initiator=x'%20OR%20'1'='1", 0),
    ] {
        let list = server.get(&format!("/v1/tasks?{filter}")).await.json();
        assert_eq!(list["pagination"]["total_count"], expected, "{filter}");
        assert_eq!(list["tasks"].as_array().unwrap().len(), expected, "{filter}");
    }
}

#[tokio::test]
async fn a_list_that_makes_no_sense_is_refused() {
    let server = Server::start().await;
    for (query, expected) in [
        ("page=0", "page is 0"),
        ("page=x", "page: invalid digit"),
        ("per_page=0", "per_page is 0; expected 1 to 100"),
        ("per_page=101", "per_page is 101; expected 1 to 100"),
        ("status=done", "expected one of pending, initializing"),
    ] {
        let message = server.get(&format!("/v1/tasks?{query}")).await.refusal(400, "BAD_REQUEST");
        assert!(message.contains(expected), "{message}");
    }
}

#[tokio::test]
async fn a_task_that_does_not_exist_is_not_found_and_a_bad_id_is_no_id() {
    let server = Server::start().await;
    let nobody = Uuid::new_v4();
    for path in [format!("/v1/tasks/{nobody}"), format!("/v1/tasks/{nobody}?wait=30")] {
        let message = server.get(&path).await.refusal(404, "NOT_FOUND");
        assert!(message.contains(&nobody.to_string()), "{message}");
    }
    server.delete(&format!("/v1/tasks/{nobody}")).await.refusal(404, "NOT_FOUND");
    for answer in [server.get("/v1/tasks/17").await, server.delete("/v1/tasks/17").await] {
        let message = answer.refusal(400, "INVALID_UUID");
        assert!(message.contains("\"17\""), "{message}");
    }
}

#[tokio::test]
async fn a_cancelled_task_is_answered_as_such_and_cannot_be_cancelled_again() {
    let server = Server::start().await;
    let path = format!("/v1/tasks/{}", server.submit(json!({})).await);
    let answer = server.delete(&path).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["status"], "cancelled");
    assert!(answer.json()["completed_at"].is_string());
    let message = server.delete(&path).await.refusal(400, "BAD_REQUEST");
    assert!(message.contains("its state is cancelled"), "{message}");
}

#[tokio::test]
async fn an_orchestrator_that_stops_sends_its_callers_away() {
    let server = Server::start().await;
    let path = format!("/v1/tasks/{}", server.submit(json!({})).await);
    let waiting = format!("{path}?wait=60");
    let (waited, ()) = tokio::join!(server.get(&waiting), server.orchestrator.shutdown());
    waited.refusal(503, "SERVICE_UNAVAILABLE");
    server.post("/v1/tasks", &order(json!({"late": true}))).await.refusal(503, "SERVICE_UNAVAILABLE");
    server.delete(&path).await.refusal(503, "SERVICE_UNAVAILABLE");
    server.get(&path).await.refusal(503, "SERVICE_UNAVAILABLE");
    server.get("/ready").await.refusal(503, "SERVICE_UNAVAILABLE");
    assert_eq!(server.get("/live").await.status, 200);
}

#[test]
fn the_api_knows_the_states_the_orchestrator_has() {
    let states: Vec<&str> = TaskState::ALL.iter().map(|state| state.as_str()).collect();
    assert_eq!(states, TASK_STATES);
    for state in TaskState::ALL {
        assert_eq!(is_finished(state.as_str()), state.is_terminal(), "{state}");
    }
}
