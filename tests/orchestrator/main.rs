//! The orchestrator without its HTTP API: its core against every order of events, and the whole of it on
//! the embedded broker and a real store.

mod answers;
mod checkpoints;
mod faults;
mod flow;
mod kinds;
mod priority;
mod replay;
mod simulation;
mod stale;
mod states;
mod store;
mod support;
