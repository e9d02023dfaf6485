//! The statements that write: one transaction for whatever was decided at one time.

use sqlx::pool::PoolConnection;
use sqlx::query_builder::Separated;
use sqlx::{Connection, QueryBuilder, Row, Sqlite, SqliteConnection};
use uuid::Uuid;

use super::read::StoredProperties;
use super::{Batch, FindingRow, Store};
use crate::Error;
use crate::message::Json;
use crate::orchestrator::outgoing::new_uuid;

/// Rows in one statement. A power of two, like the sizes of the smaller statements for the rest, so that
/// a handful of prepared statements serves batches of every size.
const ROWS: usize = 64;

impl Store {
    /// Writes everything or nothing, and returns once it is on the disk: the ids of the new outbox rows,
    /// in order.
    ///
    /// # Errors
    /// When nothing was written.
    pub(crate) async fn apply(&self, batch: &Batch) -> Result<Vec<i64>, Error> {
        self.write(batch).await.map_err(|error| self.problem(&error))
    }

    async fn write(&self, batch: &Batch) -> Result<Vec<i64>, sqlx::Error> {
        let mut connection = self.writer.acquire().await?;
        let written = Self::write_on(&mut connection, batch).await;
        self.give_back(connection, written.is_ok()).await;
        written
    }

    /// Ends the use of the writing connection. One that failed is not used again: SQLite itself ends a
    /// transaction that meets a full disk, of which the library does not know, and so could begin no other.
    pub(super) async fn give_back(&self, connection: PoolConnection<Sqlite>, worked: bool) {
        // The memory of a database in memory is its connection.
        if !worked && self.lock.is_some() {
            // It failed, so closing it may fail, too; the pool opens another either way.
            let _ = connection.close().await;
        }
    }

    async fn write_on(connection: &mut SqliteConnection, batch: &Batch) -> Result<Vec<i64>, sqlx::Error> {
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let connection = &mut *transaction;
        templates(connection, batch).await?;
        new_tasks(connection, batch).await?;
        task_states(connection, batch).await?;
        new_steps(connection, batch).await?;
        steps(connection, batch).await?;
        transitions(connection, batch).await?;
        findings(connection, &batch.findings, batch.now).await?;
        let outbox_ids = outbox(connection, batch).await?;
        sent(connection, batch).await?;
        transaction.commit().await?;
        Ok(outbox_ids)
    }

    /// Gives overdue steps more time.
    ///
    /// # Errors
    /// When nothing was written.
    pub(crate) async fn postpone(&self, steps: &[Uuid], due_at: i64) -> Result<(), Error> {
        let mut connection = self.writer.acquire().await.map_err(|error| self.problem(&error))?;
        let postponed = async {
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            for chunk in chunks(steps) {
                let mut query = QueryBuilder::new("UPDATE steps SET due_at = ");
                query.push_bind(due_at).push(" WHERE due_at IS NOT NULL AND step_uuid IN (");
                let mut list = query.separated(", ");
                for step in chunk {
                    list.push_bind(step.to_string());
                }
                query.push(")").build().execute(&mut *transaction).await?;
            }
            transaction.commit().await
        };
        let postponed: Result<(), sqlx::Error> = postponed.await;
        self.give_back(connection, postponed.is_ok()).await;
        postponed.map_err(|error| self.problem(&error))
    }
}

async fn templates(connection: &mut SqliteConnection, batch: &Batch) -> Result<(), sqlx::Error> {
    for (template_id, template) in &batch.templates {
        let definition =
            serde_json::to_string(template).expect("a template has string keys only and always encodes");
        sqlx::query(
            "INSERT INTO templates (template_id, namespace, name, version, definition, created_at)
             VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (template_id) DO NOTHING",
        )
        .bind(template_id.to_string())
        .bind(template.namespace.clone())
        .bind(template.name.clone())
        .bind(template.version.clone())
        .bind(definition)
        .bind(batch.now)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

async fn new_tasks(connection: &mut SqliteConnection, batch: &Batch) -> Result<(), sqlx::Error> {
    let head = "INSERT INTO tasks (task_uuid, template_id, namespace, name, version, state, identity, context, \
                initiator, source_system, reason, priority, options, tags, correlation_id, \
                 parent_correlation_id, trace, requested_at, created_at, updated_at, completed_at, stale_at) ";
    bulk(connection, head, &batch.new_tasks, "", |mut row, task| {
        row.push_bind(task.task_uuid.to_string())
            .push_bind(task.template_id.to_string())
            .push_bind(task.template.namespace.clone())
            .push_bind(task.template.name.clone())
            .push_bind(task.template.version.clone())
            .push_bind(task.state)
            .push_bind(task.identity.to_string())
            .push_bind(task.context.get().to_owned())
            .push_bind(task.initiator.clone())
            .push_bind(task.source_system.clone())
            .push_bind(task.reason.clone())
            .push_bind(task.priority)
            .push_bind(task.options.clone())
            .push_bind(task.tags.clone())
            .push_bind(task.correlation_id.clone())
            .push_bind(task.parent_correlation_id.map(|id| id.to_string()))
            .push_bind(task.trace.clone())
            .push_bind(task.requested_at)
            .push_bind(batch.now)
            .push_bind(batch.now)
            .push_bind(task.completed_at)
            .push_bind(task.stale_at);
    })
    .await
}

async fn task_states(connection: &mut SqliteConnection, batch: &Batch) -> Result<(), sqlx::Error> {
    let head = "WITH new (task_uuid, state, updated_at, completed_at, stale_at) AS (";
    let tail = ") UPDATE tasks SET state = new.state, updated_at = new.updated_at, \
                completed_at = new.completed_at, stale_at = new.stale_at FROM new WHERE tasks.task_uuid = new.task_uuid";
    bulk(connection, head, &batch.task_states, tail, |mut row, task| {
        row.push_bind(task.task_uuid.to_string())
            .push_bind(task.state)
            .push_bind(batch.now)
            .push_bind(task.completed_at)
            .push_bind(task.stale_at);
    })
    .await
}

async fn new_steps(connection: &mut SqliteConnection, batch: &Batch) -> Result<(), sqlx::Error> {
    let head = "INSERT INTO steps (step_uuid, task_uuid, position, name, max_attempts, created_at, state, \
                attempts, output, error, enqueued_at, due_at, next_retry_at, last_attempted_at, \
                last_failure_at, completed_at, replays, sent_again, sent_at, received_at, part, checkpoint, updated_at) ";
    bulk(connection, head, &batch.new_steps, "", |mut row, step| {
        row.push_bind(step.run.uuid.to_string())
            .push_bind(step.task_uuid.to_string())
            .push_bind(step.position as i64)
            .push_bind(step.name.clone())
            .push_bind(i64::from(step.max_attempts))
            .push_bind(batch.now);
        progress(&mut row, step, batch.now);
    })
    .await
}

async fn steps(connection: &mut SqliteConnection, batch: &Batch) -> Result<(), sqlx::Error> {
    let head = "WITH new (step_uuid, state, attempts, output, error, enqueued_at, due_at, \
                next_retry_at, last_attempted_at, last_failure_at, completed_at, replays, sent_again, sent_at, received_at, \
                part, checkpoint, updated_at) AS (";
    // A step's output is bound only when it is new; otherwise the stored one stays.
    let tail = ") UPDATE steps SET state = new.state, attempts = new.attempts, \
                output = COALESCE(new.output, steps.output), \
                error = new.error, enqueued_at = new.enqueued_at, due_at = new.due_at, \
                next_retry_at = new.next_retry_at, last_attempted_at = new.last_attempted_at, \
                last_failure_at = new.last_failure_at, completed_at = new.completed_at, \
                replays = new.replays, sent_again = new.sent_again, sent_at = new.sent_at, \
                received_at = new.received_at, part = new.part, checkpoint = new.checkpoint, updated_at = new.updated_at FROM new WHERE steps.step_uuid = new.step_uuid";
    bulk(connection, head, &batch.steps, tail, |mut row, step| {
        row.push_bind(step.run.uuid.to_string());
        progress(&mut row, step, batch.now);
    })
    .await
}

/// The columns that change, in the order both statements have them.
fn progress(row: &mut Separated<'_, Sqlite, &str>, step: &super::StepRow, now: i64) {
    let run = &step.run;
    let error = run
        .error
        .as_ref()
        .map(|error| serde_json::to_string(error).expect("an error has string keys only and always encodes"));
    let checkpoint = run.checkpoint.as_ref().map(|reached| {
        serde_json::to_string(reached).expect("a checkpoint has string keys only and always encodes")
    });
    row.push_bind(run.state.as_str())
        .push_bind(i64::from(run.attempts))
        .push_bind(run.output.as_ref().filter(|_| step.output).map(text))
        .push_bind(error)
        .push_bind(run.enqueued_at)
        .push_bind(run.due_at)
        .push_bind(run.next_retry_at)
        .push_bind(run.last_attempted_at)
        .push_bind(run.last_failure_at)
        .push_bind(run.completed_at)
        .push_bind(i64::from(run.replays))
        .push_bind(i64::from(run.sent_again))
        .push_bind(run.sent_at)
        .push_bind(run.received_at)
        .push_bind(i64::from(run.part))
        .push_bind(checkpoint)
        .push_bind(now);
}

fn text(json: &Json) -> String {
    json.get().to_owned()
}

async fn transitions(connection: &mut SqliteConnection, batch: &Batch) -> Result<(), sqlx::Error> {
    let head = "INSERT INTO transitions (task_uuid, step_uuid, from_state, to_state, attempt, reason, \
                worker_id, duration_ms, result, at) ";
    bulk(connection, head, &batch.transitions, "", |mut row, transition| {
        row.push_bind(transition.task_uuid.to_string())
            .push_bind(transition.step_uuid.map(|id| id.to_string()))
            .push_bind(transition.from_state)
            .push_bind(transition.to_state)
            .push_bind(transition.attempt.map(i64::from))
            .push_bind(transition.reason.clone())
            .push_bind(transition.worker_id.clone())
            .push_bind(transition.duration_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX)))
            .push_bind(transition.result.as_ref().map(text))
            .push_bind(batch.now);
    })
    .await
}

pub(super) async fn findings(
    connection: &mut SqliteConnection,
    findings: &[FindingRow],
    now: i64,
) -> Result<(), sqlx::Error> {
    // One at a time is being looked into; what is found meanwhile is in its transitions.
    let head = "INSERT OR IGNORE INTO dlq_entries (dlq_entry_uuid, task_uuid, original_state, dlq_reason, \
                dlq_timestamp, task_snapshot, metadata, created_at, updated_at) ";
    bulk(connection, head, findings, "", |mut row, FindingRow { task_uuid, finding }| {
        row.push_bind(new_uuid().to_string())
            .push_bind(task_uuid.to_string())
            .push_bind(finding.state.as_str())
            .push_bind(finding.reason)
            .push_bind(now)
            .push_bind(finding.snapshot.get().to_owned())
            .push_bind(finding.metadata.get().to_owned())
            .push_bind(now)
            .push_bind(now);
    })
    .await
}

async fn outbox(connection: &mut SqliteConnection, batch: &Batch) -> Result<Vec<i64>, sqlx::Error> {
    let mut ids = Vec::with_capacity(batch.outbox.len());
    for chunk in chunks(&batch.outbox) {
        let mut query = QueryBuilder::new(
            "INSERT INTO outbox (priority, exchange, routing_key, properties, body, created_at) ",
        );
        query.push_values(chunk, |mut row, (priority, message)| {
            let properties = serde_json::to_string(&StoredProperties::from(&message.properties))
                .expect("properties have string keys only and always encode");
            row.push_bind(*priority)
                .push_bind(message.exchange.clone())
                .push_bind(message.routing_key.clone())
                .push_bind(properties)
                .push_bind(String::from_utf8_lossy(&message.body).into_owned())
                .push_bind(batch.now);
        });
        query.push(" RETURNING outbox_id");
        let rows = query.build().fetch_all(&mut *connection).await?;
        let start = ids.len();
        for row in rows {
            ids.push(row.try_get::<i64, _>(0)?);
        }
        // Ids grow in the order of the rows; the order in which they are returned is nobody's promise.
        ids[start..].sort_unstable();
    }
    Ok(ids)
}

async fn sent(connection: &mut SqliteConnection, batch: &Batch) -> Result<(), sqlx::Error> {
    for chunk in chunks(&batch.sent) {
        let mut query = QueryBuilder::new("DELETE FROM outbox WHERE outbox_id IN (");
        let mut list = query.separated(", ");
        for outbox_id in chunk {
            list.push_bind(*outbox_id);
        }
        query.push(")").build().execute(&mut *connection).await?;
    }
    Ok(())
}

async fn bulk<T>(
    connection: &mut SqliteConnection,
    head: &'static str,
    rows: &[T],
    tail: &'static str,
    mut bind: impl FnMut(Separated<'_, Sqlite, &'static str>, &T),
) -> Result<(), sqlx::Error> {
    for chunk in chunks(rows) {
        let mut query = QueryBuilder::new(head);
        query.push_values(chunk, &mut bind);
        query.push(tail).build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// Cuts rows into pieces of 64, then 32, 16, … 1.
pub(super) fn chunks<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let size = ROWS.min(1 << rows.len().checked_ilog2()?);
        let (chunk, rest) = rows.split_at(size);
        rows = rest;
        Some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_powers_of_two_and_lose_nothing() {
        for count in [0, 1, 3, 63, 64, 65, 200, 255] {
            let rows: Vec<usize> = (0..count).collect();
            let pieces: Vec<&[usize]> = chunks(&rows).collect();
            assert!(pieces.iter().all(|piece| piece.len().is_power_of_two() && piece.len() <= ROWS));
            assert_eq!(pieces.concat(), rows);
        }
    }
}
