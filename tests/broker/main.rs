//! The brokers, from outside.

mod rabbit;
mod support_rabbit;
