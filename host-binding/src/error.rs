//! One table: what went wrong in a back end, what the guest reads of it, and what stays with the host.
//!
//! Flow: `backend` -> [`Error`] (a [`Code`] and a detail) -> [`Error::for_guest`] -> [`Refusal`] -> the type `error` of the guest's
//! shape of the interface; the detail goes to `tracing` on the way. Limits and cursors of the binding itself make an `Error` of the same table.
//! Invariant: a guest reads a text of [`Code::text`] and no other: no path, errno, address, key or name of another tenant.

use crate::bindings::store::Error as WitError;
use kvasi::ErrorKind;
use std::fmt;

/// Why a call failed, from a closed list: what a guest may act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// Key, value, batch or answer is over a limit of this host.
    TooLarge,
    /// The cursor was not given by a listing of this bucket, or is damaged.
    InvalidCursor,
    /// The value is not a decimal number: nothing was changed.
    NotANumber,
    /// The sum does not fit the number's type: nothing was changed.
    Overflow,
    /// The component holds as many open handles as it may.
    TooManyHandles,
    /// The component's share is used up.
    Quota,
    /// No space is left where the data lives; reads and deletes go on.
    NoSpace,
    /// The bucket takes no writes.
    ReadOnly,
    /// The back end did not answer in time; nothing was applied.
    Timeout,
    /// The back end cannot take the call now: retry later.
    Busy,
    /// The write may or may not have been applied: read before writing again.
    Indeterminate,
    /// Stored data is damaged. Nothing was deleted.
    Corrupt,
    /// The back end has no such thing as the call asks for.
    Unsupported,
    /// The back end refuses the call as it stands.
    Invalid,
    /// The back end failed.
    Io,
}

impl Code {
    /// The whole list.
    pub const ALL: &'static [Code] = &[
        Code::TooLarge,
        Code::InvalidCursor,
        Code::NotANumber,
        Code::Overflow,
        Code::TooManyHandles,
        Code::Quota,
        Code::NoSpace,
        Code::ReadOnly,
        Code::Timeout,
        Code::Busy,
        Code::Indeterminate,
        Code::Corrupt,
        Code::Unsupported,
        Code::Invalid,
        Code::Io,
    ];

    /// The text a guest reads: stable, and all that it reads.
    pub const fn text(self) -> &'static str {
        match self {
            Code::TooLarge => "too-large",
            Code::InvalidCursor => "invalid-cursor",
            Code::NotANumber => "not-a-number",
            Code::Overflow => "overflow",
            Code::TooManyHandles => "too-many-handles",
            Code::Quota => "quota",
            Code::NoSpace => "no-space",
            Code::ReadOnly => "read-only",
            Code::Timeout => "timeout",
            Code::Busy => "busy",
            Code::Indeterminate => "indeterminate",
            Code::Corrupt => "corrupt",
            Code::Unsupported => "not-supported",
            Code::Invalid => "invalid",
            Code::Io => "io",
        }
    }

    /// Whether the guest's own call is the cause: then the host's log need not be alarmed.
    const fn is_of_the_call(self) -> bool {
        matches!(
            self,
            Code::TooLarge
                | Code::InvalidCursor
                | Code::NotANumber
                | Code::Overflow
                | Code::TooManyHandles
                | Code::Quota
        )
    }
}

/// An error of a back end: a code for the guest, a detail for the host's log.
#[derive(Debug)]
pub struct Error {
    code: Code,
    detail: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error whose code says it all.
    #[cold]
    pub fn new(code: Code) -> Self {
        Error { code, detail: None }
    }

    /// An error with what the operator needs to know: it is logged, never shown to a guest.
    #[cold]
    pub fn with_detail(code: Code, detail: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Error { code, detail: Some(detail.into()) }
    }

    /// What the guest will be told.
    pub fn code(&self) -> Code {
        self.code
    }

    /// What the guest is told; the detail goes to the host's log under the bucket's name in the configuration.
    #[cold]
    pub(crate) fn for_guest(self, bucket: &str, call: &'static str) -> Refusal {
        let code = self.code.text();
        match &self.detail {
            Some(detail) if !self.code.is_of_the_call() => {
                tracing::error!(bucket = ?bucket, call, code, detail = ?detail.to_string(), "the back end failed");
            }
            _ => tracing::debug!(bucket = ?bucket, call, code, "call refused"),
        }
        Refusal::Failed(self.code)
    }
}

/// Why a guest does not get what it asked for, whatever shape of the interface it asks through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No bucket of that name.
    NoSuchStore,
    /// The bucket, or what is to be done with it, is not granted.
    AccessDenied,
    /// The call failed.
    Failed(Code),
}

impl From<Refusal> for WitError {
    #[cold]
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NoSuchStore => WitError::NoSuchStore,
            Refusal::AccessDenied => WitError::AccessDenied,
            Refusal::Failed(code) => WitError::Other(code.text().to_owned()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code.text())?;
        self.detail.as_ref().map_or(Ok(()), |detail| write!(f, ": {detail}"))
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.detail.as_ref().map(|detail| &**detail as _)
    }
}

impl From<kvasi::Error> for Error {
    #[cold]
    fn from(error: kvasi::Error) -> Self {
        let code = match error.kind() {
            ErrorKind::Invalid => Code::Invalid,
            ErrorKind::ReadOnly => Code::ReadOnly,
            ErrorKind::NotANumber => Code::NotANumber,
            ErrorKind::Overflow => Code::Overflow,
            ErrorKind::Locked => Code::Busy,
            ErrorKind::NoSpace => Code::NoSpace,
            ErrorKind::Corrupt => Code::Corrupt,
            ErrorKind::Indeterminate => Code::Indeterminate,
            // Format, Poisoned, Io, and what later engines add: the operator's matter, not the guest's.
            _ => Code::Io,
        };
        Error::with_detail(code, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_reads_the_code_and_nothing_of_the_detail() {
        let error = Error::with_detail(Code::Io, "open /srv/tenant-b/000001.log: permission denied (os error 13)");
        let WitError::Other(text) = error.for_guest("visits", "get").into() else { panic!("a text") };
        assert_eq!(text, "io");
    }
}
