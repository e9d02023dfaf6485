//! The orchestrator's HTTP API, and its client, over real connections.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod client;
mod health;
mod orchestrator;
mod register;
mod requests;
mod server;
mod steps;
mod tasks;
mod templates;
