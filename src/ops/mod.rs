//! What an operator sees: metrics, logs, health.

pub mod health;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod process;
pub mod shutdown;
