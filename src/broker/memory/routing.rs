//! Exchanges, bindings, and which queues a message goes to.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::state::{ConsumerId, QueueId};
use crate::broker::topology::{Exchange, ExchangeKind, matches};

/// Routes remembered before all are forgotten: more keys than any installation has steps, and a bound
/// for senders that make keys up.
const REMEMBERED_ROUTES: usize = 16_384;

/// Where a message is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    Queue(QueueId),
    Subscriber(ConsumerId),
}

/// The exchanges and their bindings.
#[derive(Debug, Default)]
pub(super) struct Routing {
    exchanges: BTreeMap<String, Bound>,
    /// Exchange -> key -> targets. Patterns are matched once per key, not once per message.
    routes: HashMap<String, HashMap<String, Arc<[Target]>>>,
    remembered: usize,
}

#[derive(Debug)]
struct Bound {
    exchange: Exchange,
    bindings: BTreeSet<(Target, String)>,
}

impl Routing {
    pub(super) fn exchange(&self, name: &str) -> Option<&Exchange> {
        self.exchanges.get(name).map(|bound| &bound.exchange)
    }

    pub(super) fn add(&mut self, exchange: Exchange) {
        self.exchanges.insert(exchange.name.clone(), Bound { exchange, bindings: BTreeSet::new() });
        self.forget();
    }

    /// Binds, where the exchange exists.
    pub(super) fn bind(&mut self, exchange: &str, pattern: &str, target: Target) -> bool {
        let Some(bound) = self.exchanges.get_mut(exchange) else { return false };
        bound.bindings.insert((target, pattern.to_owned()));
        self.forget();
        true
    }

    pub(super) fn unbind(&mut self, exchange: &str, target: Target) {
        if let Some(bound) = self.exchanges.get_mut(exchange) {
            bound.bindings.retain(|(bound_to, _)| *bound_to != target);
        }
        self.forget();
    }

    /// Every queue that wants the message, once each; none where the exchange is missing.
    pub(super) fn route(&mut self, exchange: &str, key: &str) -> Arc<[Target]> {
        if let Some(targets) = self.routes.get(exchange).and_then(|keys| keys.get(key)) {
            return Arc::clone(targets);
        }
        let targets: Arc<[Target]> = self.resolve(exchange, key).into_iter().collect();
        if self.remembered >= REMEMBERED_ROUTES {
            self.forget();
        }
        self.routes.entry(exchange.to_owned()).or_default().insert(key.to_owned(), Arc::clone(&targets));
        self.remembered += 1;
        targets
    }

    /// Alternate exchanges included, each asked once.
    fn resolve(&self, exchange: &str, key: &str) -> BTreeSet<Target> {
        let mut asked = BTreeSet::new();
        let mut next = Some(exchange);
        while let Some(name) = next.filter(|name| asked.insert(*name)) {
            let Some(bound) = self.exchanges.get(name) else { break };
            let wanted = |pattern: &str| match bound.exchange.kind {
                ExchangeKind::Fanout => true,
                ExchangeKind::Topic => matches(pattern, key),
            };
            let bindings = bound.bindings.iter();
            let targets: BTreeSet<_> =
                bindings.filter(|(_, pattern)| wanted(pattern)).map(|(target, _)| *target).collect();
            if !targets.is_empty() {
                return targets;
            }
            next = bound.exchange.alternate.as_deref();
        }
        BTreeSet::new()
    }

    fn forget(&mut self) {
        self.routes.clear();
        self.remembered = 0;
    }
}
