//! The OpenAPI document, and whether the server keeps what it promises.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use serde_json::{Value, json};
use tasker_worker_rust::message::Json;

use crate::orchestrator::answer_next_step;
use crate::server::Server;

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// What the checks mean by conforming: the document is right about statuses, types and bodies, and nothing breaks.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance";

/// What is there to be found; tasks are found in the list.
const IDENTIFIERS: &str = r#"
[parameters]
"path.namespace" = "shop"
"path.name" = "order"
"path.version" = "1.10.0"
"path.step_uuid" = "validate"
"#;

pub(crate) async fn document(server: &Server) -> Value {
    let answer = server.get("/api-docs/openapi.json").await;
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["content-type"]),
        (200, &"application/json".parse().unwrap())
    );
    answer.json()
}

pub(crate) fn operations(document: &Value) -> Vec<(String, &'static str)> {
    let paths = document["paths"].as_object().unwrap().iter();
    let of = |(path, item): (&String, &Value)| {
        let has = |method: &&&str| item.get(**method).is_some();
        METHODS.iter().filter(has).map(|method| (path.clone(), *method)).collect::<Vec<_>>()
    };
    paths.flat_map(of).collect()
}

/// Runs a Python that has what checks OpenAPI documents, while the server goes on.
async fn python(arguments: &[&str]) -> Output {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let run = move || {
        let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/python-venv");
        let python = Command::new(venv).output().unwrap();
        assert!(python.status.success(), "{python:?}");
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("schemathesis.toml"), IDENTIFIERS).unwrap();
        Command::new(String::from_utf8(python.stdout).unwrap().trim())
            .args(arguments)
            .current_dir(directory.path())
            .output()
            .unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[tokio::test]
async fn the_document_is_valid_openapi_3_1() {
    let server = Server::start().await;
    let mut document = document(&server).await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{document}");
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    std::fs::write(path, document.to_string()).unwrap();
    let checked = python(&["-m", "openapi_spec_validator", path]).await;
    assert!(checked.status.success(), "{checked:?}");
    // The check can fail.
    document["paths"]["/health"]["get"]["responses"] = json!(7);
    std::fs::write(path, document.to_string()).unwrap();
    assert!(!python(&["-m", "openapi_spec_validator", path]).await.status.success());
}

#[tokio::test]
async fn every_route_is_in_the_document_and_back() {
    let server = Server::start().await;
    let document = document(&server).await;
    let documented = operations(&document);
    assert!(documented.len() >= 30, "{documented:?}");
    for (path, _) in &documented {
        let concrete = path.replace(['{', '}'], "");
        for method in METHODS {
            let answer = server.send(&method.to_uppercase(), &concrete, &[], "").await;
            let expected = documented.contains(&(path.clone(), method));
            assert_eq!(answer.status != 405, expected, "{method} {path}: {answer:?}");
            let body = String::from_utf8_lossy(&answer.body);
            assert!(!body.contains("there is nothing at"), "{method} {path}: {body}");
        }
    }
    // A route gets into the router only together with its part of the document.
    let mut routes = 0;
    for file in std::fs::read_dir("src/orchestrator/api").unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!text.contains(".route(") && !text.contains(".nest(") && !text.contains("route_service("));
        routes += text.matches("#[utoipa::path(").count();
    }
    // Two of them have a second path.
    assert_eq!(documented.len(), routes + 2);
}

#[tokio::test]
async fn operations_have_ids_of_their_own_and_refusals_of_one_shape() {
    let server = Server::start().await;
    let document = document(&server).await;
    let mut ids: Vec<&str> = Vec::new();
    for (path, method) in operations(&document) {
        let operation = &document["paths"][&path][method];
        ids.push(operation["operationId"].as_str().unwrap());
        let refused = &operation["responses"]["default"]["content"]["application/json"]["schema"]["$ref"];
        assert_eq!(refused, "#/components/schemas/ErrorResponse", "{method} {path}");
    }
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count);
}

#[tokio::test]
async fn whatever_is_asked_the_answer_is_one_the_document_describes() {
    let server = Server::start().await;
    let broker = Arc::clone(&server.broker);
    // Every task ends by itself, so that no stream of events goes on for ever.
    let working = tokio::spawn(async move {
        loop {
            answer_next_step(&broker, "shop", Ok(Json::from(json!({"done": true})))).await;
        }
    });
    for n in 0..3 {
        let task = server.submit(json!({"n": n})).await;
        assert_eq!(server.get(&format!("/v1/tasks/{task}?wait=20")).await.json()["status"], "complete");
        let entry = uuid::Uuid::new_v4().to_string();
        server
            .sql(
                "INSERT INTO dlq_entries (dlq_entry_uuid, task_uuid, original_state, dlq_reason, dlq_timestamp, \
                 task_snapshot, created_at, updated_at) VALUES (?, ?, 'error', 'manual_dlq', 0, '{}', 0, 0)",
                &[&entry, &task.to_string()],
            )
            .await;
    }
    let url = format!("{}/api-docs/openapi.json", server.base_url);
    // All but the document itself.
    let tested = operations(&document(&server).await).len() - 1;
    let run = ["-m", "schemathesis.cli", "run", &url, "--no-color", "--checks", CHECKS];
    let bounded = [
        "--phases",
        "examples,coverage,fuzzing",
        "--max-examples",
        "3",
        "--seed",
        "1",
        "--request-timeout",
        "10",
    ];
    let checked = python(&[&run[..], &bounded[..]].concat()).await;
    let said = String::from_utf8_lossy(&checked.stdout);
    let said: String = said.chars().take(20_000).collect();
    assert!(checked.status.success() && said.contains(&format!("Tested: {tested}")), "{said}");
    working.abort();
}
