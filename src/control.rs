//! What workers are told while they run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::message::decode;

/// What every worker is told through the control exchange.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum ControlMessage {
    /// Stop the task's running steps and do not start its queued ones.
    CancelTask {
        /// The cancelled task.
        task_uuid: Uuid,
    },
    /// Take no more requests of a namespace until it is resumed.
    PauseNamespace {
        /// The namespace.
        namespace: String,
        /// Hand back the requests that were taken but not begun.
        hand_back: bool,
    },
    /// Take requests of a paused namespace again.
    ResumeNamespace {
        /// The namespace.
        namespace: String,
    },
}

impl ControlMessage {
    /// Reads a control message.
    ///
    /// # Errors
    /// A sentence naming the field, for JSON that is broken or incomplete.
    pub fn decode(body: &[u8]) -> Result<Self, serde_json::Error> {
        decode(body)
    }
}
