//! increment and compare-and-swap: one call, one look at the key, one record.

use std::convert::Infallible;
use std::time::Duration;

use crossbeam_epoch as epoch;

use crate::bucket::{Bucket, after};
use crate::commit::{Decision, Outcome, Told, check_value};
use crate::error::{Error, ErrorKind, Result};
use crate::log::record::Record;
use crate::pending::Commit;
use crate::seeded::{Bug, seeded};
use crate::value::{Value, Version};

/// What became of a [`Bucket::compare_and_swap`].
#[derive(Clone, Debug)]
pub enum Swap {
    /// The value was written, under this version.
    Done(Version),
    /// The key is at another version. This is what it holds now, `None` if nothing; nothing was written.
    Conflict(Option<Value>),
}

/// Longest spelling of an i64: a sign and 19 digits.
const DIGITS_MAX: usize = 20;

impl Bucket {
    /// Adds `delta` to the number that a key holds, as ASCII decimal digits, and returns the sum; an absent key counts as
    /// 0. Always written in the shortest form. Increments by several threads are all counted, each result is unique.
    ///
    /// # Errors
    /// `NotANumber` if the value is not a decimal i64 (spaces, a plus sign or leading zeros are not), `Overflow` if the
    /// sum is not: the value is untouched. Otherwise as [`Bucket::set`].
    pub fn increment(&self, key: &[u8], delta: i64) -> Result<i64> {
        self.finish(self.begin_increment(key, delta, i64::MIN)?)
    }

    /// As [`Bucket::increment`], and a sum below `least` is `Overflow` too.
    ///
    /// # Errors
    /// As [`Bucket::increment`].
    pub fn increment_at_least(&self, key: &[u8], delta: i64, least: i64) -> Result<i64> {
        self.finish(self.begin_increment(key, delta, least)?)
    }

    /// As [`Bucket::increment`], without waiting for the disk.
    ///
    /// # Errors
    /// As [`Bucket::increment`]; a failing disk shows in the [`Commit`].
    pub fn start_increment(&self, key: &[u8], delta: i64) -> Result<Commit<i64>> {
        Ok(self.start(self.begin_increment(key, delta, i64::MIN)?))
    }

    /// As [`Bucket::increment_at_least`], without waiting for the disk.
    ///
    /// # Errors
    /// As [`Bucket::start_increment`].
    pub fn start_increment_at_least(&self, key: &[u8], delta: i64, least: i64) -> Result<Commit<i64>> {
        Ok(self.start(self.begin_increment(key, delta, least)?))
    }

    fn begin_increment(&self, key: &[u8], delta: i64, least: i64) -> Result<Told<i64>> {
        let mut digits = [0; DIGITS_MAX];
        let digits = &mut digits;
        let mut sum = 0;
        let early = if seeded(Bug::IncrementReadsEarly) { Some(self.get(key)?) } else { None };
        let told = self.write(key, |found| {
            let old = match &early {
                Some(early) => early.as_ref().map_or(Ok(0), |value| parse(value))?,
                None => found.map_or(Ok(0), |found| parse(found.record.value))?,
            };
            sum = old.checked_add(delta).filter(|&sum| sum >= least).ok_or_else(|| overflow(delta))?;
            let value = print(sum, digits);
            // The old deadline stays: counting does not prolong a life.
            let expires = found.and_then(|found| found.record.expires);
            Ok(Decision::<Infallible>::Write(Record { expires, ..Record::set(self.entry.id, key, value) }))
        })?;
        Ok(told.map(|_| sum))
    }

    /// Sets a key that has no value, for `ttl` from now on if there is one; the version of this write, `None` if the key has a
    /// value, and then nothing is written. Of several threads that do so one succeeds.
    ///
    /// # Errors
    /// As [`Bucket::set`].
    pub fn set_if_absent(&self, key: &[u8], value: &[u8], ttl: Option<Duration>) -> Result<Option<Version>> {
        self.finish(self.begin_set_if_absent(key, value, ttl)?)
    }

    /// As [`Bucket::set_if_absent`], without waiting for the disk.
    ///
    /// # Errors
    /// As [`Bucket::start_set`].
    pub fn start_set_if_absent(
        &self,
        key: &[u8],
        value: &[u8],
        ttl: Option<Duration>,
    ) -> Result<Commit<Option<Version>>> {
        Ok(self.start(self.begin_set_if_absent(key, value, ttl)?))
    }

    fn begin_set_if_absent(&self, key: &[u8], value: &[u8], ttl: Option<Duration>) -> Result<Told<Option<Version>>> {
        check_value(value)?;
        let expires = ttl.map(after);
        let told = self.write(key, |found| match found {
            Some(_) => Ok(Decision::Keep(())),
            None => Ok(Decision::Write(Record { expires, ..Record::set(self.entry.id, key, value) })),
        })?;
        Ok(told.map(|outcome| match outcome {
            Outcome::Kept(()) => None,
            Outcome::Written(version) => Some(Version(version)),
        }))
    }

    /// Writes `value` if the key is still at version `expected`, or still absent if that is `None`. Versions are compared
    /// and not values: a key that was changed and changed back, or deleted and made again, is at another version.
    ///
    /// # Errors
    /// As [`Bucket::set`]. A conflict is not an error.
    pub fn compare_and_swap(&self, key: &[u8], expected: Option<Version>, value: &[u8]) -> Result<Swap> {
        self.finish(self.begin_swap(key, expected, Some(value))?)
    }

    /// As [`Bucket::compare_and_swap`], without waiting for the disk.
    ///
    /// # Errors
    /// As [`Bucket::start_set`].
    pub fn start_compare_and_swap(&self, key: &[u8], expected: Option<Version>, value: &[u8]) -> Result<Commit<Swap>> {
        Ok(self.start(self.begin_swap(key, expected, Some(value))?))
    }

    /// Deletes the key if it is still at version `expected`.
    ///
    /// # Errors
    /// As [`Bucket::compare_and_swap`].
    pub fn delete_if(&self, key: &[u8], expected: Version) -> Result<Swap> {
        self.finish(self.begin_swap(key, Some(expected), None)?)
    }

    fn begin_swap(&self, key: &[u8], expected: Option<Version>, value: Option<&[u8]>) -> Result<Told<Swap>> {
        check_value(value.unwrap_or_default())?;
        let guard = &epoch::pin();
        let told = self.write(key, |found| {
            let same = found.map(|found| Version(found.version())) == expected
                || seeded(Bug::SwapIgnoresVersion) && found.is_some() && expected.is_some();
            if !same {
                return Ok(Decision::Keep(found.map(|found| Value::new(found, guard))));
            }
            Ok(Decision::Write(match value {
                Some(value) => Record::set(self.entry.id, key, value),
                None => Record::delete(self.entry.id, key),
            }))
        })?;
        Ok(told.map(|outcome| match outcome {
            Outcome::Kept(now) => Swap::Conflict(now),
            Outcome::Written(version) => Swap::Done(Version(version)),
        }))
    }
}

#[cold]
fn overflow(delta: i64) -> Error {
    Error::new(ErrorKind::Overflow, format!("adding {delta} leaves the range of the number"))
}

/// The number in these digits. The one spelling that we write, and no other: what is not exactly a number of ours may be
/// somebody's text.
fn parse(value: &[u8]) -> Result<i64> {
    let not_a_number = || Error::new(ErrorKind::NotANumber, "the value is not a decimal number");
    let text = std::str::from_utf8(value).map_err(|_| not_a_number())?;
    let number: i64 = text.parse().map_err(|_| not_a_number())?;
    if print(number, &mut [0; DIGITS_MAX]) == value { Ok(number) } else { Err(not_a_number()) }
}

/// The digits of a number.
fn print(number: i64, into: &mut [u8; DIGITS_MAX]) -> &[u8] {
    let mut left = number.unsigned_abs();
    let mut at = DIGITS_MAX;
    loop {
        at -= 1;
        into[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    if number < 0 {
        at -= 1;
        into[at] = b'-';
    }
    &into[at..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back_in_one_spelling_only() {
        for number in [0, 1, -1, 9, 10, -10, 41, i64::MAX, i64::MIN, i64::MAX - 1] {
            let mut digits = [0; DIGITS_MAX];
            assert_eq!(print(number, &mut digits), number.to_string().as_bytes());
            assert_eq!(parse(number.to_string().as_bytes()).unwrap(), number);
        }
        for other in ["", "-", "+1", "01", "-0", " 1", "1 ", "1.0", "0x1", "9223372036854775808", "\u{0663}"] {
            assert_eq!(parse(other.as_bytes()).unwrap_err().kind(), ErrorKind::NotANumber, "{other:?}");
        }
        assert!(parse(b"\xff").is_err());
    }

    #[test]
    fn an_absent_key_is_set_once_and_again_when_its_time_is_over() {
        let store = crate::Store::in_memory(crate::Options::new()).unwrap();
        let bucket = store.bucket("b").unwrap();
        let first = bucket.set_if_absent(b"k", b"1", None).unwrap();
        assert_eq!(bucket.get(b"k").unwrap().map(|value| value.version()), first);
        assert!(bucket.set_if_absent(b"k", b"2", None).unwrap().is_none());
        assert_eq!(bucket.get(b"k").unwrap().as_deref(), Some(&b"1"[..]));
        bucket.set_with_ttl(b"k", b"3", Duration::ZERO).unwrap();
        assert!(bucket.set_if_absent(b"k", b"4", Some(Duration::from_secs(3600))).unwrap() > first);
        assert!(bucket.start_set_if_absent(b"k", b"5", None).unwrap().wait().unwrap().is_none());
        bucket.start_set_with_ttl(b"k", b"6", Duration::ZERO).unwrap().wait().unwrap();
        assert!(!bucket.exists(b"k").unwrap());
    }

    #[test]
    fn a_sum_below_the_least_is_refused_and_changes_nothing() {
        let store = crate::Store::in_memory(crate::Options::new()).unwrap();
        let bucket = store.bucket("b").unwrap();
        assert_eq!(bucket.increment(b"k", -5).unwrap(), -5);
        assert_eq!(bucket.increment_at_least(b"k", 4, 0).unwrap_err().kind(), ErrorKind::Overflow);
        assert_eq!(bucket.start_increment_at_least(b"k", 4, 0).unwrap_err().kind(), ErrorKind::Overflow);
        assert_eq!(bucket.get(b"k").unwrap().as_deref(), Some(&b"-5"[..]));
        assert_eq!(bucket.increment_at_least(b"k", 5, 0).unwrap(), 0);
    }
}
