//! Templates that come over the API, and contexts that do not fit them.

use std::fs;
use std::net::TcpListener;

use serde_json::{Value, json};
use tasker_worker_rust::broker::memory::MemoryBroker;
use tasker_worker_rust::catalog::Catalog;
use tasker_worker_rust::config::OrchestratorConfig;
use tasker_worker_rust::template;
use tasker_worker_rust::{Config, Namespace, RustWorker, Step, StepResult};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::orchestrator::{start, until};
use crate::server::{Answer, Server};

const PARCELS: &str = "
name: parcels
namespace: post
version: 1.0.0
schema:
  type: object
  required: [weight]
  properties: {weight: {type: number}, stops: {type: array, items: {type: string}}}
step_templates:
  - {name: weigh, handler_class: Weigh, timeout_seconds: 30}
  - {name: carry, depends_on_step: weigh}
environments:
  development: {step_overrides: {weigh: {retry_limit: 5}}}
";

async fn register(server: &Server, text: &str) -> Answer {
    server.send("POST", "/v1/templates", &[], text.to_owned()).await
}

async fn submit(server: &Server, context: Value) -> Answer {
    server.post("/v1/tasks", &json!({"namespace": "post", "name": "parcels", "context": context})).await
}

#[tokio::test]
async fn a_registered_template_is_one_that_tasks_can_be_made_of_and_once_is_enough() {
    let server = Server::start().await;
    let answer = register(&server, PARCELS).await;
    assert_eq!(answer.status.as_u16(), 201, "{answer:?}");
    assert_eq!(answer.json()["steps"][0]["default_max_attempts"], 5, "the orchestrator's environment counts");
    assert_eq!(server.get("/v1/templates/post/parcels/1.0.0").await.json(), answer.json());
    assert_eq!(submit(&server, json!({"weight": 3})).await.status.as_u16(), 201);

    for same in [PARCELS.to_owned(), format!("# again\n{PARCELS}"), template::convert(PARCELS).unwrap().text]
    {
        assert_eq!(register(&server, &same).await.status.as_u16(), 200, "{same}");
    }
    let client = server.client();
    let template = template::parse(PARCELS, Some("development")).unwrap().template;
    assert!(!client.register(&template).await.unwrap());
}

#[tokio::test]
async fn other_content_under_one_version_is_refused_with_what_differs() {
    let server = Server::start().await;
    register(&server, PARCELS).await;
    let changed = PARCELS.replace("timeout_seconds: 30", "timeout_seconds: 45");
    let message = register(&server, &changed).await.refusal(409, "CONFLICT");
    assert!(
        message.contains("post/parcels 1.0.0 is there already with other content")
            && message.ends_with("What differs: steps.weigh.timeout_seconds: 30 became 45"),
        "{message}"
    );
    let next = changed.replace("1.0.0", "1.1.0");
    assert_eq!(register(&server, &next).await.status.as_u16(), 201);
    // From a file, as far as the orchestrator knows.
    let order = "{name: order, namespace: shop, version: 1.9.0, steps: [{name: other}]}";
    register(&server, order).await.refusal(409, "CONFLICT");
}

#[tokio::test]
async fn what_is_no_template_is_refused_with_every_mistake() {
    let server = Server::start().await;
    let wrong = PARCELS.replace("1.0.0", "one").replace("depends_on_step: weigh", "depends_on_step: wiegh");
    let message = register(&server, &wrong).await.refusal(422, "INVALID_TEMPLATE");
    assert!(message.contains("line 4: version") && message.contains("did you mean \"weigh\"?"), "{message}");
    server.send("POST", "/v1/templates", &[], &b"\xff\xfe"[..]).await.refusal(400, "BAD_REQUEST");
    assert_eq!(server.get("/v1/templates/post/parcels/1.0.0").await.status.as_u16(), 404);
}

#[tokio::test]
async fn of_many_that_register_at_once_one_content_wins() {
    let server = Server::start().await;
    let texts: Vec<String> =
        (1..=8).map(|n| PARCELS.replace("timeout_seconds: 30", &format!("timeout_seconds: {n}"))).collect();
    let answers = futures_util::future::join_all(texts.iter().map(|text| register(&server, text))).await;
    let mut codes: Vec<u16> = answers.iter().map(|answer| answer.status.as_u16()).collect();
    codes.sort_unstable();
    assert_eq!(codes, [201, 409, 409, 409, 409, 409, 409, 409]);
}

#[tokio::test]
async fn a_registered_template_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.sqlite");
    let config = OrchestratorConfig {
        database_url: format!("sqlite:{}", path.display()),
        ..OrchestratorConfig::default()
    };
    let none = || Catalog::from_templates(Vec::new());
    let (orchestrator, _broker) = start(&config, none()).await;
    let (registered, new) = orchestrator.register(PARCELS).await.unwrap();
    assert!(new);
    orchestrator.shutdown().await;

    let (orchestrator, _broker) = start(&config, none()).await;
    assert_eq!(orchestrator.catalog().get("post", "parcels", "1.0.0"), Some(registered));
    assert!(!orchestrator.register(PARCELS).await.unwrap().1);
    orchestrator.shutdown().await;
}

#[tokio::test]
async fn a_context_that_does_not_fit_is_refused_with_the_path_of_each_mistake() {
    let server = Server::start().await;
    register(&server, PARCELS).await;
    let message =
        submit(&server, json!({"weight": "heavy", "stops": ["a", 7]})).await.refusal(422, "INVALID_CONTEXT");
    assert!(
        message.starts_with("the context does not fit the template's input_schema: ")
            && message.contains("/weight: \"heavy\" is not of type")
            && message.contains("/stops/1: 7 is not of type"),
        "{message}"
    );
    let message = submit(&server, json!({})).await.refusal(422, "INVALID_CONTEXT");
    assert!(message.contains("\"weight\" is a required property"), "{message}");
    let long: Vec<usize> = (0..50).collect();
    let message = submit(&server, json!({"weight": 1, "stops": long})).await.refusal(422, "INVALID_CONTEXT");
    assert!(message.ends_with("; and 30 more"), "{message}");
    assert_eq!(submit(&server, json!({"weight": 1.5})).await.status.as_u16(), 201);
}

#[tokio::test]
async fn contexts_are_taken_as_they_are_where_the_setting_says_so() {
    let config = OrchestratorConfig { enforce_input_schema: false, ..OrchestratorConfig::default() };
    let server = Server::configured(config).await;
    register(&server, PARCELS).await;
    assert_eq!(submit(&server, json!({"weight": "heavy"})).await.status.as_u16(), 201);
}

async fn nothing(_: Step<Value>) -> StepResult<()> {
    Ok(())
}

/// What a worker says of its readiness; nothing while it does not listen.
async fn readiness(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET /health/ready HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

async fn says(address: &str, what: &str, wanted: impl Fn(&str) -> bool) {
    let asked = async {
        while !readiness(address).await.is_some_and(|answer| wanted(&answer)) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let timely = tokio::time::timeout(std::time::Duration::from_secs(20), asked).await;
    assert!(timely.is_ok(), "not in time: {what}: {:?}", readiness(address).await);
}

#[tokio::test]
async fn a_worker_registers_its_templates_as_soon_as_the_orchestrator_is_there_and_serves_meanwhile() {
    // Free ports, given back: nobody listens there until the test does.
    let [api, health] =
        [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("parcels.yaml");
    fs::write(&file, PARCELS).unwrap();
    let mut config = Config::default();
    config.worker.health_address.clone_from(&health);
    config.worker.metrics.prometheus_enabled = false;
    config.worker.orchestration_api_url = Some(format!("http://{api}"));
    config.worker.task_templates.template_directory = directory.path().to_owned();
    let worker = RustWorker::new(config)
        .namespace(Namespace::new("post").step("weigh", nothing).step("carry", nothing))
        .broker(MemoryBroker::new().connect());
    let running = tokio::spawn(worker.run());

    says(&health, "the orchestrator is away, and the worker ready", |answer| {
        answer.contains("200 OK") && answer.contains("cannot reach the orchestrator")
    })
    .await;

    let server =
        Server::listening(&api, OrchestratorConfig::default(), Catalog::from_templates(Vec::new())).await;
    let catalog = server.orchestrator.catalog().clone();
    until("the template is registered", || catalog.get("post", "parcels", "1.0.0").is_some()).await;
    says(&health, "all is well", |answer| answer.contains("200 OK") && !answer.contains("registration"))
        .await;

    fs::write(&file, PARCELS.replace("timeout_seconds: 30", "timeout_seconds: 45")).unwrap();
    says(&health, "the change is refused", |answer| {
        answer.contains("200 OK") && answer.contains("steps.weigh.timeout_seconds: 30 became 45")
    })
    .await;
    fs::write(&file, PARCELS.replace("1.0.0", "1.1.0")).unwrap();
    until("the next version is registered", || catalog.get("post", "parcels", "1.1.0").is_some()).await;
    says(&health, "all is well again", |answer| !answer.contains("registration")).await;
    running.abort();
}
