//! Everything that must survive a crash: tasks, steps, their history, and messages not yet sent.
//!
//! One process writes, through one connection, so that what it remembers of a task is what is stored;
//! readers are many. The statements of writing are in `write`, those of reading in `read`.

pub mod backup;
mod damage;
mod investigations;
mod read;
mod rows;
mod templates;
mod write;

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

pub(super) use damage::DAMAGED;
pub(super) use read::{Loaded, OutboxRow, OverdueStep, Rank, StoredTask};
pub(super) use rows::{Batch, FindingRow, StepRow, TaskRow, TaskStateRow, TransitionRow};

use crate::Error;

/// Reads that run at once; they share the machine with the handlers of a single-node set-up.
const READERS: u32 = 4;

/// How long a statement waits for a lock somebody else holds, such as a backup.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// The store. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Store {
    name: Arc<str>,
    writer: SqlitePool,
    readers: SqlitePool,
    lock: Option<Arc<File>>,
}

impl Store {
    /// Opens the store at `database_url`, `sqlite:PATH` or `sqlite::memory:`, creating it and bringing its
    /// tables up to date as needed.
    ///
    /// # Errors
    /// When there is no such kind of store, it cannot be opened or written, it is no database of ours, or
    /// another process has it open. The text says what to do.
    pub async fn open(database_url: &str) -> Result<Self, Error> {
        let Some(place) = database_url.strip_prefix("sqlite:") else {
            // Only the scheme is shown: the rest may hold a password.
            let scheme = database_url.split_once(':').map_or("", |(scheme, _)| scheme);
            return Err(Error::Store {
                store: scheme.to_owned(),
                problem: "is of a kind this build does not know; set orchestrator.database_url to \
                          sqlite:PATH, or to sqlite::memory: for a store that forgets"
                    .to_owned(),
            });
        };
        let place = place.strip_prefix("//").unwrap_or(place);
        let name = format!("sqlite:{}", place.split('?').next().unwrap_or(place));
        let options = if place == ":memory:" {
            SqliteConnectOptions::new().in_memory(true)
        } else {
            SqliteConnectOptions::from_str(database_url)
                .map_err(|error| problem(&name, &error))?
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                // FULL: what was accepted must survive a power cut, not only a crash of this process.
                .synchronous(SqliteSynchronous::Full)
        };
        let options = options
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .statement_cache_capacity(256)
            .disable_statement_logging();
        let lock =
            if place == ":memory:" { None } else { Some(Arc::new(lock(&name, options.get_filename())?)) };

        let pool = SqlitePoolOptions::new()
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(BUSY_TIMEOUT);
        let writer = pool
            .clone()
            .max_connections(1)
            .connect_with(options.clone())
            .await
            .map_err(|error| problem(&name, &error))?;
        MIGRATIONS.run(&writer).await.map_err(|error| migration_problem(&name, &error))?;
        // An in-memory database belongs to its connection, so reading has to share it.
        let readers = match lock {
            None => writer.clone(),
            Some(_) => pool.max_connections(READERS).connect_lazy_with(options),
        };
        Ok(Self { name: name.into(), writer, readers, lock })
    }

    /// Connections for reading. What they see is committed; writing through them is a mistake, because the
    /// orchestrator would not know of it.
    pub fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    /// How many connections are at work at this moment, those being opened or closed included.
    pub fn in_use(&self) -> usize {
        let at_work = |pool: &SqlitePool| {
            let idle = if pool.is_closed() { 0 } else { pool.num_idle() };
            (pool.size() as usize).saturating_sub(idle)
        };
        at_work(&self.writer) + at_work(&self.readers)
    }

    /// Where the store is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Closes all connections, waiting for those in use, and lets another process have the store.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
        if let Some(lock) = &self.lock {
            // It falls with the process at the latest.
            let _ = lock.unlock();
        }
    }

    /// The error with the store's name, and what to do about it.
    pub fn problem(&self, error: &sqlx::Error) -> Error {
        problem(&self.name, error)
    }
}

/// Keeps a second orchestrator away: each remembers the tasks it works on, and would overwrite the other's work.
fn lock(name: &str, database: &Path) -> Result<File, Error> {
    let mut path = database.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let failed = |problem: String| Error::Store { store: name.to_owned(), problem };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(|error| {
        failed(format!(
            "cannot be opened: {}: {error}; check that the directory exists and may be written",
            path.display()
        ))
    })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(failed(
            "is in use by another orchestrator; stop that one first, or give this one its own database_url"
                .to_owned(),
        )),
        Err(TryLockError::Error(error)) => {
            Err(failed(format!("cannot be locked: {}: {error}; put it on a local disk", path.display())))
        }
    }
}

fn problem(name: &str, error: &sqlx::Error) -> Error {
    let code = match error {
        sqlx::Error::Database(error) => error.code().and_then(|code| code.parse::<i32>().ok()),
        _ => None,
    };
    // The low byte is the primary result code: https://www.sqlite.org/rescode.html
    let advice = match code.map(|code| code & 0xff) {
        Some(5 | 6) => "; another process holds a lock on it: let it finish",
        Some(8) => "; make the file and its directory writable",
        Some(10) => "; check the disk",
        Some(11) => "; the file is damaged: restore it from a backup",
        Some(13) => "; the disk is full: make room",
        Some(14) => "; check that the directory exists and may be written",
        Some(26) => "; the file is something else: choose another database_url",
        _ => "",
    };
    let text = match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        other => other.to_string(),
    };
    Error::Store { store: name.to_owned(), problem: format!("failed: {text}{advice}") }
}

fn migration_problem(name: &str, error: &sqlx::migrate::MigrateError) -> Error {
    use sqlx::migrate::MigrateError;

    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => problem(name, error),
        MigrateError::VersionMissing(_)
        | MigrateError::VersionMismatch(_)
        | MigrateError::VersionTooNew(..) => Error::Store {
            store: name.to_owned(),
            problem: format!(
                "was written by a later or different version of this program ({error}); use that version, or \
                 another database_url"
            ),
        },
        other => {
            Error::Store { store: name.to_owned(), problem: format!("cannot be brought up to date: {other}") }
        }
    }
}
