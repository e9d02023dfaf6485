//! What a handler answered, and what follows from it.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::message::{ErrorType, Json, StepExecutionError};
use crate::retry::RetryPolicy;

/// What a handler returns.
pub type StepResult<T> = Result<T, StepError>;

/// Why a step failed, and whether trying again can help.
///
/// Any error passed on with `?` becomes a retryable one. A failure that another attempt cannot mend is
/// [`permanent`](Self::permanent):
///
/// ```
/// use std::time::Duration;
/// use tasker_worker_rust::{StepError, StepResult};
///
/// fn charge(card: &str) -> StepResult<u64> {
///     match card {
///         "declined" => Err(StepError::permanent("the card was declined").code("CARD_DECLINED")),
///         "busy" => Err(StepError::retryable("the gateway is busy").retry_after(Duration::from_secs(30))),
///         number => Ok(number.parse::<u64>()?),
///     }
/// }
/// assert!(charge("x").unwrap_err().is_retryable());
/// assert!(!charge("declined").unwrap_err().is_retryable());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct StepError {
    pub(crate) error: StepExecutionError,
    pub(crate) retry_after: Option<Duration>,
    /// No failure: how far the step has come.
    pub(crate) checkpoint: Option<Box<Checkpoint>>,
}

impl StepError {
    /// A failure that another attempt may mend.
    pub fn retryable(message: impl fmt::Display) -> Self {
        Self::new(ErrorType::RetryableError, true, message)
    }

    /// A failure that no other attempt can mend: the step goes to the dead letters.
    pub fn permanent(message: impl fmt::Display) -> Self {
        Self::new(ErrorType::PermanentError, false, message)
    }

    /// Input that is not what the handler needs: permanent, and reported as such.
    pub fn validation(message: impl fmt::Display) -> Self {
        Self::new(ErrorType::ValidationError, false, message)
    }

    pub(crate) fn new(error_type: ErrorType, retryable: bool, message: impl fmt::Display) -> Self {
        Self {
            error: StepExecutionError {
                message: message.to_string(),
                error_type: error_type.to_string(),
                code: None,
                retryable,
                details: None,
            },
            retry_after: None,
            checkpoint: None,
        }
    }

    /// No failure: the step is not done yet, and [goes on from here](Checkpoint) when it is called next. No attempt is spent.
    ///
    /// A checkpoint that has no JSON form, or is the one the step went on from, is a permanent failure.
    pub fn checkpoint<C: Serialize, A: Serialize>(checkpoint: Checkpoint<C, A>) -> Self {
        match checkpoint.encode() {
            Ok(checkpoint) => Self {
                checkpoint: Some(Box::new(checkpoint)),
                ..Self::retryable("the step is not done yet, and goes on from its checkpoint")
            },
            Err(error) => {
                let text = format_args!("the checkpoint has no JSON form: {error}");
                Self::new(ErrorType::ResultRefused, false, text)
            }
        }
    }

    /// A stable code for programs to act on, such as `CARD_DECLINED`.
    #[must_use]
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.error.code = Some(code.into());
        self
    }

    /// Anything else worth telling, as JSON. Shown with the step's result.
    #[must_use]
    pub fn details(mut self, details: impl Into<Json>) -> Self {
        self.error.details = Some(details.into());
        self
    }

    /// Not before this long from now. Used instead of the template's backoff, never shortened.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// Whether another attempt may help.
    pub fn is_retryable(&self) -> bool {
        self.error.retryable
    }

    /// The code, where one was given.
    pub fn error_code(&self) -> Option<&str> {
        self.error.code.as_deref()
    }

    /// What happened.
    pub fn message(&self) -> &str {
        &self.error.message
    }
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error.code {
            Some(code) => write!(f, "{} [{code}]", self.error.message),
            None => f.write_str(&self.error.message),
        }
    }
}

/// `?` on any error: retryable, with the whole chain of causes as its message.
///
/// This is why `StepError` is no `std::error::Error` itself.
impl<E: StdError + Send + Sync + 'static> From<E> for StepError {
    fn from(error: E) -> Self {
        Self::new(ErrorType::UnexpectedError, true, chain(&error))
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// How one execution ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The handler returned a value.
    Succeeded(Json),
    /// The handler has done part of its work.
    Reached(Checkpoint),
    /// The handler failed, timed out, panicked, or could not be called.
    Failed(StepError),
    /// The task was cancelled before or while the handler ran.
    Cancelled,
    /// The worker shut down before or while the handler ran.
    Interrupted,
}

/// What is done about an outcome. Every arm ends in exactly one settlement of the delivery.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Publish the result, then ack.
    Complete(Json),
    /// Publish the request to go on from here, then ack; no attempt is spent.
    GoOn(Checkpoint),
    /// Publish the next attempt's request, then ack.
    Retry {
        /// What this attempt failed with.
        error: StepError,
        /// The wanted delay, before jitter.
        delay: Delay,
    },
    /// Publish the failed result and the dead letter, then ack.
    Fail {
        /// What the last attempt failed with.
        error: StepError,
        /// Why there is no further attempt.
        reason: DeadReason,
    },
    /// Publish the cancelled result, then ack.
    Cancel,
    /// Give the delivery back to the broker; no attempt is spent.
    HandBack,
}

/// How long a retry waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delay {
    /// By the template's policy: about this long.
    About(Duration),
    /// By the handler's word: not before this long.
    AtLeast(Duration),
}

/// Why a request went to the dead letters. Also the last word of the routing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadReason {
    /// The handler said no attempt can help.
    PermanentError,
    /// The last allowed attempt failed.
    RetriesExhausted,
    /// No handler is registered for the step.
    HandlerNotFound,
    /// The context does not fit the handler's type.
    InvalidInput,
}

/// The broker's own reason: it handed a request out as often as it may.
pub(crate) const DELIVERY_LIMIT: &str = "delivery_limit";

impl DeadReason {
    /// The reason as it stands in headers and routing keys.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PermanentError => "permanent_error",
            Self::RetriesExhausted => "retries_exhausted",
            Self::HandlerNotFound => "handler_not_found",
            Self::InvalidInput => "invalid_input",
        }
    }
}

/// The table from outcome to verdict: "failed on the last attempt" is decided here and nowhere else.
pub fn decide(outcome: Outcome, attempt: u32, max_attempts: u32, policy: &RetryPolicy) -> Verdict {
    let error = match outcome {
        Outcome::Succeeded(data) => return Verdict::Complete(data),
        Outcome::Reached(checkpoint) => return Verdict::GoOn(checkpoint),
        Outcome::Cancelled => return Verdict::Cancel,
        Outcome::Interrupted => return Verdict::HandBack,
        Outcome::Failed(error) => error,
    };
    let is = |kind: ErrorType| error.error.error_type == kind.to_string();
    if is(ErrorType::HandlerNotFound) {
        return Verdict::Fail { error, reason: DeadReason::HandlerNotFound };
    }
    if is(ErrorType::ValidationError) && !error.is_retryable() {
        return Verdict::Fail { error, reason: DeadReason::InvalidInput };
    }
    if !error.is_retryable() || !policy.retryable {
        return Verdict::Fail { error, reason: DeadReason::PermanentError };
    }
    if attempt >= max_attempts {
        return Verdict::Fail { error, reason: DeadReason::RetriesExhausted };
    }
    let delay = match error.retry_after {
        Some(delay) => Delay::AtLeast(delay),
        None => Delay::About(policy.delay_after(attempt)),
    };
    Verdict::Retry { error, delay }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> RetryPolicy {
        RetryPolicy { base_ms: 100, ..RetryPolicy::default() }
    }

    fn after(error: StepError, attempt: u32) -> Verdict {
        decide(Outcome::Failed(error), attempt, 3, &policy())
    }

    fn reason(verdict: Verdict) -> Option<DeadReason> {
        match verdict {
            Verdict::Fail { reason, .. } => Some(reason),
            _ => None,
        }
    }

    #[test]
    fn success_completes_on_any_attempt() {
        for attempt in [1, 3, 9] {
            assert_eq!(
                decide(Outcome::Succeeded(Json::null()), attempt, 3, &policy()),
                Verdict::Complete(Json::null())
            );
        }
    }

    #[test]
    fn a_checkpoint_is_gone_on_from_on_any_attempt() {
        let reached = Checkpoint { cursor: Json::null(), ..Checkpoint::default() };
        for attempt in [1, 3, 9] {
            let verdict = decide(Outcome::Reached(reached.clone()), attempt, 3, &policy());
            assert_eq!(verdict, Verdict::GoOn(reached.clone()));
        }
    }

    #[test]
    fn a_retryable_failure_is_retried_until_the_last_attempt() {
        let error = StepError::retryable("busy");
        for (attempt, millis) in [(1, 100), (2, 200)] {
            let delay = Delay::About(Duration::from_millis(millis));
            assert_eq!(after(error.clone(), attempt), Verdict::Retry { error: error.clone(), delay });
        }
        for attempt in [3, 4] {
            assert_eq!(reason(after(error.clone(), attempt)), Some(DeadReason::RetriesExhausted));
        }
    }

    #[test]
    fn retry_after_replaces_the_backoff() {
        let error = StepError::retryable("busy").retry_after(Duration::from_secs(7));
        let delay = Delay::AtLeast(Duration::from_secs(7));
        assert_eq!(after(error.clone(), 1), Verdict::Retry { error, delay });
    }

    #[test]
    fn permanent_failures_are_never_retried() {
        assert_eq!(reason(after(StepError::permanent("no"), 1)), Some(DeadReason::PermanentError));
        assert_eq!(reason(after(StepError::validation("no"), 1)), Some(DeadReason::InvalidInput));
        let unknown = StepError::new(ErrorType::HandlerNotFound, false, "no handler");
        assert_eq!(reason(after(unknown, 1)), Some(DeadReason::HandlerNotFound));
    }

    #[test]
    fn a_step_that_is_not_retryable_by_template_fails_at_once() {
        let policy = RetryPolicy { retryable: false, ..policy() };
        let verdict = decide(Outcome::Failed(StepError::retryable("busy")), 1, 3, &policy);
        assert_eq!(reason(verdict), Some(DeadReason::PermanentError));
    }

    #[test]
    fn cancelled_and_interrupted_spend_no_attempt() {
        assert_eq!(decide(Outcome::Cancelled, 1, 3, &policy()), Verdict::Cancel);
        assert_eq!(decide(Outcome::Interrupted, 1, 3, &policy()), Verdict::HandBack);
    }

    #[test]
    fn an_error_shows_its_code_behind_its_message() {
        let declined = StepError::permanent("the card was declined");
        assert_eq!((declined.error_code(), declined.to_string().as_str()), (None, "the card was declined"));
        let declined = declined.code("CARD_DECLINED");
        assert_eq!(declined.error_code(), Some("CARD_DECLINED"));
        assert_eq!(declined.to_string(), "the card was declined [CARD_DECLINED]");
    }

    #[test]
    fn a_checkpoint_without_a_json_form_is_a_failure_for_good() {
        let reached = Checkpoint { cursor: 7, items_processed: 7, accumulated_results: () };
        let error = StepError::checkpoint(reached);
        assert_eq!(error.checkpoint.map(|reached| reached.items_processed), Some(7));
        let keyed = std::collections::BTreeMap::from([((1, 2), 3)]);
        let error =
            StepError::checkpoint(Checkpoint { cursor: keyed, items_processed: 7, accumulated_results: () });
        assert_eq!((error.checkpoint.is_none(), error.is_retryable()), (true, false));
        assert!(error.message().starts_with("the checkpoint has no JSON form: "), "{error}");
    }

    #[test]
    fn the_reasons_stand_in_routing_keys() {
        use DeadReason::{HandlerNotFound, InvalidInput, PermanentError, RetriesExhausted};
        assert_eq!(
            [PermanentError, RetriesExhausted, HandlerNotFound, InvalidInput].map(DeadReason::as_str),
            ["permanent_error", "retries_exhausted", "handler_not_found", "invalid_input"]
        );
    }

    #[test]
    fn the_question_mark_keeps_the_chain_of_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read the price list")]
        struct Outer(#[source] std::num::ParseIntError);

        let error = StepError::from(Outer("x".parse::<i32>().unwrap_err()));
        assert_eq!(error.message(), "cannot read the price list: invalid digit found in string");
        assert!(error.is_retryable());
    }
}
