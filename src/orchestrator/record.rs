//! What stays on record of an attempt or a decision: the result message, or what stands for one, without its data.

use serde::Serialize;
use uuid::Uuid;

use super::task::Task;
use crate::message::{Json, ResultStatus, StepExecutionError, StepExecutionResult};

/// What stands for a result message where there is none.
#[derive(Serialize)]
struct Record<'a> {
    step_uuid: Uuid,
    step_name: &'a str,
    attempt: u32,
    success: bool,
    status: ResultStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a StepExecutionError>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Metadata<'a>>,
}

#[derive(Serialize)]
struct Metadata<'a> {
    resolved_by: &'a str,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    custom: Option<&'a Json>,
}

/// Of a worker's answer.
pub(super) fn of_result(result: &StepExecutionResult) -> Json {
    encode(&StepExecutionResult { data: Json::null(), ..result.clone() })
}

/// Of an attempt that failed without a result: what its step says of it.
pub(super) fn of_failure(task: &Task, step: usize) -> Json {
    encode(&failed(task, step))
}

/// Of a step that a person settled.
pub(super) fn of_decision(task: &Task, step: usize, by: &str, reason: &str, custom: Option<&Json>) -> Json {
    encode(&Record {
        success: true,
        status: ResultStatus::Completed,
        error: None,
        metadata: Some(Metadata { resolved_by: by, reason, custom }),
        ..failed(task, step)
    })
}

fn failed(task: &Task, step: usize) -> Record<'_> {
    let run = &task.steps[step];
    Record {
        step_uuid: run.uuid,
        step_name: &task.plan.step(step).name,
        attempt: run.attempts,
        success: false,
        status: ResultStatus::Failed,
        error: run.error.as_ref(),
        metadata: None,
    }
}

fn encode<T: Serialize>(record: &T) -> Json {
    Json::encode(record).expect("a record has string keys only and always encodes")
}
