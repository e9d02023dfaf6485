//! What a delivery on the orchestrator's queue says.

use uuid::Uuid;

use super::advance::{DeadLetter, Event};
use crate::broker::topology::Names;
use crate::broker::{Delivery, Headers};
use crate::message::{ErrorType, StepExecutionError, StepExecutionRequest, StepExecutionResult, header};

/// What kind of message a delivery is, by the exchange it went through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// An answer for good.
    Result,
    /// A step put off.
    Retry,
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
            Self::DeadLetter => "dead_letter",
            Self::Foreign => "foreign",
        }
    }

    /// The kind of a delivery.
    pub(super) fn of(delivery: &Delivery, names: &Names) -> Self {
        match delivery.exchange.as_str() {
            exchange if exchange == names.results() => Self::Result,
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
        Kind::DeadLetter => {
            let request = StepExecutionRequest::decode(body).map_err(|error| error.to_string())?;
            let (reason, error) = death(&delivery.properties.headers);
            (request.task_uuid, dead_letter(&request, reason, error))
        }
        Kind::Foreign => {
            return Err(format!("messages of exchange {:?} are not for this queue", delivery.exchange));
        }
    };
    Ok(match delivery.properties.headers.replays() {
        0 => (task_uuid, event),
        replays => (task_uuid, Event::Replayed { replays, event: Box::new(event) }),
    })
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
        error,
        reason,
    }))
}

/// Why a message died, and what is recorded as the step's error: by the worker's headers, or by the broker's.
fn death(headers: &Headers) -> (String, StepExecutionError) {
    if let Some(reason) = headers.text(header::REASON) {
        let error = StepExecutionError {
            message: headers.text(header::ERROR).unwrap_or("the worker gave no error").to_owned(),
            error_type: headers
                .text(header::ERROR_TYPE)
                .map_or_else(|| ErrorType::UnexpectedError.to_string(), str::to_owned),
            code: headers.text(header::ERROR_CODE).map(str::to_owned),
            retryable: false,
            details: None,
        };
        return (reason.to_owned(), error);
    }
    let reason = headers
        .text("x-last-death-reason")
        .or_else(|| headers.text("x-first-death-reason"))
        .unwrap_or("unknown");
    let message = match reason {
        "rejected" => "a worker refused the request as unusable".to_owned(),
        "delivery_limit" => {
            "the request was handed out again too often: its workers kept dying or losing their connection"
                .to_owned()
        }
        other => format!("the broker gave the request up ({other})"),
    };
    let error = StepExecutionError {
        message,
        error_type: ErrorType::MessageRefused.to_string(),
        code: Some(reason.to_ascii_uppercase()),
        retryable: false,
        details: None,
    };
    (reason.to_owned(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workers_word_on_a_death_wins_over_the_brokers() {
        let mut headers = Headers::default();
        headers.set("x-first-death-reason", "delivery_limit");
        let (reason, error) = death(&headers);
        assert_eq!((reason.as_str(), error.error_type.as_str()), ("delivery_limit", "MessageRefused"));
        assert_eq!(error.code.as_deref(), Some("DELIVERY_LIMIT"));

        headers.set(header::REASON, "permanent_error");
        headers.set(header::ERROR, "the card was declined");
        headers.set(header::ERROR_TYPE, "PermanentError");
        headers.set(header::ERROR_CODE, "CARD_DECLINED");
        let (reason, error) = death(&headers);
        assert_eq!((reason.as_str(), error.message.as_str()), ("permanent_error", "the card was declined"));
        assert_eq!(
            (error.error_type.as_str(), error.code.as_deref()),
            ("PermanentError", Some("CARD_DECLINED"))
        );
    }
}
