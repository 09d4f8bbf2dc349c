//! Verifying on the simulated disk: of a healthy store nothing is said, of a damaged one every flipped bit is found, in the
//! file where it is; and no byte of the disk is changed by it.

use std::sync::Arc;

use super::crash::caught;
use super::workload::{Run, Step};
use super::{Random, damage};
use crate::VerifyReport;
use crate::io::Disk;
use crate::io::disk::LOCK_FILE;
use crate::io::sim::{Image, SimDisk, Variant};
use crate::verify::verify_disk;

fn check(image: &Image, seed: u64) -> Result<VerifyReport, String> {
    let disk = SimDisk::new(image.clone(), seed);
    let looked: Arc<dyn Disk> = Arc::new(disk.read_only_view());
    let report = caught(|| verify_disk(&looked).map_err(|e| format!("{e:?}")))?;
    if disk.now() != 0 {
        return Err("verifying has changed a file".to_owned());
    }
    Ok(report)
}

/// Verifies an open store after each step of some workloads, and what it leaves when the process dies or closes it; the
/// number of reports.
///
/// # Errors
/// The first finding.
pub fn healthy(seed: u64, workloads: u64, steps: u32) -> Result<u64, String> {
    let mut reports = 0;
    for seed in seed..seed + workloads {
        let mut run = Run::new(SimDisk::new(Image::new(), seed), seed);
        for i in 0..steps {
            let fail = |what: String| format!("seed {seed}, step {i}: {what}");
            if caught(|| run.step()).map_err(fail)? != Step::Done {
                return Err(fail("a step fails on a healthy disk".to_owned()));
            }
            let Some(store) = run.store() else { continue };
            let open = store.verify().map_err(|e| fail(format!("{e:?}")))?;
            let left = check(&run.disk.image(Variant::AllKept), seed).map_err(fail)?;
            for report in [open, left] {
                reports += 1;
                if !report.opens || !report.findings.is_empty() {
                    return Err(fail(format!("{report:?}")));
                }
            }
        }
    }
    Ok(reports)
}

/// Flips one bit of each byte, or of `count` of them, of a store that was closed, or has died, by turns of the seed; the
/// number of bytes.
///
/// # Errors
/// The first one that is not found.
pub fn flips(seed: u64, count: u64) -> Result<u64, String> {
    let (image, _) = damage::store(seed)?;
    let report = check(&image, seed)?;
    if !report.findings.is_empty() {
        return Err(format!("seed {seed}: {report:?}"));
    }
    // A file that nobody needs any more, kept to be recycled when the store died, holds nothing that could be damaged.
    let mut image = image;
    let names: Vec<String> = image.keys().cloned().collect();
    for name in names.into_iter().filter(|_| report.leftover_files > 0) {
        let mut without = image.clone();
        without.remove(&name);
        if check(&without, seed)
            .is_ok_and(|less| less.leftover_files < report.leftover_files && less.findings.is_empty())
        {
            image = without;
        }
    }
    let mut random = Random::new(seed);
    let bytes: u64 = image.values().map(|bytes| bytes.len() as u64).sum();
    let stride = (bytes / count.max(1)).max(1);
    let (mut done, mut at) = (0, random.below(stride));
    for (name, bytes) in image.iter().filter(|(name, _)| *name != LOCK_FILE) {
        while at < bytes.len() as u64 {
            let mut bad = bytes.to_vec();
            bad[at as usize] ^= 1 << random.below(8);
            let mut damaged = image.clone();
            damaged.insert(name.clone(), bad.into());
            let fail = |what| format!("seed {seed}, byte {at} of {name}: {what}");
            let report = check(&damaged, seed).map_err(fail)?;
            if !report.findings.iter().any(|finding| finding.file == *name) {
                return Err(fail(format!("not found: {report:?}")));
            }
            done += 1;
            at += stride;
        }
        at -= bytes.len() as u64;
    }
    Ok(done)
}
