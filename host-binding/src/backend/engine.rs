//! The kvasi engine as a back end: a store on local files.
//!
//! Flow: `LocalBucket` -> `kvasi::Bucket`. Values and keys come back as counted slices of the engine's own memory. A write that
//! is started is made before its `start_` method returns; what may be on its way is the disk's part of it.
//! Invariant: no call here copies a value or keeps anything between calls.

use super::{
    Backend, Capabilities, Guard, Key, LocalBucket, Observed, Page, PageBounds, Pair, Reply, SetOptions, Swap,
};
use crate::{Code, Error, Usage, Utf8Bytes};
use bytes::Bytes;
use kvasi::{Bucket, Commit, ListOptions, Store, Value};
use std::sync::Arc;

impl Backend for Store {
    fn capabilities(&self) -> Capabilities {
        Capabilities::ENGINE
    }

    fn bucket(&self, name: &str) -> Result<Arc<dyn LocalBucket>, Error> {
        Ok(Arc::new(Store::bucket(self, name)?))
    }
}

impl LocalBucket for Bucket {
    fn identity(&self) -> &str {
        self.name()
    }

    fn watchable(&self) -> Option<Bucket> {
        Some(self.clone())
    }

    fn usage(&self) -> Result<Option<Usage>, Error> {
        let held = self.stats()?;
        Ok(Some(Usage { bytes: held.key_bytes + held.value_bytes, keys: held.keys }))
    }

    fn stands_when_started(&self) -> bool {
        true
    }

    fn look_newest(&self, key: &str, look: &mut dyn FnMut(Option<&[u8]>)) -> Result<(), Error> {
        Ok(Bucket::look_newest(self, key.as_bytes(), look)?)
    }

    fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        Ok(Bucket::get(self, key.as_bytes())?.map(Value::into_bytes))
    }

    fn exists(&self, key: &str) -> Result<bool, Error> {
        Ok(Bucket::exists(self, key.as_bytes())?)
    }

    fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        Bucket::set(self, key.as_bytes(), value)?;
        Ok(())
    }

    fn set_with(&self, key: &str, value: &[u8], options: SetOptions) -> Result<bool, Error> {
        let key = key.as_bytes();
        Ok(match options {
            SetOptions { if_absent: true, ttl } => self.set_if_absent(key, value, ttl)?.is_some(),
            SetOptions { ttl: Some(ttl), .. } => self.set_with_ttl(key, value, ttl).map(|_| true)?,
            SetOptions { ttl: None, .. } => Bucket::set(self, key, value).map(|_| true)?,
        })
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        Bucket::delete(self, key.as_bytes())?;
        Ok(())
    }

    fn list(&self, after: Option<&[u8]>, bounds: PageBounds) -> Result<Page, Error> {
        self.list_prefix("", after, bounds)
    }

    fn list_prefix(&self, prefix: &str, after: Option<&[u8]>, bounds: PageBounds) -> Result<Page, Error> {
        let PageBounds { keys_max, bytes_max, entries_max } = bounds;
        let prefix = prefix.as_bytes();
        let page = self.list_keys(ListOptions { prefix, after, keys_max, bytes_max, entries_max })?;
        let mut keys = Vec::with_capacity(page.len());
        keys.extend((0..page.len()).filter_map(|i| Utf8Bytes::new(page.key_bytes(i))));
        Ok(Page { keys, next: page.next().cloned() })
    }

    fn increment(&self, key: &str, delta: i64) -> Result<i64, Error> {
        Ok(Bucket::increment(self, key.as_bytes(), delta)?)
    }

    fn increment_unsigned(&self, key: &str, delta: i64) -> Result<i64, Error> {
        Ok(self.increment_at_least(key.as_bytes(), delta, 0)?)
    }

    fn observe(&self, key: &str) -> Result<Observed, Error> {
        Ok(observed(Bucket::get(self, key.as_bytes())?))
    }

    fn swap(&self, key: &str, guard: &Guard, value: &[u8]) -> Result<Swap, Error> {
        Ok(swapped(self.compare_and_swap(key.as_bytes(), expected(guard)?, value)?))
    }

    fn get_many(&self, keys: &[Key<'_>]) -> Result<Vec<Option<Pair>>, Error> {
        Ok(self.get_many_with(keys, |i, value| value.and_then(|value| pair(&keys[i], value)))?)
    }

    fn set_many(&self, pairs: &[(Key<'_>, &[u8])]) -> Result<(), Error> {
        Ok(Bucket::set_many(self, pairs)?)
    }

    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error> {
        Ok(Bucket::delete_many(self, keys)?)
    }

    fn start_set(&self, key: &str, value: &[u8]) -> Reply<()> {
        started(Bucket::start_set(self, key.as_bytes(), value), drop)
    }

    fn start_set_with(&self, key: &str, value: &[u8], options: SetOptions) -> Reply<bool> {
        let key = key.as_bytes();
        match options {
            SetOptions { if_absent: true, ttl } => {
                started(self.start_set_if_absent(key, value, ttl), |written| written.is_some())
            }
            SetOptions { ttl: Some(ttl), .. } => started(self.start_set_with_ttl(key, value, ttl), |_| true),
            SetOptions { ttl: None, .. } => started(Bucket::start_set(self, key, value), |_| true),
        }
    }

    fn start_delete(&self, key: &str) -> Reply<()> {
        started(Bucket::start_delete(self, key.as_bytes()), drop)
    }

    fn start_increment(&self, key: &str, delta: i64) -> Reply<i64> {
        started(Bucket::start_increment(self, key.as_bytes(), delta), |sum| sum)
    }

    fn start_increment_unsigned(&self, key: &str, delta: i64) -> Reply<i64> {
        started(self.start_increment_at_least(key.as_bytes(), delta, 0), |sum| sum)
    }

    fn start_swap(&self, key: &str, guard: &Guard, value: &[u8]) -> Reply<Swap> {
        match expected(guard) {
            Ok(expected) => started(self.start_compare_and_swap(key.as_bytes(), expected, value), swapped),
            Err(error) => Reply::Now(Err(error)),
        }
    }

    fn start_set_many(&self, pairs: &[(Key<'_>, &[u8])]) -> Reply<()> {
        started(Bucket::start_set_many(self, pairs), |()| ())
    }

    fn start_delete_many(&self, keys: &[Key<'_>]) -> Reply<()> {
        started(Bucket::start_delete_many(self, keys), |()| ())
    }
}

/// What a started write comes to: at once where its durability asks for no wait.
fn started<T: Send + Unpin + 'static, R: 'static>(commit: kvasi::Result<Commit<T>>, make: fn(T) -> R) -> Reply<R> {
    match commit {
        Ok(commit) if commit.is_ready() => Reply::Now(commit.wait().map(make).map_err(Error::from)),
        Ok(commit) => Reply::later(async move { Ok(make(commit.await?)) }),
        Err(error) => Reply::Now(Err(error.into())),
    }
}

/// The engine's way to name what a swap stands on.
fn expected(guard: &Guard) -> Result<Option<kvasi::Version>, Error> {
    match guard {
        Guard::Version(version) => Ok(Some(*version)),
        Guard::Absent => Ok(None),
        // Made by another back end. A `cas` holds the bucket that made its guard, so no guest comes here.
        Guard::Token(_) => Err(Error::new(Code::Invalid)),
    }
}

fn swapped(swap: kvasi::Swap) -> Swap {
    match swap {
        kvasi::Swap::Done(_) => Swap::Done,
        kvasi::Swap::Conflict(now) => Swap::Conflict(observed(now)),
    }
}

fn observed(value: Option<Value>) -> Observed {
    match value {
        None => Observed { value: None, guard: Guard::Absent },
        Some(value) => Observed { guard: Guard::Version(value.version()), value: Some(value.into_bytes()) },
    }
}

/// The key comes from the record, so that no `String` is made of it; it is the text that it was asked for as.
fn pair(key: &Key<'_>, value: Value) -> Option<Pair> {
    Some((Utf8Bytes::of_text(key.as_ref(), value.key_bytes())?, value.into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvasi::Options;

    #[test]
    fn keys_that_are_not_text_are_passed_over_and_do_not_end_the_listing() {
        let store = Store::in_memory(Options::new()).unwrap();
        let bucket = Store::bucket(&store, "b").unwrap();
        for key in [&b"a"[..], b"b\xff", b"b\xff\xff", b"c", b"\xff"] {
            bucket.set(key, b"v").unwrap();
        }
        let bounds = PageBounds { keys_max: 1, bytes_max: 1 << 20, entries_max: 100 };
        let (mut keys, mut after) = (Vec::new(), None::<Bytes>);
        loop {
            let page = LocalBucket::list(&bucket, after.as_deref(), bounds).unwrap();
            keys.extend(page.keys.iter().map(|key| key.to_string()));
            let Some(next) = page.next else { break };
            let cursor = crate::cursor::encode("b", "", &next);
            after = Some(Bytes::from(crate::cursor::decode("b", "", &cursor).unwrap().into_owned()));
        }
        assert_eq!(keys, ["a", "c"]);
    }

    #[test]
    fn a_guard_of_another_back_end_is_refused() {
        let store = Store::in_memory(Options::new()).unwrap();
        let bucket = Backend::bucket(&store, "b").unwrap();
        let error = bucket.swap("k", &Guard::Token(Bytes::new()), b"v").unwrap_err();
        assert_eq!(error.code(), Code::Invalid);
        assert!(!bucket.exists("k").unwrap());
    }
}
