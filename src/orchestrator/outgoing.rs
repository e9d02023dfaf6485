//! The messages the orchestrator sends.

use jiff::Timestamp;
use uuid::Uuid;

use super::task::Task;
use super::trace;
use crate::broker::topology::{Names, dead_key, step_key};
use crate::broker::{Delivery, Message, Properties};
use crate::message::{
    self, ControlMessage, ErrorType, PROTOCOL_VERSION, StepExecutionRequest, StepOutput, header,
    is_namespace, message_id, replayed_message_id,
};

/// Why a message is a dead letter that nobody understands.
const REFUSED: &str = "refused";

/// Headers must fit one frame all together.
const ERROR_CHARS: usize = 1_000;

/// The request for one attempt of a step. The same attempt asked for again has the same message id.
pub fn request(task: &Task, step: usize, attempt: u32, now: i64, names: &Names) -> Message {
    let template = task.plan.template();
    let definition = task.plan.step(step);
    let run = &task.steps[step];
    let batch = task.plan.batch(step);
    let retried = attempt > 1;
    let request = StepExecutionRequest {
        protocol_version: PROTOCOL_VERSION,
        task_uuid: task.uuid,
        step_uuid: run.uuid,
        namespace: template.namespace.clone(),
        task_name: template.name.clone(),
        task_version: template.version.clone(),
        step_name: definition.name.clone(),
        handler: definition.handler.clone(),
        attempt,
        part: run.part,
        checkpoint: run.checkpoint.clone(),
        max_attempts: definition.max_attempts,
        timeout_ms: definition.timeout.map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)),
        retry: definition.retry.clone(),
        task_data: task.context.clone(),
        sequence_data: task
            .inputs(step)
            .into_iter()
            .map(|input| StepOutput {
                step_name: task.plan.step(input).name.clone(),
                result: match task.plan.rest(step, input) {
                    Some(rest) => rest.clone(),
                    None => task.steps[input].output.clone().unwrap_or_default(),
                },
            })
            .collect(),
        correlation_id: task.correlation_id.clone(),
        created_at: Timestamp::from_millisecond(now).ok(),
        previous_error: run.error.clone().filter(|_| retried),
        previous_attempt_at: run
            .last_failure_at
            .filter(|_| retried)
            .and_then(|at| Timestamp::from_millisecond(at).ok()),
        not_before: None,
        batch_config: batch.map(|(config, _)| config).or(task.plan.batch_config(step)).cloned(),
        batch: batch.map(|(_, batch)| batch.clone()),
    };
    let message_id = replayed_message_id(request.message_id("request"), run.replays);
    let mut properties = properties(message_id, task, "step.request", now);
    properties.headers.set(header::ATTEMPT, attempt);
    if run.replays > 0 {
        properties.headers.set(header::REPLAYS, run.replays);
    }
    if let Some(trace) = trace::request(task) {
        trace.write(&mut properties.headers);
    }
    Message {
        exchange: names.steps(),
        routing_key: step_key(&template.namespace, &definition.name),
        body: request.encode().into(),
        properties,
    }
}

/// The request of a step that is given up, for the queue where dead letters are parked.
pub fn dead_letter(task: &Task, step: usize, attempt: u32, reason: &str, now: i64, names: &Names) -> Message {
    let namespace = &task.plan.template().namespace;
    let run = &task.steps[step];
    let mut message = request(task, step, attempt, now, names);
    message.exchange = names.dead_letters();
    message.routing_key = dead_key(namespace, reason);
    let properties = &mut message.properties;
    properties.message_id =
        Some(replayed_message_id(message_id(run.uuid, attempt, run.part, "dead"), run.replays));
    properties.kind = Some("step.dead_letter".to_owned());
    properties.headers.set(header::REASON, reason);
    if let Some(error) = &run.error {
        properties.headers.set(header::ERROR, error.message.as_str());
        properties.headers.set(header::ERROR_TYPE, error.error_type.as_str());
        properties.headers.set(header::ERROR_CODE, error.code.as_deref().unwrap_or_default());
    }
    if let Ok(at) = Timestamp::from_millisecond(now) {
        properties.headers.set(header::LAST_AT, at.to_string());
    }
    message
}

/// A message that cannot be understood, as it came, for the dead letters of the namespace its key names. Where there is no
/// such namespace it ends with the unroutable ones.
pub(super) fn refused(delivery: &Delivery, reason: &str, names: &Names) -> Message {
    let namespace = delivery.routing_key.split('.').nth(1).filter(|word| is_namespace(word));
    let mut properties = delivery.properties.clone();
    properties.headers.strip_broker_headers();
    properties.headers.set(header::REASON, REFUSED);
    properties.headers.set(header::ERROR, reason.chars().take(ERROR_CHARS).collect::<String>());
    properties.headers.set(header::ERROR_TYPE, ErrorType::MessageRefused.to_string());
    Message {
        exchange: names.dead_letters(),
        routing_key: dead_key(namespace.unwrap_or("unknown"), REFUSED),
        body: delivery.body.clone(),
        properties,
    }
}

/// Tells every worker that the task is cancelled.
pub fn cancel(task: &Task, now: i64, names: &Names) -> Message {
    let order = ControlMessage::CancelTask { task_uuid: task.uuid };
    control(task, message_id(task.uuid, 0, 0, "cancel"), &order, now, names)
}

/// Tells every worker to stop what it runs of a step.
pub fn stop(task: &Task, step: usize, now: i64, names: &Names) -> Message {
    let run = &task.steps[step];
    let order = ControlMessage::StopStep { step_uuid: run.uuid, replays: run.replays };
    let id = replayed_message_id(message_id(run.uuid, run.attempts, run.part, "stop"), run.replays);
    control(task, id, &order, now, names)
}

fn control(task: &Task, message_id: String, order: &ControlMessage, now: i64, names: &Names) -> Message {
    Message {
        exchange: names.control(),
        routing_key: String::new(),
        body: message::encode(order).into(),
        properties: properties(message_id, task, order.kind(), now),
    }
}

/// An id for something new, in the order of making: neighbours in time are neighbours in the store's indices.
pub fn new_uuid() -> Uuid {
    Uuid::now_v7()
}

fn properties(message_id: String, task: &Task, kind: &str, now: i64) -> Properties {
    Properties {
        message_id: Some(message_id),
        correlation_id: Some(task.correlation_id.clone()),
        kind: Some(kind.to_owned()),
        timestamp: u64::try_from(now / 1_000).ok(),
        ..Properties::default()
    }
}
