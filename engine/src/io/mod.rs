//! The seam: every file, sync, clock and random number goes through here, and nothing else in the engine may.
//!
//! [`Disk`] is one directory; [`File`] one file in it. [`disk::RealDisk`] is the operating system's, [`memory::MemoryDisk`]
//! keeps nothing. Implementers: a name is a plain file name, never a path; `write_at` and `read_at` may do less than
//! asked, as the system's calls may; the helpers below loop.

pub(crate) mod disk;
#[cfg(target_os = "linux")]
pub(crate) mod guard;
pub(crate) mod map;
pub(crate) mod memory;
#[cfg(feature = "testing")]
mod pool;
pub(crate) mod room;
#[cfg(feature = "testing")]
pub(crate) mod sim;
pub(crate) mod window;

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use map::{Map, Private};
use window::Budget;

use crate::directory::SHARDS;
use crate::seeded::{Bug, seeded};

/// What fits on a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    pub(crate) total: u64,
    /// Of that, to be had by us.
    pub(crate) free: u64,
}

/// One directory of files.
pub(crate) trait Disk: Send + Sync + Debug {
    /// Names of the files in the directory, in no order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes a file that must not exist yet. Its name survives a power cut after [`Disk::sync_dir`].
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;
    /// Opens a file; for writing too unless the disk is read-only.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;
    /// Removes a file. Open mappings of it stay readable where the system allows removing it at all.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations and removals survive a power cut.
    fn sync_dir(&self) -> io::Result<()>;
    /// Whether [`Disk::recycle`] is to be tried.
    fn recycles(&self) -> bool {
        false
    }
    /// Makes the file `old`, which nobody needs any more, the file `new`, with the bytes that it has: memory and blocks that are at
    /// hand need not be had anew. As far as names go, a removal and a creation. An error leaves none of the two, or `old` alone.
    fn recycle(&self, _old: &str, _new: &str) -> io::Result<Arc<dyn File>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Gives the file a second name, the same one, in another directory: one file from then on, that nobody may ever write
    /// again, cut or fill. An error wherever that cannot be done; the caller copies then.
    fn link_to(&self, _name: &str, _to: &dyn Disk) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Where the directory is, if files may be linked into it: for [`Disk::link_to`] of another disk of the same kind.
    fn path(&self) -> Option<&Path> {
        None
    }
    /// For messages to people.
    fn location(&self) -> String;
    /// A random number: salts and seeds that guests must not guess.
    fn random_u64(&self) -> io::Result<u64> {
        random_u64()
    }
    /// Whether nothing outlives the store.
    fn keeps_nothing(&self) -> bool {
        false
    }
    /// What memory its files may take, if they are not to be mapped: then they are read and written by calls alone.
    fn unmapped(&self) -> Option<&Arc<Budget>> {
        None
    }
    /// Whether files that are appended to, or that records are read from, are mapped after all, and guarded: see [`guard`].
    fn guards(&self) -> bool {
        false
    }
    /// Shards of the directory of a store that is here.
    fn shards(&self) -> usize {
        SHARDS
    }
    /// How much there is room for where the directory is; `None` where nobody can tell, or where there is no end to it.
    fn space(&self) -> Option<Space> {
        None
    }
    /// Whether files are written at all, or only looked at.
    fn read_only(&self) -> bool {
        false
    }
}

/// One file.
pub(crate) trait File: Send + Sync + Debug {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Reads into `into`, perhaps less; 0 at the end of the file.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize>;
    /// Writes from `from`, perhaps less.
    fn write_at(&self, offset: u64, from: &[u8]) -> io::Result<usize>;
    /// Cuts or extends with zeros.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Makes sure that the first `bytes` bytes have a place on the disk, so that writing through a mapping cannot fail
    /// for want of space; they read as zeros where nothing was written. Extends the file, by up to `piece` bytes at a time:
    /// what is written in one call a system may keep as one piece of memory, and write back as a whole when a byte of it changes.
    fn reserve(&self, bytes: u64, piece: usize) -> io::Result<()>;
    /// Has the system keep space for the first `bytes` bytes, without making the file longer: what is written there does not fail
    /// for want of it. Where the system cannot do that, nothing; whether it can. Only a want of space is an error.
    fn promise(&self, _bytes: u64) -> io::Result<bool> {
        Ok(false)
    }
    /// Makes bytes and length survive a power cut.
    fn sync(&self) -> io::Result<()>;
    /// Maps the first `bytes` bytes; for a [`map::Region`], which looks whether files are to be mapped. If writable, and the system is one that can ([`MAPS_PAST_END`]), the file may be shorter:
    /// what lies past its end must not be touched before [`File::reserve`] got there.
    fn map(&self, bytes: u64, writable: bool) -> io::Result<Map>;
    /// Maps the first `bytes` bytes so that what is written there stays in this process; for [`Private::of`].
    fn map_private(&self, bytes: u64) -> io::Result<Private>;
}

/// Whether a file can be mapped beyond its end, to grow into the mapping later.
pub(crate) const MAPS_PAST_END: bool = cfg!(unix);

/// How often in a row a call may be interrupted before that is an error: a thread that is interrupted for ever hangs.
const INTERRUPTIONS_MAX: u32 = if cfg!(feature = "testing") { 100 } else { 10_000 };

/// Reads until `into` is full or the file ends; the number of bytes read.
pub(crate) fn read_full(file: &dyn File, offset: u64, into: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    let mut interruptions = 0;
    while done < into.len() {
        match file.read_at(offset + done as u64, &mut into[done..]) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted && seeded(Bug::InterruptionEndsRead) => break,
            Ok(0) => break,
            Ok(n) => {
                done += n;
                interruptions = 0;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted && interruptions < INTERRUPTIONS_MAX => interruptions += 1,
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// The whole file, refusing one longer than `bytes_max`: a length from the disk never sizes an allocation unchecked.
pub(crate) fn read_whole(file: &dyn File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let len = file.len()?;
    if len > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{len} bytes, at most {bytes_max} expected")));
    }
    let mut bytes = vec![0; len as usize];
    let read = read_full(file, 0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Writes all of `from`. A write of no bytes is an error and not a reason to try for ever.
pub(crate) fn write_full(file: &dyn File, offset: u64, from: &[u8]) -> io::Result<()> {
    let mut done = 0;
    let mut interruptions = 0;
    while done < from.len() {
        match file.write_at(offset + done as u64, &from[done..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(_) if seeded(Bug::ShortWriteTaken) => return Ok(()),
            Ok(n) => {
                done += n;
                interruptions = 0;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted && interruptions < INTERRUPTIONS_MAX => interruptions += 1,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes zeros from `from` to `to`, at most `piece` bytes at a time and up to multiples of that.
pub(crate) fn write_zeros(file: &dyn File, from: u64, to: u64, piece: usize) -> io::Result<()> {
    const ZEROS: &[u8] = &[0; 256 << 10];
    let piece = piece.min(ZEROS.len());
    let mut at = from;
    while at < to {
        let n = (piece - at as usize % piece).min((to - at) as usize);
        write_full(file, at, &ZEROS[..n])?;
        at += n as u64;
    }
    Ok(())
}

/// Cuts a file that is longer.
pub(crate) fn cut(file: &dyn File, bytes: u64) -> io::Result<()> {
    if file.len()? > bytes { file.set_len(bytes) } else { Ok(()) }
}

/// A sync that failed, for whatever reason, leaves the state of the disk unknown: a full disk is no excuse, and is not
/// what the error says.
pub(crate) fn unknown_state(failed: io::Error) -> io::Error {
    io::Error::other(failed)
}

/// Milliseconds since 1970; what expiry is measured in. A clock before 1970 reads as 0.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub(crate) fn unix_ms() -> u64 {
    #[cfg(feature = "testing")]
    if let Some(ms) = sim::clock() {
        return ms;
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// The moment that comes so much later; `None` if that is never. For waits with a limit, and for nothing that is kept.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub(crate) fn deadline(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}

/// Whether the calling thread is a simulation: whatever it does depends on its seed alone, and on no other thread.
#[cfg(feature = "testing")]
pub(crate) fn simulated() -> bool {
    sim::clock().is_some()
}

/// Whether the calling thread is a simulation: it is not.
#[cfg(not(feature = "testing"))]
pub(crate) const fn simulated() -> bool {
    false
}

/// Measures a time that is told, or by which work is put off, and never what is written: a simulation does not act on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    #[allow(clippy::disallowed_methods, reason = "the seam itself")]
    pub(crate) fn start() -> Stopwatch {
        Stopwatch(Instant::now())
    }

    /// Microseconds since.
    pub(crate) fn us(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Rests for a while; for writers that are asked to slow down.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Runs both, the first on a thread of its own if there can be one: the second is told whether there is. Without one the first may
/// run when the second has returned.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub(crate) fn both<T: Send>(first: impl FnOnce() -> T + Send, second: impl FnOnce(bool) -> T) -> (T, T) {
    if simulated() {
        return (first(), second(false));
    }
    let first = parking_lot::Mutex::new(Some(first));
    let take = || first.lock().take();
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || take().map(|first| first()));
        let second = second(thread.is_ok());
        let done = thread.ok().and_then(|thread| match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        match (done, take()) {
            (Some(done), _) => (done, second),
            (None, Some(first)) => (first(), second),
            (None, None) => unreachable!("a call that was taken was made"),
        }
    })
}

/// A random number from the operating system.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
fn random_u64() -> io::Result<u64> {
    getrandom::u64().map_err(io::Error::other)
}
