//! Keeps the broker's queues and exchanges in place for every namespace there is work for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Pause;
use super::shared::Shared;
use crate::broker::Broker;
use crate::broker::topology::{Names, QueueKind, Topology};
use crate::catalog::Catalog;
use crate::config::TopologyMode;
use crate::retry::Ladder;

pub(super) struct Declare {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) names: Names,
    pub(super) ladder: Ladder,
    pub(super) kind: QueueKind,
    pub(super) mode: TopologyMode,
    pub(super) catalog: Catalog,
    /// Namespaces of unfinished tasks, whose templates may be gone.
    pub(super) in_use: BTreeSet<String>,
    pub(super) shared: Arc<Shared>,
    /// Counts the times everything was found in place.
    pub(super) declared: watch::Sender<u64>,
    pub(super) stop: CancellationToken,
}

impl Declare {
    /// Declares or verifies, now and whenever the catalog changes, until stopped.
    pub(super) async fn run(self) {
        let mut changes = self.catalog.changes();
        let mut pause = Pause::new(Duration::from_millis(500), Duration::from_secs(30));
        loop {
            changes.mark_unchanged();
            let wait = match self.put_in_place().await {
                Ok(()) => {
                    pause.reset();
                    self.shared.set_topology_problem(None);
                    self.declared.send_modify(|count| *count += 1);
                    None
                }
                Err(problem) => {
                    let wait = pause.next();
                    if self.shared.set_topology_problem(Some(problem.clone())) {
                        tracing::warn!(problem, "The broker's queues are not in place; trying again");
                    }
                    Some(wait)
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                Ok(()) = changes.changed() => {}
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
                else => return,
            }
        }
    }

    async fn put_in_place(&self) -> Result<(), String> {
        let mut namespaces = self.catalog.namespaces();
        namespaces.extend(self.in_use.iter().cloned());
        let wanted = Topology::new(&self.names, &self.ladder, self.kind, &namespaces);
        match self.mode {
            TopologyMode::Declare => self.broker.declare(&wanted).await.map_err(|error| error.to_string()),
            TopologyMode::Verify => {
                let missing = self.broker.verify(&wanted).await.map_err(|error| error.to_string())?;
                if missing.is_empty() {
                    return Ok(());
                }
                Err(format!(
                    "missing on the broker: {}; have them declared, or set broker.topology = \"declare\"",
                    missing.join(", ")
                ))
            }
        }
    }
}
