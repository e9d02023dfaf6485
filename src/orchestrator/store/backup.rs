//! Copies of the store: made while the orchestrator works, looked at, and put in its place.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};

use super::{BUSY_TIMEOUT, MIGRATIONS, lock, problem};
use crate::Error;

/// What a copy holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    /// All its tasks.
    pub tasks: i64,
    /// Those that have not ended.
    pub unfinished: i64,
}

/// Copies the store at `database_url` into the file `copy`, as it is at one moment. Whoever uses the store goes on.
///
/// # Errors
/// When there is no such store, `copy` is there already, or cannot be written.
pub async fn backup(database_url: &str, copy: &Path) -> Result<(), Error> {
    let options = place(database_url)?;
    let name = options.get_filename().display().to_string();
    if copy.exists() {
        return Err(failed(copy, "is there already; choose another name"));
    }
    // Under another name until it is whole.
    let partial = beside(copy, ".partial");
    remove(&partial)?;
    let mut connection = options.connect().await.map_err(|error| problem(&name, &error))?;
    sqlx::query("VACUUM INTO ?")
        .bind(partial.display().to_string())
        .execute(&mut connection)
        .await
        .map_err(|error| problem(&name, &error))?;
    close(connection).await;
    let kept =
        File::open(&partial).and_then(|file| file.sync_all()).and_then(|()| fs::rename(&partial, copy));
    kept.map_err(|error| failed(copy, error))
}

/// Reads a copy from its beginning to its end.
///
/// # Errors
/// When it is damaged, no store of ours, or one of a later version.
pub async fn check(copy: &Path) -> Result<Contents, Error> {
    let name = copy.display().to_string();
    let wrong = |error: sqlx::Error| problem(&name, &error);
    let mut connection =
        SqliteConnectOptions::new().filename(copy).read_only(true).connect().await.map_err(wrong)?;
    let damage: Vec<String> =
        sqlx::query_scalar("PRAGMA integrity_check").fetch_all(&mut connection).await.map_err(wrong)?;
    if damage != ["ok"] {
        return Err(failed(copy, format_args!("is damaged: {}; take another copy", damage.join("; "))));
    }
    let version: i64 = sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations")
        .fetch_one(&mut connection)
        .await
        .map_err(wrong)?;
    let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
    if version > known {
        return Err(failed(copy, "was written by a later version of this program; use that version"));
    }
    let (tasks, unfinished) =
        sqlx::query_as("SELECT COUNT(*), COUNT(*) FILTER (WHERE completed_at IS NULL) FROM tasks")
            .fetch_one(&mut connection)
            .await
            .map_err(wrong)?;
    close(connection).await;
    Ok(Contents { tasks, unfinished })
}

/// Puts a copy in the place of the store at `database_url`. What was there is kept, its name ending in
/// `.before-restore`.
///
/// # Errors
/// When an orchestrator has the store, the copy is not [sound](check), or the files cannot be changed.
pub async fn restore(database_url: &str, copy: &Path) -> Result<Contents, Error> {
    let options = place(database_url)?;
    let store = options.get_filename().to_owned();
    let lock = lock(&store.display().to_string(), &store)?;
    let contents = check(copy).await?;
    let new = beside(&store, ".restoring");
    let replaced = (|| {
        fs::copy(copy, &new)?;
        File::open(&new)?.sync_all()?;
        // With its log, without which it may lack its latest tasks.
        for end in ["-wal", "-shm", ""] {
            let (old, kept) = (beside(&store, end), beside(&store, &format!(".before-restore{end}")));
            if old.exists() {
                fs::rename(&old, &kept)?;
            }
        }
        fs::rename(&new, &store)
    })();
    replaced.map_err(|error: io::Error| failed(&store, error))?;
    drop(lock);
    Ok(contents)
}

/// A file beside the store, where there is room and the right to write, for a copy on its way.
///
/// # Errors
/// When the store is no file, or an earlier copy cannot be removed.
pub fn passing(database_url: &str) -> Result<PathBuf, Error> {
    let copy = beside(place(database_url)?.get_filename(), ".passing");
    remove(&copy).map(|()| copy)
}

/// The store's file, which has to be one.
fn place(database_url: &str) -> Result<SqliteConnectOptions, Error> {
    let options = SqliteConnectOptions::from_str(database_url).map_err(|error| problem("sqlite", &error))?;
    if database_url.contains(":memory:") {
        return Err(failed(options.get_filename(), "is in memory, of which there is no copy"));
    }
    Ok(options.busy_timeout(BUSY_TIMEOUT))
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(end);
    name.into()
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, error)),
        _ => Ok(()),
    }
}

async fn close(connection: SqliteConnection) {
    // What it was for is done.
    let _ = connection.close().await;
}

fn failed(path: &Path, problem: impl std::fmt::Display) -> Error {
    Error::Store { store: path.display().to_string(), problem: problem.to_string() }
}
