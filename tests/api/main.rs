//! The orchestrator's HTTP API, and its client, over real connections.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod analytics;
mod auth;
mod client;
mod creation;
mod dead_letters;
mod events;
mod health;
mod limits;
mod manual;
mod openapi;
mod orchestrator;
mod reference;
mod register;
mod requests;
mod server;
mod states;
mod steps;
mod tasks;
mod templates;
mod tokens;
mod waiting;
