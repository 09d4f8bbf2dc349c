//! Every sequence of a few calls, out of so many, on a store that is about to seal, clean and go on to the next segment:
//! most faults in crash recovery need three calls or fewer (B3, Mohan et al., OSDI 2018).
//!
//! Of each sequence the power is cut at the moments of its last call alone: those before are of shorter sequences.

use super::call::{Against, At, Call, Content, Level};
use super::counts::{Case, Counts, Violation};
use super::crash::{Plan, Search, make};
use super::workload::Run;
use crate::io::sim::{Image, SimDisk};

/// Kinds of calls.
pub const CALLS: u64 = 14;
/// The longest sequence.
pub const LENGTH: u32 = 4;

/// Sequences of all lengths, in a store that syncs and in one that does not.
pub fn total() -> u64 {
    2 * (1..=LENGTH).map(|length| CALLS.pow(length)).sum::<u64>()
}

fn call(kind: u64, id: u32) -> Call {
    let a = |key| At { bucket: 0, key };
    let small = Content { id, bytes: 20 };
    match kind {
        0 => Call::Set(a(0), small, Level::AsOptions),
        1 => Call::Set(a(1), Content { id, bytes: 3300 }, Level::Os),
        2 => Call::Set(At { bucket: 1, key: 0 }, small, Level::Sync),
        3 => Call::Delete(a(2), Level::AsOptions),
        4 => Call::Swap(a(0), small, Against::Shown, Level::AsOptions),
        5 => Call::Increment(0, 3, Level::AsOptions),
        6 => Call::Batch {
            writes: vec![(a(3), Some(small)), (At { bucket: 1, key: 3 }, None), (a(4), None)],
            start: false,
        },
        7 => Call::StartSet(a(3), small),
        8 => Call::DropBucket(1),
        9 => Call::Sync,
        10 => Call::Background(3),
        11 => Call::Close,
        12 => Call::Kill,
        _ => Call::SetUntil(a(2), small, 0),
    }
}

/// What comes before every sequence: several segments, some of them sealed, runs, a checkpoint, something dead, an active
/// segment that is nearly full.
fn before() -> Vec<Call> {
    let set = |bucket, key, id, bytes| Call::Set(At { bucket, key }, Content { id, bytes }, Level::Os);
    let mut calls = vec![Call::Sync];
    for id in 0..5 {
        calls.extend([set(0, id as u8, id, 700), set(1, id as u8, 10 + id, 400), Call::Background(2)]);
    }
    calls.extend([set(0, 0, 20, 900), set(0, 1, 21, 900), Call::Background(4), Call::Sync, Call::Background(3)]);
    calls.extend([set(0, 2, 22, 1500), Call::Increment(0, 1, Level::Sync), set(1, 2, 23, 1200), Call::Background(1)]);
    calls
}

/// The sequence with this number, counted from 0: the short ones first, each with and without syncs.
fn sequence(mut number: u64) -> Vec<u64> {
    number /= 2;
    let mut length = 1;
    while number >= CALLS.pow(length) {
        number -= CALLS.pow(length);
        length += 1;
    }
    (0..length).map(|i| number / CALLS.pow(i) % CALLS).collect()
}

/// Cuts the power in the last call of sequence `number`.
///
/// # Errors
/// The first broken promise.
pub fn round(number: u64, plan: &Plan, case: &Case) -> Result<Counts, Violation> {
    // Workloads sync where their seed is a multiple of three.
    let seed = 6 * number + number % 2;
    let fail = |what| Violation { seed: number, case: case.clone(), what };
    let mut run = Run::new(SimDisk::new(Image::new(), seed), seed);
    for (i, call) in before().iter().enumerate() {
        make(&mut run, call).map_err(|what| fail(format!("before, call {i}: {what}")))?;
    }
    let kinds = sequence(number);
    let mut from = run.disk.now();
    for (i, kind) in kinds.iter().enumerate() {
        from = run.disk.now();
        let call = call(*kind, 100 + i as u32);
        make(&mut run, &call).map_err(|what| fail(format!("call {i} of {kinds:?}, {call:?}: {what}")))?;
    }
    let mut search = Search::new(seed, *plan);
    let found = match &case.at {
        Some(at) => search.one(&run, at).map_err(|what| (Some(at.clone()), what)),
        None => search.cuts(&run, from + 1..=run.disk.now()),
    };
    found.map_err(|(at, what)| Violation {
        seed: number,
        case: Case { calls: None, at },
        what: format!("{what} (calls {:?})", kinds.iter().map(|kind| call(*kind, 0)).collect::<Vec<_>>()),
    })?;
    let mut counts = search.counts;
    counts.add("sequences", 1);
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_all_different_and_of_all_lengths() {
        let all: std::collections::BTreeSet<_> = (0..2 * (14 + 196)).map(|n| (n % 2, sequence(n))).collect();
        assert_eq!(all.len(), 2 * (14 + 196));
        assert!(all.iter().all(|(_, s)| s.len() <= 2));
        assert_eq!(sequence(total() - 1), [13; 4]);
    }
}
