//! One store, damaged all through: no place of it is left out, and each damage is read through mappings and without. Where
//! [`damage`] takes samples of many small stores, this does to a large one all there is.
//!
//! A seed is a stretch of the store's files, one after another by name: so threads share the work, and what was done adds up.

use super::Random;
use super::call::{At, BUCKETS, Call, Calls, Content, KEYS, Level};
use super::counts::{Case, Counts, Violation};
use super::damage::{self, Damage, Kind};
use super::workload::Run;
use crate::io::sim::{Image, SimDisk};

/// What is done at each byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Each of its bits is flipped; of a store of 128 KiB.
    Bits,
    /// One of its bits is flipped, and the file is cut before it; of a store of 32 KiB.
    Bytes,
}

/// Of a seed.
const STRETCH_BYTES: u64 = 4096;
/// The workload: it does not sync, makes checkpoints, and dies.
const WORKLOAD: u64 = 4;
const CALLS: u32 = 240;

impl Extent {
    fn damages_per_byte(self) -> u64 {
        match self {
            Extent::Bits => 8,
            Extent::Bytes => 2,
        }
    }

    /// Of the value that each key has in the middle of the workload.
    fn value_bytes(self) -> u32 {
        match self {
            Extent::Bits => 3500,
            Extent::Bytes => 250,
        }
    }

    /// How many seeds there are; the first is 1.
    ///
    /// # Errors
    /// The store cannot be made.
    pub fn stretches(self) -> Result<u64, String> {
        let (image, _) = self.store()?;
        Ok(bytes(&image).div_ceil(STRETCH_BYTES))
    }

    fn store(self) -> Result<(Image, Run), String> {
        let mut calls = Calls::of(WORKLOAD, CALLS);
        let rest = calls.split_off(calls.len() * 3 / 4);
        let filling = (0..BUCKETS.len() as u8).flat_map(|bucket| (0..KEYS).map(move |key| At { bucket, key }));
        let filling = filling.zip(8 * (CALLS + 1)..).map(|(at, id)| {
            let content = Content { id, bytes: self.value_bytes() };
            Call::Set(at, content, Level::AsOptions)
        });
        calls.extend(filling.chain(rest));
        let run = damage::run_of(WORKLOAD, &calls)?;
        Ok((damage::files(&run), run))
    }

    /// A damage by its number, of which each byte of the store has as many as any other.
    fn damage(self, number: u64, image: &Image, run: &Run) -> Option<Damage> {
        let (kind, place) = match self {
            Extent::Bits => (Kind::Flip, number),
            Extent::Bytes if number.is_multiple_of(2) => (Kind::Flip, number / 2 * 8 + Random::new(number).below(8)),
            Extent::Bytes => (Kind::Truncate, number / 2),
        };
        damage::nth(kind, image, run, place)
    }
}

fn bytes(image: &Image) -> u64 {
    image.values().map(|file| file.len() as u64).sum()
}

/// Does all that is done in a stretch of the store.
///
/// # Errors
/// The first wrong answer.
pub fn round(extent: Extent, seed: u64, case: &Case) -> Result<Counts, Violation> {
    let fail = |at: Option<u64>, what| Violation::new(seed, at.map(|at| at.to_string()), what);
    let (image, run) = extent.store().map_err(|what| fail(None, what))?;
    let all = bytes(&image);
    let (from, to) = (all.min(seed.saturating_sub(1) * STRETCH_BYTES), all.min(seed * STRETCH_BYTES));
    let mut numbers = extent.damages_per_byte() * from..extent.damages_per_byte() * to;
    if let Some(at) = &case.at {
        let at = at.parse().map_err(|e| fail(None, format!("{at:?}: {e}")))?;
        numbers = at..at + 1;
    }
    let mut counts = Counts::default();
    counts.add("bytes", to - from);
    for number in numbers {
        let Some(damage) = extent.damage(number, &image, &run) else { continue };
        let damaged = damage::apply(&damage, &image, &run);
        for is_mapped in [true, false] {
            let disk = SimDisk::new(damaged.clone(), WORKLOAD).mapped(is_mapped);
            damage::check(&disk, std::slice::from_ref(&damage), &run, WORKLOAD)
                .map_err(|what| fail(Some(number), format!("{damage:?}, mapped: {is_mapped}: {what}")))?;
            counts.add(if is_mapped { "damages_mapped" } else { "damages_unmapped" }, 1);
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stores_are_as_large_as_is_said() {
        for (extent, least) in [(Extent::Bits, 128 << 10), (Extent::Bytes, 32 << 10)] {
            let (image, _) = extent.store().expect("no fault was put in");
            assert!(bytes(&image) >= least, "{extent:?}: {} bytes", bytes(&image));
        }
    }

    #[test]
    fn no_byte_is_left_out() {
        let (image, run) = Extent::Bytes.store().expect("no fault was put in");
        for number in 0..2 * bytes(&image) {
            assert!(Extent::Bytes.damage(number, &image, &run).is_some(), "damage {number}");
        }
    }
}
