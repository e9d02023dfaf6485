//! Dead letters, parked one queue per namespace: looked at, replayed, or discarded.
//!
//! [`take`] holds a queue's letters and the caller gives each of them back, replays it or discards it. What
//! is held is hidden from everybody else, and returns to its place when it is released or its holder dies.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::Error;
use crate::broker::topology::{Names, step_key};
use crate::broker::{
    Acker, Broker, BrokerError, Delivery, Disposition, Headers, Message, Properties, PublishError, Publisher,
    Source, StaleDelivery,
};
use crate::client::Client;
use crate::message::{ErrorType, StepExecutionError, StepExecutionRequest, header, replayed_message_id};
use crate::outcome::DELIVERY_LIMIT;

/// The letters of one queue that are held at a time: all of them have to fit into memory.
pub const AT_ONCE: u16 = 10_000;

/// How long the next letter may take. Another holder may have taken some of those that were counted.
const PATIENCE: Duration = Duration::from_secs(5);

/// One parked message, held until it is discarded, replayed or given back.
#[derive(Debug, Serialize)]
pub struct Letter {
    /// Its message id; where it came without one, an id made from its body.
    pub message_id: String,
    /// The namespace in whose queue it is parked.
    pub namespace: String,
    /// The step's name, where the body is a request.
    pub step: Option<String>,
    /// The step, likewise.
    pub step_uuid: Option<Uuid>,
    /// The task, likewise.
    pub task_uuid: Option<Uuid>,
    /// The attempt it died at, likewise.
    pub attempts: Option<u32>,
    /// Why it is here: one of [`DeadReason`](crate::outcome::DeadReason)'s names, or the broker's word.
    pub reason: String,
    /// What went wrong.
    pub error: StepExecutionError,
    /// When the step was first requested.
    pub first_at: Option<Timestamp>,
    /// When it failed last; of a message that the broker parked, when it was published.
    pub last_at: Option<Timestamp>,
    /// How often the step was replayed before.
    pub replays: u32,
    /// Everything the broker stores beside the body.
    #[serde(skip)]
    pub properties: Properties,
    /// The body.
    #[serde(skip)]
    pub body: Bytes,
    #[serde(skip)]
    request: Option<StepExecutionRequest>,
    #[serde(skip)]
    /// `None` once it is gone.
    acker: Option<Acker>,
}

/// Which letters are meant: those that fit everything that is set.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Their message ids or step ids.
    pub ids: Vec<String>,
    /// Their step's name.
    pub step: Option<String>,
    /// Their error's code.
    pub code: Option<String>,
    /// Their reason.
    pub reason: Option<String>,
    /// They failed last before this time; one without a time does not fit.
    pub before: Option<Timestamp>,
    /// They failed last after this time; likewise.
    pub after: Option<Timestamp>,
}

impl Filter {
    /// Whether `letter` fits.
    pub fn matches(&self, letter: &Letter) -> bool {
        let step_uuid = letter.step_uuid.map(|uuid| uuid.to_string());
        let is_named = |id: &String| *id == letter.message_id || Some(id) == step_uuid.as_ref();
        let fits = |wanted: &Option<String>, is: Option<&str>| wanted.is_none() || wanted.as_deref() == is;
        (self.ids.is_empty() || self.ids.iter().any(is_named))
            && fits(&self.step, letter.step.as_deref())
            && fits(&self.code, letter.error.code.as_deref())
            && fits(&self.reason, Some(&letter.reason))
            && self.before.is_none_or(|time| letter.last_at.is_some_and(|at| at < time))
            && self.after.is_none_or(|time| letter.last_at.is_some_and(|at| at > time))
    }
}

/// Takes hold of a namespace's letters, the oldest first, and says how many more there are: at most
/// [`AT_ONCE`] are held.
///
/// # Errors
/// When the broker cannot be asked, or the namespace has no queue for dead letters.
pub async fn take(
    broker: &dyn Broker,
    names: &Names,
    namespace: &str,
) -> Result<(Vec<Letter>, u64), BrokerError> {
    let queue = names.dead_letter_queue(namespace);
    let Some(depth) = broker.depth(&queue).await? else {
        return Err(BrokerError::Refused(format!(
            "there is no queue {queue}: check the namespace, or create it with `topology declare`"
        )));
    };
    let wanted = u16::try_from(depth).unwrap_or(u16::MAX).min(AT_ONCE);
    let mut letters = Vec::with_capacity(wanted.into());
    if wanted == 0 {
        return Ok((letters, 0));
    }
    let mut subscription = broker.subscribe(Source::Queue(queue), wanted);
    while letters.len() < wanted.into() {
        match tokio::time::timeout(PATIENCE, subscription.recv()).await {
            Ok(Some(delivery)) => letters.push(Letter::read(namespace, delivery)),
            Ok(None) | Err(_) => break,
        }
    }
    // Before anything is given back, or it would be handed out to us again.
    subscription.cancel();
    while let Some(delivery) = subscription.recv().await {
        letters.push(Letter::read(namespace, delivery));
    }
    let left = depth.saturating_sub(letters.len() as u64);
    Ok((letters, left))
}

/// Gives back what is still held, in its order.
pub fn release(letters: impl IntoIterator<Item = Letter>) {
    letters.into_iter().for_each(Letter::release);
}

/// How a replay ended that published the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replayed {
    /// The letter is gone.
    Done,
    /// The letter could not be removed any more. Replaying it again does no harm: both are the same request.
    StillParked,
}

/// Why nothing was published, or not for certain. The letter stays parked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// It cannot be replayed at all.
    #[error("{0}")]
    Unusable(String),
    /// The broker has taken the letter back.
    #[error("the hold on the dead letter was lost, as the broker does after a while; run the command again")]
    Lost,
    /// The broker did not confirm the request.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl Letter {
    fn read(namespace: &str, delivery: Delivery) -> Self {
        let Delivery { properties, body, acker, .. } = delivery;
        let headers = &properties.headers;
        let (reason, mut error) = death(headers);
        let request = StepExecutionRequest::decode(&body);
        if let Err(problem) = &request {
            error.message = format!("the body is not a request: {problem}");
        }
        let request = request.ok();
        let time = |name| headers.text(name).and_then(|text| text.parse::<Timestamp>().ok());
        let published = properties.timestamp.and_then(|at| Timestamp::from_second(at.try_into().ok()?).ok());
        let of_request = request.as_ref();
        Self {
            message_id: properties.message_id.clone().unwrap_or_else(|| match of_request {
                Some(request) => request.message_id("request"),
                None => Uuid::new_v5(&Uuid::NAMESPACE_OID, &body).to_string(),
            }),
            namespace: namespace.to_owned(),
            step: of_request.map(|request| request.step_name.clone()),
            step_uuid: of_request.map(|request| request.step_uuid),
            task_uuid: of_request.map(|request| request.task_uuid),
            attempts: of_request.map(|request| request.attempt),
            reason,
            error,
            first_at: time(header::FIRST_AT).or(of_request.and_then(|request| request.created_at)),
            last_at: time(header::LAST_AT).or(published),
            replays: headers.replays(),
            request,
            properties,
            body,
            acker: Some(acker),
        }
    }

    /// Gives it back to its place, if it is still held.
    pub fn release(self) {
        // A letter that is no longer held is in its place already.
        let _ = self.acker.map(|acker| acker.settle(Disposition::Release));
    }

    /// Removes it for good.
    ///
    /// # Errors
    /// When it is no longer held, and so stays.
    pub fn discard(&mut self) -> Result<(), StaleDelivery> {
        self.acker.take().ok_or(StaleDelivery)?.settle(Disposition::Ack)
    }

    /// Whether it may be replayed by a rule of at most `max_replays` for each step.
    ///
    /// # Errors
    /// A sentence saying why not.
    pub fn check(&self, max_replays: u32) -> Result<(), String> {
        if self.request.is_none() {
            return Err(format!("it cannot be replayed, only discarded: {}", self.error.message));
        }
        if self.replays >= max_replays {
            return Err(format!("it was replayed {} and died again", times(self.replays)));
        }
        Ok(())
    }

    /// What the orchestrator says against a replay: the step is not wanted any more.
    ///
    /// # Errors
    /// When the orchestrator cannot be asked.
    pub async fn objection(&self, orchestrator: &Client) -> Result<Option<String>, Error> {
        let (Some(task_uuid), Some(step)) = (self.task_uuid, &self.step) else { return Ok(None) };
        let task = match orchestrator.task(task_uuid).await {
            Err(Error::Refused { status: 404, message, .. }) => return Ok(Some(message)),
            answer => answer?,
        };
        let is = |name: &str, state: &str| {
            task.steps.iter().any(|status| status.name == *name && status.current_state == state)
        };
        if is(step, "complete") {
            return Ok(Some("the step has completed meanwhile".to_owned()));
        }
        if task.is_finished() && task.status != "error" {
            return Ok(Some(format!("its task is {}", task.status)));
        }
        let template = match orchestrator.template(&task.namespace, &task.name, &task.version).await {
            Err(Error::Refused { status: 404, message, .. }) => return Ok(Some(message)),
            answer => answer?,
        };
        let undoes = |name: &str| template.steps.iter().any(|s| s.name == name && s.compensates.is_some());
        let rolled_back = !undoes(step) && task.steps.iter().any(|status| undoes(&status.name));
        Ok(rolled_back.then(|| "its task was rolled back: what had completed is undone".to_owned()))
    }

    /// Publishes its request again as a first attempt, and removes it once the broker has confirmed that.
    ///
    /// # Errors
    /// When it was not published, or not for certain; the letter is then held as before.
    pub async fn replay(&mut self, publisher: &Publisher, names: &Names) -> Result<Replayed, ReplayError> {
        let Some(message) = self.message(names) else {
            return Err(ReplayError::Unusable(self.error.message.clone()));
        };
        if !self.acker.as_ref().is_some_and(Acker::is_usable) {
            return Err(ReplayError::Lost);
        }
        publisher.publish(message).await?;
        Ok(match self.discard() {
            Ok(()) => Replayed::Done,
            Err(StaleDelivery) => Replayed::StillParked,
        })
    }

    /// The request as it is published again.
    fn message(&self, names: &Names) -> Option<Message> {
        let mut request = self.request.clone()?;
        request.attempt = 1;
        request.part = 0;
        request.previous_error = None;
        request.previous_attempt_at = None;
        request.not_before = None;
        let mut headers = Headers::default();
        for (name, value) in self.properties.headers.iter().filter(|(name, _)| !name.starts_with("tasker-")) {
            headers.set(name.to_owned(), value.clone());
        }
        headers.strip_broker_headers();
        let replays = self.replays.saturating_add(1);
        headers.set(header::ATTEMPT, request.attempt);
        headers.set(header::REPLAYS, replays);
        headers.set(header::REPLAYED_FROM, self.message_id.as_str());
        let properties = Properties {
            message_id: Some(replayed_message_id(request.message_id("request"), replays)),
            correlation_id: Some(request.correlation_id.clone()),
            kind: Some("step.request".to_owned()),
            timestamp: u64::try_from(Timestamp::now().as_second()).ok(),
            headers,
            ..Properties::default()
        };
        Some(Message {
            exchange: names.steps(),
            // By the queue it is parked in, not by its body: there it can be bound for certain.
            routing_key: step_key(&self.namespace, &request.step_name),
            body: request.encode().into(),
            properties,
        })
    }
}

fn times(count: u32) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

/// Why a message died, and what is recorded as the step's error: by the worker's headers, or by the broker's.
pub(crate) fn death(headers: &Headers) -> (String, StepExecutionError) {
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
        DELIVERY_LIMIT => {
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
