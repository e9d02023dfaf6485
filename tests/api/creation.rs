//! What callers can say about the tasks they ask for.

use futures_util::future::join_all;
use serde_json::{Value, json};
use tasker_worker_rust::api::TaskRequest;
use tasker_worker_rust::broker::topology::Names;
use tasker_worker_rust::broker::{Broker, Source};
use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::config::OrchestratorConfig;
use tasker_worker_rust::message::StepExecutionRequest;
use tasker_worker_rust::template::{IdentityStrategy, Template};

use crate::server::{Server, templates};

/// `keyed` and `unique`, named after their identity strategies, and the usual ones.
async fn server() -> Server {
    let of = |name: &str, identity_strategy| Template {
        name: name.to_owned(),
        identity_strategy,
        ..templates().into_iter().find(|template| template.name == "wide").unwrap()
    };
    let mut all = templates();
    all.push(of("keyed", IdentityStrategy::CallerProvided));
    all.push(of("unique", IdentityStrategy::AlwaysUnique));
    Server::with_catalog(OrchestratorConfig::default(), Catalog::from_templates(all)).await
}

#[tokio::test]
async fn the_template_says_what_makes_two_submissions_the_same_task() {
    let server = server().await;
    let submit = async |name: &str, context: u32, key: Option<&str>| {
        let request = json!({
            "namespace": "shop", "name": name, "context": {"n": context}, "idempotency_key": key,
        });
        server.post("/v1/tasks", &request).await
    };
    for (name, context, key, status) in [
        ("wide", 1, None, 201),
        ("wide", 1, None, 409),
        ("wide", 2, None, 201),
        ("wide", 1, Some("k"), 201),
        ("wide", 2, Some("k"), 409),
        ("keyed", 1, None, 400),
        ("keyed", 1, Some("k"), 201),
        ("keyed", 2, Some("k"), 409),
        ("keyed", 2, Some("l"), 201),
        ("unique", 1, None, 201),
        ("unique", 1, None, 201),
        ("unique", 1, Some("k"), 201),
        ("unique", 1, Some("k"), 409),
    ] {
        let answer = submit(name, context, key).await;
        assert_eq!(answer.status, status, "{name} {context} {key:?}: {answer:?}");
        assert_eq!(answer.json()["task_uuid"].is_string(), status != 400, "{answer:?}");
    }
    let message = submit("keyed", 1, None).await.refusal(400, "BAD_REQUEST");
    assert!(message.contains("give an idempotency_key"), "{message}");
}

#[tokio::test]
async fn steps_of_tasks_with_a_higher_priority_are_sent_first() {
    let server = server().await;
    // All of them wait for the writer before it runs again, so that it takes them together.
    let submit = |priority: Option<i32>| {
        let context = json!({"priority": priority});
        server.orchestrator.submit(TaskRequest { priority, ..TaskRequest::new("reports", "daily", context) })
    };
    let priorities = [Some(-100), None, Some(7), Some(100), Some(0), Some(7)];
    join_all(priorities.map(submit)).await;
    let mut requests = server.broker.subscribe(Source::Queue(Names::default().step_queue("reports")), 10);
    let mut sent = Vec::new();
    // The second of priority 7 has the same context, and is the first.
    for _ in 0..5 {
        let request = StepExecutionRequest::decode(&requests.recv().await.unwrap().body).unwrap();
        sent.push(request.task_data.parse::<Value>().unwrap()["priority"].as_i64());
    }
    assert_eq!(sent, [Some(100), Some(7), None, Some(0), Some(-100)]);
}

#[tokio::test]
async fn what_a_caller_says_of_a_task_is_kept() {
    let server = server().await;
    let (correlation_id, parent) =
        ("2b1e9d6c-60f8-4a4f-9a3a-0c8ab7e2a111", "2b1e9d6c-60f8-4a4f-9a3a-0c8ab7e2a222");
    for (requested_at, kept) in [
        (json!("2026-03-01T12:30:00"), json!("2026-03-01T12:30:00Z")),
        (json!("2026-03-01T12:30:00.250+01:00"), json!("2026-03-01T11:30:00.25Z")),
        (json!(null), json!(null)),
    ] {
        let request = json!({
            "namespace": "shop", "name": "wide", "version": "1.0.0", "context": {"at": requested_at},
            "initiator": "ann", "source_system": "web", "reason": "bought", "tags": ["vip", "eu"],
            "priority": -100, "correlation_id": correlation_id, "parent_correlation_id": parent,
            "requested_at": requested_at, "options": {"retain": true},
            // Older clients send these.
            "status": "PENDING", "complete": false, "bypass_steps": [], "claim_timeout_seconds": 60,
        });
        let answer = server.post("/v1/tasks", &request).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let task =
            server.get(&format!("/v1/tasks/{}", answer.json()["task_uuid"].as_str().unwrap())).await.json();
        for field in ["initiator", "source_system", "reason", "tags", "priority", "context"] {
            assert_eq!(task[field], request[field], "{field}");
        }
        assert_eq!(task["correlation_id"], correlation_id);
        assert_eq!(task["parent_correlation_id"], parent);
        assert_eq!(task["requested_at"], kept);
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_the_field() {
    let server = server().await;
    let request = json!({"namespace": "shop", "name": "wide", "requested_at": "yesterday"});
    let message = server.post("/v1/tasks", &request).await.refusal(422, "JSON_ERROR");
    assert!(message.contains("requested_at"), "{message}");
    for priority in [-101, 101] {
        let request = json!({"namespace": "shop", "name": "wide", "priority": priority});
        let message = server.post("/v1/tasks", &request).await.refusal(400, "BAD_REQUEST");
        assert!(message.contains(&format!("priority is {priority}; expected -100 to 100")), "{message}");
    }
}
