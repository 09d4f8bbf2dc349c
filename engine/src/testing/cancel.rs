//! Commits as futures, polled and dropped at any moment: dropping one gives up the waiting and never the write, one that
//! says it is ready is durable, and whoever waits is woken.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use super::Random;
use super::counts::{Case, Counts, Violation};
use super::crash::{caught, judge};
use super::model::{self, Change, History};
use crate::io::sim::{self, Image, SimDisk, Variant};
use crate::worker::Jobs;
use crate::{Batch, Commit, Durability, Options, Store};

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// Something that may be ready, whatever it is a commit of.
type Waiting = Pin<Box<dyn Future<Output = crate::Result<()>>>>;

struct Polled {
    waits: Waiting,
    woken: Arc<Flag>,
    /// The commits that are durable when it is ready.
    commits: usize,
    polled: bool,
}

fn boxed<T: Unpin + 'static>(commit: Commit<T>) -> Waiting {
    Box::pin(async move { commit.await.map(drop) })
}

/// Starts writes of a seed, polls each a few times, and drops some of them at each number of polls.
///
/// # Errors
/// The first broken promise.
pub fn round(seed: u64) -> Result<Counts, Violation> {
    let mut counts = Counts::default();
    let made = caught(|| one(seed, &mut counts));
    made.map(|()| counts).map_err(|what| Violation { seed, case: Case::default(), what })
}

fn one(seed: u64, counts: &mut Counts) -> Result<(), String> {
    sim::set_clock(1);
    let mut random = Random::new(seed ^ 0x6361_6e63_656c);
    let disk = SimDisk::new(Image::new(), seed);
    let options = Options { segment_bytes_max: 4096, ..Options::new().durability(Durability::Sync) };
    let failed = |e: crate::Error| format!("{e:?}");
    let mut history = History::default();
    history.clock = 1;
    let store = Store::without_worker(Arc::new(disk.clone()), options.clone()).map_err(failed)?;
    let moment = disk.now();
    let bucket = store.bucket("b").map_err(failed)?;
    history.push(moment, &[Change::MakeBucket("b".to_owned())]);
    history.acknowledge(disk.now());
    let mut jobs = Jobs::cleaning_from(2048);
    let mut futures: Vec<Polled> = Vec::new();
    for i in 0..60u32 {
        let key = vec![b'k', random.below(8) as u8];
        let value: Vec<u8> = format!("{i}:{}", "v".repeat(random.below(300) as usize)).into_bytes();
        let moment = disk.now();
        let put = |key: &[u8], value: Option<&[u8]>| Change::Put("b".to_owned(), key.to_vec(), value.map(Arc::from));
        let there = history.last().get("b").is_some_and(|keys| keys.contains_key(&key));
        let started = match random.below(6) {
            0..=2 => {
                let commit = bucket.start_set(&key, &value).map_err(failed)?;
                history.push(moment, &[put(&key, Some(&value))]);
                Some(boxed(commit))
            }
            3 if there => {
                let commit = bucket.start_delete(&key).map_err(failed)?;
                history.push(moment, &[put(&key, None)]);
                Some(boxed(commit))
            }
            4 => {
                let mut batch = Batch::new();
                batch.set(&bucket, &key, &value);
                batch.set(&bucket, b"both", &value);
                let commit = store.start_commit(&batch).map_err(failed)?;
                history.push(moment, &[put(&key, Some(&value)), put(b"both", Some(&value))]);
                Some(boxed(commit))
            }
            _ => {
                // Those that were polled, and not woken since.
                let waits = |future: &&Polled| future.polled && !future.woken.0.load(Ordering::Acquire);
                let waiting: Vec<_> = futures.iter().filter(waits).map(|future| future.woken.clone()).collect();
                jobs.round(&store.0.commits, false).ok_or("background work has stopped the store")?;
                counts.add("syncs", u64::from(!waiting.is_empty()));
                if waiting.iter().any(|woken| !woken.0.load(Ordering::Acquire)) {
                    return Err(format!("call {i}: a round of background jobs has not woken a future that waits"));
                }
                None
            }
        };
        if let Some(waits) = started {
            counts.add("futures", 1);
            futures.push(Polled { waits, woken: Arc::default(), commits: history.commits(), polled: false });
        }
        // Each is polled, or dropped, or left alone, by chance.
        let mut kept = Vec::new();
        for mut future in futures.drain(..) {
            match random.below(5) {
                0 => counts.add(if future.polled { "dropped_after_a_poll" } else { "dropped_before_a_poll" }, 1),
                1 | 2 => {
                    future.woken.0.store(false, Ordering::Release);
                    let waker: Waker = future.woken.clone().into();
                    match future.waits.as_mut().poll(&mut Context::from_waker(&waker)) {
                        Poll::Ready(result) => {
                            result.map_err(failed)?;
                            counts.add("ready", 1);
                            if store.0.commits.applied() < store.0.commits.log.durable() {
                                return Err("what is durable is not visible".to_owned());
                            }
                            history.acknowledge_some(disk.now(), future.commits);
                        }
                        Poll::Pending => {
                            future.polled = true;
                            kept.push(future);
                        }
                    }
                }
                _ => kept.push(future),
            }
        }
        futures = kept;
        if random.below(4) == 0 {
            let now = disk.now();
            let variant =
                [Variant::AllLost, Variant::AllKept, Variant::Random(random.next())][random.below(3) as usize];
            let allowed = *history.allowed(now).start()..=history.commits();
            judge(seed ^ now as u64, &disk.image(variant), &options, &history, allowed)
                .map_err(|what| format!("call {i}, a power cut then, {variant:?}: {what}"))?;
            sim::set_clock(1);
            counts.add("images_of_cancelled", 1);
        }
    }
    // What was dropped was written all the same.
    drop(futures);
    store.sync().map_err(failed)?;
    let seen = model::read(&store).map_err(failed)?;
    let all = history.commits();
    history.find(&seen, all..=all).map_err(|what| format!("at the end: {what}"))?;
    disk.violation().map_or(Ok(()), |breach| Err(format!("protocol: {breach}")))
}
