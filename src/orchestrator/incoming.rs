//! What a delivery on the orchestrator's queue says.

use uuid::Uuid;

use super::advance::{DeadLetter, Event};
use crate::broker::Delivery;
use crate::broker::topology::{Names, is_checkpoint_key};
use crate::dead_letters::death;
use crate::message::{StepExecutionError, StepExecutionRequest, StepExecutionResult};

/// What kind of message a delivery is, by the exchange it went through and its key there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// An answer for good.
    Result,
    /// A step put off.
    Retry,
    /// A step that goes on from a checkpoint.
    Checkpoint,
    /// A request that nobody will answer.
    DeadLetter,
    /// Something that should not be in this queue.
    Foreign,
}

impl Kind {
    /// The kind as a metric's label.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Result => "result",
            Self::Retry => "retry",
            Self::Checkpoint => "checkpoint",
            Self::DeadLetter => "dead_letter",
            Self::Foreign => "foreign",
        }
    }

    /// The kind of a delivery.
    pub(super) fn of(delivery: &Delivery, names: &Names) -> Self {
        match delivery.exchange.as_str() {
            exchange if exchange == names.results() => Self::Result,
            exchange if exchange == names.retries() && is_checkpoint_key(&delivery.routing_key) => {
                Self::Checkpoint
            }
            exchange if exchange == names.retries() => Self::Retry,
            exchange if exchange == names.dead_letters() => Self::DeadLetter,
            _ => Self::Foreign,
        }
    }
}

/// Reads a delivery: the task it is about, and what it says.
///
/// # Errors
/// A sentence, when the body cannot be understood.
pub(super) fn read(kind: Kind, delivery: &Delivery) -> Result<(Uuid, Event), String> {
    let body = &delivery.body;
    let (task_uuid, event) = match kind {
        Kind::Result => {
            let result = StepExecutionResult::decode(body).map_err(|error| error.to_string())?;
            (result.task_uuid, Event::Result(Box::new(result)))
        }
        Kind::Retry => {
            let request = StepExecutionRequest::decode(body).map_err(|error| error.to_string())?;
            (request.task_uuid, Event::Retry(Box::new(request)))
        }
        Kind::Checkpoint => {
            let request = StepExecutionRequest::decode(body).map_err(|error| error.to_string())?;
            (request.task_uuid, Event::Checkpoint(Box::new(request)))
        }
        Kind::DeadLetter => {
            let request = StepExecutionRequest::decode(body).map_err(|error| error.to_string())?;
            let (reason, error) = death(&delivery.properties.headers);
            (request.task_uuid, dead_letter(&request, reason, error))
        }
        Kind::Foreign => {
            return Err(format!("messages of exchange {:?} are not for this queue", delivery.exchange));
        }
    };
    Ok((task_uuid, in_life(delivery.properties.headers.replays(), event)))
}

/// The event, of a step that was replayed this often.
pub(super) fn in_life(replays: u32, event: Event) -> Event {
    match replays {
        0 => event,
        replays => Event::Replayed { replays, event: Box::new(event) },
    }
}

/// The event that a request will not be answered.
pub(super) fn dead_letter(
    request: &StepExecutionRequest,
    reason: String,
    error: StepExecutionError,
) -> Event {
    Event::DeadLetter(Box::new(DeadLetter {
        step_uuid: request.step_uuid,
        step_name: request.step_name.clone(),
        attempt: request.attempt,
        part: request.part,
        error,
        reason,
    }))
}
