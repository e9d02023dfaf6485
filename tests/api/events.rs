//! What happens to a task, as it happens.

use http_body_util::BodyExt;
use serde_json::{Value, json};
use tasker_worker_rust::message::Json;
use uuid::Uuid;

use crate::orchestrator::answer_next_step;
use crate::server::{Answer, Server};

/// The events of a stream: their ids, and what they are about.
fn events(answer: &Answer) -> Vec<(String, String)> {
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["content-type"]),
        (200, &"text/event-stream".parse().unwrap())
    );
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let field = |event: &str, name: &str| {
        event
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("no {name} in {event:?}"))
            .to_owned()
    };
    let read = |event: &str| {
        let data: Value = serde_json::from_str(&field(event, "data: ")).unwrap();
        let what = data["step_name"].as_str().unwrap_or("task").to_owned();
        assert_eq!(field(event, "event: "), if what == "task" { "task" } else { "step" });
        assert!(data["at"].is_string());
        (field(event, "id: "), format!("{what} {}", data["to_state"].as_str().unwrap()))
    };
    text.split("\n\n").filter(|event| event.contains("data:")).map(read).collect()
}

async fn daily(server: &Server) -> String {
    let task = server.post("/v1/tasks", &json!({"namespace": "reports", "name": "daily"})).await.json();
    format!("/v1/tasks/{}/events", task["task_uuid"].as_str().unwrap())
}

#[tokio::test]
async fn a_stream_tells_everything_that_happens_and_ends_with_the_task() {
    let server = Server::start().await;
    let path = daily(&server).await;
    let answered = answer_next_step(&server.broker, "reports", Ok(Json::null()));
    let (stream, ()) = tokio::join!(server.get(&path), answered);
    let all = events(&stream);
    let what: Vec<_> = all.iter().map(|(_, what)| what.as_str()).collect();
    assert_eq!(
        what,
        ["task pending", "collect enqueued", "task steps_in_process", "collect complete", "task complete"]
    );
    // From the last event seen, and of a task that has ended.
    let rest = server.send("GET", &path, &[("last-event-id", &all[2].0)], "").await;
    assert_eq!(events(&rest), all[3..]);
    assert_eq!(events(&server.get(&path).await), all);
}

#[tokio::test]
async fn streams_end_when_the_orchestrator_does() {
    let server = Server::start().await;
    let path = daily(&server).await;
    let mut stream = server.open(&path).await;
    let mut text = String::new();
    while text.matches("data:").count() < 3 {
        let frame = stream.frame().await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
    }
    server.orchestrator.shutdown().await;
    let rest = stream.collect().await.unwrap().to_bytes();
    assert!(rest.is_empty(), "{rest:?}");
}

#[tokio::test]
async fn there_are_no_events_of_no_task_nor_after_no_event() {
    let server = Server::start().await;
    server.get(&format!("/v1/tasks/{}/events", Uuid::new_v4())).await.refusal(404, "NOT_FOUND");
    let path = daily(&server).await;
    server.send("GET", &path, &[("last-event-id", "x")], "").await.refusal(400, "BAD_REQUEST");
}
