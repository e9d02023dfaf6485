//! Everything the embedded broker knows, and what changes it. No I/O, no waiting: the time is passed in.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Weak};

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::connection::Connection;
use super::consumer::Consumer;
use super::queue::{Death, Entry, Queue, Returned};
use super::routing::{Routing, Target};
use super::server::Server;
use crate::broker::topology::{self, Exchange, Topology};
use crate::broker::{BrokerError, Delivery, Message, PublishError};

/// AMQP keeps names and keys in strings of this length.
const SHORT_STRING_BYTES: usize = 255;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct QueueId(u64);
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ConsumerId(pub(super) u64);
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ConnectionId(pub(super) u64);

#[derive(Debug)]
pub(super) struct State {
    pub(super) server: Weak<Server>,
    pub(super) routing: Routing,
    pub(super) consumers: BTreeMap<ConsumerId, Consumer>,
    pub(super) connections: BTreeMap<ConnectionId, Connection>,
    /// Why publishing stands still.
    pub(super) blocked: Option<String>,
    /// Why nobody is connected.
    pub(super) down: Option<String>,
    /// Publishes to come that are stored, but not confirmed.
    pub(super) confirms_to_lose: usize,
    /// Dropped once the lock is free: a delivery that nobody reads settles itself, which takes the lock.
    pub(super) garbage: Garbage,
    /// The first alarm is earlier than the timer knows.
    pub(super) timer_is_late: bool,
    queues: BTreeMap<QueueId, Queue>,
    names: BTreeMap<String, QueueId>,
    alarms: BTreeSet<(Instant, QueueId)>,
    /// Queues that changed.
    unserved: VecDeque<QueueId>,
    next_id: u64,
}

#[derive(Debug, Default)]
pub(super) struct Garbage {
    pub(super) deliveries: Vec<Delivery>,
    pub(super) senders: Vec<mpsc::UnboundedSender<Delivery>>,
}

impl State {
    pub(super) fn new(server: Weak<Server>) -> Self {
        Self {
            server,
            routing: Routing::default(),
            consumers: BTreeMap::new(),
            connections: BTreeMap::new(),
            blocked: None,
            down: None,
            confirms_to_lose: 0,
            garbage: Garbage::default(),
            timer_is_late: false,
            queues: BTreeMap::new(),
            names: BTreeMap::new(),
            alarms: BTreeSet::new(),
            unserved: VecDeque::new(),
            next_id: 0,
        }
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    // Topology

    pub(super) fn declare(&mut self, topology: &Topology, now: Instant) -> Result<(), BrokerError> {
        let declared = self.declare_all(topology);
        // Also after a refusal: what came before it exists.
        self.attach_waiting();
        self.retry_stuck(now);
        self.serve_changed(now);
        declared
    }

    fn declare_all(&mut self, topology: &Topology) -> Result<(), BrokerError> {
        for exchange in &topology.exchanges {
            self.declare_exchange(exchange)?;
        }
        for queue in &topology.queues {
            self.declare_queue(queue)?;
        }
        for binding in &topology.bindings {
            let queue = self.names.get(&binding.queue).copied();
            let bound = queue.is_some_and(|queue| {
                self.routing.bind(&binding.exchange, &binding.routing_key, Target::Queue(queue))
            });
            if !bound {
                return Err(BrokerError::Refused(format!(
                    "queue {:?} cannot be bound to exchange {:?}: one of them does not exist; declare both first",
                    binding.queue, binding.exchange
                )));
            }
        }
        Ok(())
    }

    fn declare_exchange(&mut self, wanted: &Exchange) -> Result<(), BrokerError> {
        check_name("exchange", &wanted.name)?;
        match self.routing.exchange(&wanted.name) {
            None => self.routing.add(wanted.clone()),
            Some(found) if found == wanted => {}
            Some(found) => {
                return Err(BrokerError::Refused(format!(
                    "exchange {:?} exists as {:?} with alternate {:?}, wanted is {:?} with alternate {:?}; \
                     delete it or choose another prefix",
                    wanted.name, found.kind, found.alternate, wanted.kind, wanted.alternate
                )));
            }
        }
        Ok(())
    }

    fn declare_queue(&mut self, wanted: &topology::Queue) -> Result<(), BrokerError> {
        check_name("queue", &wanted.name)?;
        match self.queue_id(&wanted.name) {
            None => {
                let id = QueueId(self.next_id());
                self.names.insert(wanted.name.clone(), id);
                self.queues.insert(id, Queue::new(wanted.clone()));
            }
            Some(id) if self.queues[&id].declared == *wanted => {}
            Some(id) => {
                return Err(BrokerError::Refused(format!(
                    "queue {:?} exists with other arguments: it is {:?}, wanted is {wanted:?}; \
                     delete it or choose another prefix",
                    wanted.name, self.queues[&id].declared
                )));
            }
        }
        Ok(())
    }

    pub(super) fn missing(&self, topology: &Topology) -> Vec<String> {
        let exchanges = topology.exchanges.iter().filter(|e| self.routing.exchange(&e.name).is_none());
        let queues = topology.queues.iter().filter(|q| !self.names.contains_key(&q.name));
        exchanges
            .map(|exchange| format!("exchange {}", exchange.name))
            .chain(queues.map(|queue| format!("queue {}", queue.name)))
            .collect()
    }

    pub(super) fn queue_id(&self, name: &str) -> Option<QueueId> {
        self.names.get(name).copied()
    }

    pub(super) fn queue_mut(&mut self, id: QueueId) -> &mut Queue {
        self.queues.get_mut(&id).expect("queues are never deleted")
    }

    pub(super) fn depth(&self, name: &str) -> Option<u64> {
        self.queue_id(name).map(|id| self.queues[&id].len() as u64)
    }

    // Messages

    pub(super) fn publish(&mut self, message: Arc<Message>, now: Instant) -> Result<(), PublishError> {
        for (what, text) in [("exchange name", &message.exchange), ("routing key", &message.routing_key)] {
            if text.len() > SHORT_STRING_BYTES {
                return Err(PublishError::Invalid(format!(
                    "its {what} has {} bytes, more than {SHORT_STRING_BYTES}",
                    text.len()
                )));
            }
        }
        let targets = self.route(&message.exchange, &message.routing_key);
        if targets.is_empty() {
            let (exchange, routing_key) = (message.exchange.clone(), message.routing_key.clone());
            return Err(PublishError::Unroutable { exchange, routing_key });
        }
        let mut published = Ok(());
        for target in targets.iter() {
            let full = matches!(target, Target::Queue(queue) if self.queues[queue].is_full());
            if full {
                // The other queues keep their copies, as on RabbitMQ.
                published = Err(PublishError::Refused);
            } else {
                self.store(*target, &message, now);
            }
        }
        self.serve_changed(now);
        published
    }

    fn route(&mut self, exchange: &str, key: &str) -> Arc<[Target]> {
        if exchange.is_empty() {
            self.queue_id(key).map(Target::Queue).into_iter().collect()
        } else {
            self.routing.route(exchange, key)
        }
    }

    fn store(&mut self, target: Target, message: &Arc<Message>, now: Instant) {
        match target {
            Target::Queue(id) => {
                self.queue_mut(id).push(Arc::clone(message), now);
                self.changed(id);
            }
            Target::Subscriber(id) => {
                if let Some(consumer) = self.consumers.get_mut(&id) {
                    consumer.broadcast(message, &mut self.garbage);
                }
            }
        }
    }

    pub(super) fn changed(&mut self, queue: QueueId) {
        if self.unserved.back() != Some(&queue) {
            self.unserved.push_back(queue);
        }
    }

    /// Hands out what can be handed out, and buries what has expired, until nothing moves.
    pub(super) fn serve_changed(&mut self, now: Instant) {
        while let Some(queue) = self.unserved.pop_front() {
            self.serve(queue, now);
        }
    }

    fn serve(&mut self, id: QueueId, now: Instant) {
        loop {
            let queue = self.queues.get_mut(&id).expect("queues are never deleted");
            if let Some(entry) = queue.pop_expired(now) {
                self.bury(id, entry, Death::Expired, now);
                continue;
            }
            if queue.len() == 0 {
                break;
            }
            let Some(next) = queue.rotation.pop_front() else { break };
            let Some(consumer) = self.consumers.get_mut(&next) else { continue };
            if consumer.accepts() {
                let entry = queue.pop().expect("it has messages");
                consumer.hand_out(entry, &mut self.garbage);
            }
            if consumer.accepts() {
                queue.rotation.push_back(next);
            } else {
                consumer.in_rotation = false;
            }
        }
        self.set_alarm(id);
    }

    pub(super) fn take_back(&mut self, id: QueueId, entry: Entry, counts: bool, now: Instant) {
        if let Returned::Dies(entry) = self.queue_mut(id).take_back(entry, counts) {
            self.bury(id, entry, Death::DeliveryLimit, now);
        }
        self.changed(id);
    }

    /// Sends a message to its queue's dead-letter exchange. Where that leads nowhere it is kept, and tried
    /// again when the topology changes; where there is none, it is gone.
    pub(super) fn bury(&mut self, id: QueueId, entry: Entry, death: Death, now: Instant) {
        let declared = &self.queues[&id].declared;
        let Some(exchange) = declared.dead_letter_exchange.clone() else { return };
        let letter = Arc::new(entry.letter(death, &declared.name, &exchange));
        let targets = self.route(&exchange, &letter.routing_key);
        if targets.is_empty() {
            self.queue_mut(id).stuck.push((entry, death));
        }
        for target in targets.iter() {
            self.store(*target, &letter, now);
        }
    }

    fn retry_stuck(&mut self, now: Instant) {
        let holding: Vec<_> =
            self.queues.iter().filter(|(_, queue)| !queue.stuck.is_empty()).map(|(id, _)| *id).collect();
        for id in holding {
            for (entry, death) in std::mem::take(&mut self.queue_mut(id).stuck) {
                self.bury(id, entry, death, now);
            }
        }
    }

    // Expiry

    pub(super) fn next_alarm(&self) -> Option<Instant> {
        self.alarms.first().map(|(at, _)| *at)
    }

    /// Buries what has expired by `now`.
    pub(super) fn ring(&mut self, now: Instant) {
        while let Some((at, id)) = self.alarms.first().copied()
            && at <= now
        {
            self.alarms.pop_first();
            self.queue_mut(id).alarm = None;
            self.changed(id);
        }
        self.serve_changed(now);
    }

    fn set_alarm(&mut self, id: QueueId) {
        let queue = self.queues.get_mut(&id).expect("queues are never deleted");
        let wanted = queue.head_expires_at();
        if queue.alarm == wanted {
            return;
        }
        if let Some(at) = queue.alarm.take() {
            self.alarms.remove(&(at, id));
        }
        queue.alarm = wanted;
        if let Some(at) = wanted {
            self.alarms.insert((at, id));
            self.timer_is_late |= self.alarms.first() == Some(&(at, id));
        }
    }
}

fn check_name(what: &str, name: &str) -> Result<(), BrokerError> {
    if (1..=SHORT_STRING_BYTES).contains(&name.len()) {
        return Ok(());
    }
    let length = name.len();
    Err(BrokerError::Refused(format!("an {what} name has 1 to 255 bytes, {name:?} has {length}")))
}
