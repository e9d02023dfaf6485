//! One consuming channel: deliveries out, settlements in.
//!
//! Settlements are bound to the channel their deliveries came from. Once it is over, the broker hands the
//! unsettled deliveries out again, so a late settlement is refused here instead of being sent: a broker may
//! accept it and not do it.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    BasicRejectOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, Consumer};
use tokio::sync::mpsc;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::connection::GRACE;
use super::declare::checked;
use super::failure::Failure;
use super::link::Link;
use super::properties::incoming;
use crate::broker::{Acker, Delivery, Disposition, Settle, Source, StaleDelivery};
use crate::ops::metrics::METRICS;

/// So many settlements RabbitMQ hands on to a quorum queue at once. It keeps the others with the channel until those are
/// done, and forgets them when the channel is closed: what was acked is delivered again (rabbitmq-server issue 10327).
const HANDED_ON: usize = 32;

/// How long a channel with more settlements than that stays open after the last one, at least. Nothing tells when all are done.
const LINGER: Duration = Duration::from_millis(500);

/// What each [`HANDED_ON`] may take: an overloaded broker needed 25 ms.
const TURN: Duration = Duration::from_millis(30);

pub(super) struct Deliveries {
    channel: Channel,
    consumer: Consumer,
    no_ack: bool,
    settle: Arc<dyn Settle>,
    settlements: Settlements,
}

/// A channel on its way to deliver. Given up before, it is closed: the broker may have begun to deliver, and nobody
/// would ever settle that.
struct Opening(Option<Channel>);

impl Opening {
    fn channel(&self) -> &Channel {
        self.0.as_ref().expect("kept once, at the end")
    }

    fn keep(mut self) -> Channel {
        self.0.take().expect("kept once, at the end")
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(channel) = self.0.take() {
            // The first poll queues it for sending, behind what was asked for.
            let _ = channel.close(200, "OK".into()).now_or_never();
        }
    }
}

/// Why a channel's deliveries ended.
pub(super) enum End {
    /// Not by our doing.
    Broken(Failure),
    /// The broker is being closed by us.
    Closed,
    /// The subscription was cancelled; what it has delivered can still be settled.
    Cancelled(Unsettled),
}

impl Deliveries {
    pub(super) async fn open(
        connection: &Connection,
        source: &Source,
        prefetch: u16,
    ) -> Result<Self, Failure> {
        let opening = Opening(Some(connection.create_channel().await?));
        let channel = opening.channel();
        let (queue, no_ack) = match source {
            Source::Queue(name) => (checked(name)?, false),
            Source::Broadcast(exchange) => (own_queue(channel, exchange).await?, true),
        };
        let consumer = consume(channel, queue, prefetch, no_ack).await?;
        let channel = opening.keep();
        let (sender, settlements) = mpsc::unbounded_channel();
        let settle: Arc<dyn Settle> =
            if no_ack { Arc::new(NothingToSettle) } else { Arc::new(ToChannel(sender)) };
        let settlements = Settlements {
            asked: settlements,
            unsettled: BTreeSet::new(),
            prefetch: usize::from(prefetch),
            burst: 0,
            last_sent: Instant::now(),
        };
        Ok(Self { channel, consumer, no_ack, settle, settlements })
    }

    /// Hands deliveries on, and settlements back, until the channel ends. `publishing` pauses it while the
    /// broker takes no messages.
    pub(super) async fn forward(
        mut self,
        deliveries: &mpsc::UnboundedSender<Delivery>,
        mut publishing: Option<&mut Link>,
        cancel: &CancellationToken,
        closing: &CancellationToken,
    ) -> End {
        // Once for all turns: each would wait in line anew.
        let (mut closed, mut cancelled) = (pin!(closing.cancelled()), pin!(cancel.cancelled()));
        loop {
            let paused = publishing.as_ref().is_some_and(|link| link.is_blocked());
            tokio::select! {
                () = &mut closed => {
                    self.settlements.finish(&self.channel).await;
                    return End::Closed;
                }
                () = &mut cancelled => return self.cancel(deliveries).await,
                Some(settlement) = self.settlements.asked.recv() => {
                    if let Err(failure) = self.settlements.send(&self.channel, settlement) {
                        return self.broken(failure).await;
                    }
                }
                delivery = self.consumer.next(), if !paused => {
                    // And those that came with it: at most as many as the broker hands out at once.
                    let mut next = Some(delivery);
                    while let Some(delivery) = next {
                        match delivery {
                            Some(Ok(delivery)) => self.hand_on(delivery, deliveries),
                            Some(Err(error)) => return self.broken(Failure::from(error)).await,
                            None => return self.broken(Failure::cancelled()).await,
                        }
                        next = self.consumer.next().now_or_never();
                    }
                }
                () = changed(&mut publishing) => {}
            }
        }
    }

    fn hand_on(&mut self, delivery: lapin::message::Delivery, deliveries: &mpsc::UnboundedSender<Delivery>) {
        if !self.no_ack {
            self.settlements.unsettled.insert(delivery.delivery_tag);
        }
        let delivery = Delivery {
            exchange: delivery.exchange.into(),
            routing_key: delivery.routing_key.into(),
            redelivered: delivery.redelivered,
            properties: incoming(&delivery.properties),
            body: Bytes::from(delivery.data),
            received_at: Instant::now(),
            acker: Acker::new(delivery.delivery_tag, self.settle.clone()),
        };
        if let Err(unwanted) = deliveries.send(delivery) {
            // The subscription was dropped. A stale delivery needs no settling.
            let _ = unwanted.0.acker.settle(Disposition::Release);
        }
    }

    /// From here on nothing of this channel can be settled; closing it gives its deliveries to others at once.
    async fn broken(self, failure: Failure) -> End {
        drop(self.settlements);
        if !failure.connection_lost {
            close(&self.channel).await;
        }
        End::Broken(failure)
    }

    async fn cancel(mut self, deliveries: &mpsc::UnboundedSender<Delivery>) -> End {
        let cancelling = self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default());
        if !matches!(time::timeout(GRACE, cancelling).await, Ok(Ok(()))) {
            // The channel or its connection is gone, and the consumer with it.
            close(&self.channel).await;
            return End::Closed;
        }
        // What had arrived before the broker stopped sending.
        while let Some(Ok(delivery)) = self.consumer.next().await {
            self.hand_on(delivery, deliveries);
        }
        End::Cancelled(Unsettled { channel: self.channel, settlements: self.settlements })
    }
}

/// A cancelled channel, kept open for what it has delivered.
pub(super) struct Unsettled {
    channel: Channel,
    settlements: Settlements,
}

impl Unsettled {
    /// Returns once everything is settled, or cannot be any longer.
    pub(super) async fn settle(mut self, link: &mut Link, connection: u64, closing: &CancellationToken) {
        while link.has(connection) {
            tokio::select! {
                () = closing.cancelled() => break,
                settlement = self.settlements.asked.recv() => match settlement {
                    Some(settlement) if self.settlements.send(&self.channel, settlement).is_ok() => {}
                    _ => break,
                },
                () = link.changed() => {}
            }
        }
        self.settlements.finish(&self.channel).await;
    }
}

async fn changed(link: &mut Option<&mut Link>) {
    match link {
        Some(link) => link.changed().await,
        None => std::future::pending().await,
    }
}

/// A channel that does not close has nothing left to close.
async fn close(channel: &Channel) {
    if channel.status().connected() {
        let _ = time::timeout(GRACE, channel.close(200, "OK".into())).await;
    }
}

async fn own_queue(channel: &Channel, exchange: &str) -> Result<ShortString, Failure> {
    let options = QueueDeclareOptions::exclusive().auto_delete();
    let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?.name().clone();
    let options = QueueBindOptions::default();
    let exchange = checked(exchange)?;
    channel.queue_bind(queue.clone(), exchange, "".into(), options, FieldTable::default()).await?;
    Ok(queue)
}

async fn consume(
    channel: &Channel,
    queue: ShortString,
    prefetch: u16,
    no_ack: bool,
) -> Result<Consumer, lapin::Error> {
    // For this consumer alone: quorum queues know no other limit. Zero would be no limit at all.
    channel.basic_qos(prefetch.max(1), BasicQosOptions { global: false }).await?;
    let options = BasicConsumeOptions { no_ack, ..BasicConsumeOptions::default() };
    channel.basic_consume(queue, "".into(), options, FieldTable::default()).await
}

type Settlement = (u64, Disposition);

/// Settles by way of the task that owns the channel.
struct ToChannel(mpsc::UnboundedSender<Settlement>);

impl Settle for ToChannel {
    fn settle(&self, tag: u64, disposition: Disposition) -> Result<(), StaleDelivery> {
        self.0.send((tag, disposition)).map_err(|_| {
            METRICS.stale_settlements.inc();
            StaleDelivery
        })
    }

    fn is_open(&self) -> bool {
        !self.0.is_closed()
    }
}

/// For deliveries that the broker regards as settled when it sends them.
struct NothingToSettle;

impl Settle for NothingToSettle {
    fn settle(&self, _tag: u64, _disposition: Disposition) -> Result<(), StaleDelivery> {
        Ok(())
    }

    fn is_open(&self) -> bool {
        true
    }
}

/// What is to be settled. Dropped, it refuses the rest.
struct Settlements {
    asked: mpsc::UnboundedReceiver<Settlement>,
    /// Delivered, and nothing sent about them yet.
    unsettled: BTreeSet<u64>,
    /// The broker keeps no more settlements than that: it delivers nothing else before they are done.
    prefetch: usize,
    /// How many were sent, none longer than [`LINGER`] after the one before.
    burst: usize,
    last_sent: Instant,
}

impl Settlements {
    /// Sends `first` and whatever else was asked for so far. Acks of everything older than the oldest unsettled
    /// delivery go as one: half the cost of a step, for the broker too.
    fn send(&mut self, channel: &Channel, first: Settlement) -> Result<(), Failure> {
        if self.last_sent.elapsed() > LINGER {
            self.burst = 0;
        }
        self.last_sent = Instant::now();
        let mut acks = Vec::new();
        let mut next = Some(first);
        while let Some((tag, disposition)) = next {
            self.unsettled.remove(&tag);
            match disposition {
                Disposition::Ack => acks.push(tag),
                other => {
                    self.burst += 1;
                    refuse(channel, tag, other)?;
                }
            }
            next = self.asked.try_recv().ok();
        }
        let oldest = self.unsettled.first().copied().unwrap_or(u64::MAX);
        let (together, alone): (Vec<u64>, Vec<u64>) = acks.into_iter().partition(|tag| *tag < oldest);
        self.burst += alone.len() + usize::from(!together.is_empty());
        if let Some(newest) = together.into_iter().max() {
            queued(channel.basic_ack(newest, BasicAckOptions { multiple: true }).now_or_never())?;
        }
        for tag in alone {
            queued(channel.basic_ack(tag, BasicAckOptions::default()).now_or_never())?;
        }
        Ok(())
    }

    /// Sends what was asked for so far, and closes the channel once that is done.
    async fn finish(&mut self, channel: &Channel) {
        while let Ok(settlement) = self.asked.try_recv() {
            if self.send(channel, settlement).is_err() {
                METRICS.stale_settlements.inc();
            }
        }
        if self.burst > HANDED_ON && channel.status().connected() {
            let turns = self.burst.min(self.prefetch) / HANDED_ON;
            let linger = (TURN * turns as u32).clamp(LINGER, GRACE);
            time::sleep_until((self.last_sent + linger).into()).await;
        }
        close(channel).await;
    }
}

impl Drop for Settlements {
    fn drop(&mut self) {
        self.asked.close();
        while self.asked.try_recv().is_ok() {
            METRICS.stale_settlements.inc();
        }
    }
}

/// Gives a delivery back, or away.
fn refuse(channel: &Channel, tag: u64, disposition: Disposition) -> Result<(), Failure> {
    queued(match disposition {
        // Not the message's fault: since RabbitMQ 4.3 this is not counted against its delivery limit.
        Disposition::Release => {
            let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
            channel.basic_nack(tag, options).now_or_never()
        }
        _ => {
            let requeue = disposition == Disposition::Retry;
            channel.basic_reject(tag, BasicRejectOptions { requeue }).now_or_never()
        }
    })
}

/// The first poll queues a settlement for sending, in order. That it was sent is not waited for: if it cannot be,
/// the channel is over, and its end is seen where deliveries are.
fn queued(sent: Option<Result<(), lapin::Error>>) -> Result<(), Failure> {
    match sent {
        Some(Err(error)) => Err(error.into()),
        Some(Ok(())) | None => Ok(()),
    }
}
