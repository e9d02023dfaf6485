//! Which namespaces an operator has paused: told by the control exchange, and kept by the broker over restarts.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::broker::Broker;
use crate::broker::topology::Names;
use crate::ops::metrics::METRICS;
use crate::pause;

/// What becomes of a namespace's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// They are taken.
    Running,
    /// No more are taken; what was taken is finished.
    Paused,
    /// No more are taken; what was not begun is handed back.
    HandBack,
}

/// So many looks in a row have to see no pause before one ends: RabbitMQ counts a queue as empty whose leader does not answer
/// within a quarter of a second, so that one with much to do hides a pause.
const AGREED: u32 = 3;

/// So long after an order was heard, a count asked for may be from before it.
const STALE: Duration = Duration::from_secs(5);

/// One for each namespace served.
pub(super) struct Pauses(BTreeMap<String, Pause>);

struct Pause {
    flow: watch::Sender<Flow>,
    known: Mutex<Known>,
}

/// Where the knowledge of a namespace comes from.
#[derive(Default)]
struct Known {
    heard: Option<Instant>,
    /// Looks in a row that saw no pause.
    unseen: u32,
}

impl Pause {
    fn new() -> Self {
        Self { flow: watch::Sender::new(Flow::Running), known: Mutex::default() }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        // Nothing panics while holding it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, namespace: &str, flow: Flow) {
        if self.flow.send_if_modified(|known| std::mem::replace(known, flow) != flow) {
            let paused = flow != Flow::Running;
            METRICS.consumer_paused.with_label_values(&[namespace]).set(i64::from(paused));
            info!(
                namespace,
                hand_back = flow == Flow::HandBack,
                "{}",
                if paused { "Paused" } else { "Resumed" }
            );
        }
    }

    fn seen(&self, namespace: &str, paused: bool) {
        let unseen = {
            let mut known = self.known();
            known.unseen = if paused { 0 } else { known.unseen.saturating_add(1) };
            known.unseen
        };
        if paused && *self.flow.borrow() == Flow::Running {
            self.set(namespace, Flow::Paused);
        } else if unseen >= AGREED {
            self.set(namespace, Flow::Running);
        }
    }
}

impl Pauses {
    pub(super) fn new(namespaces: &[String]) -> Self {
        Self(namespaces.iter().map(|name| (name.clone(), Pause::new())).collect())
    }

    pub(super) fn watch(&self, namespace: &str) -> Option<watch::Receiver<Flow>> {
        self.0.get(namespace).map(|pause| pause.flow.subscribe())
    }

    /// Follows an order.
    pub(super) fn order(&self, namespace: &str, flow: Flow) {
        let Some(pause) = self.0.get(namespace) else { return };
        *pause.known() = Known { heard: Some(Instant::now()), unseen: 0 };
        pause.set(namespace, flow);
    }

    /// Whether requests that were not begun go back.
    pub(super) fn hands_back(&self, namespace: &str) -> bool {
        self.0.get(namespace).is_some_and(|pause| *pause.flow.borrow() == Flow::HandBack)
    }

    /// Ends once requests that were not begun go back; never while they do not.
    pub(super) async fn handing_back(&self, namespace: &str) {
        let Some(mut flow) = self.watch(namespace) else { return std::future::pending().await };
        // Its sender lives as long as the worker.
        let _ = flow.wait_for(|flow| *flow == Flow::HandBack).await;
    }

    /// Asks the broker which namespaces are paused. Its answer does not count where an order was heard meanwhile or just before.
    pub(super) async fn look(&self, broker: &dyn Broker, names: &Names) {
        for (namespace, pause) in &self.0 {
            let asked = Instant::now();
            match pause::is_paused(broker, names, namespace).await {
                Ok(_) if pause.known().heard.is_some_and(|heard| asked < heard + STALE) => {}
                Ok(paused) => pause.seen(namespace, paused),
                Err(error) => {
                    warn!(namespace, %error, "Whether the namespace is paused cannot be told; it stays as it is");
                }
            }
        }
    }
}
