//! Every queue and exchange: its name, its arguments, its bindings. No other file spells one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::retry::Ladder;

/// How often a message may be handed out again before the broker takes it for poison.
///
/// A crashed worker spends one of all its prefetched messages, so this must leave room for innocents.
pub const DELIVERY_LIMIT: u32 = 20;

/// For queues whose messages must never die of being handed out: as good as none. RabbitMQ 4 would take 20
/// where nothing is said, and drop the message where there is no dead-letter exchange; 3.10 does not know -1.
pub const NO_DELIVERY_LIMIT: u32 = 1_000_000;

/// The first word of the keys that are bound beside those of the delays.
const CHECKPOINT: &str = "checkpoint";

/// The names of one installation: everything starts with its prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    prefix: String,
}

impl Names {
    /// Names under `prefix`, `tasker` by default.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into() }
    }

    fn name(&self, rest: &str) -> String {
        format!("{}.{rest}", self.prefix)
    }

    /// What every name starts with.
    pub fn everything(&self) -> String {
        self.name("")
    }

    /// Exchange of step execution requests.
    pub fn steps(&self) -> String {
        self.name("steps")
    }

    /// Queue of one namespace's step execution requests.
    pub fn step_queue(&self, namespace: &str) -> String {
        self.name(&format!("steps.{namespace}"))
    }

    /// Exchange of results.
    pub fn results(&self) -> String {
        self.name("results")
    }

    /// Exchange of retries: each goes to a delay queue and to the orchestrator. What goes on from a checkpoint goes to its
    /// step queue at once, and to the orchestrator.
    pub fn retries(&self) -> String {
        self.name("retries")
    }

    /// Queue that holds messages for `rung`, then sends them on to the steps exchange.
    pub fn delay_queue(&self, rung: Duration) -> String {
        self.name(&format!("delay.{}", rung.as_millis()))
    }

    /// Exchange of dead letters.
    pub fn dead_letters(&self) -> String {
        self.name("dead_letters")
    }

    /// Queue in which one namespace's dead letters are parked.
    pub fn dead_letter_queue(&self, namespace: &str) -> String {
        self.name(&format!("dead_letters.{namespace}"))
    }

    /// Queue that holds a message while the namespace is paused.
    pub fn paused_queue(&self, namespace: &str) -> String {
        self.name(&format!("paused.{namespace}"))
    }

    /// Queue of everything the orchestrator has to know.
    pub fn orchestrator_queue(&self) -> String {
        self.name("orchestrator")
    }

    /// Fanout exchange from the orchestrator to every worker.
    pub fn control(&self) -> String {
        self.name("control")
    }

    /// Exchange and queue of messages that no other queue wanted.
    pub fn unroutable(&self) -> String {
        self.name("unroutable")
    }
}

impl Default for Names {
    fn default() -> Self {
        Self::new("tasker")
    }
}

/// Routing key of a step execution request.
pub fn step_key(namespace: &str, step_name: &str) -> String {
    bounded(format!("step.{namespace}.{step_name}"))
}

/// Routing key of a result.
pub fn result_key(namespace: &str, status: &str) -> String {
    format!("result.{namespace}.{status}")
}

/// Routing key of a retry that waits for `rung`.
pub fn retry_key(namespace: &str, rung: Duration) -> String {
    format!("retry.{namespace}.{}", rung.as_millis())
}

/// Routing key of the request to go on from a checkpoint.
pub fn checkpoint_key(namespace: &str, step_name: &str) -> String {
    bounded(format!("{CHECKPOINT}.{namespace}.{step_name}"))
}

/// Whether a message with this key goes on from a checkpoint.
pub fn is_checkpoint_key(key: &str) -> bool {
    key.split('.').next() == Some(CHECKPOINT)
}

/// Routing key of a dead letter.
pub fn dead_key(namespace: &str, reason: &str) -> String {
    format!("dead.{namespace}.{reason}")
}

/// A routing key has at most 255 bytes; the queue is found by the namespace, so the step's name may be cut.
fn bounded(mut key: String) -> String {
    if key.len() > 255 {
        let end = (0..=255).rev().find(|end| key.is_char_boundary(*end)).unwrap_or(0);
        key.truncate(end);
    }
    key
}

/// A wanted set of exchanges, queues and bindings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// Declared first.
    pub exchanges: Vec<Exchange>,
    /// Declared second.
    pub queues: Vec<Queue>,
    /// Declared last.
    pub bindings: Vec<Binding>,
}

/// A durable exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// Its name.
    pub name: String,
    /// How it routes.
    pub kind: ExchangeKind,
    /// Where messages go that no queue wants.
    pub alternate: Option<String>,
}

/// How an exchange routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeKind {
    /// By patterns of dotted words.
    Topic,
    /// To every bound queue.
    Fanout,
}

/// A durable queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// How the broker keeps it.
    pub kind: QueueKind,
    /// How long a message stays before it is dead-lettered.
    pub message_ttl: Option<Duration>,
    /// Where rejected, expired and poisonous messages go, under the key they came with.
    pub dead_letter_exchange: Option<String>,
    /// How often a message may be redelivered.
    pub delivery_limit: Option<u32>,
}

/// What the broker is told about a queue or an exchange.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum Argument {
    /// A word or a name.
    Text(String),
    /// A time in milliseconds, or a count.
    Number(i64),
}

impl Exchange {
    /// What makes the broker keep it so, by the broker's names.
    pub fn arguments(&self) -> BTreeMap<&'static str, Argument> {
        self.alternate.iter().map(|name| ("alternate-exchange", Argument::Text(name.clone()))).collect()
    }
}

impl Queue {
    /// What makes the broker keep it so, by the broker's names.
    pub fn arguments(&self) -> BTreeMap<&'static str, Argument> {
        let text = |text: &str| Argument::Text(text.to_owned());
        let quorum = self.kind == QueueKind::Quorum;
        let mut arguments =
            BTreeMap::from([("x-queue-type", text(if quorum { "quorum" } else { "classic" }))]);
        if let Some(ttl) = self.message_ttl {
            let millis = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
            arguments.insert("x-message-ttl", Argument::Number(millis));
        }
        if let Some(exchange) = &self.dead_letter_exchange {
            arguments.insert("x-dead-letter-exchange", text(exchange));
            if quorum {
                // The broker keeps a dead letter until its new queues have confirmed it, which it does only
                // for queues that refuse what exceeds them.
                arguments.insert("x-dead-letter-strategy", text("at-least-once"));
                arguments.insert("x-overflow", text("reject-publish"));
            }
        }
        if let Some(limit) = self.delivery_limit.filter(|_| quorum) {
            arguments.insert("x-delivery-limit", Argument::Number(i64::from(limit)));
        }
        arguments
    }
}

/// How the broker keeps a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueKind {
    /// Replicated, and counts redeliveries.
    #[default]
    Quorum,
    /// On one node, without a delivery limit.
    Classic,
}

/// A binding of a queue to an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The queue.
    pub queue: String,
    /// The exchange.
    pub exchange: String,
    /// The pattern.
    pub routing_key: String,
}

impl Topology {
    /// Everything an installation with these namespaces needs.
    pub fn new<S: AsRef<str>>(
        names: &Names,
        ladder: &Ladder,
        kind: QueueKind,
        namespaces: impl IntoIterator<Item = S>,
    ) -> Self {
        let mut topology = Self::default();
        topology.shared(names, ladder, kind);
        let namespaces: BTreeSet<String> = namespaces.into_iter().map(|n| n.as_ref().to_owned()).collect();
        for namespace in &namespaces {
            topology.namespace(names, kind, namespace);
        }
        topology
    }

    /// What the pause of a namespace needs, whether it is served or not.
    pub fn of_pause(names: &Names, kind: QueueKind, namespace: &str) -> Self {
        let mut topology = Self::default();
        topology.exchange(&names.control(), ExchangeKind::Fanout, None);
        topology.queue(&names.paused_queue(namespace), kind, None, None);
        topology
    }

    fn shared(&mut self, names: &Names, ladder: &Ladder, kind: QueueKind) {
        let unroutable = names.unroutable();
        self.exchange(&unroutable, ExchangeKind::Fanout, None);
        self.queue(&unroutable, kind, None, None);
        self.bind(&unroutable, &unroutable, "");
        self.exchange(&names.control(), ExchangeKind::Fanout, None);
        for exchange in [names.steps(), names.results(), names.retries(), names.dead_letters()] {
            self.exchange(&exchange, ExchangeKind::Topic, Some(&unroutable));
        }

        let orchestrator = names.orchestrator_queue();
        self.queue(&orchestrator, kind, None, None);
        self.bind(&orchestrator, &names.results(), "#");
        for rung in ladder.rungs() {
            let delay_queue = names.delay_queue(*rung);
            let key = format!("retry.*.{}", rung.as_millis());
            self.queue(&delay_queue, kind, Some(*rung), Some(names.steps()));
            self.bind(&delay_queue, &names.retries(), &key);
            // Per rung, never `#`: a retry for a rung that has no queue must not look routed
            // because the orchestrator got its copy.
            self.bind(&orchestrator, &names.retries(), &key);
        }
    }

    fn namespace(&mut self, names: &Names, kind: QueueKind, namespace: &str) {
        let requests = names.step_queue(namespace);
        let parked = names.dead_letter_queue(namespace);
        let orchestrator = names.orchestrator_queue();
        self.queue(&requests, kind, None, Some(names.dead_letters()));
        self.queue(&parked, kind, None, None);
        // Workers look for it, and the broker logs an error when one looks for a queue that is not there.
        self.queue(&names.paused_queue(namespace), kind, None, None);
        for key in [format!("*.{namespace}.#"), namespace.to_owned()] {
            self.bind(&requests, &names.steps(), &key);
            self.bind(&parked, &names.dead_letters(), &key);
            self.bind(&orchestrator, &names.dead_letters(), &key);
        }
        let key = format!("{CHECKPOINT}.{namespace}.#");
        self.bind(&requests, &names.retries(), &key);
        self.bind(&orchestrator, &names.retries(), &key);
    }

    fn exchange(&mut self, name: &str, kind: ExchangeKind, alternate: Option<&str>) {
        self.exchanges.push(Exchange {
            name: name.to_owned(),
            kind,
            alternate: alternate.map(str::to_owned),
        });
    }

    fn queue(
        &mut self,
        name: &str,
        kind: QueueKind,
        ttl: Option<Duration>,
        dead_letter_exchange: Option<String>,
    ) {
        let delivery_limit = match kind {
            QueueKind::Classic => None,
            QueueKind::Quorum if dead_letter_exchange.is_some() && ttl.is_none() => Some(DELIVERY_LIMIT),
            QueueKind::Quorum => Some(NO_DELIVERY_LIMIT),
        };
        self.queues.push(Queue {
            name: name.to_owned(),
            kind,
            message_ttl: ttl,
            dead_letter_exchange,
            delivery_limit,
        });
    }

    fn bind(&mut self, queue: &str, exchange: &str, routing_key: &str) {
        self.bindings.push(Binding {
            queue: queue.to_owned(),
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
        });
    }
}

/// Whether a topic `pattern` (`*` one word, `#` any number) matches a routing `key`.
pub fn matches(pattern: &str, key: &str) -> bool {
    fn words<'a>(pattern: &[&'a str], key: &[&'a str]) -> bool {
        match (pattern.split_first(), key.split_first()) {
            (None, None) => true,
            (Some((&"#", rest)), _) => words(rest, key) || (!key.is_empty() && words(pattern, &key[1..])),
            (Some((&"*", rest)), Some((_, tail))) => words(rest, tail),
            (Some((word, rest)), Some((head, tail))) => word == head && words(rest, tail),
            _ => false,
        }
    }
    let pattern: Vec<&str> = pattern.split('.').collect();
    let key: Vec<&str> = if key.is_empty() { Vec::new() } else { key.split('.').collect() };
    words(&pattern, &key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_binding_names_a_declared_queue_and_exchange() {
        let topology =
            Topology::new(&Names::default(), &Ladder::default(), QueueKind::Quorum, ["a", "b", "a"]);
        for binding in &topology.bindings {
            assert!(topology.queues.iter().any(|q| q.name == binding.queue), "{binding:?}");
            assert!(topology.exchanges.iter().any(|e| e.name == binding.exchange), "{binding:?}");
        }
        for target in topology.queues.iter().filter_map(|q| q.dead_letter_exchange.as_ref()) {
            assert!(topology.exchanges.iter().any(|e| e.name == *target), "{target}");
        }
        assert_eq!(topology.queues.iter().filter(|q| q.name.starts_with("tasker.steps.")).count(), 2);
    }

    #[test]
    fn topic_patterns_match_as_the_broker_does() {
        for (pattern, key, expected) in [
            ("*.orders.#", "step.orders.pay", true),
            ("*.orders.#", "step.orders.pay.with.dots", true),
            ("*.orders.#", "retry.orders.500", true),
            ("*.orders.#", "step.orders", true),
            ("*.orders.#", "step.other.orders", false),
            ("*.orders.#", "orders", false),
            ("orders", "orders", true),
            ("retry.*.500", "retry.orders.500", true),
            ("retry.*.500", "retry.orders.1000", false),
            ("#", "", true),
            ("#", "anything.at.all", true),
            ("a.#.b", "a.b", true),
            ("a.#.b", "a.x.y.b", true),
            ("a.#.b", "a.x.y", false),
        ] {
            assert_eq!(matches(pattern, key), expected, "{pattern} {key}");
        }
    }

    #[test]
    fn long_step_names_are_cut_to_a_legal_routing_key() {
        let key = step_key("orders", &"é".repeat(300));
        assert!(key.len() <= 255 && key.starts_with("step.orders.é"));
    }
}
