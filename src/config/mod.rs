//! Every setting: its type, its range and its default, once. Nothing outside `config/` reads the environment.
//!
//! A value comes from, later ones winning:
//!
//! 1. the defaults below;
//! 2. one TOML file: the one given to [`Config::load_file`], else the one named by `TASKER_CONFIG`, else
//!    `config/worker.toml` or `config/orchestrator.toml` where it exists;
//! 3. `TASKER__SECTION__KEY`, such as `TASKER__BROKER__DELAY_LADDER__RUNGS=10`; lists are comma-separated
//!    or TOML;
//! 4. the short names `RABBITMQ_URL`, `DATABASE_URL` (the orchestrator's alone), `ORCHESTRATION_API_URL`,
//!    `TASKER_API_KEY`, `TASKER_ENV`, `TASKER_WORKER_ID`, `RUST_LOG` and OpenTelemetry's `OTEL_EXPORTER_OTLP_ENDPOINT`,
//!    `OTEL_EXPORTER_OTLP_HEADERS` and `OTEL_EXPORTER_OTLP_CERTIFICATE`, where they are not empty. `RABBITMQ_URL_FILE`,
//!    `DATABASE_URL_FILE`, `TASKER_API_KEY_FILE` and `OTEL_EXPORTER_OTLP_HEADERS_FILE` name a file with the value instead.

mod check;
mod document;
mod load;
mod secret;
mod setting;
mod show;

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use load::{Program, Sources};
pub use secret::{AmqpUrl, Secret};

pub use crate::broker::topology::QueueKind;

use crate::broker::topology::Names;
use crate::retry::Ladder;
use crate::template::lease::Lease;
pub(crate) use check::{http_headers, log_filter};

use check::Rule;
use setting::{Setting, settings};

/// All settings of a worker and of an orchestrator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Names the installation, such as `production`: chooses the overrides in task templates.
    pub environment: String,
    /// The worker.
    pub worker: WorkerConfig,
    /// The orchestrator.
    pub orchestrator: OrchestratorConfig,
    /// The connections to RabbitMQ, and the names of its queues.
    pub broker: BrokerConfig,
    /// The log.
    pub log: LogConfig,
    /// Traces.
    pub tracing: TracingConfig,
    /// Where the values came from. Two configurations are equal whatever this says.
    #[serde(skip)]
    pub sources: Sources,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            environment: "development".to_owned(),
            worker: WorkerConfig::default(),
            orchestrator: OrchestratorConfig::default(),
            broker: BrokerConfig::default(),
            log: LogConfig::default(),
            tracing: TracingConfig::default(),
            sources: Sources::default(),
        }
    }
}

impl Config {
    /// The name this worker goes by: the setting, else the host's name and the process id.
    pub fn worker_id(&self) -> String {
        match &self.worker.worker_id {
            Some(id) => id.clone(),
            None => format!("{}-{}", host_name(), std::process::id()),
        }
    }

    /// The broker's delay queues.
    ///
    /// # Panics
    /// When the settings were not checked and make no ladder.
    pub fn ladder(&self) -> Ladder {
        let ladder = &self.broker.delay_ladder;
        Ladder::new(Duration::from_millis(ladder.first_ms), ladder.ratio, ladder.rungs)
    }

    /// What bounds the time a step may hold its delivery, in a worker that serves this many namespaces.
    pub fn lease(&self, namespaces: usize) -> Lease {
        Lease {
            limit: Duration::from_secs(self.broker.consumer_timeout_seconds),
            default_timeout: Duration::from_secs(self.worker.step_timeout_seconds),
            confirm: Duration::from_millis(self.broker.publish_timeout_ms),
            namespaces,
        }
    }

    /// The names of the broker's queues and exchanges.
    pub fn names(&self) -> Names {
        Names::new(&self.broker.prefix)
    }

    /// Every setting with its present value, in the order of the structs.
    fn settings(&self) -> Vec<Setting> {
        let mut all = vec![Setting::new(
            "environment",
            &["Names the installation, such as production: chooses the overrides in task templates."],
            Rule::Name,
            &self.environment,
        )];
        self.worker.collect("worker", &mut all);
        self.orchestrator.collect("orchestrator", &mut all);
        self.broker.collect("broker", &mut all);
        self.log.collect("log", &mut all);
        self.tracing.collect("tracing", &mut all);
        all
    }
}

/// The name of this host: `HOSTNAME`, which containers set, else the system's.
#[expect(clippy::disallowed_methods, reason = "this is the place where the environment is read")]
pub fn host_name() -> &'static str {
    static NAME: LazyLock<String> = LazyLock::new(|| {
        std::env::var("HOSTNAME")
            .or_else(|_| std::fs::read_to_string("/proc/sys/kernel/hostname"))
            .map(|name| name.trim().to_owned())
            .ok()
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "localhost".to_owned())
    });
    &NAME
}

/// A variable of the environment, for the `${VAR}` of task templates; `None` where it is not set, or no text.
#[expect(clippy::disallowed_methods, reason = "this is the place where the environment is read")]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Whether a terminal is to show colours: see <https://no-color.org>.
pub(crate) fn wants_colour() -> bool {
    let refuses = variable("NO_COLOR").is_some_and(|value| !value.is_empty());
    !refuses && variable("TERM").is_none_or(|terminal| terminal != "dumb")
}

// Each line: type, default, rule. A setting's text is its documentation and its comment in the files.
settings! {
    /// `[worker]`
    WorkerConfig {
        /// Shown in `/status` and in the info metric.
        worker_type: String = "rust_native".to_owned(), Rule::Name;
        /// Names this worker in results and logs; empty for host name and process id.
        worker_id: Option<String> = None, Rule::Optional(&Rule::Text);
        /// The namespaces to serve; empty for all that have handlers.
        namespaces: Vec<String> = Vec::new(), Rule::Namespaces;
        /// Steps that run at once, and deliveries held per namespace.
        max_concurrent_steps: u16 = 100, Rule::Integer(1, 65_535);
        /// Steps per second this worker is meant to reach: exported beside the measured rate, for alerts.
        performance_target_steps_per_second: u32 = 1_000, Rule::Integer(0, 1_000_000_000);
        /// How long a step may run whose template gives no timeout.
        step_timeout_seconds: u64 = 300, Rule::Integer(1, 2_592_000);
        /// Where health and status are served.
        health_address: String = "0.0.0.0:8081".to_owned(), Rule::Address;
        /// Where the orchestrator's API is: a worker registers its templates there. Empty for nowhere.
        orchestration_api_url: Option<String> = None, Rule::Optional(&Rule::Http);
        /// The key to show there, as TASKER_API_KEY or in the file named by TASKER_API_KEY_FILE. Empty for none.
        orchestration_api_key: Option<Secret> = None, Rule::Optional(&Rule::Key);
    } {
        /// The runtime handlers run on.
        rust_runtime: RuntimeConfig;
        /// The templates this worker has handlers for.
        task_templates: TemplatesConfig;
        /// What is measured.
        metrics: MetricsConfig;
        /// Retries.
        retry: RetryConfig;
        /// Shutdown.
        shutdown: ShutdownConfig;
        /// Answers kept, so that a finished step is not run again.
        ledger: LedgerConfig;
    }

    /// `[worker.rust_runtime]`
    RuntimeConfig {
        /// false: the settings below are not used, and tokio's own defaults are.
        enabled: bool = true, Rule::Bool;
        /// Threads that run handlers, at most: one per core is enough, but there are two at least. 0 for one per core.
        tokio_worker_threads: usize = 8, Rule::Integer(0, 1_024);
        /// "multi_threaded", or "current_thread" for one thread.
        async_runtime: RuntimeKind = RuntimeKind::MultiThreaded, Rule::OneOf(&["multi_threaded", "current_thread"]);
        /// Stack of each of these threads, and of the one that handles messages, in units of 1024 bytes.
        stack_size_kb: usize = 2_048, Rule::Integer(64, 1_048_576);
    }

    /// `[worker.task_templates]`
    TemplatesConfig {
        /// Where the YAML files are.
        template_directory: PathBuf = PathBuf::from("config/workflows"), Rule::Text;
        /// Read changed files again without a restart.
        auto_reload: bool = true, Rule::Bool;
        /// Refuse to start when a template's step in a served namespace has no handler.
        validation_enabled: bool = true, Rule::Bool;
    }

    /// `[worker.metrics]`
    MetricsConfig {
        /// Serve /metrics on prometheus_port, and beside the health endpoints.
        prometheus_enabled: bool = true, Rule::Bool;
        /// The port for metrics alone; 0 for any free one.
        prometheus_port: u16 = 9_091, Rule::Integer(0, 65_535);
        /// Measure the rate of finished steps.
        performance_monitoring: bool = true, Rule::Bool;
        /// Measure waiting, run and confirm times per step.
        step_timing_enabled: bool = true, Rule::Bool;
        /// Measure the process's memory.
        memory_monitoring: bool = true, Rule::Bool;
    }

    /// `[worker.retry]`
    RetryConfig {
        /// Spread retries over the two neighbouring delays, so that steps that failed together do not return together.
        jitter: bool = true, Rule::Bool;
        /// The longest pause between two tries to publish a result that the broker did not confirm.
        publish_max_pause_ms: u64 = 10_000, Rule::Integer(1, 3_600_000);
    }

    /// `[worker.shutdown]`
    ShutdownConfig {
        /// How long running steps may go on after the first signal.
        shutdown_timeout_seconds: u64 = 5, Rule::Integer(0, 86_400);
    }

    /// `[worker.ledger]`: the answers of finished steps, repeated when their requests come again.
    LedgerConfig {
        /// Answers kept, the latest ones; 0 for none.
        max_entries: usize = 1_000, Rule::Integer(0, 10_000_000);
        /// The memory they may take, roughly.
        max_bytes: usize = 8 << 20, Rule::Integer(0, 1 << 40);
        /// A file of this worker's own that keeps them over a restart of the process; empty for none.
        path: Option<PathBuf> = None, Rule::Optional(&Rule::Text);
    }

    /// `[orchestrator]`
    OrchestratorConfig {
        /// Where the API is served.
        listen_address: String = "0.0.0.0:8080".to_owned(), Rule::Address;
        /// The store: sqlite:PATH.
        database_url: String = "sqlite:tasker.sqlite".to_owned(), Rule::Database;
        /// Where the YAML files are.
        template_directory: PathBuf = PathBuf::from("config/workflows"), Rule::Text;
        /// Read changed files again without a restart.
        auto_reload: bool = true, Rule::Bool;
        /// Refuse tasks whose context is not what their template's input_schema wants.
        enforce_input_schema: bool = true, Rule::Bool;
        /// Results applied in one transaction, at most.
        apply_batch: usize = 256, Rule::Integer(1, 65_536);
        /// A request is published again when its result is this long overdue.
        overdue_after_seconds: u64 = 60, Rule::Integer(1, 2_592_000);
        /// A request that was published again this often without a result goes to the dead letters.
        overdue_resends: u32 = 10, Rule::Integer(1, 1_000_000);
        /// Larger requests are refused.
        max_body_bytes: usize = 4 << 20, Rule::Integer(1 << 10, 128 << 20);
        /// Requests with longer headers are refused.
        max_header_bytes: usize = 32 << 10, Rule::Integer(8 << 10, 1 << 20);
        /// Connections served at once; further ones wait.
        max_connections: usize = 1_024, Rule::Integer(1, 1_000_000);
        /// Requests answered per second, health aside, to each key, token or else address; more are refused with 429.
        max_requests_per_second: u32 = 10_000, Rule::Integer(1, 10_000_000);
        /// Requests that take longer are answered with 408.
        request_timeout_ms: u64 = 30_000, Rule::Integer(1, 3_600_000);
        /// Where /metrics and /health/detailed are served, apart from the API; empty for beside it.
        health_address: Option<String> = None, Rule::Optional(&Rule::Address);
    } {
        /// Who may ask the API what.
        auth: AuthConfig;
    }

    /// `[orchestrator.auth]`: with a file of keys or tokens, nobody is answered without one.
    AuthConfig {
        /// A TOML file of API keys and what they permit; empty for none.
        api_keys_file: Option<PathBuf> = None, Rule::Optional(&Rule::Text);
        /// The public key (RSA, PEM) of whoever signs tokens; empty for none.
        jwt_public_key_file: Option<PathBuf> = None, Rule::Optional(&Rule::Text);
        /// The same as a JSON Web Key Set, where there are several.
        jwks_file: Option<PathBuf> = None, Rule::Optional(&Rule::Text);
        /// Who must have issued a token (iss).
        jwt_issuer: String = "tasker-core".to_owned(), Rule::Text;
        /// Whom a token must be for (aud).
        jwt_audience: String = "tasker-api".to_owned(), Rule::Text;
    }

    /// `[broker]`
    BrokerConfig {
        /// AMQP addresses, tried in turn; special characters of a password as %XX.
        urls: Vec<AmqpUrl> = vec!["amqp://guest:guest@127.0.0.1:5672/%2f".into()], Rule::AmqpUrls;
        /// A file with the password, read at every connect; wins over the one in the address. Empty for none.
        password_file: Option<PathBuf> = None, Rule::Optional(&Rule::Text);
        /// What every exchange's and queue's name starts with.
        prefix: String = "tasker".to_owned(), Rule::Prefix;
        /// How queues are kept: "quorum" (replicated, counts redeliveries) or "classic" (on one node).
        queue_kind: QueueKind = QueueKind::Quorum, Rule::OneOf(&["quorum", "classic"]);
        /// "declare": create missing queues and exchanges at start; "verify": only look, not ready while some are missing.
        topology: TopologyMode = TopologyMode::Declare, Rule::OneOf(&["declare", "verify"]);
        /// Silence on a connection for twice this long is an outage.
        heartbeat_seconds: u16 = 10, Rule::Integer(1, 65_535);
        /// How long connecting may take.
        connect_timeout_ms: u64 = 10_000, Rule::Integer(1, 3_600_000);
        /// How long the broker may take to confirm a message.
        publish_timeout_ms: u64 = 10_000, Rule::Integer(1, 3_600_000);
        /// Messages waiting for their confirmation at once.
        publish_window: usize = 1_024, Rule::Integer(1, 65_535);
        /// Larger requests are refused, larger results fail their step. Stay below the broker's own limit.
        max_message_bytes: usize = 8 << 20, Rule::Integer(1 << 10, 128 << 20);
        /// What the broker's own consumer_timeout is set to: it takes back what is not acked for this long. 0 for never.
        consumer_timeout_seconds: u64 = 1_800, Rule::Integer(0, 2_592_000);
    } {
        /// The delay queues.
        delay_ladder: LadderConfig;
        /// Encryption, for addresses that begin with amqps://.
        tls: TlsConfig;
    }

    /// `[broker.delay_ladder]`: the same for everybody on one broker.
    LadderConfig {
        /// The shortest delay.
        first_ms: u64 = 500, Rule::Integer(1, 86_400_000);
        /// How much longer each delay is than the one before.
        ratio: f64 = 2.0, Rule::Number(1.0, 1_000.0);
        /// How many delays there are.
        rungs: u32 = 14, Rule::Integer(1, 32);
    }

    /// `[broker.tls]`: PEM files, read at every connect.
    TlsConfig {
        /// The authorities that may have signed the broker's certificate, and no others; empty for the public ones.
        ca_file: Option<PathBuf> = None, Rule::Optional(&Rule::Text);
        /// The certificate we show to the broker, with those between it and its authority; empty for none.
        certificate_file: Option<PathBuf> = None, Rule::Optional(&Rule::Text);
        /// Its key.
        key_file: Option<PathBuf> = None, Rule::Optional(&Rule::Text);
        /// The name the broker's certificate must be for; empty for the host in the address.
        server_name: Option<String> = None, Rule::Optional(&Rule::Text);
        /// Log in with the certificate (SASL EXTERNAL), not with user and password.
        external_login: bool = false, Rule::Bool;
    }

    /// `[log]`
    LogConfig {
        /// "json" for machines, "text" for people, "auto" for text on a terminal and JSON elsewhere.
        format: LogFormat = LogFormat::Auto, Rule::OneOf(&["auto", "json", "text"]);
        /// What is logged, in the syntax of RUST_LOG, which wins.
        level: String = "info".to_owned(), Rule::Filter;
    }

    /// `[tracing]`
    TracingConfig {
        /// The collector that spans are sent to, OTLP over HTTP, such as http://collector:4318. Empty for none.
        otlp_endpoint: Option<String> = None, Rule::Optional(&Rule::HttpOrHttps);
        /// What the collector wants with each request, NAME=VALUE,NAME=VALUE with other characters as %XX. Empty for none.
        otlp_headers: Option<Secret> = None, Rule::Optional(&Rule::Headers);
        /// The authorities that may have signed the collector's certificate, and no others; empty for the public ones.
        ca_file: Option<PathBuf> = None, Rule::Optional(&Rule::Text);
        /// The share of the traces begun here that is recorded, 0 to 1. Callers decide about the traces they began.
        sample_ratio: f64 = 1.0, Rule::Number(0.0, 1.0);
    }
}

impl RuntimeConfig {
    /// How many threads run handlers. Beyond one per core they only wake each other up: a tenth of the processor time of
    /// a short step.
    pub fn threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        match self.tokio_worker_threads {
            0 => cores,
            most => most.min(cores.max(2)),
        }
    }
}

/// `worker.rust_runtime.async_runtime`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeKind {
    /// `tokio_worker_threads` threads.
    MultiThreaded,
    /// One thread.
    CurrentThread,
}

/// `broker.topology`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TopologyMode {
    /// Create missing queues and exchanges at start.
    Declare,
    /// Check that they are there; not ready while they are not.
    Verify,
}

/// `log.format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// One JSON object a line.
    Json,
    /// Readable lines.
    Text,
}
