//! Every setting, its unit in its name and its default here. Files and environment are read nowhere else.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::broker::topology::QueueKind;

/// All settings of a worker and of an orchestrator.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The worker.
    pub worker: WorkerConfig,
    /// The orchestrator.
    pub orchestrator: OrchestratorConfig,
    /// The connections to RabbitMQ, and the names of its queues.
    pub broker: BrokerConfig,
    /// The log.
    pub log: LogConfig,
}

/// `[worker]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerConfig {
    /// Shown in `/status` and in the info metric.
    pub worker_type: String,
    /// Names this worker in results and logs; host name and process id where absent.
    pub worker_id: Option<String>,
    /// The namespaces to serve; all registered ones where empty.
    pub namespaces: Vec<String>,
    /// Steps that run at once, and deliveries held per namespace.
    pub max_concurrent_steps: u16,
    /// Steps per second this worker is meant to reach: exported beside the measured rate, for alerts.
    pub performance_target_steps_per_second: u32,
    /// How long a step may run whose template gives no timeout.
    pub step_timeout_seconds: u64,
    /// Where health and status are served.
    pub health_address: String,
    /// The orchestrator's API. Where set, the worker registers its templates there at start.
    pub orchestration_api_url: Option<String>,
    /// The runtime handlers run on.
    pub rust_runtime: RuntimeConfig,
    /// The templates this worker has handlers for.
    pub task_templates: TemplatesConfig,
    /// What is measured.
    pub metrics: MetricsConfig,
    /// Retries.
    pub retry: RetryConfig,
    /// Shutdown.
    pub shutdown: ShutdownConfig,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            worker_type: "rust_native".to_owned(),
            worker_id: None,
            namespaces: Vec::new(),
            max_concurrent_steps: 100,
            performance_target_steps_per_second: 1_000,
            step_timeout_seconds: 300,
            health_address: "0.0.0.0:8081".to_owned(),
            orchestration_api_url: None,
            rust_runtime: RuntimeConfig::default(),
            task_templates: TemplatesConfig::default(),
            metrics: MetricsConfig::default(),
            retry: RetryConfig::default(),
            shutdown: ShutdownConfig::default(),
        }
    }
}

/// `[worker.rust_runtime]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeConfig {
    /// `false`: the settings below are not used, and tokio's own defaults are.
    pub enabled: bool,
    /// Threads that run handlers; 0 for one per core.
    pub tokio_worker_threads: usize,
    /// One thread or several.
    pub async_runtime: RuntimeKind,
    /// Stack of each of these threads.
    pub stack_size_kb: usize,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            tokio_worker_threads: 8,
            async_runtime: RuntimeKind::MultiThreaded,
            stack_size_kb: 2_048,
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

/// `[worker.task_templates]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TemplatesConfig {
    /// Where the YAML files are.
    pub template_directory: PathBuf,
    /// Read changed files again without a restart.
    pub auto_reload: bool,
    /// Refuse to start when a template's step in a served namespace has no handler.
    pub validation_enabled: bool,
}

impl Default for TemplatesConfig {
    fn default() -> Self {
        Self {
            template_directory: PathBuf::from("config/workflows"),
            auto_reload: true,
            validation_enabled: true,
        }
    }
}

/// `[worker.metrics]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Serve `/metrics` on `prometheus_port`, and beside the health endpoints.
    pub prometheus_enabled: bool,
    /// The port for metrics alone.
    pub prometheus_port: u16,
    /// Measure the rate of finished steps.
    pub performance_monitoring: bool,
    /// Measure waiting, run and confirm times per step.
    pub step_timing_enabled: bool,
    /// Measure the process's memory.
    pub memory_monitoring: bool,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self {
            prometheus_enabled: true,
            prometheus_port: 9_091,
            performance_monitoring: true,
            step_timing_enabled: true,
            memory_monitoring: true,
        }
    }
}

/// `[worker.retry]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryConfig {
    /// Spread retries over the two neighbouring delays, so that steps that failed together do not return together.
    pub jitter: bool,
    /// The longest pause between two tries to publish a result that the broker did not confirm.
    pub publish_max_pause_ms: u64,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { jitter: true, publish_max_pause_ms: 10_000 }
    }
}

/// `[worker.shutdown]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShutdownConfig {
    /// How long running steps may go on after the first signal.
    pub shutdown_timeout_seconds: u64,
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self { shutdown_timeout_seconds: 5 }
    }
}

/// `[orchestrator]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OrchestratorConfig {
    /// Where the API is served.
    pub listen_address: String,
    /// The store: `sqlite:PATH`.
    pub database_url: String,
    /// Where the YAML files are.
    pub template_directory: PathBuf,
    /// Read changed files again without a restart.
    pub auto_reload: bool,
    /// Results applied in one transaction, at most.
    pub apply_batch: usize,
    /// A request is published again when its result is this long overdue.
    pub overdue_after_seconds: u64,
    /// Requests above this are refused.
    pub max_body_bytes: usize,
    /// Requests that take longer are answered with 408.
    pub request_timeout_ms: u64,
}

impl Default for OrchestratorConfig {
    fn default() -> Self {
        Self {
            listen_address: "0.0.0.0:8080".to_owned(),
            database_url: "sqlite:tasker.sqlite".to_owned(),
            template_directory: PathBuf::from("config/workflows"),
            auto_reload: true,
            apply_batch: 256,
            overdue_after_seconds: 60,
            max_body_bytes: 4 << 20,
            request_timeout_ms: 30_000,
        }
    }
}

/// `[broker]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerConfig {
    /// AMQP addresses, tried in turn. Never printed with their password.
    pub urls: Vec<String>,
    /// A file with the password, read at every connect; wins over the one in the address.
    pub password_file: Option<PathBuf>,
    /// What every exchange's and queue's name starts with.
    pub prefix: String,
    /// How queues are kept.
    pub queue_kind: QueueKind,
    /// Create what is missing, or only look.
    pub topology: TopologyMode,
    /// Silence on a connection for twice this long is an outage.
    pub heartbeat_seconds: u16,
    /// How long connecting may take.
    pub connect_timeout_ms: u64,
    /// How long the broker may take to confirm a message.
    pub publish_timeout_ms: u64,
    /// Messages waiting for their confirmation at once.
    pub publish_window: usize,
    /// Larger requests are refused, larger results fail their step. Stay below the broker's own limit.
    pub max_message_bytes: usize,
    /// The delay queues.
    pub delay_ladder: LadderConfig,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            urls: vec!["amqp://guest:guest@127.0.0.1:5672/%2f".to_owned()],
            password_file: None,
            prefix: "tasker".to_owned(),
            queue_kind: QueueKind::Quorum,
            topology: TopologyMode::Declare,
            heartbeat_seconds: 10,
            connect_timeout_ms: 10_000,
            publish_timeout_ms: 10_000,
            publish_window: 256,
            max_message_bytes: 8 << 20,
            delay_ladder: LadderConfig::default(),
        }
    }
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

/// `[broker.delay_ladder]`: the same for everybody on one broker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LadderConfig {
    /// The shortest delay.
    pub first_ms: u64,
    /// How much longer each delay is than the one before.
    pub ratio: f64,
    /// How many delays there are.
    pub rungs: u32,
}

impl Default for LadderConfig {
    fn default() -> Self {
        Self { first_ms: 500, ratio: 2.0, rungs: 14 }
    }
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// JSON for machines, text for people.
    pub format: LogFormat,
    /// What is logged, in the syntax of RUST_LOG, which wins.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Auto, level: "info".to_owned() }
    }
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
impl Config {
    /// tmp
    pub fn worker_id(&self) -> String {
        "w".into()
    }
    /// tmp
    pub fn names(&self) -> crate::broker::topology::Names {
        crate::broker::topology::Names::new(&self.broker.prefix)
    }
    /// tmp
    pub fn ladder(&self) -> crate::retry::Ladder {
        crate::retry::Ladder::default()
    }
}
/// tmp
pub fn hostname() -> String {
    "h".into()
}
