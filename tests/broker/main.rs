//! What a broker does, whichever it is, and what only the embedded one does.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod conformance;
mod invariants;
mod memory;
#[path = "../support/proxy.rs"]
mod proxy;
mod rabbit;
mod support;
mod support_rabbit;

use conformance::conformance;

conformance!(on_memory, support::memory, support::nothing_is_left);
conformance!(on_rabbitmq, support::rabbitmq, support::remove_from_rabbitmq);
