//! Where a task's time went, from what is stored of its steps.

use std::collections::HashMap;

use sqlx::{FromRow, QueryBuilder, SqlitePool};
use uuid::Uuid;

use super::rows::{parse, uuid};
use super::{LAST_RESULT, Result, task_steps};
use crate::api::{StepTiming, TaskTiming};
use crate::message::StepExecutionResult;

#[derive(FromRow)]
struct ClockRow {
    name: String,
    state: String,
    attempts: i32,
    enqueued_at: Option<i64>,
    sent_at: Option<i64>,
    received_at: Option<i64>,
    completed_at: Option<i64>,
    result: Option<String>,
}

/// Where a task's time went; `None` where there is no such task.
pub(crate) async fn timing(readers: &SqlitePool, task_uuid: Uuid) -> Result<Option<TaskTiming>> {
    let mut snapshot = readers.begin().await?;
    let Some(task) = task_steps(&mut snapshot, task_uuid).await? else { return Ok(None) };
    let mut select = QueryBuilder::new(format!(
        "SELECT name, state, attempts, enqueued_at, sent_at, received_at, completed_at, {LAST_RESULT} FROM steps \
         WHERE enqueued_at IS NOT NULL AND task_uuid = "
    ));
    select.push_bind(task_uuid.to_string()).push(" ORDER BY enqueued_at, position");
    let mut rows: Vec<ClockRow> = select.build_query_as().fetch_all(&mut *snapshot).await?;
    // One that was replayed and waits again has the result of its earlier life.
    rows.iter_mut().filter(|row| row.completed_at.is_none()).for_each(|row| row.result = None);
    let steps = task.states();
    let path = critical_path(&rows, |name| steps.parents(name));
    Ok(Some(TaskTiming {
        task_uuid: uuid(&task.task.task_uuid)?,
        total_ms: task.task.completed_at.map(|end| end - task.task.created_at),
        critical_path: path,
        steps: rows.iter().map(|row| stages(row, task.task.created_at)).collect::<Result<_>>()?,
    }))
}

/// The steps that the last one to finish waited for, in order: of its parents the one that finished last, and so on.
fn critical_path<'a>(rows: &'a [ClockRow], parents: impl Fn(&'a str) -> Vec<&'a str>) -> Vec<String> {
    let ends: HashMap<&str, i64> =
        rows.iter().filter_map(|row| Some((row.name.as_str(), row.completed_at?))).collect();
    let last_of = |names: &mut dyn Iterator<Item = &'a str>| {
        names.filter_map(|name| Some((*ends.get(name)?, name))).max().map(|(_, name)| name)
    };
    let mut path = Vec::new();
    let mut next = last_of(&mut rows.iter().map(|row| row.name.as_str()));
    while let Some(name) = next.filter(|name| !path.contains(name)) {
        path.push(name);
        next = last_of(&mut parents(name).into_iter());
    }
    path.into_iter().rev().map(str::to_owned).collect()
}

fn stages(row: &ClockRow, accepted: i64) -> Result<StepTiming> {
    let mut clamped = 0;
    let mut between = |from: Option<i64>, to: Option<i64>| {
        let time = to? - from?;
        clamped += (-time).max(0);
        Some(time.max(0))
    };
    let sent_at = row.sent_at.or(row.enqueued_at);
    let mut timing = StepTiming {
        name: row.name.clone(),
        state: row.state.clone(),
        attempts: row.attempts,
        begins_after_ms: row.enqueued_at.unwrap_or(accepted) - accepted,
        enqueued_ms: between(row.enqueued_at, row.sent_at),
        ..StepTiming::default()
    };
    if let Some(result) = &row.result {
        let StepExecutionResult { metadata, duration_ms, attempt, part, .. } = parse(result)?;
        let whole = |time: u64| i64::try_from(time).unwrap_or(i64::MAX);
        let waited = metadata.queue_wait_ms.map(whole);
        let arrived = metadata.started_at.map(|at| at.as_millisecond() - waited.unwrap_or(0));
        if (attempt > 1 || part > 0)
            && let Some(in_broker) = metadata.broker_wait_ms.map(whole)
        {
            timing.retries_ms = between(sent_at, arrived.map(|at| at - in_broker));
            timing.broker_wait_ms = Some(in_broker);
        } else {
            timing.broker_wait_ms = between(sent_at, arrived);
        }
        timing.prefetch_wait_ms = waited;
        timing.run_ms = Some(whole(duration_ms));
        // From the handler's answer, so that nothing between it and the result's message is in no stage.
        let ran_until = metadata.started_at.map(|at| at.as_millisecond().saturating_add(whole(duration_ms)));
        timing.confirm_ms = between(ran_until, row.received_at);
        timing.apply_ms = between(row.received_at, row.completed_at);
    }
    timing.clamped_ms = clamped;
    Ok(timing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, ends: Option<i64>) -> ClockRow {
        ClockRow {
            name: name.to_owned(),
            state: "complete".to_owned(),
            attempts: 1,
            enqueued_at: Some(1_000),
            sent_at: Some(1_003),
            received_at: Some(1_040),
            completed_at: ends,
            result: None,
        }
    }

    fn with_result(attempt: u32, part: u32, started_ms: i64, mut row: ClockRow) -> ClockRow {
        let at = |ms| jiff::Timestamp::from_millisecond(ms).unwrap();
        let result = serde_json::json!({
            "task_uuid": Uuid::nil(), "step_uuid": Uuid::nil(), "namespace": "n", "step_name": "s",
            "success": true, "status": "completed", "attempt": attempt, "part": part, "duration_ms": 20,
            "metadata": { "executed_at": at(started_ms + 20), "started_at": at(started_ms),
                "broker_wait_ms": 2, "queue_wait_ms": 4 },
        });
        row.result = Some(result.to_string());
        row
    }

    #[test]
    fn the_stages_of_a_step_add_up_to_its_time() {
        let stages = stages(&with_result(1, 0, 1_014, row("a", Some(1_041))), 900).unwrap();
        let times = stages.stages().map(|(_, time)| time);
        assert_eq!(times, [Some(3), None, Some(7), Some(4), Some(20), Some(6), Some(1)]);
        assert_eq!(times.iter().flatten().sum::<i64>(), 41);
        assert_eq!((stages.begins_after_ms, stages.clamped_ms), (100, 0));
    }

    #[test]
    fn earlier_attempts_are_a_stage_of_their_own() {
        // And so is what an attempt did before its last checkpoint.
        for (attempt, part) in [(2, 0), (1, 3)] {
            let mut row = with_result(attempt, part, 2_014, row("a", Some(2_041)));
            row.received_at = Some(2_040);
            let stages = stages(&row, 1_000).unwrap();
            let times = stages.stages().map(|(_, time)| time);
            assert_eq!(times, [Some(3), Some(1_005), Some(2), Some(4), Some(20), Some(6), Some(1)]);
        }
    }

    #[test]
    fn what_a_slow_clock_makes_negative_counts_as_nothing_and_is_told() {
        let stages = stages(&with_result(1, 0, 507, row("a", Some(1_041))), 1_000).unwrap();
        assert_eq!((stages.broker_wait_ms, stages.run_ms, stages.clamped_ms), (Some(0), Some(20), 500));
        assert_eq!(stages.confirm_ms, Some(513));
    }

    #[test]
    fn without_a_result_only_what_was_measured_is_told() {
        let mut row = row("a", None);
        assert_eq!(
            stages(&row, 1_000).unwrap().stages().map(|(_, time)| time),
            [Some(3), None, None, None, None, None, None]
        );
        row.sent_at = None;
        assert_eq!(stages(&row, 1_000).unwrap().enqueued_ms, None);
    }

    #[test]
    fn the_critical_path_goes_by_the_parents_that_finished_last() {
        let rows =
            [row("a", Some(10)), row("b", Some(90)), row("c", Some(50)), row("d", Some(99)), row("e", None)];
        let parents = |name: &str| match name {
            "b" | "c" => vec!["a"],
            "d" => vec!["c", "b"],
            "e" => vec!["d"],
            _ => vec![],
        };
        assert_eq!(critical_path(&rows, parents), ["a", "b", "d"]);
        assert!(critical_path(&rows[4..], parents).is_empty());
    }
}
