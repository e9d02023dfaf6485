//! The client against a real orchestrator, and against none.

use std::time::Duration;

use serde_json::json;
use tasker_worker_rust::Error;
use tasker_worker_rust::api::{TaskQuery, TaskRequest};
use tasker_worker_rust::client::{Client, Submitted};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::server::Server;

fn order(customer: &str) -> TaskRequest {
    TaskRequest::new("shop", "order", json!({"customer": customer}))
}

async fn submitted(client: &Client, request: &TaskRequest) -> Uuid {
    match client.submit(request).await.unwrap() {
        Submitted::Created(task) => task.task_uuid,
        Submitted::Exists(task_uuid) => panic!("{task_uuid} exists already"),
    }
}

#[tokio::test]
async fn the_client_submits_and_looks_at_tasks() {
    let server = Server::start().await;
    let client = server.client();
    let Submitted::Created(created) = client.submit(&order("ann")).await.unwrap() else { panic!("exists") };
    assert_eq!(created.version, "1.10.0");
    assert_eq!(created.step_mapping.as_ref().unwrap().len(), created.step_count.unwrap());
    assert_eq!(created.context.get(), r#"{"customer":"ann"}"#);

    let task = client.task(created.task_uuid).await.unwrap();
    assert_eq!((task.task_uuid, task.steps.len()), (created.task_uuid, 3));
    let steps = client.steps(task.task_uuid).await.unwrap();
    assert_eq!(
        steps.iter().map(|step| step.name.as_str()).collect::<Vec<_>>(),
        ["validate", "reserve", "ship"]
    );
    assert_eq!(client.step(task.task_uuid, "ship").await.unwrap(), steps[2]);
    assert_eq!(steps[0].output(), None);

    let cancelled = client.cancel(task.task_uuid).await.unwrap();
    assert!(cancelled.is_finished());
}

#[tokio::test]
async fn the_client_reads_a_steps_output() {
    let server = Server::start().await;
    let client = server.client();
    let task_uuid = submitted(&client, &order("ann")).await;
    server
        .sql(
            "UPDATE steps SET state = 'complete', output = '{\"total\":1.10}' WHERE task_uuid = ? AND name = 'validate'",
            &[&task_uuid.to_string()],
        )
        .await;
    server.record(&task_uuid.to_string(), r#"{"success":true,"status":"completed"}"#).await;
    let step = client.step(task_uuid, "validate").await.unwrap();
    assert_eq!(step.output().unwrap().get(), r#"{"total":1.10}"#);
}

#[tokio::test]
async fn a_task_submitted_twice_is_told_by_its_first_id() {
    let server = Server::start().await;
    let client = server.client();
    let first = submitted(&client, &order("ann")).await;
    let again = client.submit(&order("ann")).await.unwrap();
    assert_eq!((again.task_uuid(), again), (first, Submitted::Exists(first)));
}

#[tokio::test]
async fn the_client_lists_with_filters_of_any_characters() {
    let server = Server::start().await;
    let client = server.client();
    let strange = TaskRequest { initiator: "a&b=c d/é?".to_owned(), ..order("ann") };
    let task_uuid = submitted(&client, &strange).await;
    submitted(&client, &order("bob")).await;
    let query = TaskQuery { initiator: Some(strange.initiator), per_page: Some(10), ..TaskQuery::default() };
    let list = client.tasks(&query).await.unwrap();
    assert_eq!(list.tasks.iter().map(|task| task.task_uuid).collect::<Vec<_>>(), [task_uuid]);
    assert_eq!((list.pagination.per_page, list.pagination.total_count), (10, 1));
    assert_eq!(client.tasks(&TaskQuery::default()).await.unwrap().tasks.len(), 2);
}

#[tokio::test]
async fn the_client_waits_until_the_task_is_finished_or_its_own_limit_is_reached() {
    let server = Server::start().await;
    let client = server.client();
    let task_uuid = submitted(&client, &order("ann")).await;
    let task = client.wait(task_uuid, Duration::from_millis(200)).await.unwrap();
    assert!(!task.is_finished());
    let (task, cancelled) =
        tokio::join!(client.wait(task_uuid, Duration::from_secs(600)), client.cancel(task_uuid));
    assert_eq!(
        (task.unwrap().status, cancelled.unwrap().status),
        ("cancelled".to_owned(), "cancelled".to_owned())
    );
}

#[tokio::test]
async fn the_client_waits_through_an_outage_and_no_longer_than_its_limit() {
    let server = Server::start().await;
    let task_uuid = submitted(&server.client(), &order("ann")).await;
    server.client().cancel(task_uuid).await.unwrap();
    let finished = server.get(&format!("/v1/tasks/{task_uuid}")).await.body;
    let finished = String::from_utf8(finished.to_vec()).unwrap();

    let away = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(&format!("http://{}", away.local_addr().unwrap())).unwrap();
    let answering = tokio::spawn(async move {
        // Nobody answers, then a proxy says so, then it is back.
        drop(away.accept().await.unwrap());
        for (status, body) in
            [("502 Bad Gateway", "<html>"), ("503 Service Unavailable", "{}"), ("200 OK", &finished)]
        {
            let (mut connection, _) = away.accept().await.unwrap();
            let _ = connection.read(&mut [0; 4_096]).await.unwrap();
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            connection.write_all((head + body).as_bytes()).await.unwrap();
        }
    });
    let task = client.wait(task_uuid, Duration::from_secs(60)).await.unwrap();
    assert_eq!(task.status, "cancelled");
    answering.await.unwrap();

    // Nobody listens there any more.
    let error = client.wait(task_uuid, Duration::from_millis(700)).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot reach the orchestrator"), "{error}");
    let refused = server.client().wait(Uuid::new_v4(), Duration::from_secs(600)).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { status: 404, .. }), "a refusal is no outage: {refused}");
}

#[tokio::test]
async fn the_client_reads_templates() {
    let server = Server::start().await;
    let client = server.client();
    assert_eq!(client.templates(None).await.unwrap().total_count, 5);
    assert_eq!(client.templates(Some("reports")).await.unwrap().templates[0].name, "daily");
    assert_eq!(client.template("shop", "order", "1.9.0").await.unwrap().steps.len(), 3);
}

#[tokio::test]
async fn a_refusal_keeps_the_servers_words() {
    let server = Server::start().await;
    let error = server.client().template("shop", "no/such", "1.0.0").await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("has no template \"no/such\"") && text.contains("NOT_FOUND"), "{text}");
    assert!(matches!(error, Error::Refused { status: 404, .. }));
    assert_eq!(error.exit_code(), 1);
}

#[tokio::test]
async fn an_orchestrator_that_does_not_run_is_said_to() {
    // Bound and dropped: nobody listens there any more.
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let client = Client::new(&format!("http://127.0.0.1:{port}/")).unwrap();
    let error = client.task(Uuid::new_v4()).await.unwrap_err();
    let text = error.to_string();
    let start = format!("cannot reach the orchestrator at http://127.0.0.1:{port}: ");
    assert!(text.starts_with(&start), "{text}");
    assert!(
        text.contains("refused") && text.contains("is it running? set --api-url or ORCHESTRATION_API_URL")
    );
    assert_eq!(error.exit_code(), 69);
}

#[tokio::test]
async fn a_server_that_is_no_orchestrator_is_found_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let pretend = async {
        let (mut connection, _) = listener.accept().await.unwrap();
        let _ = connection.read(&mut [0; 4096]).await.unwrap();
        connection.write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\n<ht>").await.unwrap();
    };
    let (answer, ()) = tokio::join!(client.templates(None), pretend);
    let text = answer.unwrap_err().to_string();
    assert!(
        text.contains("/v1/templates was answered with status 502, but not by an orchestrator"),
        "{text}"
    );
}

#[test]
fn an_address_that_cannot_work_is_refused_at_once() {
    for (address, problem) in [
        ("https://tasker.example", "asks for TLS"),
        ("localhost:8080", "does not start with http://"),
        ("ftp://tasker.example", "does not start with http://"),
        ("", "is no URL"),
        ("http://tasker.example/?x=1", "has a query"),
    ] {
        let error = Client::new(address).unwrap_err();
        assert!(error.to_string().contains(problem), "{address}: {error}");
        assert_eq!(error.exit_code(), 64);
    }
    let error = Client::new("http://ann:s3cret@tasker.example").unwrap_err().to_string();
    assert!(error.contains("password") && !error.contains("s3cret"), "{error}");
}

#[test]
fn an_address_may_have_a_path_and_a_slash_at_its_end() {
    let client = Client::new("http://tasker.example:8080/api/").unwrap();
    assert_eq!(client.base_url(), "http://tasker.example:8080/api");
}
