//! The cursor of `list-keys`: where the next page begins, in a string that the guest holds and hands back.
//!
//! | bytes | field                                                                                  |
//! |     1 | version of this layout, `1`                                                            |
//! |     8 | check, lower-case hex: over the bucket's identity, the form and the key                |
//! |     1 | form: `k`, the key as it is; `x`, the key in hex, for keys that are not UTF-8          |
//! |  rest | the last key that was looked at; the next page holds greater keys only                 |
//!
//! The check is over the prefix too where a listing has one: its cursors lead on in a listing with that prefix only.
//!
//! A guest of the first draft holds a number instead: [`Positions`] has the text behind it.
//!
//! Flow: `store::list_keys` -> [`encode`] -> guest -> [`decode`] -> `store::list_keys`.
//! Invariants: 1. No state: a cursor outlives the handle, the instance and the host. 2. Whatever comes back is either a
//! place in this very bucket or an error, never the beginning. 3. A cursor is a seek inside a bucket that the guest
//! may list anyway, so forging one gains nothing; the check finds accidents, it keeps no secrets.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;

const VERSION: u8 = b'1';
const HEADER_BYTES: usize = 10;
/// Longest cursor taken back, in bytes: the longest key of any back end, in hex.
const CURSOR_BYTES_MAX: usize = HEADER_BYTES + 2 * kvasi::KEY_BYTES_MAX;

/// What came back is no cursor of this bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Invalid;

/// The cursor for the page after `last` of the keys with `prefix`, in the bucket that `identity` names.
pub(crate) fn encode(identity: &str, prefix: &str, last: &[u8]) -> String {
    let text = std::str::from_utf8(last);
    let form = if text.is_ok() { 'k' } else { 'x' };
    let mut cursor = String::with_capacity(HEADER_BYTES + last.len());
    cursor.push(char::from(VERSION));
    push_hex(&mut cursor, &check_of(identity, prefix, form as u8, last));
    cursor.push(form);
    match text {
        Ok(text) => cursor.push_str(text),
        Err(_) => push_hex(&mut cursor, last),
    }
    cursor
}

/// The key that `cursor` stands after: borrowed from it wherever the key is text.
pub(crate) fn decode<'a>(identity: &str, prefix: &str, cursor: &'a str) -> Result<Cow<'a, [u8]>, Invalid> {
    let bytes = cursor.as_bytes();
    if bytes.len() > CURSOR_BYTES_MAX || bytes.first() != Some(&VERSION) {
        return Err(Invalid);
    }
    let (header, rest) = bytes.split_at_checked(HEADER_BYTES).ok_or(Invalid)?;
    let form = header[HEADER_BYTES - 1];
    let last = match form {
        b'k' => Cow::Borrowed(rest),
        b'x' => Cow::Owned(from_hex(rest)?),
        _ => return Err(Invalid),
    };
    if from_hex(&header[1..HEADER_BYTES - 1])? == check_of(identity, prefix, form, &last) {
        Ok(last)
    } else {
        Err(Invalid)
    }
}

fn check_of(identity: &str, prefix: &str, form: u8, last: &[u8]) -> [u8; 4] {
    let (identity, prefix, form) = (identity.as_bytes(), prefix.as_bytes(), &[form]);
    if prefix.is_empty() { check(&[identity, form, last]) } else { check(&[identity, form, last, prefix]) }
}

/// A 32-bit check: FNV-1a of 64 bits over the parts, each preceded by its length, folded in half.
pub(crate) fn check(parts: &[&[u8]]) -> [u8; 4] {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut eat = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    for part in parts {
        (part.len() as u64).to_le_bytes().into_iter().for_each(&mut eat);
        part.iter().copied().for_each(&mut eat);
    }
    ((hash >> 32) as u32 ^ hash as u32).to_le_bytes()
}

pub(crate) fn push_hex(out: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

/// Strict: lower-case digits in pairs, so that a key has one cursor and no other.
pub(crate) fn from_hex(digits: &[u8]) -> Result<Vec<u8>, Invalid> {
    let (pairs, []) = digits.as_chunks::<2>() else { return Err(Invalid) };
    pairs.iter().map(|&[high, low]| Ok(digit(high)? << 4 | digit(low)?)).collect()
}

fn digit(byte: u8) -> Result<u8, Invalid> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(Invalid),
    }
}

/// Most positions kept, and most bytes of them: what a guest that lists without end makes the host hold.
const POSITIONS_MAX: usize = 1024;
const POSITION_BYTES_MAX: usize = 1 << 20;

/// Cursors behind numbers, for guests whose cursor is one: drawn at random, so that a number that was never given, or that has been
/// given up, is found out. The oldest are given up first.
#[derive(Debug, Default)]
pub(crate) struct Positions {
    /// Keyed at random, which makes the numbers.
    numbers: RandomState,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    drawn: u64,
    bytes: usize,
    /// In the order in which they were given.
    order: VecDeque<u64>,
    cursors: HashMap<u64, String>,
}

impl Positions {
    /// The number for `cursor`.
    pub(crate) fn keep(&self, cursor: String) -> u64 {
        let mut kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let number = loop {
            kept.drawn += 1;
            let number = self.numbers.hash_one(kept.drawn);
            if !kept.cursors.contains_key(&number) {
                break number;
            }
        };
        kept.bytes += cursor.len();
        kept.order.push_back(number);
        kept.cursors.insert(number, cursor);
        // The newest stays, however long it is.
        while kept.order.len() > POSITIONS_MAX || kept.bytes > POSITION_BYTES_MAX && kept.order.len() > 1 {
            let Some(oldest) = kept.order.pop_front() else { break };
            let gone = kept.cursors.remove(&oldest).map_or(0, |cursor| cursor.len());
            kept.bytes -= gone;
        }
        number
    }

    /// The cursor behind `number`; it stays for the next time.
    pub(crate) fn find(&self, number: u64) -> Option<String> {
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner).cursors.get(&number).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_up_oldest_first_and_within_bounds() {
        let positions = Positions::default();
        let numbers: Vec<u64> = (0..POSITIONS_MAX + 10).map(|i| positions.keep(format!("c{i}"))).collect();
        assert!(numbers[..10].iter().all(|&number| positions.find(number).is_none()));
        for (i, &number) in numbers.iter().enumerate().skip(10) {
            assert_eq!(positions.find(number), Some(format!("c{i}")));
        }
        let long = positions.keep("x".repeat(POSITION_BYTES_MAX));
        assert!(positions.find(long).is_some() && numbers.iter().all(|&number| positions.find(number).is_none()));
        assert!(positions.find(positions.keep("y".into())).is_some() && positions.find(long).is_none());
        for guessed in (0..2000).chain([u64::MAX]) {
            assert!(positions.find(guessed).is_none(), "{guessed} is no index");
        }
    }

    #[test]
    fn a_cursor_leads_on_with_its_prefix_only() {
        let cursor = encode("b", "k", b"key");
        assert_eq!(&*decode("b", "k", &cursor).unwrap(), b"key");
        assert_eq!(decode("b", "", &cursor), Err(Invalid));
        assert_eq!(decode("b", "ke", &cursor), Err(Invalid));
        assert_eq!(decode("b", "k", &encode("b", "", b"key")), Err(Invalid));
    }

    #[test]
    fn every_key_comes_back() {
        let long = "x".repeat(4096);
        for key in ["", "a", "1", "\0", "a/b", "\u{10ffff}", "e\u{301}", long.as_str()] {
            assert_eq!(&*decode("b", "", &encode("b", "", key.as_bytes())).unwrap(), key.as_bytes());
        }
        for key in [&b"\xff"[..], b"a\x80", &[0xfe; 300]] {
            assert_eq!(&*decode("b", "", &encode("b", "", key)).unwrap(), key);
        }
    }

    #[test]
    fn layout_is_pinned() {
        let cursor = encode("visits", "", b"key");
        assert_eq!(cursor.len(), 13);
        assert!(cursor.starts_with('1') && cursor.ends_with("kkey"), "{cursor}");
        assert_eq!(cursor, encode("visits", "", b"key"));
    }

    #[test]
    fn foreign_damaged_and_overlong_are_refused() {
        let good = encode("b", "", b"some key");
        assert_eq!(decode("c", "", &good), Err(Invalid), "another bucket");
        for text in ["", "1", "0", "18446744073709551615", "100000000k", "1zzzzzzzzkkey"] {
            assert_eq!(decode("b", "", text), Err(Invalid), "{text}");
        }
        for at in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[at] ^= 1;
            assert_eq!(decode("b", "", std::str::from_utf8(&bytes).unwrap()), Err(Invalid), "byte {at}");
            assert_eq!(decode("b", "", &good[..at]), Err(Invalid), "cut at {at}");
        }
        assert_eq!(decode("b", "", &"1".repeat(CURSOR_BYTES_MAX + 1)), Err(Invalid));
    }
}
