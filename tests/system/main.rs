//! The product as a whole: worker, orchestrator and program, on the embedded broker and on RabbitMQ.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod alarms;
mod backlog;
mod backup;
mod broken_queue;
#[path = "../support/cargo.rs"]
mod cargo;
mod checkpoints;
mod collector;
mod dead_letters;
mod guide;
mod layout;
mod ledger;
mod newcomer;
mod node;
mod pause;
mod program;
#[path = "../support/proxy.rs"]
#[expect(dead_code, reason = "the broker's own tests do more with it")]
mod proxy;
mod rights;
mod scale;
mod store;
mod support;
mod system;
mod terminal;
mod timing;
mod tls;
mod traces;
mod upgrade;
mod worker;
mod workflows;
