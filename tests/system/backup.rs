//! The store copied while tasks run, lost, and put back.

use std::process::Stdio;

use serde_json::{Value, json};
use tasker_worker_rust::api::{TaskQuery, TaskRequest};
use tasker_worker_rust::broker::topology::Topology;
use tasker_worker_rust::client::Client;

use crate::program::{Program, Running, stderr};
use crate::support::{DEADLINE, Kind, delete, settings};

fn start(program: &Program) -> (Running, Client) {
    let mut running = program.start(&["orchestrator"]);
    let address = running.says("serving")["address"].as_str().unwrap().to_owned();
    (running, Client::new(&format!("http://{address}")).unwrap())
}

fn linear(number: u32) -> TaskRequest {
    TaskRequest::new("linear_workflow", "mathematical_sequence", json!({ "even_number": 2 * number }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_made_under_load_brings_back_what_it_holds_and_its_tasks_come_to_their_end() {
    let config = settings(Kind::RabbitMq);
    let workflow = include_str!("../../config/workflows/linear_workflow_handler.yaml");
    // What was answered after the copy is asked for again after this and the time below.
    let workflow = workflow.replace("timeout_seconds: 30", "timeout_seconds: 1");
    assert!(workflow.contains("timeout_seconds: 1\n"), "{workflow}");
    let program = Program::new()
        .broker(&config)
        .write("workflows/linear.yaml", &workflow)
        .set("TASKER__ORCHESTRATOR__LISTEN_ADDRESS", "127.0.0.1:0")
        .set("TASKER__ORCHESTRATOR__TEMPLATE_DIRECTORY", "workflows")
        .set("TASKER__ORCHESTRATOR__OVERDUE_AFTER_SECONDS", "1")
        .set("TASKER__WORKER__TASK_TEMPLATES__TEMPLATE_DIRECTORY", "workflows")
        .set("TASKER__WORKER__NAMESPACES", "linear_workflow")
        .set("TASKER__WORKER__METRICS__PROMETHEUS_PORT", "0")
        .set("TASKER__WORKER__HEALTH_ADDRESS", "127.0.0.1:0");
    let (orchestrator, client) = start(&program);
    let mut before = Vec::new();
    for number in 1..=20 {
        before.push(client.submit(&linear(number)).await.unwrap().task_uuid());
    }
    let worker = program.start(&["worker"]);
    let output = program.run(&["store", "backup", "copy.sqlite", "--output", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let copy: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(copy["tasks"], 20, "{copy}");
    let again = program.run(&["store", "backup", "copy.sqlite"]);
    assert_eq!(again.status.code(), Some(69), "no copy is written over");

    let streamed = std::fs::File::create(program.path().join("streamed.sqlite")).unwrap();
    let status = program.command(&["store", "backup", "-"]).stdout(streamed).status().unwrap();
    assert!(status.success());
    let output = program.run(&["store", "check", "streamed.sqlite"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("20 tasks"), "{output:?}");

    let after = client.submit(&linear(21)).await.unwrap().task_uuid();
    for task in before.iter().chain([&after]) {
        assert_eq!(client.wait(*task, DEADLINE).await.unwrap().status, "complete");
    }
    let refused = program.run(&["store", "restore", "copy.sqlite"]);
    assert_eq!(refused.status.code(), Some(69));
    assert!(stderr(&refused).contains("in use by another orchestrator"), "{}", stderr(&refused));
    orchestrator.finish();

    let received = std::fs::File::open(program.path().join("copy.sqlite")).unwrap();
    let restored = program.command(&["store", "restore", "-"]).stdin(received).stdout(Stdio::null()).status();
    assert!(restored.unwrap().success());
    assert!(program.path().join("tasker.sqlite.before-restore").exists());
    let (orchestrator, client) = start(&program);
    // What had been done after the copy is done again, under the same attempts.
    for task in &before {
        assert_eq!(client.wait(*task, DEADLINE).await.unwrap().status, "complete");
    }
    let tasks = client.tasks(&TaskQuery::default()).await.unwrap();
    assert_eq!(tasks.pagination.total_count, 20, "what came after the copy is not known any more");
    orchestrator.finish();
    worker.finish();
    let kind = config.broker.queue_kind;
    delete(&Topology::new(&config.names(), &config.ladder(), kind, ["linear_workflow"])).await;
}

#[test]
fn a_damaged_copy_and_one_of_something_else_are_refused_and_the_store_stays() {
    let program = Program::new().write("notes.txt", "this is no store").write("empty.sqlite", "");
    for file in ["notes.txt", "empty.sqlite", "nowhere.sqlite"] {
        for command in ["check", "restore"] {
            let output = program.run(&["store", command, file]);
            assert_eq!(output.status.code(), Some(69), "{command} {file}: {}", stderr(&output));
        }
    }
    assert!(!program.path().join("tasker.sqlite").exists());
    let output = program.run(&["store", "backup", "copy.sqlite"]);
    assert_eq!(output.status.code(), Some(69), "there is no store to copy: {}", stderr(&output));
}
