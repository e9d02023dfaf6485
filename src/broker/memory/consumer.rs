//! Consumers: who gets what, and how it is settled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::queue::{Death, Entry};
use super::routing::Target;
use super::server::Channel;
use super::state::{ConnectionId, ConsumerId, Garbage, QueueId, State};
use crate::broker::{
    Acker, ConsumerState, Delivery, Disposition, Message, Properties, Source, StaleDelivery,
};

/// The tag of deliveries that need no settling.
const BROADCAST_TAG: u64 = 0;

/// The broker's side of a subscription.
#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) connection: ConnectionId,
    pub(super) source: Source,
    pub(super) prefetch: usize,
    /// `None` once cancelled: the receiver then ends when it is empty.
    pub(super) deliveries: Option<mpsc::UnboundedSender<Delivery>>,
    pub(super) state: watch::Sender<ConsumerState>,
    /// Asked before every delivery, so that a cancelled subscription gets nothing more at once.
    pub(super) cancel: CancellationToken,
    /// Whether its queue has it in the rotation.
    pub(super) in_rotation: bool,
    /// What it consumes over; `None` while it waits for its queue, or for the broker.
    channel: Option<Arc<Channel>>,
    queue: Option<QueueId>,
    unsettled: BTreeMap<u64, Entry>,
    last_tag: u64,
}

impl Consumer {
    pub(super) fn new(
        connection: ConnectionId,
        source: Source,
        prefetch: u16,
        deliveries: mpsc::UnboundedSender<Delivery>,
        state: watch::Sender<ConsumerState>,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            connection,
            source,
            prefetch: if prefetch == 0 { usize::MAX } else { prefetch.into() },
            deliveries: Some(deliveries),
            state,
            cancel,
            in_rotation: false,
            channel: None,
            queue: None,
            unsettled: BTreeMap::new(),
            last_tag: BROADCAST_TAG,
        }
    }

    /// Whether it may be handed one more.
    pub(super) fn accepts(&self) -> bool {
        self.channel.is_some()
            && self.unsettled.len() < self.prefetch
            && self.deliveries.as_ref().is_some_and(|deliveries| !deliveries.is_closed())
            && !self.cancel.is_cancelled()
    }

    pub(super) fn hand_out(&mut self, entry: Entry, garbage: &mut Garbage) {
        self.last_tag += 1;
        let properties = entry.properties();
        let message = Arc::clone(&entry.message);
        let redelivered = entry.redelivered;
        self.unsettled.insert(self.last_tag, entry);
        self.send(&message, properties, redelivered, self.last_tag, garbage);
    }

    pub(super) fn broadcast(&mut self, message: &Message, garbage: &mut Garbage) {
        if !self.cancel.is_cancelled() {
            self.send(message, message.properties.clone(), false, BROADCAST_TAG, garbage);
        }
    }

    fn send(
        &self,
        message: &Message,
        properties: Properties,
        redelivered: bool,
        tag: u64,
        garbage: &mut Garbage,
    ) {
        let (Some(deliveries), Some(channel)) = (&self.deliveries, &self.channel) else { return };
        let delivery = Delivery {
            exchange: message.exchange.clone(),
            routing_key: message.routing_key.clone(),
            redelivered,
            properties,
            body: message.body.clone(),
            received_at: std::time::Instant::now(),
            acker: Acker::new(tag, Arc::clone(channel) as _),
        };
        if let Err(unread) = deliveries.send(delivery) {
            garbage.deliveries.push(unread.0);
        }
    }
}

impl State {
    pub(super) fn subscribe(&mut self, consumer: Consumer, now: Instant) -> ConsumerId {
        let id = ConsumerId(self.next_id());
        self.consumers.insert(id, consumer);
        self.attach(id);
        self.serve_changed(now);
        id
    }

    /// Connects every consumer that waits for its queue or for the broker.
    pub(super) fn attach_waiting(&mut self) {
        let waiting: Vec<_> =
            self.consumers.iter().filter(|(_, c)| c.channel.is_none()).map(|(id, _)| *id).collect();
        for id in waiting {
            self.attach(id);
        }
    }

    fn attach(&mut self, id: ConsumerId) {
        let consumer = self.consumers.get(&id).expect("the caller has just seen it");
        let (queue, obstacle) = match (&self.down, &consumer.source) {
            (Some(reason), _) => (None, Some(reason.clone())),
            (None, Source::Queue(name)) => {
                let queue = self.queue_id(name);
                (queue, queue.is_none().then(|| format!("queue {name:?} does not exist; declare it")))
            }
            (None, Source::Broadcast(name)) => {
                let name = name.clone();
                let bound = self.routing.bind(&name, "", Target::Subscriber(id));
                (None, (!bound).then(|| format!("exchange {name:?} does not exist; declare it")))
            }
        };
        let channel = Channel { server: self.server.clone(), consumer: id, open: AtomicBool::new(true) };
        let consumer = self.consumers.get_mut(&id).expect("the caller has just seen it");
        if let Some(obstacle) = obstacle {
            consumer.state.send_replace(ConsumerState::Connecting(obstacle));
            return;
        }
        consumer.channel = Some(Arc::new(channel));
        consumer.queue = queue;
        consumer.state.send_replace(ConsumerState::Consuming);
        self.take_turns(id);
    }

    /// Puts a consumer that has room into its queue's rotation.
    fn take_turns(&mut self, id: ConsumerId) {
        let Some(consumer) = self.consumers.get_mut(&id) else { return };
        let Some(queue) = consumer.queue else { return };
        if !consumer.in_rotation && consumer.accepts() {
            consumer.in_rotation = true;
            self.queue_mut(queue).rotation.push_back(id);
            self.changed(queue);
        }
    }

    pub(super) fn settle(
        &mut self,
        channel: &Channel,
        tag: u64,
        disposition: Disposition,
        now: Instant,
    ) -> Result<(), StaleDelivery> {
        // Asked under the lock: a cut that comes first has already given the delivery back.
        if !channel.open.load(Ordering::Acquire) {
            return Err(StaleDelivery);
        }
        if tag == BROADCAST_TAG {
            return Ok(());
        }
        let id = channel.consumer;
        let consumer = self.consumers.get_mut(&id).ok_or(StaleDelivery)?;
        let entry = consumer.unsettled.remove(&tag).ok_or(StaleDelivery)?;
        let queue = consumer.queue.ok_or(StaleDelivery)?;
        let drained = consumer.deliveries.is_none() && consumer.unsettled.is_empty();
        // Before its own message comes back, so that a consumer alone can be handed it again.
        self.take_turns(id);
        match disposition {
            Disposition::Ack => {}
            Disposition::Release => self.take_back(queue, entry, false, now),
            Disposition::Retry => self.take_back(queue, entry, true, now),
            Disposition::Reject => self.bury(queue, entry, Death::Rejected, now),
        }
        if drained {
            self.end(id, now);
        }
        self.serve_changed(now);
        Ok(())
    }

    /// No more deliveries; those handed out can still be settled.
    pub(super) fn cancel(&mut self, id: ConsumerId, now: Instant) {
        let Some(consumer) = self.consumers.get_mut(&id) else { return };
        self.garbage.senders.extend(consumer.deliveries.take());
        if consumer.unsettled.is_empty() {
            self.end(id, now);
        } else {
            consumer.state.send_replace(ConsumerState::Draining);
        }
        self.serve_changed(now);
    }

    /// The end of a subscription.
    pub(super) fn end(&mut self, id: ConsumerId, now: Instant) {
        self.cut(id, now);
        if let Some(mut consumer) = self.consumers.remove(&id) {
            self.garbage.senders.extend(consumer.deliveries.take());
            consumer.state.send_replace(ConsumerState::Stopped);
        }
    }

    /// Closes a consumer's channel: what is unsettled goes back to its queue, counted.
    pub(super) fn cut(&mut self, id: ConsumerId, now: Instant) {
        let Some(consumer) = self.consumers.get_mut(&id) else { return };
        let Some(channel) = consumer.channel.take() else { return };
        channel.open.store(false, Ordering::Release);
        consumer.in_rotation = false;
        let unsettled = std::mem::take(&mut consumer.unsettled);
        if let Source::Broadcast(exchange) = &consumer.source {
            self.routing.unbind(exchange, Target::Subscriber(id));
        }
        if let Some(queue) = consumer.queue.take() {
            self.queue_mut(queue).rotation.retain(|other| *other != id);
            for entry in unsettled.into_values() {
                self.take_back(queue, entry, true, now);
            }
        }
    }
}
