//! The commands of docs/operations.md, as they stand there, on a system that has work for them.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tasker_worker_rust::api::TaskRequest;
use tasker_worker_rust::client::Client;
use tasker_worker_rust::config::variable;
use tasker_worker_rust::{Config, Namespace, RustWorker, Step, StepError, StepResult};
use uuid::Uuid;

use crate::node::Node;
use crate::program::{Program, Running};
use crate::support::{DEADLINE, coverage, within};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What begins so is not run here.
const ELSEWHERE: [(&str, &str); 5] = [
    ("make ", "they start, try and end what is on one machine: make up && make smoke && make down"),
    (
        "scripts/compose --profile ",
        "wants the images of Prometheus and Grafana; make chart checks their files",
    ),
    ("scripts/compose ", "make smoke runs these as they stand"),
    ("kubectl ", "make cluster runs these as they stand, against a stand-in for Kubernetes' API"),
    ("helm ", "make cluster runs these as they stand, with Helm 3 and 4"),
];

const TEMPLATE: &str = "
namespace: shop
name: order
version: 1.0.0
steps:
  - {name: pay, handler: {callable: pay}, retry: {retryable: false, max_attempts: 1}}
";

/// The commands of the guide, without what is said of them.
fn commands() -> Vec<String> {
    let guide = std::fs::read_to_string(Path::new(ROOT).join("docs/operations.md")).unwrap();
    let commands = guide.lines().filter_map(|line| line.strip_prefix("$ "));
    commands.map(|line| line.split("  #").next().unwrap_or(line).trim_end().to_owned()).collect()
}

/// An operator's terminal.
struct Terminal {
    program: Program,
    path: String,
}

impl Terminal {
    fn new(node: &Node) -> Self {
        let programs = Path::new(env!("CARGO_BIN_EXE_tasker-worker-rust")).parent().unwrap().display();
        let program = Program::new()
            .set("RABBITMQ_URL", node.url("guest", "guest"))
            .set("TASKER__ORCHESTRATOR__LISTEN_ADDRESS", "127.0.0.1:0")
            .set("TASKER__ORCHESTRATOR__TEMPLATE_DIRECTORY", "workflows")
            .set("TASKER__WORKER__TASK_TEMPLATES__TEMPLATE_DIRECTORY", "workflows")
            .write("workflows/order.yaml", TEMPLATE)
            .write("bin/rabbitmqctl", &node.wrapper());
        let bin = program.path().join("bin");
        std::fs::set_permissions(bin.join("rabbitmqctl"), PermissionsExt::from_mode(0o755)).unwrap();
        let path = format!("{}:{programs}:{}", bin.display(), variable("PATH").unwrap());
        Self { program, path }
    }

    fn orchestrator(&self) -> (Running, Client) {
        let mut running = self.program.start(&["orchestrator"]);
        let address = running.says("serving")["address"].as_str().unwrap().to_owned();
        (running, Client::new(&format!("http://{address}")).unwrap())
    }

    /// Runs a command, answers `y` if it asks, and returns what it shows.
    fn run(&self, command: &str, client: &Client) -> String {
        // It asks on a terminal only.
        let asks = command.contains(" discard ");
        let words =
            if asks { &["script", "-qec", command, "/dev/null"][..] } else { &["bash", "-c", command] };
        let mut terminal = Command::new(words[0]);
        terminal.args(&words[1..]).current_dir(self.program.path()).env_clear();
        terminal.envs(coverage()).envs(self.program.environment());
        terminal.env("PATH", &self.path).env("ORCHESTRATION_API_URL", client.base_url());
        terminal.env("SHELL", "/bin/bash").env("TERM", "dumb").env("HOME", self.program.path());
        let mut child = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut answers = child.stdin.take().unwrap();
        if asks {
            answers.write_all(b"y\n").unwrap();
        }
        drop(answers);
        let output = child.wait_with_output().unwrap();
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "$ {command}\n{shown}");
        shown
    }
}

async fn end(client: &Client, task: Uuid) -> String {
    client.wait(task, DEADLINE).await.expect("the orchestrator answers").status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_the_operations_guide_does_what_it_is_there_for_rabbitmq() {
    let node = Node::start(tempfile::tempdir().unwrap(), &[]);
    let terminal = Terminal::new(&node);
    let (running, mut client) = terminal.orchestrator();
    let mut orchestrator = Some(running);
    let busy = Arc::new(AtomicBool::new(true));
    let gateway = busy.clone();
    let pay = move |step: Step<Value>| {
        let busy = gateway.load(Ordering::Relaxed);
        async move {
            match step.context["card"].as_str() {
                Some("expired") => Err(StepError::permanent("it has expired").code("CARD_EXPIRED")),
                _ if busy => Err(StepError::permanent("ask again").code("GATEWAY_BUSY")),
                _ => StepResult::Ok("paid"),
            }
        }
    };
    let mut config = Config::default();
    config.broker.urls = vec![node.url("guest", "guest").as_str().into()];
    config.worker.health_address = "127.0.0.1:0".to_owned();
    config.worker.metrics.prometheus_port = 0;
    let worker = RustWorker::new(config).namespace(Namespace::new("shop").step("pay", pay));
    let worker = worker.start().await.unwrap();
    within(worker.ready()).await;

    let order = |card: &str| TaskRequest::new("shop", "order", json!({ "card": card, "id": Uuid::new_v4() }));
    let mut tasks = Vec::new();
    for card in ["a", "b", "expired"] {
        let task = client.submit(&order(card)).await.unwrap().task_uuid();
        assert_eq!(end(&client, task).await, "error");
        tasks.push(task);
    }
    let letter = |code: &str| {
        let listed = terminal.program.run(&["dead-letters", "list", "--output", "json"]);
        let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
        let letters = listed["letters"].as_array().unwrap();
        let letter = letters.iter().find(|letter| letter["error"]["code"] == code);
        letter.map(|letter| letter["message_id"].as_str().unwrap().to_owned())
    };

    let mut run = 0;
    for command in commands() {
        if ELSEWHERE.iter().any(|(start, _)| command.starts_with(start)) {
            continue;
        }
        run += 1;
        let restores = command.contains("store restore");
        if restores {
            orchestrator.take().map(Running::finish);
        }
        if command.contains("--rate") {
            busy.store(false, Ordering::Relaxed);
        }
        let chosen = if command.contains("discard") { "CARD_EXPIRED" } else { "GATEWAY_BUSY" };
        let mut here =
            command.replace("FILE", "copy.sqlite").replace("tasker.steps.orders", "tasker.steps.shop");
        here = here.replace("TASK_UUID", &tasks[0].to_string());
        if here.contains("MESSAGE_ID") {
            here = here.replace("MESSAGE_ID", &letter(chosen).expect("there is such a letter"));
        }
        let shown = tokio::task::block_in_place(|| terminal.run(&here, &client));
        let wanted: &[&str] = match command.as_str() {
            "tasker-worker-rust store check FILE" => &["3 tasks"],
            "tasker-worker-rust dead-letters list" => &["GATEWAY_BUSY", "CARD_EXPIRED"],
            "tasker-worker-rust dead-letters show MESSAGE_ID" => &["ask again", "shop"],
            "tasker-worker-rust status TASK_UUID --timing" => &["critical path: pay"],
            command if command.ends_with("--dry-run") => &["would be replayed"],
            command if command.ends_with("--rate 20") => &["replayed"],
            command if command.contains("discard") => &["discarded"],
            _ => &[],
        };
        for wanted in wanted {
            assert!(shown.contains(wanted), "$ {here}\nshould show {wanted:?}:\n{shown}");
        }
        if restores {
            let (running, at) = terminal.orchestrator();
            (orchestrator, client) = (Some(running), at);
        }
        if command.contains("--rate") {
            for task in &tasks[..2] {
                within(async { while client.task(*task).await.unwrap().status != "complete" {} }).await;
            }
        }
    }
    assert!(run > 12, "only {run} commands were found");
    assert_eq!((letter("GATEWAY_BUSY"), letter("CARD_EXPIRED")), (None, None));
    // The users of the definitions are there, and the queue that was lost is, too.
    assert!(node.ctl(&["list_users"]).contains("tasker-orchestrator"));
    let task = client.submit(&order("c")).await.unwrap().task_uuid();
    assert_eq!(end(&client, task).await, "complete");
    worker.shutdown().await;
    orchestrator.map(Running::finish);
}

#[test]
fn what_runs_elsewhere_takes_its_commands_from_the_guide() {
    for runner in ["scripts/smoke", "helm/tests/cluster.py"] {
        let runner = std::fs::read_to_string(Path::new(ROOT).join(runner)).unwrap();
        assert!(runner.contains("docs/operations.md"));
    }
    for (start, _) in ELSEWHERE {
        assert!(
            commands().iter().any(|command| command.starts_with(start)),
            "{start} is not in the guide any more"
        );
    }
}
