//! What an open store holds in memory, as one number. With the disk below it, this is all that what it shows can depend on: the
//! campaigns that open images read each such state once.

use crossbeam_epoch as epoch;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::Store;
use crate::directory::At;
use crate::error::Result;
use crate::recovery::OpenReport;
use crate::run::format::Header;

/// A hash of the log, the directory and the catalogue as they are in memory, of where the log ends and is durable, and of what
/// the open found, but for what it cut off. The key index is made of those and of the runs, which are files: which of them it uses is told here.
pub(crate) fn hash(store: &Store) -> Result<u64> {
    let mut hasher = Xxh3::new();
    let mut put = |number: u64| hasher.update(&number.to_le_bytes());
    let commits = &store.0.commits;
    let guard = &epoch::pin();
    for segment in commits.log.segments(guard) {
        let end = segment.region.published();
        let header = segment.header;
        for number in [header.number, header.base, header.salt, header.capacity, end] {
            put(number);
        }
        put(xxh3_64(&segment.read(end)?));
    }
    put(commits.log.durable());
    put(commits.log.end(guard));
    for run in &*commits.index.runs() {
        let Header { number, from, to, .. } = run.header;
        [number, from, to].into_iter().for_each(&mut put);
    }
    let (mut at, mut lines) = (At::default(), Vec::new());
    while commits.directory.copy_part(&mut at, &mut lines, guard).is_some() {
        put(lines.len() as u64);
    }
    put(xxh3_64(&lines));
    let (ids, known) = commits.catalogue.ids();
    put(known);
    ids.into_iter().for_each(&mut put);
    for name in commits.catalogue.names() {
        put(commits.catalogue.get(&name).map_or(0, |entry| entry.id));
        put(xxh3_64(name.as_bytes()));
    }
    // By name, so that none is forgotten that is added.
    let OpenReport {
        created,
        clean,
        segments,
        commits,
        records,
        log_bytes,
        checkpoint,
        checkpoint_thrown_away,
        records_replayed,
        bytes_cut: _,
        runs,
        runs_thrown_away,
    } = *store.report();
    for number in [segments, commits, records, log_bytes, records_replayed, runs, runs_thrown_away] {
        put(number);
    }
    for flag in [created, clean, checkpoint, checkpoint_thrown_away] {
        put(u64::from(flag));
    }
    Ok(hasher.digest())
}
