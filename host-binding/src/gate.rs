//! How much one component, or one tenant, may ask at once and in a second: [`Gate`].
//!
//! Flow: `Limits` -> one gate per context (and one per tenant, shared) -> the beginning of a call enters it, its end, or
//! its being dropped half-way, leaves it.
//! Invariants: 1. What was entered is left exactly once, whatever becomes of the call. 2. A call that is refused has taken
//! nothing: no place, no bytes. 3. Refused is `busy`: nothing was done, later it may be.
//! Source: the rate is the generic cell rate algorithm (ITU-T I.371), a token bucket in one word.

use crate::{Code, Error, Limits};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// What a call asks of a gate.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// Keys named; a call of none counts as one.
    pub(crate) keys: usize,
    /// Bytes of keys and values that the guest passes.
    pub(crate) bytes: usize,
    /// Whether it may write, and so wait.
    pub(crate) writes: bool,
}

/// The bounds shared by all instances of a component, or by all components of a tenant. Cheap to clone: clones are one gate.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    inside: Inside,
    rate: Option<Rate>,
    write_rate: Option<Rate>,
}

impl Gate {
    /// A gate with these limits' `calls_at_once_max`, `queued_bytes_max`, `keys_per_second_max` and
    /// `written_keys_per_second_max`.
    pub fn new(limits: &Limits) -> Gate {
        Gate(Arc::new(Inner {
            inside: Inside::new(limits),
            rate: limits.keys_per_second_max.map(Rate::new),
            write_rate: limits.written_keys_per_second_max.map(Rate::new),
        }))
    }

    /// Whether calls that neither write nor wait have anything to ask here.
    pub(crate) fn minds_reads(&self) -> bool {
        self.0.rate.is_some()
    }

    /// Calls inside now.
    pub fn calls(&self) -> usize {
        self.0.inside.now().0 as usize
    }

    /// Bytes that calls inside have brought.
    pub fn queued_bytes(&self) -> usize {
        self.0.inside.now().1 as usize
    }

    /// Takes a place; who has it must [`leave`](Gate::leave) it.
    pub(crate) fn enter(&self, load: Load) -> Result<(), Error> {
        let inner = &*self.0;
        if !inner.inside.take(load.bytes as u64) {
            return Err(Error::new(Code::Busy));
        }
        let keys = load.keys.max(1);
        let allowed = |rate: &Option<Rate>| rate.as_ref().is_none_or(|rate| rate.allows(keys, rate.now()));
        if !allowed(&inner.rate) || (load.writes && !allowed(&inner.write_rate)) {
            self.leave(load);
            return Err(Error::new(Code::Busy));
        }
        Ok(())
    }

    pub(crate) fn leave(&self, load: Load) {
        self.0.inside.give_back(load.bytes as u64);
    }
}

/// Calls inside and the bytes that they brought, each with an upper bound: in one word, since every write takes and gives back.
#[derive(Debug)]
struct Inside {
    /// Calls above, bytes in the lower [`BYTES_BITS`] bits.
    now: AtomicU64,
    calls_max: u64,
    bytes_max: u64,
}

/// Up to 16 TiB.
const BYTES_BITS: u32 = 44;
const BYTES_MASK: u64 = (1 << BYTES_BITS) - 1;

impl Inside {
    fn new(limits: &Limits) -> Self {
        let calls_max = (limits.calls_at_once_max as u64).min(u64::MAX >> BYTES_BITS);
        Inside { now: AtomicU64::new(0), calls_max, bytes_max: (limits.queued_bytes_max as u64).min(BYTES_MASK) }
    }

    fn now(&self) -> (u64, u64) {
        let now = self.now.load(Ordering::Relaxed);
        (now >> BYTES_BITS, now & BYTES_MASK)
    }

    /// Never above a bound, not for an instant: two that race for the last place do not both lose it. What is over the bound of
    /// bytes all by itself passes when no other bytes are there, or no later moment would ever be right for it.
    fn take(&self, bytes: u64) -> bool {
        let add = |now: u64| {
            let (calls, queued) = (now >> BYTES_BITS, now & BYTES_MASK);
            let then = queued.checked_add(bytes).filter(|then| *then <= BYTES_MASK)?;
            let fits = calls < self.calls_max && (then <= self.bytes_max || (queued == 0 && self.bytes_max > 0));
            fits.then_some((calls + 1) << BYTES_BITS | then)
        };
        self.now.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.now.fetch_sub(1 << BYTES_BITS | bytes, Ordering::Relaxed);
    }
}

/// So many keys a second, and as many at once after a pause of a second.
#[derive(Debug)]
struct Rate {
    begun: Instant,
    /// Nanoseconds that one key takes.
    key_ns: u64,
    /// Up to this time after `begun`, in ns, all keys are paid for.
    paid_until: AtomicU64,
}

const SECOND_NS: u64 = 1_000_000_000;

impl Rate {
    fn new(per_second: NonZeroU32) -> Self {
        let key_ns = SECOND_NS / u64::from(per_second.get());
        Rate { begun: Instant::now(), key_ns, paid_until: AtomicU64::new(0) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Takes the keys, or nothing. A call of more keys than one second allows is let through when none is owed, or no pause
    /// would ever be long enough for it; those after it wait for what it took.
    fn allows(&self, keys: usize, now: u64) -> bool {
        let cost = self.key_ns.saturating_mul(keys as u64);
        let pay = |paid_until: u64| {
            let paid = paid_until.max(now).saturating_add(cost);
            (paid - now <= SECOND_NS || paid_until <= now).then_some(paid)
        };
        self.paid_until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn load(bytes: usize) -> Load {
        Load { keys: 1, bytes, writes: true }
    }

    #[track_caller]
    fn busy(gate: &Gate, bytes: usize, why: &str) {
        assert_eq!(gate.enter(load(bytes)).unwrap_err().code(), Code::Busy, "{why}");
    }

    #[test]
    fn places_and_bytes_are_taken_up_to_the_limit_and_given_back() {
        let gate = Gate::new(&Limits { calls_at_once_max: 2, queued_bytes_max: 10, ..Limits::default() });
        gate.enter(load(4)).unwrap();
        busy(&gate, 7, "a byte over");
        assert_eq!((gate.calls(), gate.queued_bytes()), (1, 4), "what was refused has taken nothing");
        gate.enter(load(6)).unwrap();
        busy(&gate, 0, "a call over");
        gate.leave(load(4));
        gate.enter(load(4)).unwrap();
        gate.leave(load(4));
        gate.leave(load(6));
        assert_eq!((gate.calls(), gate.queued_bytes()), (0, 0));
        gate.enter(load(11)).unwrap();
        busy(&gate, 1, "what is over the bound by itself goes alone");
        gate.leave(load(11));
        assert_eq!((gate.calls(), gate.queued_bytes()), (0, 0));
    }

    #[test]
    fn bounds_beyond_what_the_word_holds_are_those_of_the_word() {
        let gate =
            Gate::new(&Limits { calls_at_once_max: usize::MAX, queued_bytes_max: usize::MAX, ..Limits::default() });
        let most = BYTES_MASK as usize;
        gate.enter(load(most)).unwrap();
        busy(&gate, 1, "a byte over");
        gate.enter(load(0)).unwrap();
        assert_eq!((gate.calls(), gate.queued_bytes()), (2, most));
        gate.leave(load(most));
        gate.leave(load(0));
        busy(&gate, most + 1, "more than can be counted");
        assert_eq!((gate.calls(), gate.queued_bytes()), (0, 0));
        let closed = Gate::new(&Limits { calls_at_once_max: 0, ..Limits::default() });
        busy(&closed, 0, "nobody passes");
    }

    #[test]
    fn a_rate_allows_what_it_says_and_no_key_more() {
        let rate = Rate::new(NonZeroU32::new(10).unwrap());
        let all = |keys: usize, now| (0..keys).filter(|_| rate.allows(1, now)).count();
        assert_eq!(all(11, 0), 10, "a second's worth at once");
        assert_eq!(all(5, SECOND_NS / 10 - 1), 0);
        assert_eq!(all(5, SECOND_NS / 10), 1);
        assert_eq!(all(100, 60 * SECOND_NS), 10, "a long pause saves no more than a second's worth");
        assert!(!rate.allows(9, 60 * SECOND_NS + SECOND_NS * 8 / 10), "eight keys' time has passed");
        assert!(rate.allows(9, 60 * SECOND_NS + SECOND_NS * 9 / 10));
    }

    #[test]
    fn a_batch_over_the_rate_passes_at_rest_and_is_paid_for_by_those_after_it() {
        let rate = Rate::new(NonZeroU32::new(10).unwrap());
        assert!(rate.allows(30, 0));
        assert!(!rate.allows(1, SECOND_NS) && !rate.allows(30, SECOND_NS * 2));
        assert!(rate.allows(1, SECOND_NS * 2 + SECOND_NS / 10));
    }

    #[test]
    fn the_sum_of_racing_calls_stays_within() {
        let gate = Gate::new(&Limits { calls_at_once_max: 3, queued_bytes_max: 20, ..Limits::default() });
        let entered = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        if gate.enter(load(7)).is_ok() {
                            entered.fetch_add(1, Ordering::Relaxed);
                            assert!(gate.calls() <= 3 && gate.queued_bytes() <= 20);
                            gate.leave(load(7));
                        }
                    }
                });
            }
        });
        assert!(entered.into_inner() > 0);
        assert_eq!((gate.calls(), gate.queued_bytes()), (0, 0));
    }
}
