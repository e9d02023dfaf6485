//! The orchestrator's HTTP API as data: what clients send and get. Shared by server and command line.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Asks for a task. Unknown fields are ignored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskRequest {
    /// The template's name.
    pub name: String,
    /// The template's namespace.
    pub namespace: String,
    /// The template's version.
    pub version: String,
    /// The task's context, kept byte for byte.
    pub context: crate::message::Json,
    /// Who asks.
    pub initiator: String,
    /// From which system.
    pub source_system: String,
    /// Why.
    pub reason: String,
    /// Free words to find the task by.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Free-form options, kept for the record.
    #[serde(default)]
    pub options: Option<serde_json::Value>,
    /// Tasks with a higher priority have their steps sent first.
    #[serde(default)]
    pub priority: Option<i32>,
    /// Groups the task's messages; made up where absent.
    #[serde(default)]
    pub correlation_id: Option<Uuid>,
    /// The correlation id of what caused this task.
    #[serde(default)]
    pub parent_correlation_id: Option<Uuid>,
    /// Two requests with the same key for the same template are one task.
    #[serde(default)]
    pub idempotency_key: Option<String>,
}
