//! The generated traits of the first draft, and of form B of the second, implemented for the view: by those of form A, which `host` has.
//!
//! Flow: `bindgen!` lifts owned parameters -> here -> `host` -> `store`, `batch`, `atomics`.
//! What differs: the first draft's cursors and counters are numbers without a sign, and its `error` is a type of its own; in form B a
//! miss of `get-many` has its key.

use crate::Code;
use crate::backend::Key;
use crate::bindings::draft::{atomics as first_atomics, batch as first_batch, store as first};
use crate::bindings::draft2_b::batch as b_batch;
use crate::bindings::{batch as a_batch, store as a};
use crate::ctx::{Bucket, Rights, WasiKeyValueCtxView};
use crate::error::Refusal;
use crate::pace::Pace;
use crate::{atomics, batch, store};
use bytes::Bytes;
use wasmtime::Result;
use wasmtime::component::Resource;

type View<'a> = WasiKeyValueCtxView<'a>;
type First<R> = Result<std::result::Result<R, first::Error>>;
type FormA<R> = Result<std::result::Result<R, a::Error>>;

impl From<a::Error> for first::Error {
    fn from(error: a::Error) -> Self {
        match error {
            a::Error::NoSuchStore => first::Error::NoSuchStore,
            a::Error::AccessDenied => first::Error::AccessDenied,
            a::Error::Other(text) => first::Error::Other(text),
        }
    }
}

impl From<Refusal> for first::Error {
    fn from(refusal: Refusal) -> Self {
        a::Error::from(refusal).into()
    }
}

fn first<R>(answer: FormA<R>) -> First<R> {
    Ok(answer?.map_err(first::Error::from))
}

impl first::Host for View<'_> {
    fn open(&mut self, identifier: String) -> First<Resource<Bucket>> {
        first(a::Host::open(self, identifier))
    }
}

impl first::HostBucket for View<'_> {
    fn get(&mut self, this: Resource<Bucket>, key: String) -> First<Option<Vec<u8>>> {
        first(a::HostBucket::get(self, this, key))
    }

    fn set(&mut self, this: Resource<Bucket>, key: String, value: Vec<u8>) -> First<()> {
        first(a::HostBucket::set(self, this, key, value))
    }

    fn delete(&mut self, this: Resource<Bucket>, key: String) -> First<()> {
        first(a::HostBucket::delete(self, this, key))
    }

    fn exists(&mut self, this: Resource<Bucket>, key: String) -> First<bool> {
        first(a::HostBucket::exists(self, this, key))
    }

    fn list_keys(&mut self, this: Resource<Bucket>, cursor: Option<u64>) -> First<first::KeyResponse> {
        let bucket = self.bucket(&this)?;
        let at = match cursor.map(|at| self.ctx.positions().find(at).ok_or(Code::InvalidCursor)).transpose() {
            Ok(at) => at,
            Err(code) => return Ok(Err(Refusal::Failed(code).into())),
        };
        let page = store::list_keys(&bucket.grant, Pace::Wait, "", at.as_deref()).now();
        let made = page.map(|store::KeyPage { keys, cursor }| first::KeyResponse {
            keys: keys.iter().map(|key| String::from(&**key)).collect(),
            cursor: cursor.map(|cursor| self.ctx.positions().keep(cursor)),
        });
        Ok(made.map_err(first::Error::from))
    }

    fn drop(&mut self, this: Resource<Bucket>) -> Result<()> {
        self.drop_bucket(this)
    }
}

impl first_atomics::Host for View<'_> {
    fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: u64) -> First<u64> {
        let sum = atomics::increment_unsigned(&self.bucket(&bucket)?.grant, Pace::Wait, &key, delta).now();
        Ok(sum.map_err(first::Error::from))
    }
}

impl first_batch::Host for View<'_> {
    fn get_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> First<Vec<Option<(String, Vec<u8>)>>> {
        first(a_batch::Host::get_many(self, bucket, keys))
    }

    fn set_many(&mut self, bucket: Resource<Bucket>, pairs: Vec<(String, Vec<u8>)>) -> First<()> {
        first(a_batch::Host::set_many(self, bucket, pairs))
    }

    fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> First<()> {
        first(a_batch::Host::delete_many(self, bucket, keys))
    }
}

impl b_batch::Host for View<'_> {
    fn get_many(&mut self, bucket: Resource<Bucket>, many: Vec<String>) -> FormA<Vec<(String, Option<Vec<u8>>)>> {
        let bucket = self.bucket(&bucket)?;
        let keys: Vec<Key<'_>> = many.iter().map(|key| Key::from(key.as_str())).collect();
        let pairs = batch::check_count(&bucket.grant, "get-many", Rights::READ, many.len())
            .and_then(|()| batch::get_many_with_misses(&bucket.grant, Pace::Wait, &keys).now());
        let owned = |(key, value): (crate::Utf8Bytes, Option<Bytes>)| (String::from(&*key), value.map(Vec::from));
        Ok(pairs.map(|pairs| pairs.into_iter().map(owned).collect()).map_err(a::Error::from))
    }

    fn set_many(&mut self, bucket: Resource<Bucket>, pairs: Vec<(String, Vec<u8>)>) -> FormA<()> {
        a_batch::Host::set_many(self, bucket, pairs)
    }

    fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> FormA<()> {
        a_batch::Host::delete_many(self, bucket, keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backend, Memory};
    use crate::{Limits, WasiKeyValueCtx};
    use wasmtime::component::ResourceTable;

    fn borrowed(handle: &Resource<Bucket>) -> Resource<Bucket> {
        Resource::new_borrow(handle.rep())
    }

    #[test]
    fn the_traits_of_the_first_draft_and_of_form_b_reach_the_bucket() {
        let bucket = Memory::new().unwrap().bucket("main").unwrap();
        let limits = Limits { page_keys_max: 2, ..Limits::default() };
        let ctx = WasiKeyValueCtx::builder().limits(limits).grant("main", bucket, Rights::ALL).build();
        let mut table = ResourceTable::new();
        let view = &mut WasiKeyValueCtxView::new(&ctx, &mut table);

        assert!(matches!(first::Host::open(view, "else".into()).unwrap(), Err(first::Error::NoSuchStore)));
        let main = first::Host::open(view, "main".into()).unwrap().unwrap();
        for key in ["a", "b", "c"] {
            first::HostBucket::set(view, borrowed(&main), key.into(), key.into()).unwrap().unwrap();
        }
        assert_eq!(first::HostBucket::get(view, borrowed(&main), "b".into()).unwrap().unwrap(), Some(b"b".to_vec()));
        first::HostBucket::delete(view, borrowed(&main), "b".into()).unwrap().unwrap();
        assert!(!first::HostBucket::exists(view, borrowed(&main), "b".into()).unwrap().unwrap());

        first_atomics::Host::increment(view, borrowed(&main), "n".into(), 5).unwrap().unwrap();
        assert_eq!(first_atomics::Host::increment(view, borrowed(&main), "n".into(), 2).unwrap().unwrap(), 7);
        let (mut keys, mut cursor) = (Vec::new(), None);
        loop {
            let page = first::HostBucket::list_keys(view, borrowed(&main), cursor).unwrap().unwrap();
            keys.extend(page.keys);
            cursor = page.cursor;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(keys, ["a", "c", "n"]);
        let unknown = first::HostBucket::list_keys(view, borrowed(&main), Some(77)).unwrap();
        assert!(matches!(unknown, Err(first::Error::Other(_))));

        let pairs = vec![("d".to_owned(), b"1".to_vec()), ("e".to_owned(), b"2".to_vec())];
        first_batch::Host::set_many(view, borrowed(&main), pairs).unwrap().unwrap();
        let asked = || vec!["d".to_owned(), "b".to_owned()];
        let with_none = first_batch::Host::get_many(view, borrowed(&main), asked()).unwrap().unwrap();
        assert_eq!(with_none, [Some(("d".to_owned(), b"1".to_vec())), None]);
        let with_keys = b_batch::Host::get_many(view, borrowed(&main), asked()).unwrap().unwrap();
        assert_eq!(with_keys, [("d".to_owned(), Some(b"1".to_vec())), ("b".to_owned(), None)]);
        b_batch::Host::delete_many(view, borrowed(&main), vec!["d".into()]).unwrap().unwrap();
        assert!(!first::HostBucket::exists(view, borrowed(&main), "d".into()).unwrap().unwrap());
        first::HostBucket::drop(view, main).unwrap();
    }
}
