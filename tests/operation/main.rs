//! Settings, and what an operator sees.

mod config;
mod http;
mod image;
mod logging;
mod monitoring;
mod shutdown;
