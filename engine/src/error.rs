//! What can go wrong, sorted by what the caller does next.
//!
//! One opaque [`Error`] for the crate; [`Error::kind`] is stable, the text is for people and may change.
//! Absence is never an error: calls return `Option`.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller can do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The call itself is wrong (over a limit, a dropped bucket): change the call.
    Invalid,
    /// The store is open for reading only: nothing was changed.
    ReadOnly,
    /// The value is not the ASCII decimal number that the call needs: nothing was changed.
    NotANumber,
    /// The result would not fit a signed 64-bit number: nothing was changed.
    Overflow,
    /// Another opener holds the store: close it there, or retry later.
    Locked,
    /// No space left where the store lives: nothing of this call was applied; reads and deletes go on.
    NoSpace,
    /// A file does not hold what was written to it: verify, restore from a backup. Nothing was deleted.
    Corrupt,
    /// The store's format is newer than this build, or not a store of kvasi at all: nothing was changed.
    Format,
    /// A sync or write failed earlier and the state of the disk is unknown: reopen the store.
    Poisoned,
    /// This commit may or may not survive; the next open decides, once and for all. Reopen the store.
    Indeterminate,
    /// The operating system refused a read or an open; nothing is known to be damaged.
    Io,
}

/// An error of the engine: a kind to act on, a text for people, and the cause where there is one.
///
/// Cheap to clone: group commit hands one failure to every waiter.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<io::Error>,
}

impl Error {
    /// What the caller can do next.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    #[cold]
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Arc::new(Inner { kind, message: message.into(), source: None }))
    }

    #[cold]
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Invalid, message)
    }

    /// Damage found at a byte of a file: names both, so that an operator can look.
    #[cold]
    pub(crate) fn corrupt(file: &str, offset: u64, what: impl fmt::Display) -> Self {
        Error::new(ErrorKind::Corrupt, format!("{file}, byte {offset}: {what}"))
    }

    /// A refused operating-system call; a full disk is told apart because callers live on after it.
    #[cold]
    pub(crate) fn io(what: impl fmt::Display, source: io::Error) -> Self {
        use io::ErrorKind as K;
        let kind = match source.kind() {
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        Error(Arc::new(Inner { kind, message: what.to_string(), source: Some(source) }))
    }

    /// A sync that failed, for whatever reason: the state of the disk is unknown, and a full disk is no excuse.
    #[cold]
    pub(crate) fn sync(what: impl fmt::Display, source: io::Error) -> Self {
        Error(Arc::new(Inner { kind: ErrorKind::Io, message: what.to_string(), source: Some(source) }))
    }

    /// As [`Error::io`], naming the path in question.
    #[cold]
    pub(crate) fn path(what: &str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Error::io(format_args!("{what} {}", path.into().display()), source)
    }

    /// The same failure under another kind: what was an I/O error here is a poisoned store there.
    #[cold]
    pub(crate) fn with_kind(&self, kind: ErrorKind, message: impl fmt::Display) -> Self {
        Error::new(kind, format!("{message}: {self}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        match &self.0.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|e| e as _)
    }
}
