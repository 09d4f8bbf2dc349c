//! The kvasi engine as a back end: a store on local files.
//!
//! Flow: `LocalBucket` -> `kvasi::Bucket`. Values and keys come back as counted slices of the engine's own memory.
//! Invariant: no call here copies a value or keeps anything between calls.

use super::{Backend, Capabilities, Guard, Key, LocalBucket, Observed, Page, PageBounds, Pair, Swap};
use crate::{Code, Error, Utf8Bytes};
use bytes::Bytes;
use kvasi::{Bucket, ListOptions, Store, Value};
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

    fn delete(&self, key: &str) -> Result<(), Error> {
        Bucket::delete(self, key.as_bytes())?;
        Ok(())
    }

    fn list(&self, after: Option<&[u8]>, bounds: PageBounds) -> Result<Page, Error> {
        let PageBounds { keys_max, bytes_max, entries_max } = bounds;
        let page = self.list_keys(ListOptions { prefix: b"", after, keys_max, bytes_max, entries_max })?;
        let mut keys = Vec::with_capacity(page.len());
        keys.extend((0..page.len()).filter_map(|i| Utf8Bytes::new(page.key_bytes(i))));
        Ok(Page { keys, next: page.next().cloned() })
    }

    fn increment(&self, key: &str, delta: i64) -> Result<i64, Error> {
        Ok(Bucket::increment(self, key.as_bytes(), delta)?)
    }

    fn observe(&self, key: &str) -> Result<Observed, Error> {
        Ok(observed(Bucket::get(self, key.as_bytes())?))
    }

    fn swap(&self, key: &str, guard: &Guard, value: &[u8]) -> Result<Swap, Error> {
        let expected = match guard {
            Guard::Version(version) => Some(*version),
            Guard::Absent => None,
            // Made by another back end. A `cas` holds the bucket that made its guard, so no guest comes here.
            Guard::Token(_) => return Err(Error::new(Code::Invalid)),
        };
        Ok(match self.compare_and_swap(key.as_bytes(), expected, value)? {
            kvasi::Swap::Done(_) => Swap::Done,
            kvasi::Swap::Conflict(now) => Swap::Conflict(observed(now)),
        })
    }

    fn get_many(&self, keys: &[Key<'_>]) -> Result<Vec<Option<Pair>>, Error> {
        Ok(self.get_many_with(keys, |_, value| value.and_then(pair))?)
    }

    fn set_many(&self, pairs: &[(Key<'_>, &[u8])]) -> Result<(), Error> {
        Ok(Bucket::set_many(self, pairs)?)
    }

    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error> {
        Ok(Bucket::delete_many(self, keys)?)
    }
}

fn observed(value: Option<Value>) -> Observed {
    match value {
        None => Observed { value: None, guard: Guard::Absent },
        Some(value) => Observed { guard: Guard::Version(value.version()), value: Some(value.into_bytes()) },
    }
}

/// The key comes from the record, so that no `String` is made of it; it was asked for as text and so it is text.
fn pair(value: Value) -> Option<Pair> {
    Some((Utf8Bytes::new(value.key_bytes())?, value.into_bytes()))
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
            let cursor = crate::cursor::encode("b", &next);
            after = Some(Bytes::from(crate::cursor::decode("b", &cursor).unwrap().into_owned()));
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
