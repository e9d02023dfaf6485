//! Whether a program lives, whether it can work, and what it is doing.

use std::collections::BTreeMap;
use std::time::Instant;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::metrics::METRICS;
use crate::broker::{BrokerStatus, ConsumerState};
use crate::config::Config;

/// What the health endpoints ask. Answers come from memory: an answer waits for nobody.
pub trait Health: Send + Sync + 'static {
    /// Who answers.
    fn identity(&self) -> &Identity;

    /// Whether work can be done, with a reason for each part.
    fn readiness(&self) -> Readiness;

    /// What `/status` answers.
    fn status(&self) -> Value;
}

/// Who a program is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The worker's or orchestrator's name.
    pub id: String,
    /// Such as `rust_native`, or `orchestrator`.
    pub kind: String,
    /// Such as `production`.
    pub environment: String,
    /// The namespaces served.
    pub namespaces: Vec<String>,
    /// When the program started.
    pub started: Instant,
}

impl Identity {
    /// A worker, started now, that serves `namespaces`.
    pub fn worker(config: &Config, namespaces: Vec<String>) -> Self {
        Self {
            id: config.worker_id(),
            kind: config.worker.worker_type.clone(),
            environment: config.environment.clone(),
            namespaces,
            started: Instant::now(),
        }
    }

    /// The `system_info` of a health answer.
    pub fn system_info(&self) -> Value {
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "environment": self.environment,
            "uptime_seconds": self.started.elapsed().as_secs(),
            "worker_type": self.kind,
            "supported_namespaces": self.namespaces,
        })
    }
}

/// Whether work can be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Whether to send work here.
    pub ready: bool,
    /// Each part by its name: `broker`, and every namespace.
    pub checks: BTreeMap<String, Check>,
}

/// The state of one part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Whether the part works.
    pub status: CheckStatus,
    /// What it does, or why it does not work.
    pub message: String,
    /// When this was looked at.
    pub last_checked: Timestamp,
}

impl Check {
    /// A part that works.
    pub fn healthy(message: impl Into<String>) -> Self {
        Self { status: CheckStatus::Healthy, message: message.into(), last_checked: Timestamp::now() }
    }

    /// A part that does not work, and why.
    pub fn unhealthy(message: impl Into<String>) -> Self {
        Self { status: CheckStatus::Unhealthy, ..Self::healthy(message) }
    }
}

/// Whether a part works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// It does.
    Healthy,
    /// It does not.
    Unhealthy,
}

/// The health of a program that consumes from a broker: ready while the broker takes messages and every
/// consumer receives some, and nobody has asked it to stop.
#[derive(Debug)]
pub struct ConsumerHealth {
    /// Who answers.
    pub identity: Identity,
    /// The rate to reach, for `/status`.
    pub target_steps_per_second: u32,
    /// The connection.
    pub broker: watch::Receiver<BrokerStatus>,
    /// Every consumer, by its namespace.
    pub consumers: BTreeMap<String, watch::Receiver<ConsumerState>>,
    /// What keeps the program's templates from being registered with the orchestrator, while something does.
    pub registration: watch::Receiver<Option<String>>,
    /// Cancelled once the program is stopping.
    pub stopping: CancellationToken,
}

impl ConsumerHealth {
    fn broker_check(&self) -> Check {
        match &*self.broker.borrow() {
            BrokerStatus::Connected => Check::healthy("connected"),
            BrokerStatus::Connecting(why) => Check::unhealthy(format!("not connected: {why}")),
            BrokerStatus::Blocked(why) => Check::unhealthy(format!("the broker takes no messages: {why}")),
            BrokerStatus::Closed => Check::unhealthy("closed"),
        }
    }
}

impl Health for ConsumerHealth {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn readiness(&self) -> Readiness {
        let mut checks: Vec<(String, Check)> = Vec::new();
        for (namespace, state) in &self.consumers {
            let check = match &*state.borrow() {
                ConsumerState::Consuming => Check::healthy("consuming"),
                ConsumerState::Connecting(why) => Check::unhealthy(format!("not consuming: {why}")),
                ConsumerState::Draining => Check::unhealthy("draining: finishing what was delivered"),
                ConsumerState::Stopped => Check::unhealthy("stopped"),
            };
            checks.push((namespace.clone(), check));
        }
        checks.push(("broker".to_owned(), self.broker_check()));
        if self.stopping.is_cancelled() {
            checks.push(("shutdown".to_owned(), Check::unhealthy("stopping: taking no new work")));
        }
        // Before they become a map: a namespace may be called "broker".
        let ready = checks.iter().all(|(_, check)| check.status == CheckStatus::Healthy);
        // Steps run all the same.
        if let Some(problem) = &*self.registration.borrow() {
            checks.push(("registration".to_owned(), Check::unhealthy(problem.clone())));
        }
        Readiness { ready, checks: checks.into_iter().collect() }
    }

    fn status(&self) -> Value {
        let in_flight = METRICS.in_flight_by_namespace();
        let namespaces: BTreeMap<_, _> = self
            .consumers
            .iter()
            .map(|(namespace, state)| {
                let (state, reason) = match &*state.borrow() {
                    ConsumerState::Consuming => ("consuming", None),
                    ConsumerState::Connecting(why) => ("connecting", Some(why.clone())),
                    ConsumerState::Draining => ("draining", None),
                    ConsumerState::Stopped => ("stopped", None),
                };
                let in_flight = in_flight.get(namespace).copied().unwrap_or(0);
                (namespace, json!({ "state": state, "reason": reason, "in_flight": in_flight }))
            })
            .collect();
        json!({
            "worker_id": self.identity.id,
            "worker_type": self.identity.kind,
            "version": env!("CARGO_PKG_VERSION"),
            "environment": self.identity.environment,
            "uptime_seconds": self.identity.started.elapsed().as_secs(),
            "stopping": self.stopping.is_cancelled(),
            "broker": self.broker_check().message,
            "namespaces": namespaces,
            "in_flight": in_flight.values().sum::<i64>(),
            "steps": METRICS.steps_by_outcome(),
            "steps_per_second": METRICS.steps_per_second.get(),
            "target_steps_per_second": self.target_steps_per_second,
        })
    }
}
