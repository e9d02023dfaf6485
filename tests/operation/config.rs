//! Where settings come from, and what is said when they are wrong.

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
fn all_mistakes_are_reported_at_once_each_with_its_place() {
    let file = r#"environment = "pro duction"
[worker]
max_concurrent_steps = "many"
max_concurent_steps = 5
prometheus_port = 9092
namespaces = ["orders", "or ders"]
health_address = "8081"
orchestration_api_url = "https://tasker-orchestration"

[worker.metrix]
prometheus_port = 1

[worker.rust_runtime]
async_runtime = "multi"
stack_size_kb = 16
enabled = 1

[worker.shutdown]
shutdown_timeout_seconds = -1

[broker]
delay_ladder = 5
heartbeat_seconds = 0
max_message_bytes = 999999999999
prefix = "amq.tasker"
queue_kind = 2024-01-01

[telemetry]
endpoint = "x"
"#;
    let variables = [
        ("TASKER__BROKER__PUBLISH_WINDOW", "none"),
        ("TASKER__BROKER__PUBLISH_WINDO", "5"),
        ("TASKER__WORKER", "x"),
        ("TASKER__WORKER__RETRY__JITTER", "maybe"),
        ("TASKER__WORKER__NAMESPACES", "[\"a\""),
    ];
    let expected = r#"worker.toml:1: environment: expected 1 to 64 characters of A-Z a-z 0-9 _ -, got "pro duction"
worker.toml:3: worker.max_concurrent_steps: expected an integer from 1 to 65535, got "many"
worker.toml:4: there is no setting worker.max_concurent_steps; did you mean worker.max_concurrent_steps?
worker.toml:5: there is no setting worker.prometheus_port; did you mean worker.metrics.prometheus_port?
worker.toml:6: worker.namespaces: expected a list of namespaces, each 1 to 64 characters of A-Z a-z 0-9 _ -, got "or ders"
worker.toml:7: worker.health_address: expected HOST:PORT, such as "0.0.0.0:8081", got "8081"
worker.toml:8: worker.orchestration_api_url: expected http://HOST:PORT, or "", got something else
worker.toml:10: there is no setting worker.metrix; did you mean worker.metrics?
worker.toml:14: worker.rust_runtime.async_runtime: expected "multi_threaded" or "current_thread", got "multi"
worker.toml:15: worker.rust_runtime.stack_size_kb: expected an integer from 64 to 1048576, got 16
worker.toml:16: worker.rust_runtime.enabled: expected true or false, got 1
worker.toml:19: worker.shutdown.shutdown_timeout_seconds: expected an integer from 0 to 86400, got -1
worker.toml:22: broker.delay_ladder: expected the section [broker.delay_ladder], got a value
worker.toml:23: broker.heartbeat_seconds: expected an integer from 1 to 65535, got 0
worker.toml:24: broker.max_message_bytes: expected an integer from 1024 to 134217728, got 999999999999
worker.toml:25: broker.prefix: expected 1 to 64 characters of A-Z a-z 0-9 _ - and inner dots, not starting with "amq.", got "amq.tasker"
worker.toml:26: broker.queue_kind: expected "quorum" or "classic", got a date or time
worker.toml:28: there is no setting telemetry
TASKER__WORKER: worker is a section; add the name of one of its settings
TASKER__BROKER__PUBLISH_WINDO: there is no setting broker.publish_windo; did you mean TASKER__BROKER__PUBLISH_WINDOW?
TASKER__BROKER__PUBLISH_WINDOW: broker.publish_window: expected an integer from 1 to 65535, got "none"
TASKER__WORKER__NAMESPACES: worker.namespaces: expected a list of namespaces, each 1 to 64 characters of A-Z a-z 0-9 _ -, got a list that cannot be read: unclosed array, expected `]`
TASKER__WORKER__RETRY__JITTER: worker.retry.jitter: expected true or false, got "maybe""#;
    let mut found = mistakes(file, &variables);
    let mut expected: Vec<_> = expected.lines().collect();
    // The file's in the order of its lines, then the variables'.
    assert_eq!(found[..18], expected[..18]);
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn broken_toml_is_reported_with_its_line() {
    let found = mistakes("[worker]\nmax_concurrent_steps = \n", &[]);
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("worker.toml:2: "), "{found:?}");
}

#[test]
fn wrong_broker_addresses_are_explained_without_their_password() {
    for (url, problem) in [
        ("http://u:s3cret@rabbit", "does not start with amqp:// or amqps://"),
        ("u:s3cret@rabbit", "does not start with amqp:// or amqps://"),
        ("amqp:rabbit", "does not start with amqp:// or amqps://"),
        ("amqp://", "names no host"),
        ("amqp://u:s3cret@[::1]:5672", "has an IPv6 address for a host; use a host name"),
        (
            "amqp://u:s3/cret@rabbit",
            "cannot be read (invalid port number); write special characters of its password as %XX",
        ),
        (
            "amqp://u:33/s3cret@rabbit",
            "has a stray / @ or #; write %2f %40 and %23 in passwords and virtual hosts",
        ),
        (
            "amqp://u:33#s3cret@rabbit",
            "has a stray / @ or #; write %2f %40 and %23 in passwords and virtual hosts",
        ),
        (
            "amqp://u:33?s3cret@rabbit",
            "has an unknown parameter; the known ones are auth_mechanism, channel_max, connection_timeout, \
             frame_max, heartbeat, and a ? in a password is written %3f",
        ),
    ] {
        assert_eq!(
            mistakes("", &[("RABBITMQ_URL", url)]),
            [format!("RABBITMQ_URL: broker.urls: the address {problem}")],
            "{url}"
        );
    }
    assert_eq!(
        mistakes("", &[("RABBITMQ_URL", "amqp://u:s3cret@one,redis://u:s3cret@two")]),
        ["RABBITMQ_URL: broker.urls: address 2 does not start with amqp:// or amqps://"]
    );
    assert_eq!(
        mistakes("[broker]\nurls = \"amqp://u:s3cret@one\"\n", &[]),
        ["worker.toml:2: broker.urls: expected one or more addresses amqp://USER:PASSWORD@HOST:PORT/VHOST, \
             got something else"]
    );
}

#[test]
fn ordinary_broker_addresses_are_accepted() {
    for url in [
        "amqp://localhost",
        "amqp://guest:guest@127.0.0.1:5672/%2f",
        "amqps://u:p%40ss%2Fword@rabbit.example:5671/orders?heartbeat=10&auth_mechanism=external",
        "amqp://rabbit:5672/",
    ] {
        assert_eq!(load("", &[("RABBITMQ_URL", url)]).unwrap().broker.urls[0].expose(), url);
    }
}

#[test]
fn settings_that_clash_are_reported_with_the_places_they_come_from() {
    let ladder = "[broker.delay_ladder]\nfirst_ms = 1\nratio = 1.2\n";
    assert_eq!(
        mistakes(ladder, &[]),
        ["worker.toml:2, worker.toml:3: the delays of broker.delay_ladder do not grow (1 ms, 1 ms, …): \
             raise ratio or first_ms"]
    );
    assert_eq!(
        mistakes("", &[("TASKER__BROKER__DELAY_LADDER__RUNGS", "32")]),
        [
            "TASKER__BROKER__DELAY_LADDER__RUNGS: the longest delay of broker.delay_ladder is 1073741824000 ms; \
             RabbitMQ holds messages for at most 4294967295 ms: lower first_ms, ratio or rungs"
        ]
    );
    assert_eq!(
        mistakes("[worker]\nhealth_address = \"127.0.0.1:9091\"\nnamespaces = [\"a\", \"b\", \"a\"]\n", &[]),
        [
            "worker.toml:2: worker.metrics.prometheus_port and worker.health_address both use port 9091; \
             choose two ports",
            "worker.toml:3: worker.namespaces names \"a\" twice; name each namespace once",
        ]
    );
    // The ratio that was meant is not known, so nothing is said about the ladder it would make.
    assert_eq!(mistakes("[broker.delay_ladder]\nrungs = 32\nratio = \"1.2\"\n", &[]).len(), 1);
}

#[test]
fn settings_made_in_code_are_checked_alike() {
    let mut config = Config::default();
    assert!(config.check(Program::Worker).is_ok());
    config.broker.urls = vec!["http://u:s3cret@rabbit".into()];
    config.worker.max_concurrent_steps = 0;
    let error = config.check(Program::Worker).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the configuration has 2 mistakes:\n  \
         - worker.max_concurrent_steps: expected an integer from 1 to 65535, got 0\n  \
         - broker.urls: the address does not start with amqp:// or amqps://"
    );
    config = Config::default();
    config.broker.delay_ladder.ratio = 1.0;
    assert!(config.check(Program::Worker).unwrap_err().to_string().contains("do not grow"));
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
fn certificates_and_ways_to_log_in_must_fit_together() {
    for (text, problem) in [
        ("certificate_file = \"a\"", "without broker.tls.key_file"),
        ("key_file = \"a\"", "without broker.tls.certificate_file"),
        ("external_login = true", "wants a certificate to log in with"),
    ] {
        let said = mistakes(&format!("[broker.tls]\n{text}\n"), &[]);
        assert!(
            said.len() == 1 && said[0].starts_with("worker.toml:2: ") && said[0].contains(problem),
            "{said:?}"
        );
    }
    let both = "[broker]\npassword_file = \"p\"\n[broker.tls]\ncertificate_file = \"a\"\nkey_file = \"b\"\nexternal_login = true\n";
    let said = mistakes(both, &[]);
    assert!(said.len() == 1 && said[0].contains("two ways to log in; choose one"), "{said:?}");
    let keys = "[orchestrator.auth]\njwt_public_key_file = \"a\"\njwks_file = \"b\"\n";
    let said = load_for(Program::Orchestrator, keys, &[]).expect_err("two sources of keys");
    assert!(said.len() == 1 && said[0].contains("both say which keys sign tokens"), "{said:?}");
}

#[test]
fn threads_beyond_one_per_core_are_not_made_but_two_are_and_one_is_one() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let threads =
        |wanted| RuntimeConfig { tokio_worker_threads: wanted, ..RuntimeConfig::default() }.threads();
    assert_eq!([threads(0), threads(1), threads(2), threads(1_024)], [cores, 1, 2, cores.max(2)]);
}
