//! What the API reads from the store. Nothing here writes, and a list costs the same few queries however
//! many tasks are on its page.

pub(crate) mod analytics;
pub(crate) mod dead_letters;
pub(crate) mod history;
mod rows;
pub(crate) mod summary;
pub(crate) mod timing;

use std::collections::HashMap;

use sqlx::sqlite::SqliteConnection;
use sqlx::{QueryBuilder, Sqlite, SqlitePool};
use uuid::Uuid;

use self::rows::{OutcomeRow, TaskRow, TaskSteps, parse, uuid};
use super::progress::{Progress, Steps};
use crate::api::{Pagination, StepResponse, TaskListResponse, TaskQuery, TaskResponse, is_finished};
use crate::template::Template;

type Result<T> = std::result::Result<T, sqlx::Error>;

const TASKS: &str = "SELECT task_uuid, template_id, namespace, name, version, state, context, initiator, \
     source_system, reason, priority, tags, correlation_id, parent_correlation_id, requested_at, created_at, updated_at, \
     completed_at FROM tasks";

const STEPS: &str = "SELECT step_uuid, name, state, attempts, max_attempts, next_retry_at, \
     last_attempted_at, last_failure_at, created_at, updated_at, completed_at FROM steps \
     WHERE task_uuid = ? ORDER BY position";

/// A step's last result, as a column.
const LAST_RESULT: &str = "(SELECT result FROM transitions WHERE transitions.step_uuid = steps.step_uuid \
     AND result IS NOT NULL ORDER BY transition_id DESC LIMIT 1) AS result";

/// What came of steps; more words say of which.
fn outcomes() -> QueryBuilder<Sqlite> {
    QueryBuilder::new(format!("SELECT output, error, checkpoint, {LAST_RESULT} FROM steps WHERE "))
}

/// A task with the readiness of its steps.
pub(crate) async fn task(readers: &SqlitePool, task_uuid: Uuid) -> Result<Option<TaskResponse>> {
    Ok(match task_steps(&mut *readers.begin().await?, task_uuid).await? {
        Some(task) => Some(task.response()?),
        None => None,
    })
}

/// A page of tasks, newest first.
pub(crate) async fn tasks(
    readers: &SqlitePool,
    query: &TaskQuery,
    page: u32,
    per_page: u32,
) -> Result<TaskListResponse> {
    let mut snapshot = readers.begin().await?;
    let mut count = QueryBuilder::new("SELECT COUNT(*) FROM (SELECT 1 FROM tasks");
    push_filters(&mut count, query);
    count.push(" LIMIT ").push_bind(Pagination::COUNTED + 1).push(")");
    let total_count: i64 = count.build_query_scalar().fetch_one(&mut *snapshot).await?;

    let mut select = QueryBuilder::new(TASKS);
    push_filters(&mut select, query);
    select.push(" ORDER BY created_at DESC, task_uuid DESC LIMIT ").push_bind(i64::from(per_page) + 1);
    select.push(" OFFSET ").push_bind(i64::from(page.saturating_sub(1)) * i64::from(per_page));
    let mut rows: Vec<TaskRow> = select.build_query_as().fetch_all(&mut *snapshot).await?;
    // One more than is shown tells whether there is a next page.
    let has_next = rows.len() > per_page as usize;
    rows.truncate(per_page as usize);

    let progress = progress_of(&mut snapshot, &rows).await?;
    let response = |row: &TaskRow| {
        let progress = progress.get(&row.task_uuid).copied().unwrap_or_default();
        row.response(progress, Vec::new())
    };
    let tasks = rows.iter().map(response).collect::<Result<_>>()?;
    Ok(TaskListResponse { tasks, pagination: Pagination::new(page, per_page, total_count, has_next) })
}

/// A task's steps with their results, in the template's order; `None` where there is no such task.
pub(crate) async fn steps(readers: &SqlitePool, task_uuid: Uuid) -> Result<Option<Vec<StepResponse>>> {
    let mut snapshot = readers.begin().await?;
    let Some(task) = task_steps(&mut snapshot, task_uuid).await? else {
        return Ok(None);
    };
    let mut select = outcomes();
    select.push("task_uuid = ").push_bind(task_uuid.to_string()).push(" ORDER BY position");
    let outcomes: Vec<OutcomeRow> = select.build_query_as().fetch_all(&mut *snapshot).await?;
    let states = task.states();
    let step = |(row, outcome)| task.step_response(&states, row, outcome);
    task.steps.iter().zip(outcomes).map(step).collect::<Result<_>>().map(Some)
}

/// What came of looking for one step.
pub(crate) enum Found {
    /// The step.
    Step(Box<StepResponse>),
    /// The task has only steps of these names.
    NoStep(Vec<String>),
    /// There is no such task.
    NoTask,
}

/// The step of a task that has this id or name.
pub(crate) async fn step(readers: &SqlitePool, task_uuid: Uuid, step: &str) -> Result<Found> {
    let mut snapshot = readers.begin().await?;
    let Some(task) = task_steps(&mut snapshot, task_uuid).await? else {
        return Ok(Found::NoTask);
    };
    let step_uuid = Uuid::try_parse(step).map(|uuid| uuid.to_string()).unwrap_or_default();
    let Some(row) = task.steps.iter().find(|row| row.step_uuid == step_uuid || row.name == step) else {
        return Ok(Found::NoStep(task.steps.into_iter().map(|row| row.name).collect()));
    };
    let mut select = outcomes();
    select.push("step_uuid = ").push_bind(row.step_uuid.clone());
    let outcome: OutcomeRow = select.build_query_as().fetch_one(&mut *snapshot).await?;
    Ok(Found::Step(Box::new(task.step_response(&task.states(), row, outcome)?)))
}

/// A task and the states of its steps, as they were at one moment.
async fn task_steps(snapshot: &mut SqliteConnection, task_uuid: Uuid) -> Result<Option<TaskSteps>> {
    let mut select = QueryBuilder::new(TASKS);
    select.push(" WHERE task_uuid = ").push_bind(task_uuid.to_string());
    let Some(task) = select.build_query_as::<TaskRow>().fetch_optional(&mut *snapshot).await? else {
        return Ok(None);
    };
    let definition: String = sqlx::query_scalar("SELECT definition FROM templates WHERE template_id = ?")
        .bind(&task.template_id)
        .fetch_one(&mut *snapshot)
        .await?;
    let steps = sqlx::query_as(STEPS).bind(task_uuid.to_string()).fetch_all(snapshot).await?;
    Ok(Some(TaskSteps { template: parse(&definition)?, task, steps }))
}

fn push_filters(sql: &mut QueryBuilder<Sqlite>, query: &TaskQuery) {
    let filters = [
        ("namespace", &query.namespace),
        ("state", &query.status),
        ("initiator", &query.initiator),
        ("source_system", &query.source_system),
    ];
    let mut word = " WHERE ";
    for (column, wanted) in filters {
        if let Some(wanted) = wanted {
            sql.push(word).push(column).push(" = ").push_bind(wanted.clone());
            word = " AND ";
        }
    }
}

/// How far each of these tasks is: one query for all their counts, and two more where the steps' names
/// matter.
async fn progress_of(
    snapshot: &mut SqliteConnection,
    tasks: &[TaskRow],
) -> Result<HashMap<String, Progress>> {
    let mut progress: HashMap<String, Progress> = HashMap::new();
    let counts: Vec<(String, String, i64)> = where_in(
        "SELECT task_uuid, state, COUNT(*) FROM steps WHERE task_uuid IN (",
        tasks.iter().map(|task| &task.task_uuid),
        ") GROUP BY task_uuid, state",
    )
    .build_query_as()
    .fetch_all(&mut *snapshot)
    .await?;
    for (task_uuid, state, steps) in counts {
        progress.entry(task_uuid).or_default().count(&state, steps);
    }

    // Of steps that wait or failed, the names say more than their number.
    let looked_at = |task: &&TaskRow| {
        let pending = |steps: &Progress| !is_finished(&task.state) && steps.pending > 0;
        progress.get(&task.task_uuid).is_some_and(|steps| pending(steps) || steps.failed > 0)
    };
    let looked_at: Vec<&TaskRow> = tasks.iter().filter(looked_at).collect();
    let states: Vec<(String, String, String)> = where_in(
        "SELECT task_uuid, name, state FROM steps WHERE task_uuid IN (",
        looked_at.iter().map(|task| &task.task_uuid),
        ")",
    )
    .build_query_as()
    .fetch_all(&mut *snapshot)
    .await?;
    let mut states_of: HashMap<&str, HashMap<&str, &str>> = HashMap::new();
    for (task_uuid, name, state) in &states {
        states_of.entry(task_uuid).or_default().insert(name, state);
    }
    let definitions: Vec<(String, String)> = where_in(
        "SELECT template_id, definition FROM templates WHERE template_id IN (",
        looked_at.iter().map(|task| &task.template_id),
        ")",
    )
    .build_query_as()
    .fetch_all(&mut *snapshot)
    .await?;
    let templates: HashMap<String, Template> =
        definitions.into_iter().map(|(id, text)| Ok((id, parse(&text)?))).collect::<Result<_>>()?;
    for task in looked_at {
        if let (Some(template), Some(states), Some(progress)) = (
            templates.get(&task.template_id),
            states_of.remove(task.task_uuid.as_str()),
            progress.get_mut(&task.task_uuid),
        ) {
            let steps = Steps::new(template, states);
            steps.names().for_each(|name| progress.look_at(&steps, name, is_finished(&task.state)));
        }
    }
    Ok(progress)
}

fn where_in<'a>(head: &str, values: impl Iterator<Item = &'a String>, tail: &str) -> QueryBuilder<Sqlite> {
    let mut sql = QueryBuilder::new(head);
    let mut list = sql.separated(", ");
    values.for_each(|value| {
        list.push_bind(value.clone());
    });
    sql.push(tail);
    sql
}
