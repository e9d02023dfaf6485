//! Finds what should have come further by now: requests without an answer, which are sent again, so that what
//! a broker lost heals by itself; and tasks that their templates call stale.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::intake::Command;
use super::now;
use super::shared::Shared;
use super::store::{OverdueStep, Store};
use crate::broker::topology::Names;
use crate::broker::{Broker, BrokerStatus};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(5);

/// Steps looked at in one go.
const STEPS: i64 = 500;

pub(super) struct Overdue {
    pub(super) store: Store,
    pub(super) broker: Arc<dyn Broker>,
    pub(super) names: Names,
    pub(super) overdue_after: Duration,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) shared: Arc<Shared>,
    pub(super) stop: CancellationToken,
}

impl Overdue {
    /// Looks every few seconds until stopped.
    pub(super) async fn run(self) {
        let mut ticks =
            tokio::time::interval(INTERVAL.min(self.overdue_after.max(Duration::from_millis(100))));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            match self.store.stale(now(), STEPS).await {
                Ok(tasks) if tasks.is_empty() => {}
                Ok(tasks) => {
                    if self.commands.send(Command::Stale(tasks)).await.is_err() {
                        return;
                    }
                }
                Err(error) => tracing::error!(%error, "Stale tasks cannot be read from the store"),
            }
            // What is still in the outbox has not been asked for yet, so no answer to it can be overdue.
            if *self.broker.status().borrow() != BrokerStatus::Connected || self.shared.outbox_lags() {
                continue;
            }
            match self.store.overdue(now(), STEPS).await {
                Ok(steps) if steps.is_empty() => {}
                Ok(steps) => self.look_at(steps).await,
                Err(error) => tracing::error!(%error, "Overdue steps cannot be read from the store"),
            }
        }
    }

    async fn look_at(&self, steps: Vec<OverdueStep>) {
        let mut by_namespace: BTreeMap<String, Vec<OverdueStep>> = BTreeMap::new();
        for step in steps {
            by_namespace.entry(step.namespace.clone()).or_default().push(step);
        }
        for (namespace, steps) in by_namespace {
            match self.broker.depth(&self.names.step_queue(&namespace)).await {
                Ok(Some(0)) => {
                    tracing::warn!(
                        namespace,
                        steps = steps.len(),
                        "Answers are overdue; their requests are sent again under the same attempt, or given up"
                    );
                    if self.commands.send(Command::Overdue(steps)).await.is_err() {
                        return;
                    }
                }
                // The workers have not got that far: more requests would only make the queue longer.
                Ok(_) => self.postpone(&steps).await,
                Err(error) => {
                    tracing::warn!(namespace, %error, "The queue's length is unknown; overdue steps wait");
                }
            }
        }
    }

    async fn postpone(&self, steps: &[OverdueStep]) {
        let uuids: Vec<Uuid> = steps.iter().map(|step| step.step_uuid).collect();
        let patience = i64::try_from(self.overdue_after.as_millis()).unwrap_or(i64::MAX);
        if let Err(error) = self.store.postpone(&uuids, now().saturating_add(patience)).await {
            tracing::error!(%error, "Overdue steps cannot be given more time");
        }
    }
}
