//! Settings, and what an operator sees.

mod config;
mod http;
mod logging;
mod shutdown;
