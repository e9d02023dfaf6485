//! Where settings come from, and what is said when they are wrong.

mod mistakes;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use tasker_worker_rust::config::{
    AmqpUrl, Config, LogFormat, Program, QueueKind, RuntimeConfig, RuntimeKind,
};
use tasker_worker_rust::{Error, config};

/// Loads a worker's settings from a file with `text`, called `worker.toml` in messages, and `variables`.
fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    load_for(Program::Worker, text, variables)
}

fn load_for(program: Program, text: &str, variables: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let folder = tempfile::tempdir().expect("a folder for the file");
    let file = folder.path().join("worker.toml");
    std::fs::write(&file, text).expect("the file can be written");
    let here = format!("{}/", folder.path().display());
    Config::load_with(Some(&file), program, environment(variables)).map_err(|error| match error {
        Error::Config(mistakes) => mistakes.into_iter().map(|mistake| mistake.replace(&here, "")).collect(),
        other => panic!("expected Error::Config, got {other:?}"),
    })
}

fn environment(variables: &[(&str, &str)]) -> BTreeMap<OsString, OsString> {
    variables.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn mistakes(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    load(text, variables).expect_err("the settings are wrong")
}

#[test]
fn the_files_have_every_setting_once_with_its_default() {
    for program in [Program::Worker, Program::Orchestrator] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(program.default_file());
        let text = std::fs::read_to_string(&file).expect("the file is there");
        assert_eq!(text, Config::template(program), "{} is not what Config::template says", file.display());
        let loaded = Config::load_with(Some(&file), program, []).expect("the file is right");
        assert_eq!(loaded, Config::default());
        assert!(text.lines().all(|line| line.len() <= 130), "{} has long lines", file.display());
    }
}

#[test]
fn the_files_name_every_setting_there_is() {
    let files = [Config::template(Program::Worker), Config::template(Program::Orchestrator)];
    let mut keys = BTreeMap::new();
    for file in &files {
        let table: toml::Table = toml::from_str(file).expect("the files are TOML");
        leaves("", &toml::Value::Table(table), &mut keys);
    }
    let mut all = BTreeMap::new();
    json_leaves("", &serde_json::to_value(Config::default()).unwrap(), &mut all);
    assert_eq!(keys.into_keys().collect::<Vec<_>>(), all.into_keys().collect::<Vec<_>>());
}

fn leaves(path: &str, value: &toml::Value, keys: &mut BTreeMap<String, ()>) {
    match value {
        toml::Value::Table(table) => {
            table.iter().for_each(|(name, value)| leaves(&format!("{path}.{name}"), value, keys));
        }
        _ => drop(keys.insert(path.to_owned(), ())),
    }
}

fn json_leaves(path: &str, value: &serde_json::Value, keys: &mut BTreeMap<String, ()>) {
    match value {
        serde_json::Value::Object(table) => {
            table.iter().for_each(|(name, value)| json_leaves(&format!("{path}.{name}"), value, keys));
        }
        _ => drop(keys.insert(path.to_owned(), ())),
    }
}

#[test]
fn the_design_documents_file_is_understood() {
    let config = load(
        r#"
        [worker]
        worker_type = "rust_native"
        namespaces = ["linear_workflow", "diamond_workflow", "tree_workflow", "mixed_dag_workflow", "order_fulfillment"]
        max_concurrent_steps = 100
        performance_target_steps_per_second = 1000

        [worker.rust_runtime]
        enabled = true
        tokio_worker_threads = 8
        async_runtime = "multi_threaded"
        stack_size_kb = 2048

        [worker.task_templates]
        template_directory = "config/workflows"
        auto_reload = true
        validation_enabled = true

        [worker.metrics]
        prometheus_enabled = true
        prometheus_port = 9091
        performance_monitoring = true
        step_timing_enabled = true
        memory_monitoring = true
        "#,
        &[],
    )
    .unwrap();
    assert_eq!(config.worker.namespaces.len(), 5);
    assert_eq!(config.worker.rust_runtime.async_runtime, RuntimeKind::MultiThreaded);
    assert_eq!(config.worker.metrics, config::MetricsConfig::default());
}

#[test]
fn the_environment_wins_over_the_file_and_short_names_over_long_ones() {
    let file = "[log]\nlevel = \"warn\"\nformat = \"text\"\n[broker]\nprefix = \"staging\"\n";
    let config = load(
        file,
        &[
            ("TASKER__LOG__LEVEL", "debug"),
            ("RUST_LOG", "trace"),
            ("tasker__log__format", "ignored: the prefix is in capitals"),
            ("TASKER__broker__Heartbeat_Seconds", "30"),
            ("TASKER__BROKER__DELAY_LADDER__RATIO", "1.5"),
            ("TASKER__WORKER__METRICS__PROMETHEUS_ENABLED", "False"),
        ],
    )
    .unwrap();
    assert_eq!(config.log.level, "trace");
    assert_eq!(config.log.format, LogFormat::Text);
    assert_eq!(config.broker.prefix, "staging");
    assert_eq!(config.broker.heartbeat_seconds, 30);
    assert_eq!(config.broker.delay_ladder.ratio, 1.5);
    assert!(!config.worker.metrics.prometheus_enabled);

    assert_eq!(config.sources.get("log.level"), Some("RUST_LOG"));
    assert_eq!(config.sources.get("broker.heartbeat_seconds"), Some("TASKER__broker__Heartbeat_Seconds"));
    assert!(config.sources.get("log.format").unwrap().ends_with("worker.toml:3"));
    assert_eq!(config.sources.get("broker.queue_kind"), None);
}

#[test]
fn every_short_name_sets_its_setting() {
    let variables = [
        ("RABBITMQ_URL", "amqp://a:1@one/%2f, amqps://b:2@two:5671/orders"),
        ("DATABASE_URL", "sqlite:/var/lib/tasker/tasker.sqlite"),
        ("ORCHESTRATION_API_URL", "http://tasker-orchestration:8080"),
        ("TASKER_ENV", "production"),
        ("TASKER_WORKER_ID", "worker-7"),
        ("RUST_LOG", "info,tasker_worker_rust=debug"),
    ];
    let config = load_for(Program::Orchestrator, "", &variables).unwrap();
    let urls: Vec<_> = config.broker.urls.iter().map(AmqpUrl::expose).collect();
    assert_eq!(urls, ["amqp://a:1@one/%2f", "amqps://b:2@two:5671/orders"]);
    assert_eq!(config.orchestrator.database_url, "sqlite:/var/lib/tasker/tasker.sqlite");
    assert_eq!(config.worker.orchestration_api_url.as_deref(), Some("http://tasker-orchestration:8080"));
    assert_eq!(config.environment, "production");
    assert_eq!(config.worker_id(), "worker-7");
    assert_eq!(config.log.level, "info,tasker_worker_rust=debug");
}

#[test]
fn an_empty_short_name_is_as_good_as_none() {
    let config = load("", &[("RABBITMQ_URL", ""), ("RUST_LOG", ""), ("TASKER_CONFIG", "")]).unwrap();
    assert_eq!(config, Config::default());
}

#[test]
fn a_workers_database_url_is_not_its_business() {
    let postgres = [("DATABASE_URL", "postgres://tasker:s3cret@db/tasker")];
    assert_eq!(load("", &postgres).unwrap(), Config::default());
    assert_eq!(
        load_for(Program::Orchestrator, "", &postgres).unwrap_err(),
        ["DATABASE_URL: orchestrator.database_url: expected sqlite:PATH, got something else"]
    );
}

#[test]
fn lists_in_variables_are_comma_separated_or_toml() {
    for list in ["orders,payments", " orders , payments ,", r#"["orders", "payments"]"#] {
        let config = load("", &[("TASKER__WORKER__NAMESPACES", list)]).unwrap();
        assert_eq!(config.worker.namespaces, ["orders", "payments"]);
    }
    let file = "[worker]\nnamespaces = [\"orders\"]\n";
    assert!(load(file, &[("TASKER__WORKER__NAMESPACES", "")]).unwrap().worker.namespaces.is_empty());
}

#[test]
fn secrets_may_be_in_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rabbitmq");
    std::fs::write(&file, "amqp://tasker:s3cret@rabbit/%2f\n").unwrap();
    let path = file.to_str().unwrap();
    let config = load("", &[("RABBITMQ_URL_FILE", path)]).unwrap();
    assert_eq!(config.broker.urls[0].expose(), "amqp://tasker:s3cret@rabbit/%2f");
    assert_eq!(config.sources.get("broker.urls"), Some("RABBITMQ_URL_FILE"));

    assert_eq!(
        mistakes("", &[("RABBITMQ_URL_FILE", path), ("RABBITMQ_URL", "amqp://rabbit")]),
        ["RABBITMQ_URL: RABBITMQ_URL_FILE is set as well; set one of the two"]
    );
    assert_eq!(
        mistakes("", &[("RABBITMQ_URL_FILE", "/nowhere/rabbitmq")]),
        ["RABBITMQ_URL_FILE: cannot read /nowhere/rabbitmq: No such file or directory (os error 2)"]
    );
}

#[test]
fn the_file_may_be_named_by_a_variable_and_must_then_be_there() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("other.toml");
    std::fs::write(&file, "environment = \"staging\"\n").unwrap();
    let named = environment(&[("TASKER_CONFIG", file.to_str().unwrap())]);
    assert_eq!(Config::load_with(None, Program::Worker, named).unwrap().environment, "staging");

    let missing = environment(&[("TASKER_CONFIG", "/nowhere/worker.toml"), ("RUST_LOG", "a=b=c")]);
    let error = Config::load_with(None, Program::Worker, missing).unwrap_err();
    assert_eq!(error.exit_code(), 64);
    assert_eq!(
        error.to_string(),
        "the configuration has 2 mistakes:\n  \
         - TASKER_CONFIG: cannot read /nowhere/worker.toml: No such file or directory (os error 2)\n  \
         - RUST_LOG: log.level: expected a log filter, such as \"info\" or \"warn,tasker_worker_rust=debug\", \
         got \"a=b=c\""
    );
}

#[test]
fn shown_settings_say_where_they_come_from_and_hide_secrets() {
    let config = load(
        "[worker]\nnamespaces = [\"orders\", \"payments\"]\n",
        &[("RABBITMQ_URL", "amqp://tasker:s3cret@rabbit/%2f"), ("TASKER__BROKER__QUEUE_KIND", "classic")],
    )
    .unwrap();
    assert_eq!(config.broker.queue_kind, QueueKind::Classic);
    let shown = config.show();
    for line in [
        "environment = \"development\"\n",
        "[broker]\nurls = [\"amqp://tasker:***@rabbit/%2f\"]  # RABBITMQ_URL\n",
        "queue_kind = \"classic\"  # TASKER__BROKER__QUEUE_KIND\n",
        "worker_id = \"\"\n",
        "ratio = 2.0\n",
        "/worker.toml:2\n",
    ] {
        assert!(shown.contains(line), "{line:?} is missing in\n{shown}");
    }
    assert!(shown.contains("namespaces = [\"orders\", \"payments\"]  # /"));
    assert!(!shown.contains("s3cret") && !format!("{config:?}").contains("s3cret"));
    assert!(!serde_json::to_string(&config).unwrap().contains("s3cret"));
    let again = load(&shown, &[]).unwrap();
    assert_eq!(again.worker, config.worker, "what is shown can be read again");
}

#[test]
fn a_worker_without_a_name_goes_by_host_and_process() {
    let id = Config::default().worker_id();
    assert_eq!(id, format!("{}-{}", config::host_name(), std::process::id()));
    assert!(!config::host_name().is_empty());
    assert_eq!(load("[worker]\nworker_id = \"\"\n", &[]).unwrap().worker.worker_id, None);
}

#[test]
fn the_ladder_and_the_names_follow_the_settings() {
    let config = load("[broker]\nprefix = \"eu.tasker\"\n[broker.delay_ladder]\nrungs = 3\n", &[]).unwrap();
    assert_eq!(
        config.ladder().rungs(),
        [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)]
    );
    assert_eq!(config.names().step_queue("orders"), "eu.tasker.steps.orders");
}

#[test]
fn a_key_is_never_shown_and_may_come_from_a_file() {
    let file = tempfile::NamedTempFile::new().expect("a file for the key");
    std::fs::write(file.path(), "s3cret-key\n").expect("the file can be written");
    let path = file.path().to_str().expect("the path is UTF-8");
    for variable in [("TASKER_API_KEY", "s3cret-key"), ("TASKER_API_KEY_FILE", path)] {
        let config = load("", &[variable]).expect("the settings are right");
        assert_eq!(config.worker.orchestration_api_key.as_ref().map(|key| key.expose()), Some("s3cret-key"));
        let shown = [config.show(), format!("{config:?}"), serde_json::to_string(&config).expect("JSON")];
        assert!(shown.iter().all(|text| text.contains("***") && !text.contains("s3cret")), "{shown:?}");
    }
    let said = mistakes("", &[("TASKER_API_KEY", "s3cret key")]);
    assert_eq!(
        said,
        [
            "TASKER_API_KEY: worker.orchestration_api_key: expected a key without spaces, or \"\", got something else"
        ]
    );
}

#[test]
fn threads_beyond_one_per_core_are_not_made_but_two_are_and_one_is_one() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let threads =
        |wanted| RuntimeConfig { tokio_worker_threads: wanted, ..RuntimeConfig::default() }.threads();
    assert_eq!([threads(0), threads(1), threads(2), threads(1_024)], [cores, 1, 2, cores.max(2)]);
}
