//! The contract with the outside: messages, handlers, examples and the document about them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

#[path = "../support/cargo.rs"]
mod cargo;
mod docs;
mod examples;
mod handlers;
mod messages;
mod places;
mod properties;
mod public_api;
mod schemas;
mod steps;
mod values;
