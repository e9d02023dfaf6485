//! Which namespaces an operator has paused: told by the control exchange, and kept by the broker over restarts.

use std::collections::BTreeMap;

use tokio::sync::watch;
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

/// One for each namespace served.
pub(super) struct Pauses(BTreeMap<String, watch::Sender<Flow>>);

impl Pauses {
    pub(super) fn new(namespaces: &[String]) -> Self {
        Self(namespaces.iter().map(|name| (name.clone(), watch::channel(Flow::Running).0)).collect())
    }

    pub(super) fn watch(&self, namespace: &str) -> Option<watch::Receiver<Flow>> {
        self.0.get(namespace).map(watch::Sender::subscribe)
    }

    pub(super) fn set(&self, namespace: &str, flow: Flow) {
        let Some(known) = self.0.get(namespace) else { return };
        if known.send_if_modified(|known| std::mem::replace(known, flow) != flow) {
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

    /// Whether requests that were not begun go back.
    pub(super) fn hands_back(&self, namespace: &str) -> bool {
        self.0.get(namespace).is_some_and(|flow| *flow.borrow() == Flow::HandBack)
    }

    /// Ends once requests that were not begun go back; never while they do not.
    pub(super) async fn handing_back(&self, namespace: &str) {
        let Some(mut flow) = self.watch(namespace) else { return std::future::pending().await };
        // Its sender lives as long as the worker.
        let _ = flow.wait_for(|flow| *flow == Flow::HandBack).await;
    }

    /// Asks the broker which namespaces are paused. That none is to be seen ends a pause only where it `may_end`.
    pub(super) async fn look(&self, broker: &dyn Broker, names: &Names, may_end: bool) {
        for (namespace, flow) in &self.0 {
            match pause::is_paused(broker, names, namespace).await {
                Ok(true) if *flow.borrow() == Flow::Running => self.set(namespace, Flow::Paused),
                Ok(false) if may_end => self.set(namespace, Flow::Running),
                Ok(_) => {}
                Err(error) => {
                    warn!(namespace, %error, "Whether the namespace is paused cannot be told; it stays as it is");
                }
            }
        }
    }
}
