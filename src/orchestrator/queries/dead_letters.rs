//! Tasks somebody has to look at.

use sqlx::sqlite::SqliteConnection;
use sqlx::{FromRow, QueryBuilder, Sqlite, SqlitePool};
use uuid::Uuid;

use super::rows::{parse, time};
use super::{Result, uuid};
use crate::api::{DlqEntry, DlqInvestigationQueueEntry, DlqQuery, DlqStats, DlqStatus, StalenessMonitoring};

const ENTRIES: &str = "SELECT dlq_entry_uuid, task_uuid, original_state, dlq_reason, dlq_timestamp, \
     resolution_status, resolution_timestamp, resolution_notes, resolved_by, task_snapshot, metadata, \
     created_at, updated_at FROM dlq_entries";

/// In the tables, times are in milliseconds.
const MINUTE: f64 = 60_000.0;

#[derive(FromRow)]
struct EntryRow {
    dlq_entry_uuid: String,
    task_uuid: String,
    original_state: String,
    dlq_reason: String,
    dlq_timestamp: i64,
    resolution_status: String,
    resolution_timestamp: Option<i64>,
    resolution_notes: Option<String>,
    resolved_by: Option<String>,
    task_snapshot: String,
    metadata: Option<String>,
    created_at: i64,
    updated_at: i64,
}

impl TryFrom<EntryRow> for DlqEntry {
    type Error = sqlx::Error;

    fn try_from(row: EntryRow) -> Result<Self> {
        Ok(Self {
            dlq_entry_uuid: uuid(&row.dlq_entry_uuid)?,
            task_uuid: uuid(&row.task_uuid)?,
            original_state: row.original_state,
            dlq_reason: word(&row.dlq_reason)?,
            dlq_timestamp: time(row.dlq_timestamp)?,
            resolution_status: word(&row.resolution_status)?,
            resolution_timestamp: row.resolution_timestamp.map(time).transpose()?,
            resolution_notes: row.resolution_notes,
            resolved_by: row.resolved_by,
            task_snapshot: parse(&row.task_snapshot)?,
            metadata: row.metadata.as_deref().map(parse).transpose()?,
            created_at: time(row.created_at)?,
            updated_at: time(row.updated_at)?,
        })
    }
}

/// Entries, newest first.
pub(crate) async fn list(
    readers: &SqlitePool,
    query: &DlqQuery,
    limit: u32,
    offset: u32,
) -> Result<Vec<DlqEntry>> {
    let mut select = QueryBuilder::new(ENTRIES);
    if let Some(status) = query.resolution_status {
        select.push(" WHERE resolution_status = ").push_bind(status.as_str());
    }
    select.push(" ORDER BY dlq_timestamp DESC LIMIT ").push_bind(limit).push(" OFFSET ").push_bind(offset);
    let rows: Vec<EntryRow> = select.build_query_as().fetch_all(readers).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// A task's latest entry.
pub(crate) async fn latest(reader: &mut SqliteConnection, task_uuid: Uuid) -> Result<Option<DlqEntry>> {
    let mut select: QueryBuilder<Sqlite> = QueryBuilder::new(ENTRIES);
    select.push(" WHERE task_uuid = ").push_bind(task_uuid.to_string());
    select.push(" ORDER BY dlq_timestamp DESC LIMIT 1");
    let row: Option<EntryRow> = select.build_query_as().fetch_optional(reader).await?;
    row.map(TryInto::try_into).transpose()
}

/// The entries, counted by reason.
pub(crate) async fn stats(readers: &SqlitePool) -> Result<Vec<DlqStats>> {
    type Row = (String, i64, i64, i64, i64, i64, i64, i64, Option<f64>);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT dlq_reason, COUNT(*), SUM(resolution_status = 'pending'), \
         SUM(resolution_status = 'manually_resolved'), SUM(resolution_status = 'permanently_failed'), \
         SUM(resolution_status = 'cancelled'), MIN(dlq_timestamp), MAX(dlq_timestamp), \
         AVG(resolution_timestamp - dlq_timestamp) FROM dlq_entries GROUP BY dlq_reason ORDER BY dlq_reason",
    )
    .fetch_all(readers)
    .await?;
    let stats = |(reason, total, pending, resolved, failed, cancelled, oldest, newest, average): Row| {
        Ok(DlqStats {
            dlq_reason: word(&reason)?,
            total_entries: total,
            pending,
            manually_resolved: resolved,
            permanent_failures: failed,
            cancelled,
            oldest_entry: Some(time(oldest)?),
            newest_entry: Some(time(newest)?),
            avg_resolution_time_minutes: average.map(|millis| millis / MINUTE),
        })
    };
    rows.into_iter().map(stats).collect()
}

#[derive(FromRow)]
struct QueueRow {
    dlq_entry_uuid: String,
    task_uuid: String,
    original_state: String,
    dlq_reason: String,
    dlq_timestamp: i64,
    namespace: String,
    name: String,
    state: String,
    updated_at: i64,
    score: f64,
}

/// The entries nobody has decided about, the most urgent first.
pub(crate) async fn queue(
    readers: &SqlitePool,
    now: i64,
    limit: u32,
) -> Result<Vec<DlqInvestigationQueueEntry>> {
    let rows: Vec<QueueRow> = sqlx::query_as(
        "SELECT dlq_entry_uuid, dlq_entries.task_uuid, original_state, dlq_reason, dlq_timestamp, \
         tasks.namespace, tasks.name, tasks.state, tasks.updated_at, \
         (? - dlq_timestamp) / 60000.0 + 60.0 * COALESCE(tasks.priority, 0) AS score \
         FROM dlq_entries JOIN tasks ON tasks.task_uuid = dlq_entries.task_uuid \
         WHERE resolution_status = 'pending' ORDER BY score DESC LIMIT ?",
    )
    .bind(now)
    .bind(limit)
    .fetch_all(readers)
    .await?;
    let entry = |row: QueueRow| {
        Ok(DlqInvestigationQueueEntry {
            dlq_entry_uuid: uuid(&row.dlq_entry_uuid)?,
            task_uuid: uuid(&row.task_uuid)?,
            original_state: row.original_state,
            dlq_reason: word(&row.dlq_reason)?,
            dlq_timestamp: time(row.dlq_timestamp)?,
            minutes_in_dlq: minutes(row.dlq_timestamp, now),
            namespace_name: Some(row.namespace),
            task_name: Some(row.name),
            current_state: Some(row.state),
            time_in_state_minutes: Some(minutes(row.updated_at, now)),
            priority_score: row.score,
        })
    };
    rows.into_iter().map(entry).collect()
}

/// Unfinished tasks with a limit to how long they may be in their state, the nearest to it first.
pub(crate) async fn staleness(
    readers: &SqlitePool,
    now: i64,
    limit: u32,
) -> Result<Vec<StalenessMonitoring>> {
    type Row = (String, String, String, String, Option<i32>, i64, i64, i64);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT task_uuid, namespace, name, state, priority, created_at, updated_at, stale_at FROM tasks \
         WHERE stale_at IS NOT NULL ORDER BY stale_at LIMIT ?",
    )
    .bind(limit)
    .fetch_all(readers)
    .await?;
    let monitoring =
        |(task_uuid, namespace, name, state, priority, created_at, updated_at, stale_at): Row| {
            let (in_state, threshold) = (minutes(updated_at, now), minutes(updated_at, stale_at));
            let health_status = match in_state {
                minutes if minutes >= threshold => "stale",
                minutes if minutes >= threshold * 0.8 => "warning",
                _ => "healthy",
            };
            Ok(StalenessMonitoring {
                task_uuid: uuid(&task_uuid)?,
                namespace_name: Some(namespace),
                task_name: Some(name),
                current_state: state,
                time_in_state_minutes: in_state,
                task_age_minutes: minutes(created_at, now),
                staleness_threshold_minutes: threshold,
                health_status: health_status.to_owned(),
                priority: priority.unwrap_or(0),
            })
        };
    rows.into_iter().map(monitoring).collect()
}

fn minutes(from: i64, to: i64) -> f64 {
    to.saturating_sub(from) as f64 / MINUTE
}

/// A reason or a status, by its name in the tables, which the API understands too.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    parse(&format!("{text:?}"))
}

impl DlqStatus {
    /// Its name in the tables.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::ManuallyResolved => "manually_resolved",
            Self::PermanentlyFailed => "permanently_failed",
            Self::Cancelled => "cancelled",
        }
    }
}
