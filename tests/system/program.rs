//! The program as people and scripts run it.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use tasker_worker_rust::Config;
use tasker_worker_rust::broker::topology::{Topology, dead_key};
use tasker_worker_rust::broker::{Disposition, Headers, Message, Properties, Source};
use tasker_worker_rust::message::{StepExecutionRequest, header};

use crate::support::{DEADLINE, Kind, connect, coverage, delete, rabbitmq_url, settings, within};

/// The program, in an empty directory of its own, with nothing in its environment that we did not put there.
pub(crate) struct Program {
    directory: tempfile::TempDir,
    environment: Vec<(String, String)>,
    /// What it is started with, before its own name.
    launcher: Vec<String>,
}

impl Program {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), environment: Vec::new(), launcher: Vec::new() }
    }

    pub(crate) fn set(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Uses these broker settings.
    pub(crate) fn broker(self, config: &Config) -> Self {
        let ladder = &config.broker.delay_ladder;
        let urls: Vec<&str> = config.broker.urls.iter().map(|url| url.expose()).collect();
        self.set("RABBITMQ_URL", urls.join(","))
            .set("TASKER__BROKER__PREFIX", config.broker.prefix.as_str())
            .set("TASKER__BROKER__DELAY_LADDER__FIRST_MS", ladder.first_ms.to_string())
            .set("TASKER__BROKER__DELAY_LADDER__RUNGS", ladder.rungs.to_string())
    }

    /// Starts it by way of this command, which gets the program's path as its last argument.
    pub(crate) fn under(mut self, launcher: &[&str]) -> Self {
        self.launcher = launcher.iter().map(|part| (*part).to_owned()).collect();
        self
    }

    pub(crate) fn write(self, name: &str, text: &str) -> Self {
        let file = self.directory.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
        self
    }

    pub(crate) fn environment(&self) -> impl Iterator<Item = (&String, &String)> {
        self.environment.iter().map(|(name, value)| (name, value))
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let words = self.launcher.iter().map(String::as_str);
        let mut words = words.chain([env!("CARGO_BIN_EXE_tasker-worker-rust")]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(arguments).current_dir(self.path()).env_clear().stdin(Stdio::null());
        command.envs(coverage());
        command.envs(self.environment());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        let mut child = self.command(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (lines, log) = channel();
        let stderr = child.stderr.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // The test may have seen enough.
                let _ = lines.send(line);
            }
        });
        Running { child, log, seen: Vec::new() }
    }
}

/// A started program; killed at the end if it still runs.
pub(crate) struct Running {
    child: Child,
    log: Receiver<String>,
    seen: Vec<String>,
}

impl Running {
    /// Waits for a line of the log with `text` in it, written small.
    pub(crate) fn says(&mut self, text: &str) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.log.recv_timeout(left) else {
                panic!("the program never said {text:?}; it said:\n{}", self.seen.join("\n"));
            };
            let found = line.to_lowercase().contains(text);
            let value = serde_json::from_str(&line).unwrap_or(Value::Null);
            self.seen.push(line);
            if found {
                return value;
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    fn terminate(&self) {
        let status = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Ends it in order, and returns all it said.
    pub(crate) fn finish(mut self) -> Vec<String> {
        self.terminate();
        assert_eq!(self.exit_code(), Some(0));
        let mut said = std::mem::take(&mut self.seen);
        said.extend(self.log.iter());
        said
    }

    fn exit_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        panic!("the program did not end; it said:\n{}", self.seen.join("\n"));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_demo_runs_the_five_workflows_and_shows_their_answers() {
    let output = Program::new().run(&["demo"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}{}", stderr(&output));
    for expected in ["66", "180", "18446744073709551616", "209.97"] {
        assert!(text.contains(expected), "{expected} is missing in:\n{text}");
    }
}

#[test]
fn the_demo_prints_json_for_scripts() {
    let output = Program::new().run(&["demo", "--output", "json"]);
    let rows: Value = serde_json::from_slice(&output.stdout).expect("the output is JSON and nothing else");
    assert!(rows.as_array().unwrap().len() >= 5, "{rows}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let program = Program::new();
    let mut command = program.command(&["demo", "--output", "json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn wrong_arguments_exit_with_64_and_say_what_is_right() {
    let output = Program::new().run(&["sumbit"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("submit"), "{}", stderr(&output));
}

#[test]
fn an_unknown_setting_is_refused_with_the_nearest_known_one() {
    let program = Program::new().write("worker.toml", "[worker]\nmax_concurent_steps = 5\nnamespaces = 7\n");
    let output = program.run(&["config", "check", "--config", "worker.toml"]);
    assert_eq!(output.status.code(), Some(64));
    let text = stderr(&output);
    assert!(text.contains("max_concurent_steps") && text.contains("max_concurrent_steps"), "{text}");
    assert!(text.contains("worker.namespaces"), "all mistakes at once: {text}");
}

#[test]
fn shown_settings_hide_passwords() {
    let program = Program::new().set("RABBITMQ_URL", "amqp://worker:s3cret@127.0.0.1:5672/%2f");
    for format in ["text", "json"] {
        let output = program.run(&["config", "show", "--output", format]);
        let text = stdout(&output);
        assert!(text.contains("127.0.0.1:5672") && !text.contains("s3cret"), "{text}");
    }
}

#[test]
fn a_step_that_may_outlast_the_brokers_patience_is_refused_with_the_sum() {
    let program = Program::new().write(
        "workflows/slow.yaml",
        "name: big\nnamespace_name: linear_workflow\nversion: 1.0.0\nsteps:\n\
         - {name: linear_step_1, handler: {callable: a}, timeout_seconds: 1200}\n",
    );
    let program = program
        .set("TASKER__WORKER__TASK_TEMPLATES__TEMPLATE_DIRECTORY", "workflows")
        .set("TASKER__ORCHESTRATOR__TEMPLATE_DIRECTORY", "workflows")
        .set("TASKER__BROKER__CONSUMER_TIMEOUT_SECONDS", "1200");
    let alone = "step linear_workflow/big/linear_step_1 may hold its delivery for 20 min 10 s (timeout 20 min + \
                 confirm 10 s), the broker takes it back after 20 min";
    for arguments in [&["template", "validate", "workflows"][..], &["orchestrator"]] {
        let output = program.run(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(stderr(&output).contains(alone), "{arguments:?}: {}", stderr(&output));
    }
    let output = program.run(&["worker"]);
    assert_eq!(output.status.code(), Some(64));
    let waits = "waiting 121 min for 6 other namespaces' steps";
    assert!(stderr(&output).contains(waits), "{}", stderr(&output));
}

#[test]
fn a_template_with_a_cycle_is_refused_with_its_path() {
    let program = Program::new().write(
        "loop.yaml",
        "name: loop\nnamespace_name: shop\nversion: 1.0.0\nsteps:\n\
         - {name: a, handler: {callable: a}, dependencies: [c]}\n\
         - {name: b, handler: {callable: b}, dependencies: [a]}\n\
         - {name: c, handler: {callable: c}, dependencies: [b]}\n",
    );
    let output = program.run(&["template", "validate", "loop.yaml"]);
    assert_eq!(output.status.code(), Some(64));
    let text = stderr(&output);
    let cycle = [
        "a -> c -> b -> a",
        "a -> b -> c -> a",
        "b -> c -> a -> b",
        "b -> a -> c -> b",
        "c -> a -> b -> c",
        "c -> b -> a -> c",
    ];
    assert!(cycle.iter().any(|path| text.contains(path)), "{text}");
}

#[test]
fn a_template_is_drawn_in_every_format() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/workflows/diamond_workflow_handler.yaml");
    for (format, expected) in
        [("ascii", "diamond_branch_b"), ("mermaid", "flowchart"), ("dot", "digraph"), ("svg", "<svg")]
    {
        let output = Program::new().run(&["template", "graph", file, "--format", format]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains(expected), "{}", stdout(&output));
    }
}

#[test]
fn a_template_is_converted_and_what_has_no_effect_told() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/workflows/linear_workflow_handler.yaml");
    let output = Program::new().run(&["template", "convert", file]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).contains("namespace_name: linear_workflow\n"), "{}", stdout(&output));
    let warning = format!("warning: {file}:6: task_handler_class has no effect");
    assert!(stderr(&output).contains(&warning), "{}", stderr(&output));
}

#[test]
fn an_absent_orchestrator_is_named_with_what_to_do() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let output = Program::new().run(&["submit", "linear_workflow/mathematical_sequence", "--api-url", &url]);
    assert_eq!(output.status.code(), Some(69));
    let text = stderr(&output);
    assert!(text.contains(&url) && text.contains("--api-url"), "{text}");
}

#[test]
fn an_orchestrator_with_keys_obeys_who_shows_one_and_one_without_warns() {
    let keys = "[[api_keys]]\nkey = \"0123456789abcdef\"\npermissions = [\"tasks:create\"]\n";
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
fn dead_letters_are_listed_explained_replayed_and_discarded_on_rabbitmq() {
    let config = settings(Kind::RabbitMq);
    let namespaces = ["linear_workflow"];
    let topology = Topology::new(&config.names(), &config.ladder(), config.broker.queue_kind, namespaces);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let step_uuid = uuid::Uuid::new_v4();
    let request = format!(
        r#"{{"task_uuid":"{}","step_uuid":"{step_uuid}","namespace":"linear_workflow",
            "step_name":"linear_step_1","attempt":3,"task_data":{{"even_number":123456789012345678901234567890}}}}"#,
        uuid::Uuid::new_v4()
    );
    runtime.block_on(async {
        let broker = connect(Kind::RabbitMq, &config).await;
        broker.declare(&topology).await.unwrap();
        let mut headers = Headers::default();
        headers.set(header::REASON, "retries_exhausted");
        headers.set(header::ERROR, "the gateway is busy");
        headers.set(header::ERROR_CODE, "GATEWAY_BUSY");
        headers.set(header::LAST_AT, "2026-01-01T00:00:00Z");
        for (message_id, body, headers) in
            [("letter-1", request.as_str(), headers), ("letter-2", "{no request", Headers::default())]
        {
            let properties =
                Properties { message_id: Some(message_id.into()), headers, ..Properties::default() };
            let message = Message {
                exchange: config.names().dead_letters(),
                routing_key: dead_key("linear_workflow", "test"),
                body: body.to_owned().into(),
                properties,
            };
            broker.publisher().publish(message).await.unwrap();
        }
        broker.close().await;
    });
    let program = Program::new().broker(&config);
    let run = |arguments: &[&str]| {
        let namespace = ["--namespace", "linear_workflow"];
        program.run(&[&["dead-letters"], arguments, &namespace, &["--output", "json"]].concat())
    };
    let answer = |arguments: &[&str], code: i32| -> Value {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}{}", stdout(&output), stderr(&output));
        serde_json::from_slice(&output.stdout).expect("the output is JSON and nothing else")
    };

    for _ in 0..2 {
        let listed = answer(&["list"], 0);
        assert_eq!(listed["letters"][0]["message_id"], "letter-1", "{listed}");
        assert_eq!(listed["letters"][1]["message_id"], "letter-2", "{listed}");
        let group = serde_json::json!({
            "namespace": "linear_workflow", "step": "linear_step_1", "reason": "retries_exhausted",
            "code": "GATEWAY_BUSY", "count": 1,
        });
        assert!(listed["summary"].as_array().unwrap().contains(&group), "{listed}");
    }
    assert_eq!(answer(&["list", "--older-than", "1d"], 0)["letters"].as_array().unwrap().len(), 1);
    assert_eq!(answer(&["list", "--newer-than", "1d"], 0)["letters"].as_array().unwrap().len(), 0);

    let namespace = ["--namespace", "linear_workflow"];
    let listed = program.run(&[&["dead-letters", "list", "--limit", "1"][..], &namespace].concat());
    let text = stdout(&listed);
    for expected in ["GATEWAY_BUSY", "2026-01-01T00:00:00Z", "letter-1", "1 of 2 are listed"] {
        assert!(text.contains(expected), "{expected} is missing in:\n{text}");
    }
    let shown = program.run(&[&["dead-letters", "show", &step_uuid.to_string()][..], &namespace].concat());
    let text = stdout(&shown);
    for expected in
        ["the gateway is busy", "\"even_number\": 123456789012345678901234567890", "tasker-last-at"]
    {
        assert!(text.contains(expected), "{expected} is missing in:\n{text}");
    }
    assert!(answer(&["show", "letter-2"], 0)[0]["error"]["message"].to_string().contains("not a request"));
    assert_eq!(run(&["show", "letter-9"]).status.code(), Some(1));

    // Nothing says which, nobody can be asked, and no orchestrator can be.
    assert_eq!(program.run(&["dead-letters", "replay"]).status.code(), Some(64));
    assert_eq!(run(&["discard", "letter-2"]).status.code(), Some(64));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let unasked = run(&["replay", "letter-1", "--api-url", &format!("http://127.0.0.1:{port}")]);
    assert_eq!(unasked.status.code(), Some(69));
    assert!(stderr(&unasked).contains("--unchecked"), "{}", stderr(&unasked));

    let dry = answer(&["replay", "--unchecked", "--dry-run"], 1);
    assert_eq!(dry["counts"], serde_json::json!({"would be replayed": 1, "skipped": 1}), "{dry}");
    assert!(dry["letters"][1]["why"].as_str().unwrap().contains("only discarded"), "{dry}");
    let replayed = answer(&["replay", &step_uuid.to_string(), "--unchecked", "--rate", "100"], 0);
    assert_eq!(replayed["counts"], serde_json::json!({"replayed": 1}), "{replayed}");
    assert_eq!(answer(&["discard", "--dry-run"], 0)["counts"], serde_json::json!({"would be discarded": 1}));
    assert_eq!(answer(&["discard", "letter-2", "--yes"], 0)["counts"], serde_json::json!({"discarded": 1}));
    assert_eq!(answer(&["list"], 0)["letters"].as_array().unwrap().len(), 0);

    runtime.block_on(async {
        let broker = connect(Kind::RabbitMq, &config).await;
        let mut queue = broker.subscribe(Source::Queue(config.names().step_queue("linear_workflow")), 1);
        let delivery = within(queue.recv()).await.unwrap();
        let request = StepExecutionRequest::decode(&delivery.body).unwrap();
        assert_eq!((request.step_uuid, request.attempt), (step_uuid, 1));
        assert_eq!(request.task_data.get(), r#"{"even_number":123456789012345678901234567890}"#);
        let headers = &delivery.properties.headers;
        assert_eq!((headers.replays(), headers.text(header::REPLAYED_FROM)), (1, Some("letter-1")));
        delivery.acker.settle(Disposition::Ack).unwrap();
        broker.close().await;
        delete(&topology).await;
    });
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

/// A request as any HTTP client would send it.
pub(crate) fn get(address: &str, path: &str) -> (u16, String) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status =
        answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("an HTTP answer has a status");
    (status, answer)
}
