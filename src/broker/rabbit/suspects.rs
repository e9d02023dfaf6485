//! Queues that do not answer, kept from holding up the others.
//!
//! RabbitMQ takes the messages of a channel one after the other. A quorum queue without a leader holds the channel for half
//! a minute with each, and behind some hundreds even the whole connection: messages for other queues wait as well. So
//! whatever the oldest message was meant for that nobody answered in time is suspected. Its next messages are tried one
//! at a time, each on a channel of its own, and the others are refused at once, until the broker has confirmed one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tracing::{info, warn};

use crate::broker::{Confirm, Message, PublishError};

const HELD: u8 = 0;
const TRIED: u8 = 1;
const CLEARED: u8 = 2;

/// The few that there are.
#[derive(Debug, Default)]
pub(super) struct Suspects(Vec<Suspect>);

/// A queue, as far as an exchange and the beginning of a routing key name it.
#[derive(Debug)]
struct Suspect {
    exchange: String,
    group: String,
    state: Arc<AtomicU8>,
}

/// What is to become of a message.
#[derive(Debug)]
pub(super) enum Way {
    /// Along with all others.
    Clear,
    /// Alone.
    Alone(Trial),
    /// Nowhere: another one is being tried.
    Barred,
}

/// Leave to try a suspect.
#[derive(Debug)]
pub(super) struct Trial(Arc<AtomicU8>);

impl Suspects {
    /// Suspects what `message` was meant for.
    pub(super) fn add(&mut self, message: &Message) {
        let Message { exchange, routing_key, .. } = message;
        if self.find(exchange, routing_key).is_some() {
            return;
        }
        warn!(
            exchange,
            routing_key,
            "RabbitMQ does not confirm these messages; until it does, they are tried one at a time, so that no others \
             wait behind them. Does their queue have a leader? `rabbitmq-queues quorum_status QUEUE` tells"
        );
        self.0.push(Suspect {
            exchange: exchange.clone(),
            group: group(routing_key).to_owned(),
            state: Arc::new(AtomicU8::new(HELD)),
        });
    }

    pub(super) fn way(&mut self, exchange: &str, routing_key: &str) -> Way {
        let Some(index) = self.find(exchange, routing_key) else { return Way::Clear };
        let state = &self.0[index].state;
        match state.compare_exchange(HELD, TRIED, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Way::Alone(Trial(state.clone())),
            Err(CLEARED) => {
                self.0.swap_remove(index);
                info!(exchange, routing_key, "RabbitMQ confirms these messages again");
                Way::Clear
            }
            Err(_) => Way::Barred,
        }
    }

    fn find(&self, exchange: &str, routing_key: &str) -> Option<usize> {
        self.0.iter().position(|suspect| suspect.exchange == exchange && suspect.group == group(routing_key))
    }
}

impl Trial {
    /// What `answer` is told, the trial's outcome is.
    pub(super) fn told(self, answer: Confirm) -> Confirm {
        Confirm::new(move |result| {
            self.0.store(if result.is_ok() { CLEARED } else { HELD }, Ordering::Relaxed);
            answer.answer(match result {
                // This queue's fault, not the broker's.
                Err(PublishError::NotConfirmed(_)) => Err(PublishError::Refused),
                other => other,
            });
        })
    }
}

/// A routing key begins with what its message is and the namespace it is for.
fn group(routing_key: &str) -> &str {
    routing_key.match_indices('.').nth(1).map_or(routing_key, |(end, _)| &routing_key[..end])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;
    use crate::broker::Properties;

    type Asked = oneshot::Receiver<Result<(), PublishError>>;

    fn suspecting(routing_key: &str) -> Suspects {
        let mut suspects = Suspects::default();
        suspects.add(&Message {
            exchange: "steps".to_owned(),
            routing_key: routing_key.to_owned(),
            body: bytes::Bytes::new(),
            properties: Properties::default(),
        });
        suspects
    }

    fn tried(suspects: &mut Suspects, routing_key: &str) -> (Confirm, Asked) {
        let Way::Alone(trial) = suspects.way("steps", routing_key) else { panic!("nothing else is tried") };
        let (answer, asked) = oneshot::channel();
        (trial.told(Confirm::new(move |said| drop(answer.send(said)))), asked)
    }

    #[test]
    fn one_message_at_a_time_tries_a_suspect_until_one_is_confirmed() {
        let mut suspects = suspecting("step.orders.charge");
        let (confirm, mut asked) = tried(&mut suspects, "step.orders.charge");
        assert!(matches!(suspects.way("steps", "step.orders.ship"), Way::Barred), "the same queue gets it");
        confirm.answer(Err(PublishError::NotConfirmed(Duration::from_secs(1))));
        assert_eq!(asked.try_recv(), Ok(Err(PublishError::Refused)));

        let (confirm, mut asked) = tried(&mut suspects, "step.orders.ship");
        confirm.answer(Ok(()));
        assert_eq!(asked.try_recv(), Ok(Ok(())));
        for _ in 0..2 {
            assert!(matches!(suspects.way("steps", "step.orders.charge"), Way::Clear));
        }
    }

    #[test]
    fn a_trial_that_nobody_finishes_leaves_room_for_the_next() {
        let mut suspects = suspecting("step.orders.charge");
        let (confirm, mut asked) = tried(&mut suspects, "step.orders.charge");
        drop(confirm);
        assert_eq!(asked.try_recv(), Ok(Err(PublishError::Closed)));
        assert!(matches!(suspects.way("steps", "step.orders.charge"), Way::Alone(_)));
    }

    #[test]
    fn other_namespaces_and_exchanges_are_not_suspected() {
        let mut suspects = suspecting("step.orders.charge");
        for (exchange, routing_key) in
            [("steps", "step.payments.charge"), ("retries", "step.orders.charge"), ("", "step.orders")]
        {
            assert!(matches!(suspects.way(exchange, routing_key), Way::Clear), "{exchange} {routing_key}");
        }
    }
}
