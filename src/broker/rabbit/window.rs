//! One confirming channel, and the messages on their way through it.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation};
use tokio::time::{self, Instant};

use super::confirms::{Confirmed, Confirms, Returned};
use super::connection::GRACE;
use super::failure::Failure;
use super::link::Up;
use super::properties::Outgoing;
use crate::broker::{Confirm, Message, PublishError};

/// What a frame holds beside headers: the other properties, each of at most 255 bytes, and the frame itself.
const PROPERTY_BYTES: usize = 2_048;

/// The frame size of a broker that sets no limit.
const FRAME_BYTES: usize = 131_072;

/// A channel this old that meets a refusal is replaced. Younger ones stay, so that a queue that is full does
/// not cost a channel for every message.
const REPLACED_AFTER: Duration = Duration::from_millis(500);

type Publishing = Pin<Box<dyn Future<Output = Result<Confirmed, lapin::Error>> + Send>>;

pub(super) struct Window {
    channel: Arc<Channel>,
    /// The number of its connection.
    pub(super) connection: u64,
    pub(super) max_header_bytes: usize,
    /// Exchanges that were there when looked for: publishing to one that is not would end the channel.
    pub(super) exchanges: HashSet<String>,
    /// Whether the broker has confirmed anything on it.
    pub(super) useful: bool,
    refused: bool,
    opened: Instant,
    pub(super) confirms: Confirms,
    pub(super) publishing: FuturesUnordered<Publishing>,
}

impl Window {
    pub(super) async fn open(up: &Up, timeout: Duration) -> Result<Self, lapin::Error> {
        let channel = up.connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let frame = match up.connection.configuration().frame_max() {
            0 => FRAME_BYTES,
            bytes => bytes as usize,
        };
        Ok(Self {
            channel: Arc::new(channel),
            connection: up.number,
            max_header_bytes: frame.saturating_sub(PROPERTY_BYTES),
            exchanges: HashSet::new(),
            useful: false,
            refused: false,
            opened: Instant::now(),
            confirms: Confirms::new(timeout),
            publishing: FuturesUnordered::new(),
        })
    }

    pub(super) fn is_open(&self) -> bool {
        self.channel.status().connected()
    }

    /// Whether another channel may do better. One whose first message for a queue finds that queue between
    /// two leaders is refused that message, and on RabbitMQ 3.10 every later one: it goes on asking the old
    /// leader, whose node is gone.
    pub(super) fn is_stuck(&self) -> bool {
        self.refused && self.opened.elapsed() >= REPLACED_AFTER
    }

    pub(super) fn publish(&mut self, outgoing: Outgoing, message: Arc<Message>, answer: Confirm) {
        let Outgoing { exchange, routing_key, message_id, properties, body } = outgoing;
        let number = self.confirms.published(message_id.into(), message, answer, Instant::now());
        let channel = self.channel.clone();
        let mut publishing: Publishing = Box::pin(async move {
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let confirmation =
                channel.basic_publish(exchange, routing_key, options, &body, properties).await?.await?;
            let (accepted, returned) = match confirmation {
                Confirmation::Ack(returned) => (true, returned),
                Confirmation::Nack(returned) => (false, returned),
                Confirmation::NotRequested => unreachable!("the channel is in confirm mode"),
            };
            Ok(Confirmed { number, accepted, returned: returned.map(returned_message) })
        });
        // The first poll numbers the message and queues it, so it happens here, in order. The set polls it
        // again, so no wake-up is lost.
        match publishing.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => self.publishing.push(Box::pin(std::future::ready(result))),
            Poll::Pending => self.publishing.push(publishing),
        }
    }

    /// Takes in `first` and everything else the broker has confirmed by now.
    ///
    /// # Errors
    /// When the channel is gone.
    pub(super) fn take(&mut self, first: Result<Confirmed, lapin::Error>) -> Result<(), Failure> {
        let mut batch = Vec::new();
        let mut failure = None;
        let mut next = Some(first);
        while let Some(result) = next {
            match result {
                Ok(confirmed) => batch.push(confirmed),
                Err(error) => failure = Some(Failure::from(error)),
            }
            next = self.publishing.next().now_or_never().flatten();
        }
        self.useful |= !batch.is_empty();
        self.refused = batch.iter().any(|confirmed| !confirmed.accepted);
        self.confirms.confirmed(batch);
        failure.map_or(Ok(()), Err)
    }

    /// Waits for what is on its way, each message as long as it has time, then closes the channel.
    pub(super) async fn finish(mut self) {
        while self.confirms.in_flight() > 0 {
            let deadline = self.confirms.next_deadline().unwrap_or_else(Instant::now);
            tokio::select! {
                confirmed = self.publishing.select_next_some(), if !self.publishing.is_empty() => {
                    if let Err(failure) = self.take(confirmed) {
                        self.confirms.fail(&PublishError::Disconnected(failure.text));
                        return;
                    }
                }
                () = time::sleep_until(deadline) => drop(self.confirms.expire(Instant::now())),
            }
        }
        // Whatever becomes of it, nobody waits for anything on this channel.
        let _ = time::timeout(GRACE, self.channel.close(200, "OK".into())).await;
    }
}

fn returned_message(message: BasicReturnMessage) -> Returned {
    let id = message.delivery.properties.message_id();
    Returned {
        message_id: id.as_ref().map(ToString::to_string).unwrap_or_default(),
        exchange: message.delivery.exchange.to_string(),
        routing_key: message.delivery.routing_key.to_string(),
    }
}
