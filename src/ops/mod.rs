//! What an operator sees: metrics, logs, health.

pub mod metrics;
