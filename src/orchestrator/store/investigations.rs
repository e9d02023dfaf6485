//! What people find out about tasks somebody has to look at.

use uuid::Uuid;

use super::Store;
use crate::api::{DlqStatus, UpdateInvestigationRequest};

impl Store {
    /// Changes an entry of the dead-letter queue; `false` where there is no such entry.
    ///
    /// # Errors
    /// When nothing was written.
    pub(crate) async fn investigate(
        &self,
        entry: Uuid,
        update: &UpdateInvestigationRequest,
        now: i64,
    ) -> Result<bool, sqlx::Error> {
        let decided = update.resolution_status.map(|status| (status != DlqStatus::Pending).then_some(now));
        let changed = sqlx::query(
            "UPDATE dlq_entries SET resolution_status = COALESCE(?, resolution_status), \
             resolution_timestamp = CASE WHEN ? THEN ? ELSE resolution_timestamp END, \
             resolution_notes = COALESCE(?, resolution_notes), resolved_by = COALESCE(?, resolved_by), \
             metadata = COALESCE(?, metadata), updated_at = ? WHERE dlq_entry_uuid = ?",
        )
        .bind(update.resolution_status.map(DlqStatus::as_str))
        .bind(decided.is_some())
        .bind(decided.flatten())
        .bind(&update.resolution_notes)
        .bind(&update.resolved_by)
        .bind(update.metadata.as_ref().map(|metadata| metadata.get()))
        .bind(now)
        .bind(entry.to_string())
        .execute(&self.writer)
        .await?;
        Ok(changed.rows_affected() > 0)
    }
}
