//! Which of the published messages the broker has, which it returned, and which it never answered.
//!
//! The client hands a returned message to whichever confirmation comes next, not to its own. What is known:
//! returns are handed out in the order they arrive, one to a confirmation, and a message's own return
//! arrives before its confirmation. So a confirmation that carries somebody else's return leaves its own
//! message in doubt, until every message that was unconfirmed at that time is confirmed: by then the
//! return would have been handed out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::broker::{Confirm, Message, PublishError};
use crate::ops::metrics::METRICS;

/// What the broker said about one published message.
#[derive(Debug)]
pub(super) struct Confirmed {
    pub(super) number: u64,
    pub(super) accepted: bool,
    /// Came with it, but may be another message's.
    pub(super) returned: Option<Returned>,
}

/// A message that no queue wanted.
#[derive(Debug)]
pub(super) struct Returned {
    pub(super) message_id: String,
    pub(super) exchange: String,
    pub(super) routing_key: String,
}

/// The messages published on one channel.
#[derive(Debug)]
pub(super) struct Confirms {
    timeout: Duration,
    next: u64,
    /// Not confirmed yet, those included whose time is up. All have the same time, so deadlines go by number.
    pending: BTreeMap<u64, Pending>,
    /// The time of those before this number is up.
    expired: u64,
    unanswered: usize,
    /// Returned, but not confirmed yet, by message id.
    returned: HashMap<String, Vec<Returned>>,
    doubtful: Vec<Doubt>,
}

#[derive(Debug)]
struct Pending {
    message_id: String,
    message: Arc<Message>,
    deadline: Instant,
    /// Gone once answered that the time is up.
    answer: Option<Confirm>,
}

/// Confirmed, but perhaps returned.
#[derive(Debug)]
struct Doubt {
    /// Certain once everything before this number is confirmed.
    until: u64,
    accepted: bool,
    message: Pending,
}

impl Confirms {
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            next: 0,
            pending: BTreeMap::new(),
            expired: 0,
            unanswered: 0,
            returned: HashMap::new(),
            doubtful: Vec::new(),
        }
    }

    /// Takes note of a message, and returns its number.
    pub(super) fn published(
        &mut self,
        message_id: String,
        message: Arc<Message>,
        answer: Confirm,
        now: Instant,
    ) -> u64 {
        let number = self.next;
        self.next += 1;
        self.pending.insert(
            number,
            Pending { message_id, message, deadline: now + self.timeout, answer: Some(answer) },
        );
        number
    }

    /// How many messages still have time.
    pub(super) fn in_flight(&self) -> usize {
        self.pending.len() - self.unanswered + self.doubtful.len()
    }

    /// Answers what is certain now. A batch must hold everything the client has confirmed so far, in any order.
    pub(super) fn confirmed(&mut self, batch: Vec<Confirmed>) {
        let mut certain = Vec::with_capacity(batch.len());
        for Confirmed { number, accepted, returned } in batch {
            let foreign = returned.is_some();
            if let Some(returned) = returned {
                self.returned.entry(returned.message_id.clone()).or_default().push(returned);
            }
            let Some(message) = self.pending.remove(&number) else { continue };
            if message.answer.is_none() {
                self.unanswered -= 1;
            }
            if foreign {
                self.doubtful.push(Doubt { until: self.next, accepted, message });
            } else {
                certain.push((message, accepted));
            }
        }
        for (message, accepted) in certain {
            self.answer(message, accepted);
        }
        if !self.doubtful.is_empty() {
            self.settle_doubts();
        }
    }

    fn settle_doubts(&mut self) {
        let oldest = self.pending.keys().next().copied().unwrap_or(self.next);
        for doubt in std::mem::take(&mut self.doubtful) {
            if doubt.until <= oldest || self.returned.contains_key(&doubt.message.message_id) {
                self.answer(doubt.message, doubt.accepted);
            } else {
                self.doubtful.push(doubt);
            }
        }
    }

    fn answer(&mut self, message: Pending, accepted: bool) {
        let result = match self.take_returned(&message.message_id) {
            Some(Returned { exchange, routing_key, .. }) => {
                Err(PublishError::Unroutable { exchange, routing_key })
            }
            None if accepted => Ok(()),
            None => Err(PublishError::Refused),
        };
        if let Some(answer) = message.answer {
            reply(answer, result);
        }
    }

    fn take_returned(&mut self, message_id: &str) -> Option<Returned> {
        if self.returned.is_empty() {
            return None;
        }
        let of_this_id = self.returned.get_mut(message_id)?;
        let returned = of_this_id.pop();
        if of_this_id.is_empty() {
            self.returned.remove(message_id);
        }
        returned
    }

    /// When the next message's time is up, at the earliest.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let doubts = self.doubtful.iter().map(|doubt| &doubt.message);
        self.pending
            .range(self.expired..)
            .map(|(_, message)| message)
            .take(1)
            .chain(doubts)
            .map(|message| message.deadline)
            .min()
    }

    /// Gives up the messages whose time is up, and returns the oldest of them. They stay known: what the broker says
    /// of them later may carry another message's return.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Arc<Message>> {
        let mut oldest = None;
        for (number, message) in self.pending.range_mut(self.expired..) {
            if message.deadline > now {
                break;
            }
            self.expired = number + 1;
            if let Some(answer) = message.answer.take() {
                oldest.get_or_insert_with(|| message.message.clone());
                self.unanswered += 1;
                reply(answer, Err(PublishError::NotConfirmed(self.timeout)));
            }
        }
        for doubt in &mut self.doubtful {
            if doubt.message.deadline <= now
                && let Some(answer) = doubt.message.answer.take()
            {
                reply(answer, Err(PublishError::NotConfirmed(self.timeout)));
            }
        }
        self.doubtful.retain(|doubt| doubt.message.answer.is_some());
        oldest
    }

    /// Answers everything that is still open with `error`.
    pub(super) fn fail(&mut self, error: &PublishError) {
        let pending = std::mem::take(&mut self.pending).into_values();
        let doubtful = std::mem::take(&mut self.doubtful).into_iter().map(|doubt| doubt.message);
        for answer in pending.chain(doubtful).filter_map(|message| message.answer) {
            reply(answer, Err(error.clone()));
        }
        self.unanswered = 0;
    }
}

/// Tells whoever published the message.
pub(super) fn reply(answer: Confirm, result: Result<(), PublishError>) {
    if let Err(error) = &result {
        let reason = match error {
            PublishError::Unroutable { .. } => "unroutable",
            PublishError::Refused => "refused",
            PublishError::NotConfirmed(_) => "timeout",
            PublishError::Disconnected(_) | PublishError::Closed => "disconnected",
            PublishError::Invalid(_) => "invalid",
        };
        METRICS.publish_failures.with_label_values(&[reason]).inc();
    }
    answer.answer(result);
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::broker::Properties;

    type Asked = oneshot::Receiver<Result<(), PublishError>>;

    const SECOND: Duration = Duration::from_secs(1);

    fn publish(confirms: &mut Confirms, message_id: &str, now: Instant) -> Asked {
        let (answer, asked) = oneshot::channel();
        let message = Arc::new(Message {
            exchange: "e".to_owned(),
            routing_key: message_id.to_owned(),
            body: bytes::Bytes::new(),
            properties: Properties::default(),
        });
        let confirm = Confirm::new(move |said| drop(answer.send(said)));
        confirms.published(message_id.to_owned(), message, confirm, now);
        asked
    }

    fn ack(number: u64, returned: Option<&str>) -> Confirmed {
        let returned = returned.map(|id| Returned {
            message_id: id.to_owned(),
            exchange: "e".to_owned(),
            routing_key: id.to_owned(),
        });
        Confirmed { number, accepted: true, returned }
    }

    fn unroutable(id: &str) -> Result<(), PublishError> {
        Err(PublishError::Unroutable { exchange: "e".to_owned(), routing_key: id.to_owned() })
    }

    #[test]
    fn a_return_that_came_with_another_confirmation_is_told_to_its_own_message() {
        let (mut confirms, now) = (Confirms::new(SECOND), Instant::now());
        let mut asked: Vec<Asked> = ["a", "b", "c"].map(|id| publish(&mut confirms, id, now)).into();
        confirms.confirmed(vec![ack(0, Some("b"))]);
        assert!(asked[0].try_recv().is_err(), "its own return may still come");
        confirms.confirmed(vec![ack(1, Some("a"))]);
        assert_eq!(asked[0].try_recv(), Ok(unroutable("a")));
        assert_eq!(asked[1].try_recv(), Ok(unroutable("b")));
        confirms.confirmed(vec![ack(2, None)]);
        assert_eq!(asked[2].try_recv(), Ok(Ok(())));
        assert_eq!(confirms.in_flight(), 0);
    }

    #[test]
    fn a_doubt_ends_when_everything_older_is_confirmed_whatever_is_published_meanwhile() {
        let (mut confirms, now) = (Confirms::new(SECOND), Instant::now());
        let mut asked: Vec<Asked> = ["a", "b"].map(|id| publish(&mut confirms, id, now)).into();
        confirms.confirmed(vec![ack(0, Some("b"))]);
        let _later = publish(&mut confirms, "c", now);
        assert!(asked[0].try_recv().is_err());
        confirms.confirmed(vec![ack(1, None)]);
        assert_eq!(asked[0].try_recv(), Ok(Ok(())));
        assert_eq!(asked[1].try_recv(), Ok(unroutable("b")));
        assert_eq!(confirms.in_flight(), 1);
    }

    #[test]
    fn the_order_within_a_batch_does_not_matter() {
        let (mut confirms, now) = (Confirms::new(SECOND), Instant::now());
        let mut asked: Vec<Asked> = ["a", "b"].map(|id| publish(&mut confirms, id, now)).into();
        confirms.confirmed(vec![ack(1, None), ack(0, Some("b"))]);
        assert_eq!(asked[0].try_recv(), Ok(Ok(())));
        assert_eq!(asked[1].try_recv(), Ok(unroutable("b")));
    }

    #[test]
    fn messages_of_the_same_id_are_returned_one_by_one() {
        let (mut confirms, now) = (Confirms::new(SECOND), Instant::now());
        let mut asked: Vec<Asked> = ["a", "a"].map(|id| publish(&mut confirms, id, now)).into();
        confirms.confirmed(vec![ack(0, Some("a")), ack(1, Some("a"))]);
        assert_eq!(asked[0].try_recv(), Ok(unroutable("a")));
        assert_eq!(asked[1].try_recv(), Ok(unroutable("a")));
    }

    #[test]
    fn a_message_without_an_answer_is_given_up_in_time_and_a_late_answer_is_not_lost_on_the_others() {
        let (mut confirms, now) = (Confirms::new(SECOND), Instant::now());
        let mut late = publish(&mut confirms, "late", now);
        let mut other = publish(&mut confirms, "other", now + SECOND / 2);
        assert_eq!(confirms.next_deadline(), Some(now + SECOND));
        assert_eq!(confirms.expire(now + SECOND).unwrap().routing_key, "late");
        assert_eq!(confirms.expire(now + SECOND), None, "it was given up before");
        assert_eq!(late.try_recv(), Ok(Err(PublishError::NotConfirmed(SECOND))));
        assert_eq!(confirms.in_flight(), 1);
        confirms.confirmed(vec![ack(0, Some("other")), ack(1, None)]);
        assert_eq!(other.try_recv(), Ok(unroutable("other")));
        assert_eq!(confirms.in_flight(), 0);
    }

    #[test]
    fn a_doubt_that_outlives_its_time_is_not_taken_for_a_success() {
        let (mut confirms, now) = (Confirms::new(SECOND), Instant::now());
        let mut asked: Vec<Asked> = ["a", "b"].map(|id| publish(&mut confirms, id, now)).into();
        confirms.confirmed(vec![ack(0, Some("b"))]);
        confirms.expire(now + SECOND);
        assert_eq!(asked[0].try_recv(), Ok(Err(PublishError::NotConfirmed(SECOND))));
    }

    #[test]
    fn a_refusal_and_the_end_of_the_channel_are_told_apart() {
        let (mut confirms, now) = (Confirms::new(SECOND), Instant::now());
        let mut asked: Vec<Asked> = ["a", "b"].map(|id| publish(&mut confirms, id, now)).into();
        confirms.confirmed(vec![Confirmed { number: 0, accepted: false, returned: None }]);
        confirms.fail(&PublishError::Disconnected("reset".to_owned()));
        assert_eq!(asked[0].try_recv(), Ok(Err(PublishError::Refused)));
        assert_eq!(asked[1].try_recv(), Ok(Err(PublishError::Disconnected("reset".to_owned()))));
        assert_eq!((confirms.in_flight(), confirms.next_deadline()), (0, None));
    }
}
