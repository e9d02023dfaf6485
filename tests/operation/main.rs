//! Settings, and what an operator sees.

mod config;
mod http;
mod logging;
mod monitoring;
mod shutdown;
