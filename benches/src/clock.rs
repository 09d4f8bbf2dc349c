//! Time: that of the wall, and that which this thread had a processor for.

use std::time::Duration;

/// Processor time of the calling thread so far: not disturbed by neighbours that take turns on the same processor, and
/// blind to waiting and to what other threads do for this one. Where the system does not tell, wall time.
#[cfg(unix)]
pub fn thread() -> Duration {
    processor(rustix::time::ClockId::ThreadCPUTime)
}

/// Processor time of all threads of this process so far. Where the system does not tell, none.
#[cfg(unix)]
pub fn process() -> Duration {
    processor(rustix::time::ClockId::ProcessCPUTime)
}

#[cfg(unix)]
fn processor(clock: rustix::time::ClockId) -> Duration {
    let time = rustix::time::clock_gettime(clock);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Processor time of the calling thread so far; here wall time, because the system does not tell.
#[cfg(not(unix))]
pub fn thread() -> Duration {
    static START: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    START.elapsed()
}

/// Processor time of all threads of this process so far; here none, because the system does not tell.
#[cfg(not(unix))]
pub fn process() -> Duration {
    Duration::ZERO
}
