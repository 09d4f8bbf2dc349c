//! Copies a bucket from one back end to another, whatever they are, and makes sure of it.
//!
//! Flow: pages of keys, one after the other -> a task a page, several at once: values read, then written -> [`Position`], which
//! moves on when every page before it is written -> [`verify`]: both sides read again.
//! Invariants: 1. A position never passes a page that is not written: a copy that goes on from there leaves no key out.
//! 2. Copying twice is copying once. 3. What is held in memory is bounded by bytes, whatever the values' sizes are.
//!
//! What comes in while it copies may or may not be seen. Expiry is not carried over: no back end tells it.

use crate::backend::remote::RemoteBucket;
use crate::backend::{Key, PageBounds, Pair};
use crate::{Error, Utf8Bytes};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::task::{JoinError, JoinHandle};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Bytes of values that one task asks for at once, as far as the values seen before tell.
const READ_BYTES: u64 = 4 << 20;
/// Bytes of keys and values in one write; one value is written even if it is larger.
const WRITE_BYTES: usize = 4 << 20;
/// Keys read before anything is known of the values' sizes.
const FIRST_KEYS: usize = 16;

/// How to copy.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Pages on their way at once. Default: 8.
    pub parallel: usize,
    /// Keys of a page. Default: 1,000.
    pub page_keys: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { parallel: 8, page_keys: 1_000 }
    }
}

/// How far a copy is: everything before `after` is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Where the next page begins, in the source's own terms; `None` at the beginning and at the end.
    pub after: Option<Bytes>,
    /// Keys written so far.
    pub keys: u64,
    /// Bytes of keys and values written so far.
    pub bytes: u64,
}

/// What a verification has seen of one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Keys with a value.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// The sum of a hash of each key with its value: the order does not matter.
    pub checksum: u64,
}

impl Sum {
    fn add(&mut self, key: &str, value: &[u8]) {
        self.keys += 1;
        self.bytes += (key.len() + value.len()) as u64;
        self.checksum = self.checksum.wrapping_add(xxh3_64_with_seed(value, xxh3_64(key.as_bytes())));
    }

    fn join(&mut self, other: Sum) {
        self.keys += other.keys;
        self.bytes += other.bytes;
        self.checksum = self.checksum.wrapping_add(other.checksum);
    }
}

/// What a verification has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// The source, read again.
    pub from: Sum,
    /// What the destination has for the keys of the source.
    pub to: Sum,
    /// The first few keys whose values differ, or that the destination has not.
    pub differing: Vec<String>,
}

impl Verified {
    /// Whether the destination has every key of the source with its value.
    pub fn is_equal(&self) -> bool {
        self.from == self.to && self.differing.is_empty()
    }
}

/// Copies every key of `from` that comes after `position`, and tells `progress` each time the position moves on: whoever
/// keeps it can go on from there.
///
/// # Errors
/// The first failure of either back end; the last position told holds.
pub async fn copy(
    from: &Arc<dyn RemoteBucket>,
    to: &Arc<dyn RemoteBucket>,
    settings: Settings,
    mut position: Position,
    mut progress: impl FnMut(&Position) -> Result<(), Error>,
) -> Result<Position, Error> {
    let sizes = Arc::new(Sizes::default());
    let task = {
        let (from, to) = (from.clone(), to.clone());
        move |keys: Vec<Utf8Bytes>| {
            let (from, to, sizes) = (from.clone(), to.clone(), sizes.clone());
            async move { copy_page(&*from, &*to, &keys, &sizes).await }
        }
    };
    let start = position.after.clone();
    each_page(&**from, settings, start, task, |after, done: Sum| {
        position.after = after;
        position.keys += done.keys;
        position.bytes += done.bytes;
        progress(&position)
    })
    .await?;
    Ok(position)
}

/// Reads both sides again, key by key of `from`. A source or destination that is written meanwhile differs.
///
/// # Errors
/// The first failure of either back end.
pub async fn verify(
    from: &Arc<dyn RemoteBucket>,
    to: &Arc<dyn RemoteBucket>,
    settings: Settings,
    mut progress: impl FnMut(&Verified),
) -> Result<Verified, Error> {
    const DIFFERING_MAX: usize = 10;
    let sizes = Arc::new(Sizes::default());
    let task = {
        let (from, to) = (from.clone(), to.clone());
        move |keys: Vec<Utf8Bytes>| {
            let (from, to, sizes) = (from.clone(), to.clone(), sizes.clone());
            async move { compare_page(&*from, &*to, &keys, &sizes).await }
        }
    };
    let mut verified = Verified::default();
    each_page(&**from, settings, None, task, |_, page: Verified| {
        verified.from.join(page.from);
        verified.to.join(page.to);
        let room = DIFFERING_MAX - verified.differing.len();
        verified.differing.extend(page.differing.into_iter().take(room));
        progress(&verified);
        Ok(())
    })
    .await?;
    Ok(verified)
}

/// Runs `task` on each page, `settings.parallel` of them at once, and gives the results to `done` in the order of the pages, with
/// the place where the next page begins.
async fn each_page<R, F>(
    from: &dyn RemoteBucket,
    settings: Settings,
    mut after: Option<Bytes>,
    task: impl Fn(Vec<Utf8Bytes>) -> F,
    mut done: impl FnMut(Option<Bytes>, R) -> Result<(), Error>,
) -> Result<(), Error>
where
    R: Send + 'static,
    F: Future<Output = Result<R, Error>> + Send + 'static,
{
    let bounds = PageBounds { keys_max: settings.page_keys.max(1), bytes_max: 1 << 20, entries_max: 100_000 };
    let mut running: VecDeque<(Option<Bytes>, Running<R>)> = VecDeque::new();
    let mut at_end = false;
    while !at_end || !running.is_empty() {
        if !at_end && running.len() < settings.parallel.max(1) {
            let page = from.list("", after.as_deref(), bounds).await?;
            at_end = page.next.is_none();
            after = page.next.clone();
            running.push_back((page.next, Running(tokio::spawn(task(page.keys)))));
        } else if let Some((next, mut first)) = running.pop_front() {
            let result = (&mut first.0).await.map_err(broken)??;
            done(next, result)?;
        }
    }
    Ok(())
}

/// A task that ends with whoever waits for it.
struct Running<R>(JoinHandle<Result<R, Error>>);

impl<R> Drop for Running<R> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A back end that panics has failed; so has one whose runtime shuts down.
fn broken(error: JoinError) -> Error {
    Error::with_detail(crate::Code::Io, error)
}

async fn copy_page(
    from: &dyn RemoteBucket,
    to: &dyn RemoteBucket,
    keys: &[Utf8Bytes],
    sizes: &Sizes,
) -> Result<Sum, Error> {
    let mut sum = Sum::default();
    let mut rest = keys;
    while !rest.is_empty() {
        let (some, later) = rest.split_at(sizes.keys_of_one_read().min(rest.len()));
        rest = later;
        let values = from.get_many(&named(some)).await?;
        // Deleted since it was listed: none of ours.
        let pairs: Vec<&Pair> = values.iter().flatten().collect();
        let mut unwritten = &pairs[..];
        while !unwritten.is_empty() {
            let (batch, later) = unwritten.split_at(fitting(unwritten));
            unwritten = later;
            let batch: Vec<(Key<'_>, &[u8])> = batch.iter().map(|(key, value)| (Key::from(&**key), &**value)).collect();
            to.set_many(&batch).await?;
        }
        pairs.iter().for_each(|(key, value)| sum.add(key, value));
        sizes.seen(pairs.len(), pairs.iter().map(|(_, value)| value.len() as u64).sum());
    }
    Ok(sum)
}

async fn compare_page(
    from: &dyn RemoteBucket,
    to: &dyn RemoteBucket,
    keys: &[Utf8Bytes],
    sizes: &Sizes,
) -> Result<Verified, Error> {
    let mut page = Verified::default();
    let mut rest = keys;
    while !rest.is_empty() {
        let (some, later) = rest.split_at(sizes.keys_of_one_read().min(rest.len()));
        rest = later;
        let here = from.get_many(&named(some)).await?;
        let there = to.get_many(&named(some)).await?;
        for ((key, here), there) in some.iter().zip(&here).zip(&there) {
            let Some((_, here)) = here else { continue };
            page.from.add(key, here);
            if let Some((_, there)) = there {
                page.to.add(key, there);
            }
            if there.as_ref().is_none_or(|(_, there)| there != here) {
                page.differing.push(key.to_string());
            }
        }
        sizes.seen(some.len(), here.iter().flatten().map(|(_, value)| value.len() as u64).sum());
    }
    Ok(page)
}

fn named(keys: &[Utf8Bytes]) -> Vec<Key<'_>> {
    keys.iter().map(|key| Key::from(&**key)).collect()
}

/// How many of `pairs`, one at least, go into one write.
fn fitting(pairs: &[&Pair]) -> usize {
    let mut bytes = 0;
    let fits = |(key, value): &&&Pair| {
        bytes += key.len() + value.len();
        bytes <= WRITE_BYTES
    };
    pairs.iter().take_while(fits).count().max(1)
}

/// What the values seen so far tell of those to come: none says its size before it is read.
#[derive(Default)]
struct Sizes {
    keys: AtomicU64,
    bytes: AtomicU64,
}

impl Sizes {
    fn seen(&self, keys: usize, bytes: u64) {
        self.keys.fetch_add(keys as u64, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    fn keys_of_one_read(&self) -> usize {
        let keys = self.keys.load(Relaxed);
        if keys == 0 {
            return FIRST_KEYS;
        }
        let mean = self.bytes.load(Relaxed) / keys;
        usize::try_from(READ_BYTES / mean.max(1)).unwrap_or(usize::MAX).clamp(1, 1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backend, Memory, remote::Local};

    fn bucket() -> Arc<dyn RemoteBucket> {
        Arc::new(Local::new(Memory::new().unwrap().bucket("b").unwrap()))
    }

    async fn filled(keys: usize) -> Arc<dyn RemoteBucket> {
        let bucket = bucket();
        for i in 0..keys {
            bucket.set(&format!("key {i}"), &vec![i as u8; i * i % 9_000]).await.unwrap();
        }
        bucket
    }

    const SETTINGS: Settings = Settings { parallel: 3, page_keys: 7 };

    #[tokio::test]
    async fn every_key_arrives_and_is_counted_on_both_sides() {
        let (from, to) = (filled(500).await, bucket());
        let copied = copy(&from, &to, SETTINGS, Position::default(), |_| Ok(())).await.unwrap();
        let verified = verify(&from, &to, SETTINGS, |_| ()).await.unwrap();
        assert!(verified.is_equal() && verified.from.keys == 500, "{verified:?}");
        assert_eq!((copied.keys, copied.bytes), (500, verified.to.bytes));
    }

    #[tokio::test]
    async fn a_copy_cut_off_anywhere_goes_on_from_its_position() {
        for pages in 0..12 {
            let (from, to) = (filled(70).await, bucket());
            let (mut told, mut kept) = (0, Position::default());
            let cut = copy(&from, &to, SETTINGS, Position::default(), |position| {
                if told == pages {
                    return Err(Error::new(crate::Code::Io));
                }
                told += 1;
                kept = position.clone();
                Ok(())
            });
            let ended = cut.await.is_ok();
            // At the end of a copy the position is the beginning: there is nothing to go on from.
            if !ended {
                copy(&from, &to, SETTINGS, kept, |_| Ok(())).await.unwrap();
            }
            assert!(verify(&from, &to, SETTINGS, |_| ()).await.unwrap().is_equal(), "cut after {pages}");
        }
    }

    #[tokio::test]
    async fn what_differs_is_named() {
        let (from, to) = (filled(20).await, bucket());
        copy(&from, &to, SETTINGS, Position::default(), |_| Ok(())).await.unwrap();
        to.set("key 3", b"other").await.unwrap();
        to.delete("key 11").await.unwrap();
        to.set("one more", b"is none of ours").await.unwrap();
        let verified = verify(&from, &to, SETTINGS, |_| ()).await.unwrap();
        assert!(!verified.is_equal() && verified.to.keys == 19);
        let mut differing = verified.differing;
        differing.sort();
        assert_eq!(differing, ["key 11", "key 3"]);
    }
}
