//! One queue: what waits in it, in which order, and what dies in it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::state::ConsumerId;
use crate::broker::topology::{self, QueueKind};
use crate::broker::{Message, Properties};

/// A message in a queue, or handed out from it.
#[derive(Debug)]
pub(super) struct Entry {
    /// Shared by all queues that have a copy.
    pub(super) message: Arc<Message>,
    pub(super) redelivered: bool,
    /// Where it stands in its queue, kept while it is handed out.
    position: u64,
    expires_at: Option<Instant>,
    /// How often it came back in a way that counts.
    returns: u32,
}

/// Why a message leaves its queue for the dead-letter exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Death {
    Expired,
    Rejected,
    DeliveryLimit,
}

/// What becomes of an entry that came back.
pub(super) enum Returned {
    Waits,
    Dies(Entry),
}

#[derive(Debug)]
pub(super) struct Queue {
    pub(super) declared: topology::Queue,
    /// Consumers with room, the next one to serve first.
    pub(super) rotation: VecDeque<ConsumerId>,
    /// Dead letters that no queue wanted, kept until one does.
    pub(super) stuck: Vec<(Entry, Death)>,
    /// When the head's expiry has to be looked at.
    pub(super) alarm: Option<Instant>,
    /// Publishes that would leave more messages waiting are refused.
    pub(super) limit: Option<usize>,
    /// What came back: older than all that waits, so it goes first, in its old order.
    returned: BTreeMap<u64, Entry>,
    waiting: VecDeque<Entry>,
    next_position: u64,
}

impl Queue {
    pub(super) fn new(declared: topology::Queue) -> Self {
        Self {
            declared,
            rotation: VecDeque::new(),
            stuck: Vec::new(),
            alarm: None,
            limit: None,
            returned: BTreeMap::new(),
            waiting: VecDeque::new(),
            next_position: 0,
        }
    }

    /// How many messages are ready to be handed out.
    pub(super) fn len(&self) -> usize {
        self.returned.len() + self.waiting.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.limit.is_some_and(|limit| self.len() >= limit)
    }

    pub(super) fn push(&mut self, message: Arc<Message>, now: Instant) {
        let own = message.properties.expiration_ms.map(Duration::from_millis);
        let expires_at = own
            .into_iter()
            .chain(self.declared.message_ttl)
            .min()
            // At least a moment, or a queue that dead-letters into itself would spin.
            .and_then(|ttl| now.checked_add(ttl.max(Duration::from_millis(1))));
        self.waiting.push_back(Entry {
            message,
            redelivered: false,
            position: self.next_position,
            expires_at,
            returns: 0,
        });
        self.next_position += 1;
    }

    pub(super) fn pop(&mut self) -> Option<Entry> {
        self.returned.pop_first().map(|(_, entry)| entry).or_else(|| self.waiting.pop_front())
    }

    /// When the head expires. The others wait behind it, even those that expire sooner.
    pub(super) fn head_expires_at(&self) -> Option<Instant> {
        let head = self.returned.first_key_value().map(|(_, entry)| entry).or_else(|| self.waiting.front());
        head.and_then(|entry| entry.expires_at)
    }

    /// The head, if its time is over.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<Entry> {
        if self.head_expires_at().is_some_and(|at| at <= now) { self.pop() } else { None }
    }

    /// Takes back an entry that was handed out. Where the return `counts`, it may have been one too many.
    pub(super) fn take_back(&mut self, mut entry: Entry, counts: bool) -> Returned {
        if counts && self.declared.kind == QueueKind::Quorum {
            entry.returns += 1;
            if self.declared.delivery_limit.is_some_and(|limit| entry.returns > limit) {
                return Returned::Dies(entry);
            }
        }
        entry.redelivered = true;
        self.returned.insert(entry.position, entry);
        Returned::Waits
    }
}

impl Entry {
    /// The properties as a consumer sees them.
    pub(super) fn properties(&self) -> Properties {
        let mut properties = self.message.properties.clone();
        if self.returns > 0 {
            properties.headers.set("x-delivery-count", self.returns);
        }
        properties
    }

    /// The message as it goes from `queue` to the dead-letter exchange, under the key it came with.
    pub(super) fn letter(&self, death: Death, queue: &str, dead_letter_exchange: &str) -> Message {
        let mut properties = self.properties();
        properties.expiration_ms = None;
        let facts = [("queue", queue), ("reason", death.as_str()), ("exchange", &self.message.exchange)];
        let first = properties.headers.get("x-first-death-reason").is_none();
        for (name, fact) in facts {
            if first {
                properties.headers.set(format!("x-first-death-{name}"), fact);
            }
            properties.headers.set(format!("x-last-death-{name}"), fact);
        }
        Message {
            exchange: dead_letter_exchange.to_owned(),
            routing_key: self.message.routing_key.clone(),
            body: self.message.body.clone(),
            properties,
        }
    }
}

impl Death {
    /// As RabbitMQ spells it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Rejected => "rejected",
            Self::DeliveryLimit => "delivery_limit",
        }
    }
}
