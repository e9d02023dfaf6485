//! Publishing: every message is answered, once.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use super::Message;

/// Publishes messages, each confirmed by the broker.
#[derive(Debug, Clone)]
pub struct Publisher {
    jobs: mpsc::Sender<PublishJob>,
}

/// A message on its way to the task that owns the publishing channel.
#[derive(Debug)]
pub struct PublishJob {
    /// What to publish.
    pub message: Arc<Message>,
    /// Who hears the broker's answer.
    pub confirm: Confirm,
}

/// Hears what became of one message, once. Dropped, it hears [`PublishError::Closed`].
pub struct Confirm(Option<Box<Hear>>);

type Hear = dyn FnOnce(Result<(), PublishError>) + Send;

impl Confirm {
    /// For brokers: `hear` must not block.
    pub fn new(hear: impl FnOnce(Result<(), PublishError>) + Send + 'static) -> Self {
        Self(Some(Box::new(hear)))
    }

    /// Tells it.
    pub fn answer(mut self, result: Result<(), PublishError>) {
        if let Some(hear) = self.0.take() {
            hear(result);
        }
    }
}

impl Drop for Confirm {
    fn drop(&mut self) {
        if let Some(hear) = self.0.take() {
            hear(Err(PublishError::Closed));
        }
    }
}

impl fmt::Debug for Confirm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Confirm")
    }
}

impl Publisher {
    /// For brokers: a publisher that hands its messages to whoever receives the jobs.
    pub fn new(jobs: mpsc::Sender<PublishJob>) -> Self {
        Self { jobs }
    }

    /// Publishes, and returns once the broker has taken responsibility for the message.
    ///
    /// Dropping the future does not take the message back.
    ///
    /// # Errors
    /// When that is not certain. The message may have arrived all the same: publish it again under the same id.
    pub async fn publish(&self, message: impl Into<Arc<Message>>) -> Result<(), PublishError> {
        let (confirm, confirmed) = oneshot::channel();
        // Whoever asked may have gone.
        self.submit(message, move |result| drop(confirm.send(result))).await;
        confirmed.await.unwrap_or(Err(PublishError::Closed))
    }

    /// Hands a message over, and returns before the broker has it. `hear` is called with what [`publish`](Self::publish)
    /// would return, where the broker's answers arrive: it must not block.
    pub async fn submit(
        &self,
        message: impl Into<Arc<Message>>,
        hear: impl FnOnce(Result<(), PublishError>) + Send + 'static,
    ) {
        let job = PublishJob { message: message.into(), confirm: Confirm::new(hear) };
        // Dropped when the broker is closed, it says so.
        if let Err(TrySendError::Full(job)) = self.jobs.try_send(job) {
            drop(self.jobs.send(job).await);
        }
    }
}

/// Why it is not certain that the broker has a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No queue is bound for it.
    #[error("no queue is bound to exchange {exchange:?} for key {routing_key:?}")]
    Unroutable {
        /// The exchange.
        exchange: String,
        /// The key.
        routing_key: String,
    },
    /// The broker refused it, as a full queue does.
    #[error("the broker refused the message (a queue is full or unavailable)")]
    Refused,
    /// The broker said nothing in time.
    #[error("the broker did not confirm the message within {0:?}")]
    NotConfirmed(Duration),
    /// There is no connection.
    #[error("not connected to the broker: {0}")]
    Disconnected(String),
    /// It can never be published.
    #[error("the message cannot be published: {0}")]
    Invalid(String),
    /// The broker was closed by us.
    #[error("the broker connection is closed")]
    Closed,
}
