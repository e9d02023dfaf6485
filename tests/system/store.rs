//! The orchestrator program on a file system that takes nothing: it says so, acks nothing, and heals.

use std::io::Write;
use std::process::Command;

use serde_json::{Value, json};
use tasker_worker_rust::api::TaskRequest;
use tasker_worker_rust::client::Client;

use crate::program::Program;
use crate::support::{Kind, eventually, settings};

const TEMPLATE: &str = "
name: order
namespace_name: shop
version: 1.0.0
steps:
  - name: pay
    handler: {callable: pay}
";

/// The orchestrator, its store in a file system of its own: `options` of a tmpfs, and what is done before it starts.
fn orchestrator(options: &str, before: &str) -> Program {
    let script = format!(
        "mkdir -p store && mount -t tmpfs -o {options} none store && {before} && exec \"$0\" orchestrator"
    );
    Program::new()
        .broker(&settings(Kind::RabbitMq))
        .write("workflows/order.yaml", TEMPLATE)
        .set("TASKER__ORCHESTRATOR__LISTEN_ADDRESS", "127.0.0.1:0")
        .set("TASKER__ORCHESTRATOR__TEMPLATE_DIRECTORY", "workflows")
        .set("TASKER__ORCHESTRATOR__DATABASE_URL", "sqlite:store/tasker.sqlite")
        .under(&["unshare", "--map-root-user", "--mount", "sh", "-c", &script])
}

#[tokio::test]
async fn a_full_disk_refuses_tasks_until_there_is_room_and_loses_none() {
    let program = orchestrator("size=4m", "true");
    let mut running = program.start(&[]);
    let address = running.says("serving")["address"].as_str().unwrap().to_owned();
    let client = Client::new(&format!("http://{address}")).unwrap();
    let order = |number: u32| {
        TaskRequest::new("shop", "order", json!({ "number": number, "text": "x".repeat(20_000) }))
    };
    let ready = async || {
        let answer =
            Command::new("curl").args(["-s", &format!("http://{address}/health/ready")]).output().unwrap();
        serde_json::from_slice::<Value>(&answer.stdout).unwrap()
    };
    client.submit(&order(0)).await.unwrap();

    let filling = program.path().join("store/fill");
    let filling = format!("/proc/{}/root{}", running.id(), filling.display());
    let mut file = std::fs::File::create(&filling).unwrap();
    let block = vec![0; 4_096];
    while file.write_all(&block).is_ok() {}
    let mut refused = None;
    // What was reserved before is used up first.
    for number in 1..500 {
        if let Err(error) = client.submit(&order(number)).await {
            refused = Some((number, error.to_string()));
            break;
        }
    }
    let (number, error) = refused.expect("a full disk takes nothing");
    assert!(error.contains("the store failed"), "{error}");
    running.says("the disk is full: make room");
    let health = ready().await.to_string();
    assert!(health.contains("the disk is full"), "{health}");

    drop(file);
    std::fs::remove_file(&filling).unwrap();
    eventually("there is room again", async || client.submit(&order(number)).await.ok()).await;
    assert!(!ready().await.to_string().contains("the disk is full"));
    let tasks = client.tasks(&tasker_worker_rust::api::TaskQuery::default()).await.unwrap();
    assert_eq!(tasks.pagination.total_count, i64::from(number) + 1);
}

#[test]
fn a_store_that_may_not_be_written_is_refused_at_start() {
    for before in
        ["mount -o remount,ro none store", "touch store/tasker.sqlite && mount -o remount,ro none store"]
    {
        let output = orchestrator("size=1m", before).run(&[]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(69), "{text}");
        assert!(text.contains("Read-only file system") && text.contains("may be written"), "{text}");
    }
}
