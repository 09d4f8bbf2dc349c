//! Time: that of the wall, and that which this thread had a processor for.

use std::time::Duration;

/// Processor time of the calling thread so far: not disturbed by neighbours that take turns on the same processor, and
/// blind to waiting and to what other threads do for this one. Where the system does not tell, wall time.
#[cfg(unix)]
pub fn thread() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Processor time of the calling thread so far; here wall time, because the system does not tell.
#[cfg(not(unix))]
pub fn thread() -> Duration {
    static START: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    START.elapsed()
}
