//! Worker and orchestrator as processes.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;
use tasker_worker_rust::broker::topology::Topology;

use super::{Program, get, stderr, stdout};
use crate::support::{DEADLINE, Kind, delete, rabbitmq_url, settings};

#[test]
fn an_orchestrator_with_keys_obeys_who_shows_one_and_one_without_warns() {
    let keys = "[[api_keys]]\nkey = \"0123456789abcdef\"\npermissions = [\"tasks:*\", \"steps:read\"]\n";
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let program = || {
        Program::new().set("RABBITMQ_URL", "amqp://127.0.0.1:1/%2f").set(
            "TASKER__ORCHESTRATOR__TEMPLATE_DIRECTORY",
            concat!(env!("CARGO_MANIFEST_DIR"), "/config/workflows"),
        )
    };
    let secured = program()
        .write("keys.toml", keys)
        .write("key", "0123456789abcdef\n")
        .set("TASKER__ORCHESTRATOR__AUTH__API_KEYS_FILE", "keys.toml")
        .set("TASKER__ORCHESTRATOR__LISTEN_ADDRESS", format!("127.0.0.1:{port}"))
        .set("ORCHESTRATION_API_URL", format!("http://127.0.0.1:{port}"));
    let mut orchestrator = secured.start(&["orchestrator"]);
    orchestrator.says("serving http");
    let submit = ["submit", "linear_workflow/mathematical_sequence"];
    let refused = secured.run(&submit);
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("set TASKER_API_KEY or --api-key-file"), "{}", stderr(&refused));
    let taken = secured.run(&[&submit[..], &["--api-key-file", "key"]].concat());
    assert!(taken.status.success(), "{}", stderr(&taken));

    // Without its broker nobody works on it. The same key names the same task.
    let again = |more: &[&str]| {
        secured.run(&[&submit[..], &["--api-key-file", "key", "--idempotency-key", "k"], more].concat())
    };
    let task = stdout(&again(&[])).trim().to_owned();
    let same = again(&["--output", "json"]);
    let known: Value = serde_json::from_slice(&same.stdout).unwrap();
    assert_eq!(known, serde_json::json!({ "task_uuid": task, "existed": true }));
    let told = again(&["--wait", "--timeout", "1"]);
    assert_eq!(told.status.code(), Some(75), "{}", stderr(&told));
    assert!(stderr(&told).contains("submitted before"), "{}", stderr(&told));
    assert!(stdout(&told).contains("0 of 4 steps complete"), "{}", stdout(&told));
    let cancelled = secured.run(&["cancel", &task, "--api-key-file", "key"]);
    assert_eq!(stdout(&cancelled).trim(), format!("{task} cancelled"), "{}", stderr(&cancelled));

    let open = program().set("TASKER__ORCHESTRATOR__LISTEN_ADDRESS", "0.0.0.0:0");
    open.start(&["orchestrator"]).says("the api obeys whoever reaches it");
}

#[test]
fn the_orchestrator_shows_its_memory_beside_its_health_apart_from_the_api() {
    let program = Program::new()
        .set("TASKER__ORCHESTRATOR__LISTEN_ADDRESS", "127.0.0.1:0")
        .set("TASKER__ORCHESTRATOR__HEALTH_ADDRESS", "127.0.0.1:0")
        .write("config/workflows/none.txt", "");
    let mut orchestrator = program.start(&["orchestrator"]);
    let mut address = |setting: &str| {
        let line = orchestrator.says(setting);
        line["address"].as_str().unwrap().to_owned()
    };
    let (api, own) = (address("orchestrator.listen_address"), address("orchestrator.health_address"));
    assert_eq!((get(&api, "/metrics").0, get(&api, "/health/live").0), (404, 200));
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (status, metrics) = get(&own, "/metrics");
        assert_eq!(status, 200);
        let bytes =
            metrics.lines().find_map(|line| line.strip_prefix("tasker_process_resident_memory_bytes "));
        if bytes.is_some_and(|bytes| bytes.parse::<u64>().unwrap() > 1 << 20) {
            break;
        }
        assert!(Instant::now() < deadline, "{metrics}");
    }
}

#[test]
fn a_taken_port_ends_the_worker_and_names_the_setting() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = Program::new().set("TASKER__WORKER__HEALTH_ADDRESS", address.as_str()).run(&["worker"]);
    assert_eq!(output.status.code(), Some(69));
    let text = stderr(&output);
    assert!(text.contains(&address) && text.contains("worker.health_address"), "{text}");
}

#[test]
fn a_worker_without_its_broker_waits_alive_but_not_ready() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let program = Program::new()
        .set("RABBITMQ_URL", format!("amqp://127.0.0.1:{port}/%2f"))
        .set("TASKER__WORKER__HEALTH_ADDRESS", "127.0.0.1:0")
        .set("TASKER__WORKER__METRICS__PROMETHEUS_ENABLED", "false");
    let mut worker = program.start(&["worker"]);
    let address = worker.says("serving")["address"].as_str().unwrap().to_owned();
    worker.says(&format!("127.0.0.1:{port}"));
    let (live, _) = get(&address, "/health/live");
    let (ready, body) = get(&address, "/health/ready");
    assert_eq!((live, ready), (200, 503), "{body}");
    assert!(body.contains("refused") || body.contains("connect"), "{body}");
    let health = |more: &[&str]| program.run(&[&["health", &format!("http://{address}")], more].concat());
    let asked = health(&[]);
    assert_eq!(asked.status.code(), Some(1), "not ready");
    assert!(stdout(&asked).contains("broker: unhealthy (not connected"), "{}", stdout(&asked));
    assert_eq!(health(&["--live"]).status.code(), Some(0));
    worker.terminate();
    assert_eq!(worker.exit_code(), Some(0));
    let gone = health(&["--live"]);
    assert_eq!(gone.status.code(), Some(69));
    assert!(stderr(&gone).contains("no worker or orchestrator answered at"), "{}", stderr(&gone));
}

#[test]
fn worker_and_orchestrator_serve_a_submitted_task_on_rabbitmq() {
    let config = settings(Kind::RabbitMq);
    let templates = concat!(env!("CARGO_MANIFEST_DIR"), "/config/workflows");
    let program = Program::new()
        .broker(&config)
        .set("TASKER__ORCHESTRATOR__LISTEN_ADDRESS", "127.0.0.1:0")
        .set("TASKER__ORCHESTRATOR__TEMPLATE_DIRECTORY", templates)
        .set("TASKER__WORKER__TASK_TEMPLATES__TEMPLATE_DIRECTORY", templates)
        .set("TASKER__WORKER__HEALTH_ADDRESS", "127.0.0.1:0")
        .set("TASKER__WORKER__METRICS__PROMETHEUS_PORT", "0");
    let mut orchestrator = program.start(&["orchestrator"]);
    let address = orchestrator.says("serving")["address"].as_str().unwrap().to_owned();
    let mut worker = program.start(&["worker"]);
    worker.says("consuming");
    let url = format!("http://{address}");
    let submitted = program.run(&[
        "submit",
        "linear_workflow/mathematical_sequence",
        "--context",
        r#"{"even_number": 6}"#,
        "--wait",
        "--timeout",
        "20",
        "--output",
        "json",
        "--api-url",
        &url,
    ]);
    assert_eq!(submitted.status.code(), Some(0), "{}", stderr(&submitted));
    let answer: Value = serde_json::from_slice(&submitted.stdout).unwrap();
    assert_eq!(answer["task"]["status"], "complete", "{answer}");
    let uuid = answer["task"]["task_uuid"].as_str().unwrap();
    let status = program.run(&["status", uuid, "--api-url", &url]);
    assert_eq!(status.status.code(), Some(0));
    assert!(
        stdout(&status).contains("linear_step_4") && stdout(&status).contains("66"),
        "{}",
        stdout(&status)
    );

    // A finished task cannot be cancelled, and the program says so.
    let cancel = program.run(&["cancel", uuid, "--api-url", &url]);
    assert_eq!(cancel.status.code(), Some(1), "{}", stderr(&cancel));

    let declared =
        program.run(&["topology", "declare", "--namespace", "linear_workflow", "--output", "json"]);
    assert_eq!(declared.status.code(), Some(0), "{}", stderr(&declared));
    let declared: Value = serde_json::from_slice(&declared.stdout).unwrap();
    assert_eq!(declared["missing"], serde_json::json!([]), "{declared}");
    let verified = program.run(&["topology", "verify", "--namespace", "linear_workflow"]);
    assert_eq!(verified.status.code(), Some(0), "{}{}", stdout(&verified), stderr(&verified));
    let missing = program.run(&["topology", "verify", "--namespace", "unheard_of"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stdout(&missing).contains("steps.unheard_of"), "{}", stdout(&missing));

    for running in [&mut worker, &mut orchestrator] {
        running.terminate();
        assert_eq!(running.exit_code(), Some(0));
    }
    let namespaces =
        ["linear_workflow", "diamond_workflow", "tree_workflow", "mixed_dag_workflow", "order_fulfillment"];
    let topology = Topology::new(&config.names(), &config.ladder(), config.broker.queue_kind, namespaces);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(delete(&topology));
}

#[test]
fn the_bench_fills_a_store_of_todays_shape_and_measures_it() {
    let bench = |arguments: &[&str]| {
        let common = ["bench", "--quick", "--rounds", "1", "--stored-tasks", "1000"];
        Program::new().broker(&settings(Kind::RabbitMq)).run(&[&common[..], arguments].concat())
    };
    let growth = bench(&["w6", "--only", "tasks in the store", "--output", "json"]);
    let figures: Value =
        serde_json::from_slice(&growth.stdout).unwrap_or_else(|_| panic!("{}", stderr(&growth)));
    let mut cases = figures["figures"].as_array().unwrap().iter().map(|figure| &figure["case"]);
    assert!(cases.any(|case| case == "load, tasks in the store"), "{figures}");

    let life = bench(&["w7", "--only", "tasks in the store"]);
    assert!(stdout(&life).contains("process start to first result"), "{}{}", stdout(&life), stderr(&life));

    let nothing = bench(&["w1", "--only", "unheard of"]);
    assert!(!nothing.status.success());
    assert!(stderr(&nothing).contains("no case has \"unheard of\" in its name"), "{}", stderr(&nothing));
}

#[test]
fn a_client_in_another_language_can_be_the_orchestrator() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = Command::new(root.join("scripts/python-venv")).output().unwrap();
    assert!(python.status.success(), "{}", stderr(&python));
    let templates = concat!(env!("CARGO_MANIFEST_DIR"), "/config/workflows");
    // The documented example uses the default names, so this is the one test that does.
    let program = Program::new()
        .set("RABBITMQ_URL", rabbitmq_url())
        .set("TASKER__WORKER__TASK_TEMPLATES__TEMPLATE_DIRECTORY", templates)
        .set("TASKER__WORKER__NAMESPACES", "linear_workflow")
        .set("TASKER__WORKER__HEALTH_ADDRESS", "127.0.0.1:0")
        .set("TASKER__WORKER__METRICS__PROMETHEUS_ENABLED", "false");
    let mut worker = program.start(&["worker"]);
    worker.says("\"consuming\"");
    let client = Command::new(stdout(&python).trim())
        .arg(root.join("tests/contract/independent_client.py"))
        .env("RABBITMQ_URL", rabbitmq_url())
        .output()
        .unwrap();
    assert!(client.status.success(), "{}{}", stdout(&client), stderr(&client));
    worker.terminate();
    assert_eq!(worker.exit_code(), Some(0));
}
