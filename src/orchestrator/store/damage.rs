//! What becomes of a stored task that cannot be read: it ends, where everybody can see it.

use serde_json::json;
use sqlx::Connection;
use uuid::Uuid;

use super::write::findings;
use super::{FindingRow, Store};
use crate::Error;
use crate::message::Json;
use crate::orchestrator::stale::Finding;
use crate::orchestrator::task::TaskState;

/// The reason such a task is recorded under.
pub(crate) const DAMAGED: &str = "manual_dlq";

impl Store {
    /// Ends a task that cannot be read, and records why. Answers whether it had not ended before.
    ///
    /// # Errors
    /// When nothing was written.
    pub(crate) async fn end_damaged(&self, task_uuid: Uuid, reason: &str, now: i64) -> Result<bool, Error> {
        let mut connection = self.writer.acquire().await.map_err(|error| self.problem(&error))?;
        let ended = async {
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            let uuid = task_uuid.to_string();
            let error = TaskState::Error.as_str();
            let ended = sqlx::query(
                "UPDATE tasks SET state = ?, completed_at = ?, updated_at = ?, stale_at = NULL \
                 WHERE task_uuid = ? AND completed_at IS NULL",
            )
            .bind(error)
            .bind(now)
            .bind(now)
            .bind(&uuid)
            .execute(&mut *transaction)
            .await?;
            if ended.rows_affected() == 0 {
                return Ok(false);
            }
            sqlx::query("UPDATE steps SET due_at = NULL WHERE task_uuid = ?")
                .bind(&uuid)
                .execute(&mut *transaction)
                .await?;
            sqlx::query("INSERT INTO transitions (task_uuid, to_state, reason, at) VALUES (?, ?, ?, ?)")
                .bind(&uuid)
                .bind(error)
                .bind(format!("what is stored of the task cannot be read: {reason}"))
                .bind(now)
                .execute(&mut *transaction)
                .await?;
            let problem = || Json::from(json!({ "problem": reason }));
            let (snapshot, metadata) = (problem(), problem());
            let finding = Finding { reason: DAMAGED, state: TaskState::Error, snapshot, metadata };
            findings(&mut transaction, &[FindingRow { task_uuid, finding }], now).await?;
            transaction.commit().await.map(|()| true)
        };
        let ended: Result<bool, sqlx::Error> = ended.await;
        self.give_back(connection, ended.is_ok()).await;
        ended.map_err(|error| self.problem(&error))
    }
}
