//! What an operator sees and does: logs, metrics, health, shutdown.

pub mod health;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod monitor;
pub mod process;
pub mod shutdown;
pub mod spans;
