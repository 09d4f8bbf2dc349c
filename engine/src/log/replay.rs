//! Which bytes of a segment are log, and what it means where they stop being so. No I/O.
//! Flow: `recovery` -> here; `verify` -> here.
//!
//! The log of a segment is the longest run of valid commits from its start. Where it stops, a torn tail and damage look
//! alike; they are told apart by *witnesses*: a durable mark in a later record, or the manifest, that says the bytes had
//! reached the disk. Without a witness the rest was never promised to anybody, and is cut.

use std::collections::BTreeSet;

use crate::catalogue::{CATALOGUE, makes_sense};
use crate::checksum::Seed;
use crate::commit::hash_key;
use crate::error::Result;
use crate::log::record::{ALIGN, Defect, Kind, MARKED_BYTES_MIN, Record};
use crate::seeded::{Bug, seeded};
use crate::segment::HEADER_BYTES;

/// How far a segment's log goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Offset after the last whole commit.
    pub(crate) end: u64,
    /// What stands there instead of a record.
    pub(crate) defect: Defect,
    /// Offset of the record that is not one: behind `end` where a batch is not whole.
    pub(crate) defect_at: u64,
    /// Whole commits.
    pub(crate) commits: u64,
    /// Records in them.
    pub(crate) records: u64,
    /// Highest durable mark seen.
    pub(crate) mark: u64,
    /// Offset of the first record of the bucket catalogue that checks and is none that we write.
    pub(crate) nonsense_at: Option<u64>,
}

impl Extent {
    /// A log that ends here, and of which nothing was read.
    pub(crate) fn unread(end: u64) -> Extent {
        Extent { end, defect: Defect::Blank, defect_at: end, commits: 0, records: 0, mark: 0, nonsense_at: None }
    }

    /// Checks what comes behind, as far as the first commit that ends at `until` or behind that.
    fn go_on(&mut self, bytes: &[u8], salt: u64, until: u64, mut notes: Option<&mut Notes>) {
        while self.end < until {
            let taken = notes.as_ref().map(|notes| notes.taken());
            match commit_at(bytes, salt, self.end, notes.as_deref_mut()) {
                Ok(commit) => {
                    self.end = commit.end;
                    self.commits += 1;
                    self.records += commit.records;
                    self.mark = self.mark.max(commit.mark);
                    self.nonsense_at = self.nonsense_at.or(commit.nonsense_at);
                }
                Err((defect, at)) => {
                    if let (Some(notes), Some(taken)) = (notes, taken) {
                        notes.back_to(taken);
                    }
                    self.defect = defect;
                    self.defect_at = at;
                    return;
                }
            }
        }
    }

    /// This one, and one that begins where it ends.
    fn then(&self, behind: &Extent) -> Extent {
        Extent {
            commits: self.commits + behind.commits,
            records: self.records + behind.records,
            mark: self.mark.max(behind.mark),
            nonsense_at: self.nonsense_at.or(behind.nonsense_at),
            ..*behind
        }
    }
}

/// One record of a checked log, and all of it that most replays need.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parsed {
    pub(crate) hash: u64,
    /// Offset and length in units of [`ALIGN`], [`PLAIN`] in the latter.
    at: u32,
    bytes: u32,
}

/// A set that was not moved, and not of the catalogue.
const PLAIN: u32 = 1 << 31;

impl Parsed {
    pub(crate) fn offset(&self) -> u64 {
        u64::from(self.at) * ALIGN
    }

    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.bytes & !PLAIN) * ALIGN
    }

    pub(crate) fn is_plain(&self) -> bool {
        self.bytes & PLAIN != 0
    }
}

/// Takes down the records of a log while it is checked, so that they are read once.
#[derive(Debug)]
pub(crate) struct Notes {
    hash_seed: u64,
    /// The records by the highest bit of their hash, so that two threads can each replay one half; each in the order of the log.
    pub(crate) halves: [Vec<Parsed>; 2],
    /// Of both halves what is not plain, in the order of the log.
    pub(crate) others: Vec<Parsed>,
    /// Bytes of all that is.
    pub(crate) plain_bytes: u64,
    /// Buckets met.
    pub(crate) buckets: BTreeSet<u64>,
    last_bucket: u64,
}

/// How much was taken down: lengths of the halves and of the others, and bytes of what is plain.
type Taken = ([usize; 2], usize, u64);

impl Notes {
    pub(crate) fn new(hash_seed: u64) -> Notes {
        Notes {
            hash_seed,
            halves: [Vec::new(), Vec::new()],
            others: Vec::new(),
            plain_bytes: 0,
            buckets: BTreeSet::new(),
            last_bucket: CATALOGUE,
        }
    }

    /// Number of records.
    pub(crate) fn len(&self) -> usize {
        self.halves.iter().map(Vec::len).sum()
    }

    #[inline]
    fn take(&mut self, offset: u64, record: &Record<'_>, bytes: u64) {
        if record.bucket != self.last_bucket {
            self.last_bucket = record.bucket;
            self.buckets.insert(record.bucket);
        }
        let plain = record.kind == Kind::Set && record.moved.is_none() && record.bucket != CATALOGUE;
        let parsed = Parsed {
            hash: hash_key(self.hash_seed, record.bucket, record.key),
            at: (offset / ALIGN) as u32,
            bytes: (bytes / ALIGN) as u32 | if plain { PLAIN } else { 0 },
        };
        self.halves[(parsed.hash >> 63) as usize].push(parsed);
        if plain {
            self.plain_bytes += bytes;
        } else {
            self.others.push(parsed);
        }
    }

    fn taken(&self) -> Taken {
        (self.halves.each_ref().map(Vec::len), self.others.len(), self.plain_bytes)
    }

    /// Forgets what was taken down since.
    fn back_to(&mut self, (halves, others, plain_bytes): Taken) {
        for (half, len) in self.halves.iter_mut().zip(halves) {
            half.truncate(len);
        }
        self.others.truncate(others);
        self.plain_bytes = plain_bytes;
    }

    /// Adds the notes of what comes behind.
    fn append(&mut self, mut behind: Notes) {
        for (half, other) in self.halves.iter_mut().zip(&mut behind.halves) {
            half.append(other);
        }
        self.others.append(&mut behind.others);
        self.plain_bytes += behind.plain_bytes;
        self.buckets.append(&mut behind.buckets);
    }
}

/// Checks every record of a segment from its first one on.
pub(crate) fn extent(bytes: &[u8], salt: u64) -> Extent {
    extent_from(bytes, salt, HEADER_BYTES)
}

/// Checks every record of a segment from offset `from` on, where a commit begins or the log ends.
pub(crate) fn extent_from(bytes: &[u8], salt: u64, from: u64) -> Extent {
    Checked::up_to(bytes, salt, from, u64::MAX, None).extent
}

/// A stretch of a log, checked from a place on where a commit begins or the log ends.
#[derive(Debug)]
pub(crate) struct Checked {
    from: u64,
    pub(crate) extent: Extent,
    pub(crate) notes: Option<Notes>,
}

impl Checked {
    /// Checks from `from` on, and ends where the first commit does that ends at `until` or behind.
    pub(crate) fn up_to(bytes: &[u8], salt: u64, from: u64, until: u64, mut notes: Option<Notes>) -> Checked {
        let mut extent = Extent::unread(from);
        extent.go_on(bytes, salt, until, notes.as_mut());
        Checked { from, extent, notes }
    }

    /// Checks what is behind `middle`, from the first commit that begins there; `None` if no record is found near. It is of the log only if
    /// what comes before ends there: for [`Checked::join`].
    pub(crate) fn behind(bytes: &[u8], salt: u64, middle: u64, notes: Option<Notes>) -> Option<Checked> {
        let mut from = record_near(bytes, salt, middle)?;
        // Of a batch that begins before: the next commit stands behind all its members.
        while let Some(Ok((record, len))) = bytes.get(from as usize..).map(Record::parse) {
            if !record.member {
                return Some(Checked::up_to(bytes, salt, from, u64::MAX, notes));
            }
            from += len;
        }
        None
    }

    /// The whole, of what was checked up to `middle` and what was checked behind it.
    pub(crate) fn join(mut self, bytes: &[u8], salt: u64, middle: u64, behind: Option<Checked>) -> Checked {
        if self.extent.end < middle {
            return self; // the log ends before it
        }
        match behind.filter(|behind| behind.from == self.extent.end) {
            Some(Checked { extent, notes, .. }) => {
                self.extent = self.extent.then(&extent);
                if let (Some(notes), Some(behind)) = (&mut self.notes, notes) {
                    notes.append(behind);
                }
            }
            None => self.extent.go_on(bytes, salt, u64::MAX, self.notes.as_mut()),
        }
        self
    }
}

/// Bytes behind the middle of a log in which a record is looked for, and as many to be checked for it: in vain where there is a value as
/// long, and then one thread checks all.
const NEAR_BYTES: u64 = 1 << 20;

/// The first whole record from `from` on, also a member of a batch.
fn record_near(bytes: &[u8], salt: u64, from: u64) -> Option<u64> {
    let mut budget = NEAR_BYTES;
    let mut at = from.next_multiple_of(ALIGN);
    while let Some(rest) = bytes.get(at as usize..).filter(|rest| at < from + NEAR_BYTES && !rest.is_empty()) {
        if let Ok((_, len)) = Record::parse(rest) {
            if Record::verify(rest, Seed::new(salt, at)).is_ok() {
                return Some(at);
            }
            budget = budget.checked_sub(len)?;
        }
        at += ALIGN;
    }
    None
}

struct Commit {
    end: u64,
    records: u64,
    mark: u64,
    nonsense_at: Option<u64>,
}

/// The commit that begins at `at`: one record, or a batch with all its members.
fn commit_at(bytes: &[u8], salt: u64, at: u64, mut notes: Option<&mut Notes>) -> Result<Commit, (Defect, u64)> {
    let (first, len) = verify_at(bytes, salt, at)?;
    if first.member {
        return Err((Defect::Malformed, at));
    }
    let mut commit = Commit { end: at + len, records: 1, mark: first.mark.unwrap_or(0), nonsense_at: None };
    if first.kind != Kind::Batch {
        commit.nonsense_at = nonsense(at, &first);
        if let Some(notes) = notes {
            notes.take(at, &first, len);
        }
        return Ok(commit);
    }
    let members_end = commit.end + first.batch_bytes;
    for _ in 0..first.bucket {
        if seeded(Bug::HalfBatchReplayed) && commit.records > 1 && verify_at(bytes, salt, commit.end).is_err() {
            return Ok(commit);
        }
        let (member, len) = verify_at(bytes, salt, commit.end)?;
        if !member.member || member.kind == Kind::Batch || commit.end + len > members_end {
            return Err((Defect::Malformed, commit.end));
        }
        if let Some(notes) = notes.as_deref_mut() {
            notes.take(commit.end, &member, len);
        }
        commit.nonsense_at = commit.nonsense_at.or_else(|| nonsense(commit.end, &member));
        commit.end += len;
        commit.records += 1;
    }
    if commit.end == members_end { Ok(commit) } else { Err((Defect::Malformed, commit.end)) }
}

#[inline]
fn nonsense(at: u64, record: &Record<'_>) -> Option<u64> {
    (record.bucket == CATALOGUE && !makes_sense(record)).then_some(at)
}

fn verify_at(bytes: &[u8], salt: u64, at: u64) -> Result<(Record<'_>, u64), (Defect, u64)> {
    // The end of the file is the end of the log, like zeros.
    let rest = bytes.get(at as usize..).filter(|rest| !rest.is_empty()).ok_or((Defect::Blank, at))?;
    Record::verify(rest, Seed::new(salt, at)).map_err(|defect| (defect, at))
}

/// Hands every record of a checked log (`bytes` ends where it does) to `visit`, with its offset and length. Batch headers
/// are left out.
pub(crate) fn records<'a>(
    bytes: &'a [u8],
    from: u64,
    mut visit: impl FnMut(u64, &Record<'a>, u64) -> Result<()>,
) -> Result<()> {
    let mut at = from;
    while let Some(Ok((record, len))) = bytes.get(at as usize..).map(Record::parse) {
        if record.kind != Kind::Batch {
            visit(at, &record, len)?;
        }
        at += len;
    }
    Ok(())
}

/// Whether a record behind `from` says that `position` was on the disk before it was written.
///
/// The bytes there may be anything, values chosen by guests included, so every aligned offset is tried, and the work is
/// bounded: past it there is no witness.
pub(crate) fn witness_behind(bytes: &[u8], salt: u64, from: u64, position: u64) -> bool {
    let mut budget = 8 * bytes.len() as u64;
    let mut at = from.next_multiple_of(ALIGN);
    while let Some(rest) = bytes.get(at as usize..).filter(|rest| rest.len() >= MARKED_BYTES_MIN) {
        if let Ok((record, len)) = Record::parse(rest)
            && record.mark.is_some_and(|mark| mark > position)
        {
            if Record::verify(rest, Seed::new(salt, at)).is_ok() {
                return true;
            }
            match budget.checked_sub(len) {
                Some(left) => budget = left,
                None => return false,
            }
        }
        at += ALIGN;
    }
    false
}

/// The first commit behind `from` that is whole; for looking past damage. As for [`witness_behind`], the work is bounded.
pub(crate) fn next_commit(bytes: &[u8], salt: u64, from: u64) -> Option<u64> {
    let mut budget = 8 * bytes.len() as u64;
    let mut at = (from + 1).next_multiple_of(ALIGN);
    while let Some(rest) = bytes.get(at as usize..).filter(|rest| !rest.is_empty()) {
        if let Ok((record, len)) = Record::parse(rest)
            && !record.member
        {
            let checked = match commit_at(bytes, salt, at, None) {
                Ok(_) => return Some(at),
                // Of what may be anything, what it says of members costs nothing.
                Err((_, defect_at)) if defect_at == at => len,
                Err(_) => len + record.batch_bytes,
            };
            budget = budget.checked_sub(checked)?;
        }
        at += ALIGN;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: u64 = 42;

    /// A segment with these commits: a number for a single set, a list for a batch.
    fn segment(commits: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES as usize];
        let mut put = |record: Record<'_>| {
            let at = bytes.len() as u64;
            bytes.resize((at + record.bytes()) as usize, 0);
            record.encode(&mut bytes[at as usize..], Seed::new(SALT, at));
        };
        for (i, values) in commits.iter().enumerate() {
            let mark = (i % 2 == 1).then_some(i as u64 * 10);
            if let [value] = values {
                put(Record { mark, ..Record::set(1, b"key", &[*value]) });
                continue;
            }
            let members: Vec<[u8; 1]> = values.iter().map(|v| [*v]).collect();
            let members = members.iter().map(|v| Record { member: true, ..Record::set(1, b"key", v) });
            put(Record { mark, ..Record::batch(values.len() as u64, members.clone().map(|m| m.bytes()).sum()) });
            members.for_each(&mut put);
        }
        bytes
    }

    #[test]
    fn the_extent_is_all_whole_commits() {
        let mut bytes = segment(&[&[1], &[2, 3], &[4]]);
        let whole = bytes.len() as u64;
        for blank in [0, 4, 100] {
            bytes.resize(whole as usize + blank, 0);
            let extent = extent(&bytes, SALT);
            assert_eq!((extent.end, extent.defect, extent.commits, extent.records), (whole, Defect::Blank, 3, 5));
            assert_eq!(extent.mark, 10);
        }
        let mut values = Vec::new();
        records(&bytes, HEADER_BYTES, |_, record, _| {
            values.push(record.value[0]);
            Ok(())
        })
        .unwrap();
        assert_eq!(values, [1, 2, 3, 4]);
    }

    #[test]
    fn a_cut_anywhere_keeps_whole_commits_only() {
        let bytes = segment(&[&[1], &[2, 3], &[4]]);
        let ends: Vec<u64> = (0..=3).map(|n| segment(&[&[1u8] as &[u8], &[2, 3], &[4]][..n]).len() as u64).collect();
        for cut in HEADER_BYTES as usize..=bytes.len() {
            let extent = extent(&bytes[..cut], SALT);
            let expected = ends.iter().rev().find(|end| **end <= cut as u64).unwrap();
            assert_eq!(extent.end, *expected, "cut at {cut}");
        }
    }

    #[test]
    fn halves_that_are_checked_apart_are_the_whole() {
        let mut bytes = segment(&[&[1], &[2, 3], &[4], &[5, 6, 7], &[8]]);
        let end = bytes.len();
        bytes.resize(end + 50, 0);
        let notes = || Some(Notes::new(7));
        // Also where it is torn, anywhere, so that one half, or a part of it, is no log.
        for torn in HEADER_BYTES as usize..=end {
            let mut bytes = bytes.clone();
            if torn < end {
                bytes[torn] ^= 0x10;
            }
            let whole = Checked::up_to(&bytes, SALT, HEADER_BYTES, u64::MAX, notes());
            for middle in HEADER_BYTES..=bytes.len() as u64 {
                let behind = Checked::behind(&bytes, SALT, middle, notes());
                let first = Checked::up_to(&bytes, SALT, HEADER_BYTES, middle, notes());
                if torn == end && first.extent.end < end as u64 {
                    // In the middle of a batch as well.
                    assert_eq!(behind.as_ref().map(|behind| behind.from), Some(first.extent.end), "halves at {middle}");
                }
                let joined = first.join(&bytes, SALT, middle, behind);
                assert_eq!(joined.extent, whole.extent, "torn at {torn}, halves at {middle}");
                let said = |checked: &Checked| {
                    let notes = checked.notes.as_ref().unwrap();
                    format!("{:?}", (&notes.halves, &notes.others, notes.plain_bytes, &notes.buckets))
                };
                assert_eq!(said(&joined), said(&whole));
            }
        }
    }

    #[test]
    fn what_looks_like_a_batch_does_not_hide_the_commit_behind_it() {
        let mut bytes = segment(&[&[1]]);
        let end = bytes.len() as u64;
        let mut put = |record: Record<'_>, salt| {
            let at = bytes.len();
            bytes.resize(at + record.bytes() as usize, 0);
            record.encode(&mut bytes[at..], Seed::new(salt, at as u64));
            at as u64
        };
        put(Record::batch(3, 1 << 30), SALT + 1);
        let next = put(Record::set(1, b"key", b"value"), SALT);
        assert_eq!(extent(&bytes, SALT).defect_at, end);
        assert_eq!(next_commit(&bytes, SALT, end), Some(next));
        assert_eq!(next_commit(&bytes, SALT, end - 1), Some(next), "past the batch too");
    }

    #[test]
    fn a_flipped_bit_ends_the_log_there_and_a_later_mark_is_a_witness() {
        let bytes = segment(&[&[1], &[2], &[4], &[5]]);
        for at in HEADER_BYTES as usize..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            let extent = extent(&bad, SALT);
            assert!(extent.end <= at as u64 && extent.commits < 4);
        }
        let end = extent(&bytes[..bytes.len() - 40], SALT).end;
        assert!(witness_behind(&bytes, SALT, end, 29), "the last record carries mark 30");
        assert!(!witness_behind(&bytes, SALT, end, 30));
        assert!(!witness_behind(&bytes, SALT + 1, end, 0), "another salt");
    }
}
