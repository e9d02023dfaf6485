//! How much is done, how fast, and what is slow.
//!
//! Counts are read from an index. Durations are those of the newest tasks, so that no answer reads all there is.

use std::collections::BTreeMap;

use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, QueryBuilder, SqlitePool};

use super::Result;
use super::rows::time;
use crate::api::{PerformanceMetrics, SlowStep, SlowTask};
use crate::orchestrator::task::TaskState;

/// The newest tasks; two more parameters: since when, and how many.
const NEWEST: &str = "WITH newest AS (SELECT task_uuid, namespace, name, version, state, created_at, \
     completed_at FROM tasks WHERE created_at >= ? ORDER BY created_at DESC LIMIT ?) ";

/// Tasks looked at for durations.
const TASKS: i64 = 10_000;

/// What the tasks accepted in the last `hours` came to.
pub(crate) async fn performance(readers: &SqlitePool, now: i64, hours: u32) -> Result<PerformanceMetrics> {
    let mut snapshot = readers.begin().await?;
    let start = now - i64::from(hours) * 3_600_000;
    let mut select = QueryBuilder::new("SELECT state, COUNT(*) FROM tasks WHERE state IN (");
    let mut states = select.separated(", ");
    for state in TaskState::ALL {
        states.push_bind(state.as_str());
    }
    select.push(") AND created_at >= ").push_bind(start).push(" GROUP BY state");
    let counts: Vec<(String, i64)> = select.build_query_as().fetch_all(&mut *snapshot).await?;
    let count = |wanted: &dyn Fn(TaskState) -> bool| -> i64 {
        let wanted = |state: &str| TaskState::parse(state).is_some_and(wanted);
        counts.iter().filter(|(state, _)| wanted(state)).map(|(_, tasks)| tasks).sum()
    };
    let total_tasks = count(&|_| true);
    let completed_tasks = count(&|state| matches!(state, TaskState::Complete | TaskState::ResolvedManually));
    let failed_tasks = count(&|state| state == TaskState::Error);

    let sql = format!(
        "{NEWEST} SELECT COUNT(*), AVG(CASE WHEN state = 'complete' THEN completed_at - created_at END) FROM newest"
    );
    let (looked_at, task_millis): (i64, Option<f64>) =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(start).bind(TASKS).fetch_one(&mut *snapshot).await?;
    let sql = format!(
        "{NEWEST} SELECT COUNT(*), AVG(MAX(steps.completed_at - steps.last_attempted_at, 0)) FROM newest \
         JOIN steps ON steps.task_uuid = newest.task_uuid WHERE steps.state = 'complete'"
    );
    let (steps, step_millis): (i64, Option<f64>) =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(start).bind(TASKS).fetch_one(&mut *snapshot).await?;

    let of_all = |part: i64| if total_tasks == 0 { 0.0 } else { part as f64 / total_tasks as f64 };
    let error_rate = of_all(failed_tasks);
    let tasks_per_hour = total_tasks as f64 / f64::from(hours);
    let steps_per_task = if looked_at == 0 { 0.0 } else { steps as f64 / looked_at as f64 };
    Ok(PerformanceMetrics {
        total_tasks,
        active_tasks: count(&|state| !state.is_terminal()),
        completed_tasks,
        failed_tasks,
        completion_rate: of_all(completed_tasks),
        error_rate,
        average_task_duration_seconds: task_millis.unwrap_or(0.0) / 1_000.0,
        average_step_duration_seconds: step_millis.unwrap_or(0.0) / 1_000.0,
        tasks_per_hour,
        steps_per_hour: tasks_per_hour * steps_per_task,
        system_health_score: 1.0 - error_rate,
        analysis_period_start: time(start)?,
        calculated_at: time(now)?,
    })
}

/// What was slowest on average, of what ended `at_least` so often. `of` groups the newest tasks, or what belongs to them.
async fn slowest<T>(readers: &SqlitePool, of: &str, at_least: u32, limit: u32) -> Result<Vec<T>>
where
    T: for<'r> FromRow<'r, SqliteRow> + Send + Unpin,
{
    let sql = format!("{NEWEST} {of} HAVING COUNT(*) >= ? ORDER BY average DESC LIMIT ?");
    let query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(0).bind(TASKS).bind(at_least).bind(limit);
    query.fetch_all(readers).await
}

/// The steps that took longest on average.
pub(crate) async fn slow_steps(readers: &SqlitePool, limit: u32, at_least: u32) -> Result<Vec<SlowStep>> {
    type Row = (String, String, String, String, f64, f64, i64, i64, Option<i64>);
    let of = "SELECT newest.namespace, newest.name, newest.version, steps.name, \
         COALESCE(AVG(MAX(steps.completed_at - steps.last_attempted_at, 0)), 0) / 1000.0 AS average, \
         COALESCE(MAX(MAX(steps.completed_at - steps.last_attempted_at, 0)), 0) / 1000.0, \
         COUNT(*), SUM(steps.state = 'error'), MAX(steps.completed_at) \
         FROM newest JOIN steps ON steps.task_uuid = newest.task_uuid \
         WHERE steps.completed_at IS NOT NULL AND steps.state <> 'cancelled' \
         GROUP BY newest.namespace, newest.name, newest.version, steps.name";
    let step = |(namespace, name, version, step, average, longest, ended, failed, last): Row| {
        Ok(SlowStep {
            namespace_name: namespace,
            task_name: name,
            version,
            step_name: step,
            average_duration_seconds: average,
            max_duration_seconds: longest,
            execution_count: ended,
            error_count: failed,
            error_rate: failed as f64 / ended as f64,
            last_executed_at: last.map(time).transpose()?,
        })
    };
    slowest(readers, of, at_least, limit).await?.into_iter().map(step).collect()
}

/// The templates whose tasks took longest on average.
pub(crate) async fn slow_tasks(readers: &SqlitePool, limit: u32, at_least: u32) -> Result<Vec<SlowTask>> {
    type Row = (String, String, String, f64, f64, f64, i64, i64, Option<i64>);
    let of = "SELECT namespace, name, version, AVG(completed_at - created_at) / 1000.0 AS average, \
         MAX(completed_at - created_at) / 1000.0, \
         AVG((SELECT COUNT(*) FROM steps WHERE steps.task_uuid = newest.task_uuid)), \
         COUNT(*), SUM(state = 'error'), MAX(completed_at) FROM newest WHERE completed_at IS NOT NULL \
         GROUP BY namespace, name, version";
    let task = |(namespace, name, version, average, longest, steps, ended, failed, last): Row| {
        Ok(SlowTask {
            namespace_name: namespace,
            task_name: name,
            version,
            average_duration_seconds: average,
            max_duration_seconds: longest,
            execution_count: ended,
            average_step_count: steps,
            error_count: failed,
            error_rate: failed as f64 / ended as f64,
            last_executed_at: last.map(time).transpose()?,
        })
    };
    slowest(readers, of, at_least, limit).await?.into_iter().map(task).collect()
}

/// How many tasks, and how many of the newest tasks' steps, are in which state.
pub(crate) async fn counts(readers: &SqlitePool) -> Result<BTreeMap<String, i64>> {
    let mut snapshot = readers.begin().await?;
    let tasks: Vec<(String, i64)> =
        sqlx::query_as("SELECT state, COUNT(*) FROM tasks GROUP BY state").fetch_all(&mut *snapshot).await?;
    let sql = format!(
        "{NEWEST} SELECT steps.state, COUNT(*) FROM newest JOIN steps ON steps.task_uuid = newest.task_uuid \
         GROUP BY steps.state"
    );
    let steps: Vec<(String, i64)> =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(0).bind(TASKS).fetch_all(&mut *snapshot).await?;
    let mut counts = BTreeMap::new();
    for (kind, rows) in [("tasks", tasks), ("steps", steps)] {
        counts.insert(format!("total_{kind}"), rows.iter().map(|(_, count)| count).sum());
        counts.extend(rows.into_iter().map(|(state, count)| (format!("{state}_{kind}"), count)));
    }
    Ok(counts)
}
