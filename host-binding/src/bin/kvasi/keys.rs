//! The subcommands that look into a store: one call of the engine each.
//!
//! Reading changes no file and makes neither store nor bucket; setting and incrementing make both.

use crate::args::At;
use crate::failure::Failure;
use kvasi::{Bucket, ListOptions, Options, Store};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::process::ExitCode;

const ABSENT: ExitCode = ExitCode::FAILURE;

pub(crate) fn get(at: &At, key: &str) -> Result<ExitCode, Failure> {
    let Some(bucket) = existing(at, &read_only(&at.store)?)? else { return Ok(ABSENT) };
    match bucket.get(key.as_bytes()).map_err(|error| Failure::store(&at.store, &error))? {
        None => Ok(ABSENT),
        Some(value) => print(|out| out.write_all(&value)),
    }
}

pub(crate) fn set(at: &At, key: &str, value: &str) -> Result<ExitCode, Failure> {
    let mut bytes = Vec::new();
    let value = if value == "-" {
        let read = io::stdin().lock().read_to_end(&mut bytes);
        read.map_err(|error| Failure::new(format!("cannot read standard input: {error}")))?;
        &bytes
    } else {
        value.as_bytes()
    };
    created(at)?.set(key.as_bytes(), value).map_err(|error| Failure::store(&at.store, &error))?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn delete(at: &At, key: &str) -> Result<ExitCode, Failure> {
    there(&at.store)?;
    if let Some(bucket) = existing(at, &writable(&at.store, false)?)? {
        bucket.delete(key.as_bytes()).map_err(|error| Failure::store(&at.store, &error))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn exists(at: &At, key: &str) -> Result<ExitCode, Failure> {
    let Some(bucket) = existing(at, &read_only(&at.store)?)? else { return Ok(ABSENT) };
    let found = bucket.exists(key.as_bytes()).map_err(|error| Failure::store(&at.store, &error))?;
    Ok(if found { ExitCode::SUCCESS } else { ABSENT })
}

pub(crate) fn list(at: &At, prefix: &str, null: bool) -> Result<ExitCode, Failure> {
    let Some(bucket) = existing(at, &read_only(&at.store)?)? else { return Ok(ExitCode::SUCCESS) };
    let end: &[u8] = if null { b"\0" } else { b"\n" };
    let mut after = None;
    loop {
        let options = ListOptions { prefix: prefix.as_bytes(), after: after.as_deref(), ..ListOptions::default() };
        let page = bucket.list_keys(options).map_err(|error| Failure::store(&at.store, &error))?;
        print(|out| page.iter().try_for_each(|key| out.write_all(key).and_then(|()| out.write_all(end))))?;
        after = page.next().cloned();
        if after.is_none() {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

pub(crate) fn increment(at: &At, key: &str, delta: i64) -> Result<ExitCode, Failure> {
    let sum = created(at)?.increment(key.as_bytes(), delta).map_err(|error| match error.kind() {
        kvasi::ErrorKind::NotANumber => {
            Failure::new(format!("the value of {key:?} is not a decimal number: nothing was changed"))
        }
        kvasi::ErrorKind::Overflow => {
            Failure::new(format!("the sum at {key:?} would not fit 64 bits with a sign: nothing was changed"))
        }
        _ => Failure::store(&at.store, &error),
    })?;
    print(|out| writeln!(out, "{sum}"))
}

pub(crate) fn buckets(dir: &Path) -> Result<ExitCode, Failure> {
    let names = read_only(dir)?.buckets().map_err(|error| Failure::store(dir, &error))?;
    print(|out| names.iter().try_for_each(|name| writeln!(out, "{name}")))
}

/// The store to be read, with no file of it changed.
fn read_only(dir: &Path) -> Result<Store, Failure> {
    there(dir)?;
    Store::open_read_only(dir, Options::new()).map_err(|error| Failure::store(dir, &error))
}

fn writable(dir: &Path, create: bool) -> Result<Store, Failure> {
    Store::open(dir, Options::new().create(create)).map_err(|error| Failure::store(dir, &error))
}

pub(crate) fn there(dir: &Path) -> Result<(), Failure> {
    if dir.exists() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "there is no store at {}: `kvasi run` and `kvasi set` make one; --store names another place",
        dir.display()
    )))
}

fn existing(at: &At, store: &Store) -> Result<Option<Bucket>, Failure> {
    store.existing_bucket(&at.bucket).map_err(|error| Failure::store(&at.store, &error))
}

fn created(at: &At) -> Result<Bucket, Failure> {
    writable(&at.store, true)?.bucket(&at.bucket).map_err(|error| Failure::store(&at.store, &error))
}

/// Writes to standard output; a reader that has seen enough is no failure.
pub(crate) fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<ExitCode, Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}
