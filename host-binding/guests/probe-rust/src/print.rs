//! How results look: percent-encoded, long values as length and hash. ../../README.md defines it.

use std::fmt::{self, Write};

use crate::Error;
use crate::args::Malformed;

const VALUE_SHOWN_BYTES_MAX: usize = 64;

/// Why a command has no result; what follows `err`.
pub enum Failure {
    Malformed,
    EmptySlot,
    Text(&'static str),
    /// In this round of many.
    TextAt(u64, &'static str),
    Store(Error),
    /// In this round of many.
    StoreAt(u64, Error),
}

impl Failure {
    pub fn at(round: u64, error: Error) -> Self {
        Failure::StoreAt(round, error)
    }
}

impl From<Malformed> for Failure {
    fn from(_: Malformed) -> Self {
        Failure::Malformed
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Store(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Malformed => f.write_str("bad-command"),
            Failure::EmptySlot => f.write_str("empty-slot"),
            Failure::Text(text) => f.write_str(text),
            Failure::TextAt(round, text) => write!(f, "{round} {text}"),
            Failure::Store(why) => f.write_str(&error(why)),
            Failure::StoreAt(round, why) => write!(f, "{round} {}", error(why)),
        }
    }
}

pub fn error(error: &Error) -> String {
    match error {
        Error::NoSuchStore => "no-such-store".into(),
        Error::AccessDenied => "access-denied".into(),
        Error::Other(why) => format!("other({})", text(why)),
    }
}

pub fn encode(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "%".into();
    }
    let mut encoded = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"_./:+-".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("a string takes any text");
        }
    }
    encoded
}

pub fn text(text: &str) -> String {
    encode(text.as_bytes())
}

pub fn value(value: &[u8]) -> String {
    if value.len() <= VALUE_SHOWN_BYTES_MAX {
        return encode(value);
    }
    let mut hash = Fnv::new();
    hash.bytes(value);
    format!("#{}:{hash}", value.len())
}

pub fn option(stored: Option<Vec<u8>>) -> String {
    stored.map_or("none".into(), |stored| format!("some {}", value(&stored)))
}

/// FNV-1a, 64 bits; prints as 16 hex digits.
pub struct Fnv(u64);

impl Fnv {
    pub fn new() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    /// `bytes` and a closing 0xff, so that neighbours cannot run into each other.
    pub fn item(&mut self, bytes: &[u8]) {
        self.bytes(bytes);
        self.bytes(&[0xff]);
    }
}

impl fmt::Display for Fnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
