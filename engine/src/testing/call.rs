//! What a workload does, as data: a list of calls, the same for a seed whatever the store answers. So a call can be left
//! out of a run and the others stay what they are, which is what makes a failing run small.

use super::{Choices, Random};

/// Names of the buckets that calls are about.
pub(crate) const BUCKETS: [&str; 3] = ["a", "b", "c"];

/// The number of a key: ordinary ones, an empty one, a long one, and one that holds numbers.
pub(crate) const KEYS: u8 = 12;
const EMPTY: u8 = KEYS;
const LONG: u8 = KEYS + 1;
pub(crate) const COUNTER: u8 = KEYS + 2;

/// A key of a bucket, both by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) bucket: u8,
    pub(crate) key: u8,
}

impl At {
    pub(crate) fn bucket(self) -> &'static str {
        BUCKETS[usize::from(self.bucket)]
    }

    pub(crate) fn key(self) -> Vec<u8> {
        match self.key {
            EMPTY => Vec::new(),
            LONG => vec![b'k'; 200],
            COUNTER => b"counter".to_vec(),
            n => format!("k{n}").into_bytes(),
        }
    }
}

/// A value: no two of a run are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) id: u32,
    pub(crate) bytes: u32,
}

impl Content {
    pub(crate) fn value(self) -> Vec<u8> {
        let mut value = format!("{}:", self.id).into_bytes();
        value.resize(value.len() + self.bytes as usize, self.id as u8);
        value
    }
}

/// How durable a write is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    AsOptions,
    Sync,
    Os,
}

/// Against which version a swap or a conditional delete is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Against {
    /// The one that a read shows.
    Shown,
    /// None: the key must be absent.
    Absent,
    /// One that never was.
    Wrong,
}

/// One call of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Set(At, Content, Level),
    /// Expires so many milliseconds from now, or before.
    SetUntil(At, Content, i64),
    StartSet(At, Content),
    Delete(At, Level),
    StartDelete(At),
    Increment(u8, i64, Level),
    StartIncrement(u8, i64),
    Swap(At, Content, Against, Level),
    DeleteIf(At, Against),
    /// Across buckets; without a value a key is deleted.
    Batch {
        writes: Vec<(At, Option<Content>)>,
        start: bool,
    },
    SetMany(u8, Vec<(u8, Content)>),
    DeleteMany(u8, Vec<u8>),
    GetMany(u8, Vec<u8>),
    DropBucket(u8),
    Sync,
    /// Waits for all writes that were begun.
    Settle,
    /// So many rounds of background jobs.
    Background(u8),
    /// Everything is read.
    Compare,
    /// So many milliseconds pass.
    Tick(u16),
    Backup,
    /// Closes the store and opens it again.
    Close,
    /// The process dies; the store is opened again.
    Kill,
}

impl Call {
    /// Whether the call opens a store, for which space may be needed.
    pub(crate) fn ends_process(&self) -> bool {
        matches!(self, Call::Close | Call::Kill)
    }

    /// Any call, by choices of `random`; no two of a run have one `id`.
    pub(crate) fn random<C: Choices>(random: &mut C, id: u32) -> Call {
        let at = |random: &mut C| {
            let key = match random.below(30) {
                0 => EMPTY,
                1 => LONG,
                _ => random.below(u64::from(KEYS)) as u8,
            };
            At { bucket: random.below(3) as u8, key }
        };
        let content = |random: &mut C, i: u32| {
            let bytes = match random.below(24) {
                0 => 0,
                1 => 4000 + random.below(3000),
                2..=5 => 300 + random.below(700),
                _ => random.below(60),
            };
            Content { id: 8 * id + i, bytes: bytes as u32 }
        };
        let level = |random: &mut C| match random.below(4) {
            0 => Level::Sync,
            1 => Level::Os,
            _ => Level::AsOptions,
        };
        let against = |random: &mut C| match random.below(4) {
            0 => Against::Wrong,
            1 => Against::Absent,
            _ => Against::Shown,
        };
        let keys = |random: &mut C| (0..1 + random.below(5)).map(|_| at(random).key).collect::<Vec<_>>();
        match random.below(100) {
            0..=1 => Call::DropBucket(random.below(3) as u8),
            2..=3 => Call::Close,
            4..=5 => Call::Kill,
            6..=8 => Call::Sync,
            9..=11 => Call::Settle,
            12..=24 => Call::Background(1 + random.below(4) as u8),
            25..=27 => Call::Compare,
            28..=35 => {
                let mut write = |i| {
                    let value = (random.below(4) != 0).then(|| content(random, i));
                    (at(random), value)
                };
                let n = 1 + id % 5;
                let writes = (0..n).map(&mut write).collect();
                Call::Batch { writes, start: random.below(3) == 0 }
            }
            36..=37 => {
                let keys = keys(random);
                let pairs = keys.into_iter().zip(0..).map(|(key, i)| (key, content(random, i))).collect();
                Call::SetMany(random.below(3) as u8, pairs)
            }
            38 => Call::DeleteMany(random.below(3) as u8, keys(random)),
            39 => Call::GetMany(random.below(3) as u8, keys(random)),
            40..=41 => Call::Tick(random.below(30) as u16),
            42 if random.below(3) == 0 => Call::Backup,
            42..=46 => {
                let after = match random.below(5) {
                    0 => -(random.below(3) as i64),
                    1 => 1 << 40,
                    _ => 1 + random.below(40) as i64,
                };
                Call::SetUntil(at(random), content(random, 0), after)
            }
            47..=51 => match random.below(3) {
                0 => Call::StartIncrement(random.below(3) as u8, 1 + random.below(9) as i64),
                _ => Call::Increment(random.below(3) as u8, random.below(20) as i64 - 9, level(random)),
            },
            52..=58 => Call::Swap(at(random), content(random, 0), against(random), level(random)),
            59..=60 => Call::DeleteIf(at(random), against(random)),
            61..=66 => Call::StartSet(at(random), content(random, 0)),
            67..=71 => Call::Delete(at(random), level(random)),
            72..=75 => Call::StartDelete(at(random)),
            _ => Call::Set(at(random), content(random, 0), level(random)),
        }
    }
}

/// The calls of a seed, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    random: Random,
    id: u32,
    mood: Mood,
    /// Calls still to come of what the mood has begun.
    burst: u8,
}

/// How much a run waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    /// For the disk only where the options say so: much is unsynced, in several segments.
    Lazy,
    /// Likewise, with background work from the beginning, and large values after it.
    Large,
    /// For few of the writes it begins: in a store that syncs, much is not visible yet.
    Hasty,
    Even,
}

/// Calls at the beginning of a lazy run in which nothing is done in the background either.
const IDLE: u32 = 40;
/// Calls with which a lazy run goes on after background work: large values, each of which needs a segment of its own, and in the
/// middle of them background work again, which seals what is before. None of them is synced, so a power cut takes any of their links.
const LARGE: u8 = 7;
const SEALED_AT: u8 = 3;
/// Calls with which a hasty run goes on after some of its writes: background work, which meets records of keys that wait for the disk,
/// and the death of the process, so that the next one has the log alone to go by.
const INTERRUPTED: u8 = 2;

impl Calls {
    pub(crate) fn new(seed: u64) -> Calls {
        let mood = match seed % 8 {
            1 => Mood::Lazy,
            5 => Mood::Large,
            2 | 6 => Mood::Hasty,
            _ => Mood::Even,
        };
        Calls { random: Random::new(seed ^ 0x0077_6f72_6b6c_6f61), id: 0, mood, burst: 0 }
    }

    pub(crate) fn next(&mut self) -> Call {
        self.id += 1;
        if let Some(left) = self.burst.checked_sub(1) {
            self.burst = left;
            return match self.mood {
                Mood::Hasty if left > 0 => Call::Background(4),
                Mood::Hasty => Call::Kill,
                _ if left == SEALED_AT => Call::Background(3),
                Mood::Lazy | Mood::Large | Mood::Even => {
                    let bytes = 2200 + self.random.below(2400) as u32;
                    let at = At { bucket: self.random.below(3) as u8, key: self.random.below(u64::from(KEYS)) as u8 };
                    Call::Set(at, Content { id: 8 * self.id, bytes }, Level::Os)
                }
            };
        }
        let call = Call::random(&mut self.random, self.id);
        match self.mood {
            Mood::Lazy | Mood::Large => {
                let call = self.unsynced(call);
                let is_large = self.mood == Mood::Large || self.random.below(4) == 0;
                if matches!(call, Call::Background(_)) && is_large {
                    self.burst = LARGE;
                }
                call
            }
            Mood::Hasty if !self.id.is_multiple_of(5) => {
                let call = begun(call);
                if matches!(call, Call::StartSet(..)) && self.random.below(16) == 0 {
                    self.burst = INTERRUPTED;
                }
                call
            }
            Mood::Hasty | Mood::Even => call,
        }
    }

    fn unsynced(&self, mut call: Call) -> Call {
        use Call::{Background, Backup, Close, Compare, Delete, Increment, Kill, Set, Settle, Swap, Sync};
        match &mut call {
            Set(.., level) | Delete(.., level) | Increment(.., level) | Swap(.., level) if *level == Level::Sync => {
                *level = Level::Os;
            }
            Sync | Backup => return Compare,
            Close | Kill | Background(_) if self.id < IDLE && self.mood == Mood::Lazy => return Settle,
            _ => {}
        }
        call
    }

    /// The first `n` calls of a seed.
    pub(crate) fn of(seed: u64, n: u32) -> Vec<Call> {
        let mut calls = Calls::new(seed);
        (0..n).map(|_| calls.next()).collect()
    }
}

/// The call, not waited for.
fn begun(call: Call) -> Call {
    match call {
        Call::Set(at, content, _) => Call::StartSet(at, content),
        Call::Delete(at, _) => Call::StartDelete(at),
        Call::Increment(bucket, delta, _) => Call::StartIncrement(bucket, delta),
        Call::Batch { writes, .. } => Call::Batch { writes, start: true },
        Call::Settle | Call::Sync => Call::Background(2),
        other => other,
    }
}
