//! The key index: the keys of the log in byte order, in a skiplist, filled behind the writers.
//! Flow: `list` -> here -> the log. Point operations never come here.
//!
//! The index remembers up to which log position it has read the log, and reads on when a listing needs it. It only ever
//! takes keys in: whether a key (still) has a value is for the directory to say. Entries whose key is gone stay until the
//! store is opened again.
//!
//! Keys are never overwritten or removed here: crossbeam-skiplist 0.1.3 loses sight of a key while it is overwritten
//! (its issue 1023).

use crossbeam_epoch::Guard;
use crossbeam_skiplist::SkipSet;
use parking_lot::Mutex;

use crate::error::Result;
use crate::log::Log;
use crate::log::record::Kind;
use crate::log::replay;
use crate::segment::HEADER_BYTES;

/// Bytes of the bucket id in front of the key: big-endian, so that a bucket's keys stand together.
const BUCKET_BYTES: usize = 8;

/// All keys that the log has set, in order.
#[derive(Debug, Default)]
pub(crate) struct KeyIndex {
    keys: SkipSet<Box<[u8]>>,
    /// The log has been read up to here.
    read: Mutex<u64>,
}

fn entry(bucket: u64, key: &[u8]) -> Box<[u8]> {
    let mut entry = Vec::with_capacity(BUCKET_BYTES + key.len());
    #[allow(clippy::big_endian_bytes, reason = "memory only: byte order is key order")]
    entry.extend_from_slice(&bucket.to_be_bytes());
    entry.extend_from_slice(key);
    entry.into()
}

impl KeyIndex {
    /// Takes in all keys logged so far.
    pub(crate) fn catch_up(&self, log: &Log, guard: &Guard) -> Result<()> {
        let mut read = self.read.lock();
        if *read == log.end(guard) {
            return Ok(());
        }
        for segment in log.segments(guard) {
            let end = segment.region.published();
            if segment.position(end) <= *read {
                continue;
            }
            let from = read.saturating_sub(segment.header.base).max(HEADER_BYTES);
            let bytes = segment.region.slice(0..end).unwrap_or_default();
            replay::records(bytes, from, |_, record, _| {
                if record.kind == Kind::Set {
                    let entry = entry(record.bucket, record.key);
                    if !self.keys.contains(&entry) {
                        self.keys.insert(entry);
                    }
                }
                Ok(())
            })?;
            *read = segment.position(end);
        }
        Ok(())
    }

    /// Keys of a bucket from `from` on, in byte order; `from` itself only if `inclusive`.
    pub(crate) fn visit(
        &self,
        bucket: u64,
        from: &[u8],
        inclusive: bool,
        mut visit: impl FnMut(&[u8]) -> Result<bool>,
    ) -> Result<()> {
        let start = entry(bucket, from);
        for found in self.keys.range(start.clone()..) {
            let (prefix, key) = found.value().split_at(BUCKET_BYTES);
            if prefix != &start[..BUCKET_BYTES] {
                break;
            }
            if !inclusive && key == from {
                continue;
            }
            if !visit(key)? {
                break;
            }
        }
        Ok(())
    }
}
