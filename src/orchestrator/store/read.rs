//! The statements that read: what the orchestrator needs to go on after a restart.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row};
use uuid::Uuid;

use super::Store;
use super::write::chunks;
use crate::Error;
use crate::broker::{HeaderValue, Headers, Message, Properties};
use crate::message::{Json, StepExecutionError};
use crate::orchestrator::task::{StepRun, StepState, TaskState};
use crate::template::Template;
use crate::trace::TraceContext;

/// What the store knows of a task.
#[derive(Debug)]
pub(crate) enum Loaded {
    /// This.
    Found(Box<StoredTask>),
    /// Nothing.
    Missing,
    /// Something that cannot be read; the text says what.
    Damaged(String),
}

/// A task as it is stored.
#[derive(Debug)]
pub(crate) struct StoredTask {
    pub(crate) template_id: Uuid,
    pub(crate) state: TaskState,
    pub(crate) context: Json,
    pub(crate) correlation_id: String,
    pub(crate) priority: i32,
    pub(crate) created_at: i64,
    pub(crate) trace: Option<TraceContext>,
    /// Each with its name.
    pub(crate) steps: HashMap<String, StepRun>,
}

/// A step whose answer should have come by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OverdueStep {
    pub(crate) task_uuid: Uuid,
    pub(crate) step_uuid: Uuid,
    pub(crate) name: String,
    pub(crate) namespace: String,
}

/// A message that the broker has not confirmed.
#[derive(Debug, Clone)]
pub(crate) struct OutboxRow {
    pub(crate) outbox_id: i64,
    /// What is sent first: a higher one.
    pub(crate) priority: i32,
    pub(crate) message: Message,
    /// When it was written, in milliseconds since 1970.
    pub(crate) created_at: i64,
}

/// What goes out before the other: the higher priority, and of the same one the older.
pub(crate) type Rank = (Reverse<i32>, i64);

impl OutboxRow {
    pub(crate) fn rank(&self) -> Rank {
        (Reverse(self.priority), self.outbox_id)
    }
}

/// An outbox row's place, and the row or why it cannot be read.
pub(crate) type Unsent = (Rank, Result<OutboxRow, String>);

impl Store {
    /// A task and its steps.
    pub(crate) async fn load(&self, task_uuid: Uuid) -> Result<Loaded, Error> {
        let query = async {
            let uuid = task_uuid.to_string();
            let task = sqlx::query(
                "SELECT template_id, state, context, correlation_id, priority, created_at, trace FROM tasks \
                 WHERE task_uuid = ?",
            )
            .bind(uuid.clone())
            .fetch_optional(&self.readers)
            .await?;
            let Some(task) = task else { return Ok(None) };
            let steps = sqlx::query(
                "SELECT name, step_uuid, state, attempts, output, error, enqueued_at, due_at, \
                 next_retry_at, last_attempted_at, last_failure_at, completed_at, replays, sent_again, \
                 sent_at, received_at, part, checkpoint \
                 FROM steps WHERE task_uuid = ?",
            )
            .bind(uuid)
            .fetch_all(&self.readers)
            .await?;
            Ok(Some((task, steps)))
        };
        match query.await.map_err(|error: sqlx::Error| self.problem(&error))? {
            None => Ok(Loaded::Missing),
            Some((task, steps)) => Ok(match read_task(&task, &steps) {
                Ok(task) => Loaded::Found(Box::new(task)),
                Err(reason) => Loaded::Damaged(format!("task {task_uuid}: {reason}")),
            }),
        }
    }

    /// A template that tasks started with, or why it cannot be had.
    pub(crate) async fn template(&self, template_id: Uuid) -> Result<Result<Template, String>, Error> {
        let definition: Option<String> =
            sqlx::query_scalar("SELECT definition FROM templates WHERE template_id = ?")
                .bind(template_id.to_string())
                .fetch_optional(&self.readers)
                .await
                .map_err(|error| self.problem(&error))?;
        let Some(definition) = definition else {
            return Ok(Err(format!("template {template_id} is missing")));
        };
        Ok(serde_json::from_str(&definition)
            .map_err(|error| format!("template {template_id} cannot be read: {error}")))
    }

    /// Which of these identities are taken, and by which tasks.
    pub(crate) async fn tasks_of(&self, identities: &[Uuid]) -> Result<HashMap<Uuid, Uuid>, Error> {
        let mut found = HashMap::new();
        for chunk in chunks(identities) {
            let mut query = QueryBuilder::new("SELECT identity, task_uuid FROM tasks WHERE identity IN (");
            let mut list = query.separated(", ");
            for identity in chunk {
                list.push_bind(identity.to_string());
            }
            query.push(")");
            let rows = query.build().fetch_all(&self.readers).await.map_err(|error| self.problem(&error))?;
            for row in rows {
                let pair = uuid(&row, 0).and_then(|identity| Ok((identity, uuid(&row, 1)?)));
                found.extend(pair.ok());
            }
        }
        Ok(found)
    }

    /// A task's state, `None` where there is no such task.
    pub(crate) async fn task_state(&self, task_uuid: Uuid) -> Result<Option<TaskState>, Error> {
        let state: Option<String> = sqlx::query_scalar("SELECT state FROM tasks WHERE task_uuid = ?")
            .bind(task_uuid.to_string())
            .fetch_optional(&self.readers)
            .await
            .map_err(|error| self.problem(&error))?;
        Ok(state.and_then(|state| TaskState::parse(&state)))
    }

    /// The namespaces of unfinished tasks, and how many there are in each.
    pub(crate) async fn unfinished(&self) -> Result<BTreeMap<String, i64>, Error> {
        let mut query = QueryBuilder::new("SELECT namespace, COUNT(*) FROM tasks WHERE state IN (");
        let mut list = query.separated(", ");
        for state in TaskState::ALL.iter().filter(|state| !state.is_terminal()) {
            list.push_bind(state.as_str());
        }
        query.push(") GROUP BY namespace");
        let rows = query.build().fetch_all(&self.readers).await.map_err(|error| self.problem(&error))?;
        let read = |row: &SqliteRow| Ok::<_, String>((column(row, 0)?, column(row, 1)?));
        rows.iter().map(|row| read(row).map_err(|reason| self.damaged(reason))).collect()
    }

    /// Steps whose answer should have come before `now`, the longest overdue first.
    pub(crate) async fn overdue(&self, now: i64, limit: i64) -> Result<Vec<OverdueStep>, Error> {
        let rows = sqlx::query(
            "SELECT steps.task_uuid, steps.step_uuid, steps.name, tasks.namespace \
             FROM steps JOIN tasks ON tasks.task_uuid = steps.task_uuid \
             WHERE steps.due_at IS NOT NULL AND steps.due_at <= ? ORDER BY steps.due_at LIMIT ?",
        )
        .bind(now)
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .map_err(|error| self.problem(&error))?;
        let read = |row: &SqliteRow| -> Result<OverdueStep, String> {
            Ok(OverdueStep {
                task_uuid: uuid(row, 0)?,
                step_uuid: uuid(row, 1)?,
                name: column(row, 2)?,
                namespace: column(row, 3)?,
            })
        };
        rows.iter().map(|row| read(row).map_err(|reason| self.damaged(reason))).collect()
    }

    /// Unfinished tasks that may be stale by `now`, the longest so first.
    pub(crate) async fn stale(&self, now: i64, limit: i64) -> Result<Vec<Uuid>, Error> {
        let rows = sqlx::query(
            "SELECT task_uuid FROM tasks WHERE stale_at IS NOT NULL AND stale_at <= ? ORDER BY stale_at LIMIT ?",
        )
        .bind(now)
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .map_err(|error| self.problem(&error))?;
        rows.iter().map(|row| uuid(row, 0).map_err(|reason| self.damaged(reason))).collect()
    }

    /// Unsent messages after that of `rank`, in the order in which they are to be sent.
    pub(crate) async fn unsent(&self, rank: Rank, limit: i64) -> Result<Vec<Unsent>, Error> {
        let (Reverse(priority), outbox_id) = rank;
        let rows = sqlx::query(
            "SELECT outbox_id, exchange, routing_key, properties, body, created_at, priority FROM outbox \
             WHERE priority <= ?1 AND (priority < ?1 OR outbox_id > ?2) \
             ORDER BY priority DESC, outbox_id LIMIT ?3",
        )
        .bind(priority)
        .bind(outbox_id)
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .map_err(|error| self.problem(&error))?;
        let read = |row: &SqliteRow| -> Result<Unsent, String> {
            Ok(((Reverse(column(row, 6)?), column(row, 0)?), read_outbox(row)))
        };
        rows.iter().map(|row| read(row).map_err(|reason| self.damaged(reason))).collect()
    }

    /// How many messages are unsent.
    pub(crate) async fn unsent_count(&self) -> Result<i64, Error> {
        sqlx::query_scalar("SELECT COUNT(*) FROM outbox")
            .fetch_one(&self.readers)
            .await
            .map_err(|error| self.problem(&error))
    }

    fn damaged(&self, reason: String) -> Error {
        Error::Store {
            store: self.name().to_owned(),
            problem: format!("holds a row that cannot be read: {reason}"),
        }
    }
}

fn read_task(task: &SqliteRow, steps: &[SqliteRow]) -> Result<StoredTask, String> {
    let state: String = column(task, 1)?;
    Ok(StoredTask {
        template_id: uuid(task, 0)?,
        state: TaskState::parse(&state).ok_or_else(|| format!("state {state:?} is unknown"))?,
        context: json(column(task, 2)?)?,
        correlation_id: column(task, 3)?,
        priority: column::<Option<i32>>(task, 4)?.unwrap_or(0),
        created_at: column(task, 5)?,
        trace: column::<Option<String>>(task, 6)?.and_then(|text| TraceContext::from_stored(&text)),
        steps: steps.iter().map(read_step).collect::<Result<_, _>>()?,
    })
}

fn read_step(row: &SqliteRow) -> Result<(String, StepRun), String> {
    let state: String = column(row, 2)?;
    let error: Option<String> = column(row, 5)?;
    let run = StepRun {
        uuid: uuid(row, 1)?,
        exists: true,
        state: StepState::parse(&state).ok_or_else(|| format!("step state {state:?} is unknown"))?,
        attempts: column(row, 3)?,
        output: column::<Option<String>>(row, 4)?.map(json).transpose()?,
        error: error
            .map(|error| serde_json::from_str::<StepExecutionError>(&error))
            .transpose()
            .map_err(|error| format!("a step's error: {error}"))?,
        enqueued_at: column(row, 6)?,
        due_at: column(row, 7)?,
        next_retry_at: column(row, 8)?,
        last_attempted_at: column(row, 9)?,
        last_failure_at: column(row, 10)?,
        completed_at: column(row, 11)?,
        replays: column(row, 12)?,
        sent_again: column(row, 13)?,
        sent_at: column(row, 14)?,
        received_at: column(row, 15)?,
        part: column(row, 16)?,
        checkpoint: column::<Option<String>>(row, 17)?
            .map(|checkpoint| serde_json::from_str(&checkpoint))
            .transpose()
            .map_err(|error| format!("a step's checkpoint: {error}"))?,
        waits_for: 0,
    };
    Ok((column(row, 0)?, run))
}

fn read_outbox(row: &SqliteRow) -> Result<OutboxRow, String> {
    let properties: String = column(row, 3)?;
    let properties: StoredProperties =
        serde_json::from_str(&properties).map_err(|error| format!("outbox properties: {error}"))?;
    let body: String = column(row, 4)?;
    Ok(OutboxRow {
        outbox_id: column(row, 0)?,
        priority: column(row, 6)?,
        message: Message {
            exchange: column(row, 1)?,
            routing_key: column(row, 2)?,
            body: body.into(),
            properties: properties.into(),
        },
        created_at: column(row, 5)?,
    })
}

fn column<'r, T>(row: &'r SqliteRow, index: usize) -> Result<T, String>
where
    T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    row.try_get(index).map_err(|error| error.to_string())
}

fn uuid(row: &SqliteRow, index: usize) -> Result<Uuid, String> {
    let text: &str = column(row, index)?;
    text.parse().map_err(|error| format!("{text:?} is no UUID: {error}"))
}

fn json(text: String) -> Result<Json, String> {
    serde_json::value::RawValue::from_string(text).map(Json::from).map_err(|error| error.to_string())
}

/// A message's properties as the outbox keeps them.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredProperties {
    message_id: Option<String>,
    correlation_id: Option<String>,
    kind: Option<String>,
    timestamp: Option<u64>,
    headers: Vec<(String, StoredHeader)>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum StoredHeader {
    Integer(i64),
    Text(String),
}

impl From<&Properties> for StoredProperties {
    fn from(properties: &Properties) -> Self {
        let stored = |value: &HeaderValue| match value {
            HeaderValue::Text(text) => StoredHeader::Text(text.clone()),
            HeaderValue::Integer(number) => StoredHeader::Integer(*number),
        };
        Self {
            message_id: properties.message_id.clone(),
            correlation_id: properties.correlation_id.clone(),
            kind: properties.kind.clone(),
            timestamp: properties.timestamp,
            headers: properties
                .headers
                .iter()
                .map(|(name, value)| (name.to_owned(), stored(value)))
                .collect(),
        }
    }
}

impl From<StoredProperties> for Properties {
    fn from(stored: StoredProperties) -> Self {
        let mut headers = Headers::default();
        for (name, value) in stored.headers {
            match value {
                StoredHeader::Integer(number) => headers.set(name, number),
                StoredHeader::Text(text) => headers.set(name, text),
            }
        }
        Self {
            message_id: stored.message_id,
            correlation_id: stored.correlation_id,
            kind: stored.kind,
            timestamp: stored.timestamp,
            expiration_ms: None,
            headers,
        }
    }
}
