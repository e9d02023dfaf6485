//! A store that an older version left behind, taken over by this one. `make upgrade` runs the two versions side by side.

use serde_json::json;
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;
use uuid::Uuid;

use crate::on_both_brokers;
use crate::support::{Kind, settings};
use crate::system::System;

on_both_brokers! { tasks_of_an_older_version_go_on_from_where_they_stood }

async fn tasks_of_an_older_version_go_on_from_where_they_stood(kind: Kind) {
    let mut config = settings(kind);
    // Its requests are gone with its broker. One that waits behind another is looked for again this soon.
    config.orchestrator.overdue_after_seconds = 1;
    let store = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new().filename(store.path().join("store.sqlite"));
    // The tables are not in the order of what they refer to.
    let options = options.create_if_missing(true).foreign_keys(false);
    let older = SqlitePool::connect_with(options).await.unwrap();
    let statements = include_str!("stores/schema_2.sql").replace("tasker.steps", &config.names().steps());
    sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&older).await.expect("the statements are right");
    let tasks: Vec<String> = sqlx::query_scalar("SELECT task_uuid FROM tasks ORDER BY created_at")
        .fetch_all(&older)
        .await
        .unwrap();
    older.close().await;

    let system = System::on_store(kind, config, store).await;
    let wanted = [
        ("complete", "linear_step_4", "final_result", json!(66)),
        ("error", "release_inventory", "released", json!(true)),
        ("error", "release_inventory", "released", json!(true)),
        ("complete", "diamond_end", "final_result", json!(180)),
        ("complete", "linear_step_4", "final_result", json!(78)),
        ("complete", "linear_step_4", "final_result", json!(90)),
    ];
    assert_eq!(tasks.len(), wanted.len());
    let tasks: Vec<Uuid> = tasks.iter().map(|task| task.parse().unwrap()).collect();
    for (task, (status, step, field, value)) in tasks.iter().zip(wanted) {
        assert_eq!(system.finished(*task).await.status, status, "{step} of {task}");
        assert_eq!(system.output(*task, step).await[field], value, "{step} of {task}");
    }
    // What had completed was not done again; what waited for a retry went on counting.
    for (task, step, attempts) in [
        (0, "linear_step_1", 1),
        (2, "reserve_inventory", 1),
        (2, "process_payment", 2),
        (3, "diamond_branch_b", 1),
    ] {
        assert_eq!(system.step(tasks[task], step).await.attempts, attempts, "{step}");
    }
    system.close().await;
}
