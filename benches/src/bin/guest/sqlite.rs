//! SQLite as a back end of the binding, so that the same guest writes to it: as Spin's key-value store uses it, and tuned.
//!
//! Flow: guest -> `kvasi-wasmtime` -> here -> `rusqlite`. What cannot be asked of it is not: the guest sets only.

use kvasi_bench::Result;
use kvasi_wasmtime::backend::{Guard, Key, LocalBucket, Observed, Page, PageBounds, Pair, Swap};
use kvasi_wasmtime::{Code, Error};
use rusqlite::{Connection, OptionalExtension, params};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How the database is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// No pragmas (rollback journal, synchronous=FULL), Spin's table and statements.
    Spin,
    /// Write-ahead log; without a sync it survives the death of the process.
    Tuned { sync: bool },
}

/// One connection behind a lock, as Spin has it: a guest's calls come one at a time, and SQLite has one writer.
pub(crate) struct Sqlite {
    connection: Mutex<Connection>,
    way: Way,
}

impl Sqlite {
    pub(crate) fn open(path: &Path, way: Way) -> Result<Sqlite> {
        let connection = Connection::open(path)?;
        connection.execute_batch(match way {
            Way::Spin => {
                "CREATE TABLE IF NOT EXISTS spin_key_value (store TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, \
                 PRIMARY KEY (store, key))"
            }
            Way::Tuned { sync: false } => concat!(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; PRAGMA cache_size=-262144; PRAGMA mmap_size=1073741824; ",
                "PRAGMA wal_autocheckpoint=10000; PRAGMA temp_store=MEMORY; ",
                "CREATE TABLE IF NOT EXISTS kv (key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
            ),
            Way::Tuned { sync: true } => concat!(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-262144; PRAGMA mmap_size=1073741824; ",
                "PRAGMA wal_autocheckpoint=10000; PRAGMA temp_store=MEMORY; ",
                "CREATE TABLE IF NOT EXISTS kv (key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
            ),
        })?;
        Ok(Sqlite { connection: Mutex::new(connection), way })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed(error: rusqlite::Error) -> Error {
    Error::with_detail(Code::Io, error)
}

fn unsupported<R>() -> std::result::Result<R, Error> {
    Err(Error::new(Code::Unsupported))
}

impl LocalBucket for Sqlite {
    fn identity(&self) -> &str {
        "sqlite"
    }

    fn get(&self, key: &str) -> std::result::Result<Option<bytes::Bytes>, Error> {
        let sql = match self.way {
            Way::Spin => "SELECT value FROM spin_key_value WHERE store = 'default' AND key = ?1",
            Way::Tuned { .. } => "SELECT value FROM kv WHERE key = ?1",
        };
        let connection = self.connection();
        let mut statement = connection.prepare_cached(sql).map_err(failed)?;
        let value: Option<Vec<u8>> = statement.query_row(params![key], |row| row.get(0)).optional().map_err(failed)?;
        Ok(value.map(bytes::Bytes::from))
    }

    fn exists(&self, key: &str) -> std::result::Result<bool, Error> {
        Ok(self.get(key)?.is_some())
    }

    fn set(&self, key: &str, value: &[u8]) -> std::result::Result<(), Error> {
        let sql = match self.way {
            Way::Spin => {
                "INSERT INTO spin_key_value (store, key, value) VALUES ('default', ?1, ?2) \
                 ON CONFLICT (store, key) DO UPDATE SET value = excluded.value"
            }
            Way::Tuned { .. } => {
                "INSERT INTO kv (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
            }
        };
        let connection = self.connection();
        connection.prepare_cached(sql).and_then(|mut set| set.execute(params![key, value])).map_err(failed)?;
        Ok(())
    }

    fn delete(&self, _: &str) -> std::result::Result<(), Error> {
        unsupported()
    }

    fn list(&self, _: Option<&[u8]>, _: PageBounds) -> std::result::Result<Page, Error> {
        unsupported()
    }

    fn increment(&self, _: &str, _: i64) -> std::result::Result<i64, Error> {
        unsupported()
    }

    fn observe(&self, _: &str) -> std::result::Result<Observed, Error> {
        unsupported()
    }

    fn swap(&self, _: &str, _: &Guard, _: &[u8]) -> std::result::Result<Swap, Error> {
        unsupported()
    }

    fn get_many(&self, _: &[Key<'_>]) -> std::result::Result<Vec<Option<Pair>>, Error> {
        unsupported()
    }

    fn set_many(&self, _: &[(Key<'_>, &[u8])]) -> std::result::Result<(), Error> {
        unsupported()
    }

    fn delete_many(&self, _: &[Key<'_>]) -> std::result::Result<(), Error> {
        unsupported()
    }
}
