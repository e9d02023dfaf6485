//! The reference orchestrator: accepts tasks, decides which steps may run, applies results.

pub mod api;
mod progress;
mod queries;
