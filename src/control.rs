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
    /// Stop what runs of a step; its answer counts no more. Of its task, other steps may be requested yet.
    StopStep {
        /// The step.
        step_uuid: Uuid,
        /// How often it had been replayed: what runs of it since a later replay goes on.
        #[serde(default)]
        replays: u32,
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
    /// What the message says it is.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::CancelTask { .. } => "control.cancel_task",
            Self::StopStep { .. } => "control.stop_step",
            Self::PauseNamespace { .. } => "control.pause_namespace",
            Self::ResumeNamespace { .. } => "control.resume_namespace",
        }
    }

    /// Reads a control message.
    ///
    /// # Errors
    /// A sentence naming the field, for JSON that is broken or incomplete.
    pub fn decode(body: &[u8]) -> Result<Self, serde_json::Error> {
        decode(body)
    }
}
