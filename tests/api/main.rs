//! The orchestrator's HTTP API, and its client, over real connections.

mod client;
mod health;
mod orchestrator;
mod requests;
mod server;
mod steps;
mod tasks;
mod templates;
