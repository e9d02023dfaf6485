#![doc = include_str!("../README.md")]

pub mod api;
pub mod batch;
pub mod broker;
pub mod catalog;
pub mod checkpoint;
pub mod client;
mod clock;
pub mod config;
mod control;
pub mod dead_letters;
pub mod decision;
mod error;
pub mod handler;
pub mod message;
pub mod ops;
pub mod orchestrator;
pub mod outcome;
pub mod pause;
pub mod retry;
pub mod step;
pub mod template;
pub mod trace;
pub mod worker;
pub mod workflows;

pub use batch::{Batch, Batches};
pub use checkpoint::Checkpoint;
pub use config::Config;
pub use decision::Decision;
pub use error::Error;
pub use handler::{HandlerRegistry, Namespace, StepHandler};
pub use message::{ExecutionMetadata, StepExecutionError, StepExecutionRequest, StepExecutionResult};
pub use outcome::{StepError, StepResult};
pub use step::Step;
pub use worker::{Drained, RunningWorker, RustWorker};
