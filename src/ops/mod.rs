//! What an operator sees and does: logs, metrics, health, shutdown.

pub mod health;
pub mod http;
pub mod logging;
pub mod metrics;
<<<<<<< HEAD
=======
pub mod monitor;
>>>>>>> config
pub mod process;
pub mod shutdown;
