//! The lock-free protocols of the engine, as small models of which loom tries every interleaving with up to two preemptions, and
//! every value that the memory model lets a load return.
//!
//! Each model is the protocol of the file that it names, step by step and with the same orderings, over fewer bytes: whoever
//! changes one changes the other. What they cannot show is that the code does what the model does; `concurrency.rs` and
//! the unit tests run the code itself.
//!
//! loom knows no total order of sequentially consistent loads and stores, only that of fences. Where the code leans on one, the
//! model has a fence between its store and its load.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(clippy::disallowed_methods, reason = "loom's threads")]

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// Explores all schedules with up to `preemptions` switches that nobody asked for.
fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// `io/map.rs`: reservations are disjoint, published in their order, and below `published` nothing changes.
struct Region {
    reserved: AtomicU64,
    published: AtomicU64,
    done: Mutex<Vec<(u64, u64)>>,
    done_len: AtomicU64,
    cells: Vec<UnsafeCell<u64>>,
}

impl Region {
    fn new(cells: usize) -> Region {
        Region {
            reserved: AtomicU64::new(0),
            published: AtomicU64::new(0),
            done: Mutex::new(Vec::new()),
            done_len: AtomicU64::new(0),
            cells: (0..cells).map(|_| UnsafeCell::new(0)).collect(),
        }
    }

    fn append(&self, value: u64) {
        let mut now = self.reserved.load(Acquire);
        while let Err(other) = self.reserved.compare_exchange(now, now + 1, Acquire, Acquire) {
            now = other;
        }
        // SAFETY: loom fails the model if anybody else has the cell.
        self.cells[now as usize].with_mut(|cell| unsafe { *cell = value });
        self.publish(now, now + 1);
    }

    fn publish(&self, start: u64, end: u64) {
        if self.published.load(Acquire) == start {
            self.published.store(end, SeqCst);
            fence(SeqCst);
            if self.done_len.load(SeqCst) != 0 {
                self.publish_done(&mut self.done.lock().unwrap());
            }
            return;
        }
        let mut done = self.done.lock().unwrap();
        done.push((start, end));
        self.done_len.store(done.len() as u64, SeqCst);
        fence(SeqCst);
        self.publish_done(&mut done);
        // The engine waits here until `published` is there; that it gets there is what is looked at in the end.
    }

    fn publish_done(&self, done: &mut Vec<(u64, u64)>) {
        loop {
            let published = self.published.load(SeqCst);
            let Some(next) = done.iter().position(|(start, _)| *start == published) else { break };
            self.published.store(done.swap_remove(next).1, SeqCst);
        }
        self.done_len.store(done.len() as u64, SeqCst);
    }

    fn read_all(&self) -> Vec<u64> {
        // SAFETY: loom fails the model if anybody may still write the cell.
        (0..self.published.load(Acquire)).map(|i| self.cells[i as usize].with(|cell| unsafe { *cell })).collect()
    }
}

#[test]
fn records_are_published_in_log_order_and_none_is_forgotten() {
    explore(2, || {
        let region = Arc::new(Region::new(3));
        let writers: Vec<_> = [5, 6]
            .into_iter()
            .map(|value| {
                let region = region.clone();
                thread::spawn(move || {
                    region.append(value);
                })
            })
            .collect();
        assert!(region.read_all().iter().all(|value| *value != 0));
        region.append(7);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let mut all = region.read_all();
        all.sort_unstable();
        assert_eq!(all, [5, 6, 7]);
    });
}

/// `io/window.rs`: what is appended is in the file, in log order, before it is published.
struct Appended {
    published: AtomicU64,
    /// Ranges, and whether a thread writes.
    queue: Mutex<(Vec<(u64, u64)>, bool)>,
    written: Condvar,
    /// Where the file ends; nobody but the thread that writes touches it.
    file: UnsafeCell<u64>,
}

impl Appended {
    fn append(&self, start: u64, end: u64) {
        let mut queue = self.queue.lock().unwrap();
        queue.0.push((start, end));
        loop {
            let from = self.published.load(Acquire);
            if from >= end {
                return;
            }
            let mut to = from;
            while let Some(next) = queue.0.iter().position(|(start, _)| *start == to && !queue.1) {
                to = queue.0.swap_remove(next).1;
            }
            if to == from {
                queue = self.written.wait(queue).unwrap();
                continue;
            }
            queue.1 = true;
            drop(queue);
            self.file.with_mut(|file| {
                // SAFETY: loom fails the model if two threads write.
                let file = unsafe { &mut *file };
                assert_eq!(*file, from, "in log order");
                *file = to;
            });
            queue = self.queue.lock().unwrap();
            queue.1 = false;
            self.published.store(to, SeqCst);
            self.written.notify_all();
        }
    }
}

#[test]
fn unmapped_records_are_in_the_file_before_they_are_published() {
    explore(2, || {
        let appended = Arc::new(Appended {
            published: AtomicU64::new(0),
            queue: Mutex::new((Vec::new(), false)),
            written: Condvar::new(),
            file: UnsafeCell::new(0),
        });
        let writers: Vec<_> = [(1, 2), (0, 1)]
            .into_iter()
            .map(|(start, end)| {
                let appended = appended.clone();
                thread::spawn(move || appended.append(start, end))
            })
            .collect();
        appended.append(2, 3);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        assert_eq!(appended.published.load(Relaxed), 3);
        // SAFETY: the threads are gone.
        appended.file.with(|file| assert_eq!(unsafe { *file }, 3));
    });
}

/// `io/window.rs`: a piece is read once, and lent only when it is there.
#[test]
fn pieces_are_read_once_and_looked_at_only_when_they_are_there() {
    explore(2, || {
        let piece = Arc::new((AtomicU64::new(0), Mutex::new(()), UnsafeCell::new(0)));
        let look = |piece: &(AtomicU64, Mutex<()>, UnsafeCell<u64>)| {
            let (present, reading, bytes) = piece;
            if present.load(Acquire) & 1 == 0 {
                let _reading = reading.lock().unwrap();
                if present.load(Relaxed) & 1 == 0 {
                    // SAFETY: loom fails the model if anybody looks or reads meanwhile.
                    bytes.with_mut(|bytes| unsafe { *bytes = 42 });
                    present.fetch_or(1, Release);
                }
            }
            // SAFETY: as above.
            bytes.with(|bytes| assert_eq!(unsafe { *bytes }, 42));
        };
        let others: Vec<_> = (0..2)
            .map(|_| {
                let piece = piece.clone();
                thread::spawn(move || look(&piece))
            })
            .collect();
        look(&piece);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

/// `directory.rs`: a table of one word a key, replaced by one twice as long. Tables are never freed here, where the engine waits
/// for the epoch.
struct Shard {
    changes: AtomicU64,
    lock: Mutex<()>,
    table: AtomicPtr<Vec<AtomicU64>>,
}

impl Shard {
    fn new(words: &[u64]) -> Shard {
        let table = words.iter().map(|word| AtomicU64::new(*word)).collect();
        Shard { changes: AtomicU64::new(0), lock: Mutex::new(()), table: AtomicPtr::new(Box::leak(Box::new(table))) }
    }

    fn table(&self) -> &Vec<AtomicU64> {
        // SAFETY: never null, never freed.
        unsafe { &*self.table.load(Acquire) }
    }

    /// Whether the table has a word for `key`; a word is key * 16 + value.
    fn get(&self, key: u64) -> Option<u64> {
        let words = self.table().iter().map(|word| word.load(Acquire));
        words.filter(|word| *word != 0 && *word / 16 == key).map(|word| word % 16).next_back()
    }

    fn begin(&self) {
        let changes = self.changes.load(Relaxed);
        self.changes.store(changes + 1, Relaxed);
        fence(Release);
    }

    fn end(&self) {
        let changes = self.changes.load(Relaxed);
        self.changes.store(changes + 1, Release);
    }

    /// Under the lock, between `begin` and `end`.
    fn set(&self, key: u64, value: u64) {
        let word = key * 16 + value;
        if let Some(old) = self.table().iter().find(|old| old.load(Acquire) / 16 == key) {
            return old.store(word, Release);
        }
        if let Some(free) = self.table().iter().find(|word| word.load(Acquire) == 0) {
            return free.store(word, Release);
        }
        let mut grown: Vec<u64> = self.table().iter().map(|word| word.load(Acquire)).collect();
        grown.push(word);
        let grown = grown.into_iter().map(AtomicU64::new).collect();
        self.table.swap(Box::leak(Box::new(grown)), AcqRel);
    }
}

#[test]
fn a_key_is_found_while_its_table_grows_and_never_goes_back() {
    explore(2, || {
        let shard = Arc::new(Shard::new(&[16 + 1]));
        let writer = {
            let shard = shard.clone();
            thread::spawn(move || {
                for (key, value) in [(2, 1), (1, 2)] {
                    let _lock = shard.lock.lock().unwrap();
                    shard.begin();
                    shard.set(key, value);
                    shard.end();
                }
            })
        };
        let first = shard.get(1).expect("it was there before");
        let second = shard.get(1).expect("it was there before");
        assert!(first <= second, "a reader sees the writes of a key in their order");
        writer.join().unwrap();
        assert_eq!((shard.get(1), shard.get(2)), (Some(2), Some(1)));
    });
}

#[test]
fn several_keys_read_at_one_instant_show_all_of_a_batch_or_none() {
    explore(2, || {
        let shards = Arc::new([Shard::new(&[16 + 1]), Shard::new(&[16 + 1])]);
        let writer = {
            let shards = shards.clone();
            thread::spawn(move || {
                let _locks = [shards[0].lock.lock().unwrap(), shards[1].lock.lock().unwrap()];
                shards.iter().for_each(Shard::begin);
                shards.iter().for_each(|shard| shard.set(1, 2));
                shards.iter().for_each(Shard::end);
            })
        };
        // One try of `Directory::snapshot`.
        let before = [0, 1].map(|i: usize| shards[i].changes.load(Acquire));
        if before.iter().all(|changes| changes % 2 == 0) {
            let seen = [0, 1].map(|i: usize| shards[i].get(1));
            fence(Acquire);
            if [0, 1].iter().all(|i| shards[*i].changes.load(Relaxed) == before[*i]) {
                assert_eq!(seen[0], seen[1]);
            }
        }
        writer.join().unwrap();
    });
}

/// `commit.rs`: who waits for the disk leads, or is told by who does.
struct Group {
    /// What is in the log, and what of it is on the disk.
    logged: AtomicU64,
    durable: AtomicU64,
    applied: AtomicU64,
    leading: Mutex<bool>,
    synced: Condvar,
}

impl Group {
    fn wait(&self, end: u64) {
        loop {
            let mut leading = self.leading.lock().unwrap();
            while *leading && end > self.applied.load(Acquire) {
                leading = self.synced.wait(leading).unwrap();
            }
            if end <= self.applied.load(Acquire) {
                return;
            }
            *leading = true;
            drop(leading);
            // The sync: all that is in the log now.
            let end = self.logged.load(Acquire);
            self.durable.fetch_max(end, AcqRel);
            self.applied.fetch_max(end, AcqRel);
            *self.leading.lock().unwrap() = false;
            self.synced.notify_all();
        }
    }
}

#[test]
fn who_waits_for_the_disk_is_told_and_not_too_soon() {
    explore(2, || {
        let group = Arc::new(Group {
            logged: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            leading: Mutex::new(false),
            synced: Condvar::new(),
        });
        let commit = |group: &Group| {
            let end = group.logged.fetch_add(1, AcqRel) + 1;
            group.wait(end);
            assert!(group.durable.load(Acquire) >= end, "acknowledged before it was on the disk");
        };
        let others: Vec<_> = (0..2)
            .map(|_| {
                let group = group.clone();
                thread::spawn(move || commit(&group))
            })
            .collect();
        commit(&group);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

/// `watch.rs`: who watches looks, asks to be woken, looks again and sleeps; a writer publishes, and wakes all if it was asked to.
struct Feed {
    published: AtomicU64,
    asked: AtomicBool,
    /// How often all were woken.
    calls: Mutex<u64>,
    woken: Condvar,
}

impl Feed {
    fn write(&self) {
        self.published.fetch_add(1, SeqCst);
        fence(SeqCst);
        if self.asked.load(SeqCst) && self.asked.swap(false, SeqCst) {
            *self.calls.lock().unwrap() += 1;
            self.woken.notify_all();
        }
    }

    /// Waits for what comes after `seen`.
    fn wait(&self, seen: u64) -> u64 {
        loop {
            let ticket = *self.calls.lock().unwrap();
            self.asked.store(true, SeqCst);
            fence(SeqCst);
            let published = self.published.load(SeqCst);
            if published > seen {
                return published;
            }
            let mut calls = self.calls.lock().unwrap();
            while *calls == ticket {
                calls = self.woken.wait(calls).unwrap();
            }
        }
    }
}

#[test]
fn who_watches_sleeps_through_no_write() {
    // A wake-up that is lost leaves a thread asleep for good, which loom calls a deadlock.
    explore(2, || {
        let feed = Arc::new(Feed {
            published: AtomicU64::new(0),
            asked: AtomicBool::new(false),
            calls: Mutex::new(0),
            woken: Condvar::new(),
        });
        let watch = |feed: Arc<Feed>| {
            thread::spawn(move || {
                let mut seen = 0;
                while seen < 2 {
                    seen = feed.wait(seen);
                }
            })
        };
        let watching = [watch(feed.clone()), watch(feed.clone())];
        feed.write();
        feed.write();
        watching.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// `segment.rs`, `log/mod.rs`: a segment that is given up stays while a view of it is held, and its address slot is not used again
/// before every reader that may hold a place in it is gone. (A reader's guard is a count here, where the engine has epochs.)
#[test]
fn a_slot_is_used_again_only_when_no_reader_can_mean_the_old_segment() {
    struct Log {
        /// Segment in the slot.
        slot: Mutex<Arc<u64>>,
        /// The directory's word: which segment it means.
        word: AtomicU64,
        readers: AtomicU64,
        released: AtomicBool,
    }
    explore(2, || {
        let log = Arc::new(Log {
            slot: Mutex::new(Arc::new(1)),
            word: AtomicU64::new(1),
            readers: AtomicU64::new(0),
            released: AtomicBool::new(false),
        });
        let cleaner = {
            let log = log.clone();
            thread::spawn(move || {
                // The record is moved away: the word means another segment, in another slot.
                log.word.store(9, SeqCst);
                fence(SeqCst);
                // Given up: the slot is free when nobody is left who may have seen the old word.
                if log.readers.load(SeqCst) == 0 {
                    *log.slot.lock().unwrap() = Arc::new(2);
                    log.released.store(true, Release);
                }
            })
        };
        log.readers.fetch_add(1, SeqCst);
        fence(SeqCst);
        let mut view = None;
        if log.word.load(SeqCst) == 1 {
            let segment = log.slot.lock().unwrap().clone();
            assert_eq!(*segment, 1, "the place means the segment that it meant");
            view = Some(segment);
        }
        log.readers.fetch_sub(1, SeqCst);
        cleaner.join().unwrap();
        if let Some(view) = view {
            assert_eq!(*view, 1, "a view outlives the segment's removal");
        }
    });
}
