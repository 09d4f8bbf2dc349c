//! SQLite, through rusqlite: tuned for this work, and as Spin's key-value store uses it.

use super::{Class, Engine, Gives, Key, Kind, Session};
use kvasi_bench::Result;
use rusqlite::{Connection, OptionalExtension, params};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(crate) const TUNED: Kind = Kind {
    name: "sqlite",
    gives: Gives::ProcessDeath,
    syncs: true,
    settings: "WAL, synchronous=OFF (survives the process), for the sync rows synchronous=FULL; WITHOUT ROWID, cache \
               256 MiB, mmap 1 GiB, wal_autocheckpoint 10,000 pages, prepared statements, a connection per thread",
    open: open_tuned,
};

pub(crate) const SPIN: Kind = Kind {
    name: "sqlite-spin",
    gives: Gives::PowerCut,
    syncs: true,
    settings: "as Spin ships it: no pragmas (rollback journal, synchronous=FULL), its table and statements, one \
               connection behind a lock",
    open: open_spin,
};

/// The statements, in the two layouts. `?1` is the key everywhere.
struct Statements {
    get: &'static str,
    exists: &'static str,
    set: &'static str,
    delete: &'static str,
    increment: &'static str,
    list: &'static str,
}

const TUNED_SQL: Statements = Statements {
    get: "SELECT value FROM kv WHERE key = ?1",
    exists: "SELECT 1 FROM kv WHERE key = ?1",
    set: "INSERT INTO kv (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
    delete: "DELETE FROM kv WHERE key = ?1",
    increment: "INSERT INTO kv (key, value) VALUES (?1, CAST(CAST(?2 AS TEXT) AS BLOB)) ON CONFLICT (key) DO UPDATE \
                SET value = CAST(CAST(CAST(CAST(value AS TEXT) AS INTEGER) + ?2 AS TEXT) AS BLOB) \
                RETURNING CAST(CAST(value AS TEXT) AS INTEGER)",
    list: "SELECT key FROM kv WHERE key > ?1 ORDER BY key LIMIT ?2",
};

const SPIN_SQL: Statements = Statements {
    get: "SELECT value FROM spin_key_value WHERE store = 'default' AND key = ?1",
    exists: "SELECT 1 FROM spin_key_value WHERE store = 'default' AND key = ?1",
    set: "INSERT INTO spin_key_value (store, key, value) VALUES ('default', ?1, ?2) \
          ON CONFLICT (store, key) DO UPDATE SET value = excluded.value",
    delete: "DELETE FROM spin_key_value WHERE store = 'default' AND key = ?1",
    increment: "INSERT INTO spin_key_value (store, key, value) VALUES ('default', ?1, CAST(CAST(?2 AS TEXT) AS BLOB)) \
                ON CONFLICT (store, key) DO UPDATE \
                SET value = CAST(CAST(CAST(CAST(value AS TEXT) AS INTEGER) + ?2 AS TEXT) AS BLOB) \
                RETURNING CAST(CAST(value AS TEXT) AS INTEGER)",
    list: "SELECT key FROM spin_key_value WHERE store = 'default' AND key > ?1 ORDER BY key LIMIT ?2",
};

struct Tuned {
    path: PathBuf,
    class: Class,
}

struct Spin(Mutex<Connection>);

fn open_tuned(dir: &Path, class: Class) -> Result<Box<dyn Engine>> {
    let tuned = Tuned { path: dir.join("kv.sqlite"), class };
    let connection = tuned.connect()?;
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS kv (key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    )?;
    Ok(Box::new(tuned))
}

fn open_spin(dir: &Path, _: Class) -> Result<Box<dyn Engine>> {
    let connection = Connection::open(dir.join("sqlite_key_value.db"))?;
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS spin_key_value (store TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, \
         PRIMARY KEY (store, key))",
    )?;
    Ok(Box::new(Spin(Mutex::new(connection))))
}

impl Tuned {
    fn connect(&self) -> Result<Connection> {
        let connection = Connection::open(&self.path)?;
        connection.busy_timeout(Duration::from_secs(60))?;
        let synchronous = match self.class {
            Class::Process => "OFF",
            Class::Sync => "FULL",
        };
        connection.execute_batch(&format!(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous={synchronous}; PRAGMA cache_size=-262144; \
             PRAGMA mmap_size=1073741824; PRAGMA wal_autocheckpoint=10000; PRAGMA temp_store=MEMORY"
        ))?;
        Ok(connection)
    }
}

impl Engine for Tuned {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(OfOwn { connection: self.connect()?, sql: &TUNED_SQL }))
    }

    fn rest(&self) -> Result<()> {
        self.connect()?.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.rest()
    }
}

impl Engine for Spin {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(Shared { connection: &self.0, sql: &SPIN_SQL }))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// A thread's own connection.
struct OfOwn {
    connection: Connection,
    sql: &'static Statements,
}

/// The one connection of all threads.
struct Shared<'a> {
    connection: &'a Mutex<Connection>,
    sql: &'static Statements,
}

/// A connection to be had for the length of a call.
trait Connected {
    fn with<R>(&mut self, call: impl FnOnce(&Connection, &Statements) -> Result<R>) -> Result<R>;
}

impl Connected for OfOwn {
    fn with<R>(&mut self, call: impl FnOnce(&Connection, &Statements) -> Result<R>) -> Result<R> {
        call(&self.connection, self.sql)
    }
}

impl Connected for Shared<'_> {
    fn with<R>(&mut self, call: impl FnOnce(&Connection, &Statements) -> Result<R>) -> Result<R> {
        let connection: MutexGuard<'_, Connection> = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        call(&connection, self.sql)
    }
}

/// Keys are text to both layouts.
fn text(key: &Key) -> Result<&str> {
    Ok(std::str::from_utf8(key)?)
}

/// Runs `calls` as one write transaction, taken at its start so that two writers queue instead of failing.
fn transaction<R>(connection: &Connection, calls: impl FnOnce() -> Result<R>) -> Result<R> {
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    match calls() {
        Ok(done) => {
            connection.prepare_cached("COMMIT")?.execute([])?;
            Ok(done)
        }
        Err(error) => {
            connection.execute_batch("ROLLBACK")?;
            Err(error)
        }
    }
}

fn read(connection: &Connection, sql: &Statements, key: &Key, into: &mut Vec<u8>) -> Result<bool> {
    let mut statement = connection.prepare_cached(sql.get)?;
    let mut rows = statement.query(params![text(key)?])?;
    let Some(row) = rows.next()? else { return Ok(false) };
    into.extend_from_slice(row.get_ref(0)?.as_bytes()?);
    Ok(true)
}

impl<C: Connected> Session for C {
    fn get(&mut self, key: &Key, into: &mut Vec<u8>) -> Result<bool> {
        into.clear();
        self.with(|connection, sql| read(connection, sql, key, into))
    }

    fn exists(&mut self, key: &Key) -> Result<bool> {
        self.with(|connection, sql| Ok(connection.prepare_cached(sql.exists)?.exists(params![text(key)?])?))
    }

    fn set(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        self.with(|connection, sql| {
            connection.prepare_cached(sql.set)?.execute(params![text(key)?, value])?;
            Ok(())
        })
    }

    fn delete(&mut self, key: &Key) -> Result<()> {
        self.with(|connection, sql| {
            connection.prepare_cached(sql.delete)?.execute(params![text(key)?])?;
            Ok(())
        })
    }

    fn increment(&mut self, key: &Key, delta: i64) -> Result<i64> {
        self.with(|connection, sql| {
            let mut statement = connection.prepare_cached(sql.increment)?;
            Ok(statement.query_row(params![text(key)?, delta], |row| row.get(0))?)
        })
    }

    fn compare_and_swap(&mut self, key: &Key, expected: Option<&[u8]>, value: &[u8]) -> Result<bool> {
        self.with(|connection, sql| {
            transaction(connection, || {
                let now: Option<Vec<u8>> =
                    connection.prepare_cached(sql.get)?.query_row(params![text(key)?], |row| row.get(0)).optional()?;
                if now.as_deref() != expected {
                    return Ok(false);
                }
                connection.prepare_cached(sql.set)?.execute(params![text(key)?, value])?;
                Ok(true)
            })
        })
    }

    fn get_many(&mut self, keys: &[Key], into: &mut Vec<u8>) -> Result<usize> {
        self.with(|connection, sql| {
            connection.prepare_cached("BEGIN DEFERRED")?.execute([])?;
            let mut found = 0;
            for key in keys {
                found += usize::from(read(connection, sql, key, into)?);
            }
            connection.prepare_cached("COMMIT")?.execute([])?;
            Ok(found)
        })
    }

    fn set_many(&mut self, pairs: &[(Key, &[u8])]) -> Result<()> {
        self.with(|connection, sql| {
            transaction(connection, || {
                for (key, value) in pairs {
                    connection.prepare_cached(sql.set)?.execute(params![text(key)?, value])?;
                }
                Ok(())
            })
        })
    }

    fn delete_many(&mut self, keys: &[Key]) -> Result<()> {
        self.with(|connection, sql| {
            transaction(connection, || {
                for key in keys {
                    connection.prepare_cached(sql.delete)?.execute(params![text(key)?])?;
                }
                Ok(())
            })
        })
    }

    fn list(&mut self, after: Option<&Key>, keys_max: usize, into: &mut Vec<u8>) -> Result<usize> {
        self.with(|connection, sql| {
            let mut statement = connection.prepare_cached(sql.list)?;
            let after = after.map_or(Ok(""), text)?;
            let mut rows = statement.query(params![after, keys_max as i64])?;
            let mut listed = 0;
            while let Some(row) = rows.next()? {
                into.extend_from_slice(row.get_ref(0)?.as_bytes()?);
                listed += 1;
            }
            Ok(listed)
        })
    }
}
