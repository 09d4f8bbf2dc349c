//! Damaged files: every bit flipped, every length. The store opens with the state after some number of its commits, or says
//! what is damaged; it never shows a value that was not written, and never panics.

use std::sync::Arc;

use super::crash::caught;
use super::model;
use super::workload::{Run, options};
use crate::io::sim::{Image, SimDisk, Variant};
use crate::manifest::superblock;
use crate::worker::Jobs;
use crate::{ErrorKind, Store};

/// Flips single bits of a store that was closed, or cut in mid-flight, by turns of the seed; `count` of them, or all.
///
/// # Errors
/// The first wrong answer.
pub fn flips(seed: u64, count: u64) -> Result<u64, String> {
    let (image, run) = store(seed)?;
    let bits: u64 = image.values().map(|bytes| bytes.len() as u64 * 8).sum();
    let stride = (bits / count.max(1)).max(1) | 1;
    let mut done = 0;
    let mut bit = seed % stride;
    while bit < bits && done < count {
        let mut damaged = image.clone();
        let mut at = bit;
        for (name, bytes) in &image {
            let here = bytes.len() as u64 * 8;
            if at < here {
                let mut bad = bytes.to_vec();
                bad[(at / 8) as usize] ^= 1 << (at % 8);
                damaged.insert(name.clone(), bad.into());
                check(&damaged, &run, seed).map_err(|what| format!("seed {seed}, bit {at} of {name}: {what}"))?;
                break;
            }
            at -= here;
        }
        done += 1;
        bit += stride;
    }
    Ok(done)
}

/// Cuts each file to each length, or to `count` of them.
///
/// # Errors
/// The first wrong answer.
pub fn cuts(seed: u64, count: u64) -> Result<u64, String> {
    let (image, run) = store(seed)?;
    let bytes: u64 = image.values().map(|bytes| bytes.len() as u64).sum();
    let stride = (bytes / count.max(1)).max(1);
    let mut done = 0;
    for (name, bytes) in &image {
        for len in (0..bytes.len()).step_by(stride as usize) {
            if done == count {
                return Ok(done);
            }
            let mut damaged = image.clone();
            damaged.insert(name.clone(), bytes[..len].into());
            check(&damaged, &run, seed).map_err(|what| format!("seed {seed}, {name} cut to {len} bytes: {what}"))?;
            done += 1;
        }
    }
    Ok(done)
}

pub(super) fn store(seed: u64) -> Result<(Image, Run), String> {
    let mut run = Run::new(SimDisk::new(Image::new(), seed), seed);
    for i in 0..40 {
        caught(|| run.step()).map_err(|what| format!("seed {seed}, step {i}, without a fault: {what}"))?;
    }
    if seed.is_multiple_of(2)
        && let Some(store) = run.store().cloned()
    {
        store.close().map_err(|e| format!("seed {seed}: cannot close: {e:?}"))?;
    }
    Ok((run.disk.image(Variant::AllKept), run))
}

/// What a damaged store may do: refuse, or show the state after some number of commits, but for the very keys whose records
/// are damaged.
fn check(image: &Image, run: &Run, seed: u64) -> Result<(), String> {
    caught(|| {
        let disk = SimDisk::new(image.clone(), seed);
        let store = match Store::without_worker(Arc::new(disk.clone()), options(seed)) {
            // Errors are told with the damage, not as if the system had failed.
            Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Format) => {
                let now = disk.image(Variant::AllKept);
                return if now == *image { Ok(()) } else { Err(format!("{e:?}, and files were changed")) };
            }
            Err(e) => return Err(format!("{e:?}")),
            Ok(store) => store,
        };
        for _ in 0..3 {
            let whole = model::read_what_is_whole(&store).map_err(|e| format!("{e:?}"))?;
            if let Some((seen, unreadable)) = whole
                && !run.history.has_but_for(&seen, &unreadable)
            {
                let what = run.history.find(&seen, 0..=run.history.commits()).map(|_| String::new());
                return Err(format!("unreadable: {unreadable:?}; {}", what.unwrap_or_else(|what| what)));
            }
            // The jobs meet the damage, too; the store lives through it.
            let mut jobs = Jobs::cleaning_from(2048);
            for _ in 0..8 {
                jobs.round(&store.0.commits, false).ok_or("background work has stopped the store")?;
            }
        }
        let bucket = store.bucket("probe").map_err(|e| format!("a bucket beside damage: {e:?}"))?;
        bucket.set(b"probe", b"value").map_err(|e| format!("a write beside damage: {e:?}"))?;
        Ok(())
    })
    .map_err(|what| if image.contains_key(superblock::FILE) { what } else { format!("no superblock: {what}") })
}
