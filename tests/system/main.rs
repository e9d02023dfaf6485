//! The product as a whole: worker, orchestrator and program, on the embedded broker and on RabbitMQ.

mod support;
mod worker;
