//! Wrong settings: all told at once, each with what is right.

use tasker_worker_rust::config::{Config, Program};

use super::{load, load_for, mistakes};

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
