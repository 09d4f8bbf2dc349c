//! Listing: the keys of a bucket in byte order, a page at a time, without their values.
//! Flow: `Bucket::list_keys` -> `index` for a view -> `merge` over its runs and tail, from the cursor on.
//!
//! Whether a key has a value is for the directory to say. Asking it costs a quarter of a microsecond a key, more than
//! all the rest, so it is asked only where the entry itself does not tell:
//!
//! 1. Of the entries of a key the one with the highest version says what the log said last. Writes to one key go to the log
//!    under its shard's lock, so their versions rise in the order in which they count; a record that the cleaner moved
//!    keeps its version and is moved only while it is what counts, so it ties with itself. A tombstone that the
//!    cleaner puts in the place of an expired record has that record's version, and a higher stamp.
//! 2. The view is complete: it holds every record before the end of the log as it was when the page began (invariants of
//!    `index`). So the newest entry in the view is the newest there was at that moment.
//! 3. What the log said last is what readers see, but for writes that wait for their sync, and for the instant between
//!    log and directory. `settled` is a position before which there are neither: the end of the log was read, then each
//!    shard's lock was held once, and every write before that end had let go of its lock (so it was in the directory)
//!    or stood in the shard's list of pending writes (so its position bounds `settled`).
//!
//! So an entry older than `settled` is taken at its word, and a newer one, a few at the end of the log, is a question to the
//! directory. So is one with an expiry that has not passed: the cleaner drops what has expired without a trace in the
//! runs, and a clock may be set back.
//!
//! What changes while the page is made shows or not; a key that existed throughout shows exactly once, because its newest
//! entry is in every view, at its place in the order.
//!
//! A run that turns out damaged is given up with all others, and the page is made again from the log.

use bytes::Bytes;
use crossbeam_epoch::{self as epoch, Guard};

use crate::bucket::Bucket;
use crate::commit::Commits;
use crate::error::Result;
use crate::index::{self, View};
use crate::io::unix_ms;
use crate::merge::{Failed, Merge, Source};
use crate::run::Cursor;
use crate::run::format::{Entry, KIND, SET, SET_WITH_EXPIRY};
use crate::seeded::{Bug, seeded};

/// What a page of [`Bucket::list_keys`] holds, and how much it may cost.
#[derive(Clone, Copy, Debug)]
pub struct ListOptions<'a> {
    /// Only keys that begin with this. Default: all.
    pub prefix: &'a [u8],
    /// Only keys after this one, in byte order: [`KeyPage::next`] of the page before. Default: from the first.
    pub after: Option<&'a [u8]>,
    /// Most keys in the page. Default: 1,000.
    pub keys_max: usize,
    /// Most bytes of keys in the page; a first key is returned however long it is. Default: 256 KiB.
    pub bytes_max: usize,
    /// Most entries looked at, those of deleted keys included; the page may stay empty and still have a next one.
    /// Default: 50,000.
    pub entries_max: usize,
}

/// Bytes and keys that a page has room for from the start: a usual one is not moved while it grows.
const PAGE_BYTES: usize = 32 << 10;
const PAGE_KEYS: usize = 1024;

impl Default for ListOptions<'_> {
    fn default() -> Self {
        ListOptions { prefix: b"", after: None, keys_max: 1000, bytes_max: 256 << 10, entries_max: 50_000 }
    }
}

/// Some keys of a bucket in byte order, in one buffer.
#[derive(Clone, Debug, Default)]
pub struct KeyPage {
    bytes: Bytes,
    /// Where each key ends in `bytes`.
    ends: Vec<u32>,
    next: Option<Bytes>,
}

impl KeyPage {
    /// Number of keys.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none. More may follow all the same: see [`KeyPage::next`].
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The `i`-th key, without a copy.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn key_bytes(&self, i: usize) -> Bytes {
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.bytes.slice(start as usize..self.ends[i] as usize)
    }

    /// The keys.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let key = &self.bytes[start..end as usize];
            start = end as usize;
            key
        })
    }

    /// What to pass as [`ListOptions::after`] for the next page; `None` if this was the last one. Any key is a valid
    /// position, today and after a restart, whether it still exists or not.
    pub fn next(&self) -> Option<&Bytes> {
        self.next.as_ref()
    }
}

impl Bucket {
    /// A page of the bucket's keys in byte order. Following [`KeyPage::next`] ends, and yields every key that existed
    /// throughout exactly once, whatever comes and goes meanwhile.
    ///
    /// # Errors
    /// As [`Bucket::get`].
    pub fn list_keys(&self, options: ListOptions<'_>) -> Result<KeyPage> {
        self.entry.check()?;
        let store = &self.store.0;
        let guard = &epoch::pin();
        loop {
            let view = store.commits.index.view(&store.commits, guard)?;
            match page(&store.commits, &view, self.entry.id, &options, guard) {
                Ok(page) => return Ok(page),
                Err(Failed::Error(error)) => return Err(error),
                Err(Failed::Damaged(damaged)) if view.runs.is_empty() => return Err(index::in_memory(damaged)),
                Err(Failed::Damaged(_)) => store.commits.index.distrust(&view.runs),
            }
            // The background thread makes them again.
            store.bells.work.ring();
        }
    }
}

fn page(
    commits: &Commits,
    view: &View,
    bucket: u64,
    options: &ListOptions<'_>,
    guard: &Guard,
) -> Result<KeyPage, Failed> {
    let (from, inclusive) = match options.after {
        Some(after) if after >= options.prefix => (after, false),
        _ => (options.prefix, true),
    };
    let mut sources = Vec::new();
    for run in view.runs.iter().chain(&*view.sorted) {
        sources.extend(Cursor::seek(run, bucket, from)?.map(Source::Run));
    }
    sources.extend(view.tail.seek(bucket, from).map(Source::Tail));
    let mut merge = Merge::new(sources);
    if !inclusive && merge.entry().is_some_and(|entry| entry.key == from) {
        merge.next()?;
    }

    let now = unix_ms();
    let (keys_max, entries_max) = (options.keys_max.max(1), options.entries_max.max(1));
    let mut bytes = Vec::with_capacity(PAGE_BYTES.min(options.bytes_max));
    let mut ends: Vec<u32> = Vec::with_capacity(keys_max.min(PAGE_KEYS));
    let mut last = Vec::new();
    let mut last_is_hidden = true;
    let mut more = false;
    let looked_before = merge.looked;
    while let Some(entry) = merge.entry() {
        if entry.bucket != bucket || !begins_with(entry.key, options.prefix) {
            break;
        }
        let full = ends.len() >= keys_max || !ends.is_empty() && bytes.len() + entry.key.len() > options.bytes_max;
        if full || merge.looked - looked_before >= entries_max {
            more = true;
            break;
        }
        if is_live(commits, view, &entry, now, guard)? {
            bytes.extend_from_slice(entry.key);
            ends.push(bytes.len() as u32);
            last_is_hidden = false;
        } else {
            last.clear();
            last.extend_from_slice(entry.key);
            last_is_hidden = true;
        }
        merge.next()?;
    }
    if bytes.len() < bytes.capacity() / 2 {
        bytes.shrink_to_fit();
        ends.shrink_to_fit();
    }
    let page = KeyPage { bytes: bytes.into(), ends, next: None };
    if seeded(Bug::PageLosesKey) && more {
        let skipped = merge.entry().map(|entry| entry.key.to_vec());
        return Ok(KeyPage { next: skipped.map(Into::into), ..page });
    }
    let next = more.then(|| if last_is_hidden { last.into() } else { page.key_bytes(page.len() - 1) });
    Ok(KeyPage { next, ..page })
}

/// As `starts_with`, but for the usual empty prefix: its pointer may be any, and on AVX-512 machines `memcmp` of no bytes
/// at an unmapped address takes 60 ns, more than all the rest of an entry.
#[inline]
fn begins_with(key: &[u8], prefix: &[u8]) -> bool {
    prefix.is_empty() || key.starts_with(prefix)
}

/// Whether the key of its newest entry has a value; see the file header.
#[inline]
fn is_live(commits: &Commits, view: &View, entry: &Entry<'_>, now: u64, guard: &Guard) -> Result<bool> {
    if entry.stamp < view.settled {
        match entry.stamp & KIND {
            SET_WITH_EXPIRY if entry.expires > now => {}
            SET_WITH_EXPIRY if seeded(Bug::ExpiryIgnoredByListing) => return Ok(true),
            kind => return Ok(kind == SET),
        }
    }
    Ok(commits.get(entry.bucket, entry.key, guard)?.is_some())
}
