//! The version token of a key, for guests that hold it as text between two calls.
//!
//! | bytes | field                                                                                       |
//! |     8 | check, lower-case hex: over the bucket's identity, the key and the rest                     |
//! |     1 | kind: `e`, a version of the engine, 16 hex digits; `t`, a token of another back end, in hex |
//! |  rest | which write it names                                                                        |
//!
//! Flow: a back end's [`Guard`] -> [`encode`] -> guest -> [`decode`] -> the back end.
//! Invariants: 1. What comes back names a write of this very key, or is no token at all, which no write has. 2. The check finds
//! accidents, it keeps no secrets: a guest that forges a token may swap, as it may write.

use crate::backend::Guard;
use crate::cursor::{check, from_hex, push_hex};
use bytes::Bytes;

const CHECK_BYTES: usize = 8;
/// Longest token taken back, in bytes: what back ends give is shorter by far.
const TOKEN_BYTES_MAX: usize = 4096;

/// The token of the write that `guard` names; `None` if it names none, because the key is absent.
pub(crate) fn encode(identity: &str, key: &str, guard: &Guard) -> Option<String> {
    let mut rest = String::new();
    match guard {
        Guard::Absent => return None,
        Guard::Version(version) => {
            rest.push('e');
            push_hex(&mut rest, &version.get().to_le_bytes());
        }
        Guard::Token(token) => {
            rest.push('t');
            push_hex(&mut rest, token);
        }
    }
    let mut token = String::with_capacity(CHECK_BYTES + rest.len());
    push_hex(&mut token, &check(&[identity.as_bytes(), key.as_bytes(), rest.as_bytes()]));
    token.push_str(&rest);
    Some(token)
}

/// The write that `token` names; `None` if it names none of this key.
pub(crate) fn decode(identity: &str, key: &str, token: &str) -> Option<Guard> {
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let (found, rest) = token.as_bytes().split_at_checked(CHECK_BYTES)?;
    if from_hex(found).ok()? != check(&[identity.as_bytes(), key.as_bytes(), rest]) {
        return None;
    }
    match rest.split_first()? {
        (b'e', digits) => {
            let version = u64::from_le_bytes(from_hex(digits).ok()?.try_into().ok()?);
            Some(Guard::Version(kvasi::Version::from_u64(version)))
        }
        (b't', digits) => Some(Guard::Token(Bytes::from(from_hex(digits).ok()?))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_write_of_its_key_and_no_other() {
        for guard in [
            Guard::Version(kvasi::Version::from_u64(0)),
            Guard::Version(kvasi::Version::from_u64(u64::MAX)),
            Guard::Token(Bytes::from_static(b"\"etag\"\xff")),
            Guard::Token(Bytes::new()),
        ] {
            let token = encode("b", "k", &guard).unwrap();
            assert_eq!(decode("b", "k", &token).as_ref(), Some(&guard));
            assert_eq!(decode("c", "k", &token), None);
            assert_eq!(decode("b", "l", &token), None);
            for at in 0..token.len() {
                let mut damaged = token.clone().into_bytes();
                damaged[at] ^= 1;
                assert_eq!(decode("b", "k", std::str::from_utf8(&damaged).unwrap()), None);
                assert_eq!(decode("b", "k", &token[..at]), None);
            }
        }
        assert_eq!(encode("b", "k", &Guard::Absent), None);
        for foreign in ["", "0", "e", "00000000e", "\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}", &"0".repeat(1 << 20)] {
            assert_eq!(decode("b", "k", foreign), None);
        }
    }
}
