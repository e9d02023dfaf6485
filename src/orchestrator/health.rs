//! What of the orchestrator works and what does not.

use crate::broker::{BrokerStatus, ConsumerState};

/// What works and what does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Why the store takes no changes, while it takes none.
    pub store_problem: Option<String>,
    /// The connection to the broker.
    pub broker: BrokerStatus,
    /// What is wrong with the broker's queues, while something is.
    pub topology_problem: Option<String>,
    /// The consumer of the orchestrator's queue; absent until the queues are in place for the first time.
    pub consumer: Option<ConsumerState>,
    /// Whether it was told to stop.
    pub stopping: bool,
    /// Whether what applies changes has ended.
    pub writer_gone: bool,
    /// How full the queue of callers is.
    pub saturation_percent: usize,
}

impl Health {
    /// Whether tasks can be accepted. They can while the broker is away: their requests wait in the store.
    pub fn accepts_tasks(&self) -> bool {
        self.store_problem.is_none() && !self.stopping
    }

    /// Whether everything works.
    pub fn is_ready(&self) -> bool {
        self.accepts_tasks()
            && self.broker == BrokerStatus::Connected
            && self.topology_problem.is_none()
            && self.consumer == Some(ConsumerState::Consuming)
    }
}
