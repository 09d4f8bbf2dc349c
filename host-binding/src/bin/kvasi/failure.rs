//! What could not be done, as a text that says what to do about it.

use kvasi::ErrorKind;
use std::fmt;
use std::path::Path;

/// A text for the person at the terminal.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Failure(text.into())
    }

    /// As [`Failure::store`]; of a store that its host has open, what the host can do.
    pub(crate) fn store_or_host(dir: &Path, error: &kvasi::Error) -> Self {
        if error.kind() != ErrorKind::Locked {
            return Failure::store(dir, error);
        }
        Failure(format!(
            "store {}: {error}\n  or have that process do it: Store::backup, Store::verify and Store::stats of the crate \
             kvasi work beside its guests",
            dir.display()
        ))
    }

    /// The engine's reason, and the way out by its kind.
    pub(crate) fn store(dir: &Path, error: &kvasi::Error) -> Self {
        let advice = match error.kind() {
            ErrorKind::Locked => "close the other process that has it open, or name another directory with --store",
            ErrorKind::Corrupt => "nothing was deleted: copy the directory away, then restore a backup",
            ErrorKind::Format => {
                "nothing was changed: name another directory with --store, or use the kvasi that made it"
            }
            ErrorKind::NoSpace => "make room on the disk; reads and deletes still work",
            ErrorKind::Poisoned | ErrorKind::Indeterminate => "run the command again: opening decides what survived",
            ErrorKind::Io => "check that it is a directory that you may write to, or name another with --store",
            _ => return Failure(format!("store {}: {error}", dir.display())),
        };
        Failure(format!("store {}: {error}\n  {advice}", dir.display()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<kvasi_wasmtime::config::Error> for Failure {
    fn from(error: kvasi_wasmtime::config::Error) -> Self {
        match error {
            kvasi_wasmtime::config::Error::Open(dir, error) => Failure::store(&dir, &error),
            other => Failure(other.to_string()),
        }
    }
}
