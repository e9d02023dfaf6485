//! Opening the store: every way it can go wrong says what to do.

use tasker_worker_rust::Error;
use tasker_worker_rust::orchestrator::store::Store;

use crate::support::sqlite;

async fn refusal(url: &str) -> String {
    let error = Store::open(url).await.expect_err("it cannot be opened");
    assert!(matches!(error, Error::Store { .. }));
    error.to_string()
}

#[tokio::test]
async fn another_kind_of_store_is_refused_without_showing_its_password() {
    let text = refusal("postgres://me:secret@host/db").await;
    assert!(text.contains("\"postgres\"") && text.contains("sqlite:PATH"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let text = refusal(&format!("sqlite:{}/none/tasker.sqlite", directory.path().display())).await;
    assert!(
        text.contains("none/tasker.sqlite") && text.contains("check that the directory exists"),
        "{text}"
    );
}

#[tokio::test]
async fn a_file_that_is_no_database_is_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("tasker.sqlite");
    let letter = "Dear diary, ".repeat(1_000);
    std::fs::write(&file, &letter).expect("a file");
    let text = refusal(&sqlite(directory.path())).await;
    assert!(text.contains("the file is something else"), "{text}");
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), letter);
}

#[tokio::test]
async fn a_store_in_use_is_not_shared() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = sqlite(directory.path());
    let first = Store::open(&url).await.expect("a new store");
    assert!(refusal(&url).await.contains("is in use by another orchestrator"));
    first.close().await;
    Store::open(&url).await.expect("it is free again");
}

#[tokio::test]
async fn a_store_of_a_later_version_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = sqlite(directory.path());
    let store = Store::open(&url).await.expect("a new store");
    let migration = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                     VALUES (9999, 'from the future', TRUE, x'00', 0)";
    sqlx::query(migration).execute(store.readers()).await.expect("the table is there");
    store.close().await;
    assert!(refusal(&url).await.contains("was written by a later or different version"));
}
