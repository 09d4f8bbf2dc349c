//! Lives through pages of a mapping that are gone (Linux): opt-in, see [`Options::guard_mappings`](crate::Options::guard_mappings).
//! Flow: `Region` registers its mapping here; the system's signal -> here -> a blank page, and a mark that `Region` looks at.
//!
//! A page that cannot be had, because the file was cut short or the device has failed, is told to the thread that touches it
//! by SIGBUS, which ends the process unless somebody handles it. The handler here looks up the address in a table of our
//! mappings. If it is in one of them, the mapping is marked, and then the page is replaced by a blank one of memory; so
//! whoever reads a blank byte and looks at the mark afterwards finds it set. Otherwise the handler that was there before is
//! called.
//!
//! The handler does nothing but atomics, `mmap`, `sigaction` and calling on: what may be done at any moment. It takes no
//! lock: the table is an array of slots that are taken and given back by one exchange each.
//!
//! It is put in place once, by the first store that asks for it, and stays. Who installs another one later must call on to
//! it. (wasmtime handles no SIGBUS on Linux.)

use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Mappings at a time, over all stores of the process: fewer than a process may have.
const SLOTS: usize = 4096;
/// In `start`: the slot is being filled.
const TAKEN: usize = 1;

struct Slot {
    /// Address of the first byte; 0 where the slot is free.
    start: AtomicUsize,
    end: AtomicUsize,
    faulted: AtomicBool,
}

static TABLE: [Slot; SLOTS] =
    [const { Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0), faulted: AtomicBool::new(false) } }; SLOTS];

/// What was there before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
static PAGE_BYTES: AtomicUsize = AtomicUsize::new(4096);

/// A mapping in the table, until it is dropped.
#[derive(Debug)]
pub(crate) struct Guarded(usize);

impl Guarded {
    /// Guards the mapping at `start`; `None` if there are too many. To be dropped before the mapping goes.
    pub(crate) fn new(start: *const u8, bytes: usize) -> io::Result<Option<Guarded>> {
        install()?;
        let start = start as usize;
        for (i, slot) in TABLE.iter().enumerate() {
            let is_free = slot.start.load(Ordering::Relaxed) == 0;
            if is_free && slot.start.compare_exchange(0, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                slot.faulted.store(false, Ordering::Relaxed);
                slot.end.store(start + bytes, Ordering::Relaxed);
                slot.start.store(start, Ordering::Release);
                return Ok(Some(Guarded(i)));
            }
        }
        Ok(None)
    }

    /// Whether a page of the mapping was found gone. Of bytes that were read before this said no, all were the file's.
    pub(crate) fn has_faulted(&self) -> bool {
        TABLE[self.0].faulted.load(Ordering::SeqCst)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        TABLE[self.0].start.store(0, Ordering::Release);
    }
}

fn install() -> io::Result<()> {
    static INSTALLED: parking_lot::Mutex<bool> = parking_lot::Mutex::new(false);
    let mut installed = INSTALLED.lock();
    if *installed {
        return Ok(());
    }
    // SAFETY: asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    PAGE_BYTES.store(usize::try_from(page).unwrap_or(4096), Ordering::Relaxed);
    let mut before = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: asks what handler there is; the answer has room.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), before.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled in by the call above.
    let before = unsafe { before.assume_init() };
    let mut ours = before;
    ours.sa_sigaction = on_sigbus as *const () as usize;
    // On the alternative stack, where there is one; and again while it runs, should the handler called on to fault too.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    // The handler may run before the call below returns.
    let _ = PREVIOUS.set(before);
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and does only what a handler may.
    if unsafe { libc::sigaction(libc::SIGBUS, &ours, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    *installed = true;
    Ok(())
}

/// The slot whose mapping holds the address.
fn slot_of(address: usize) -> Option<&'static Slot> {
    TABLE.iter().find(|slot| {
        let start = slot.start.load(Ordering::Acquire);
        // A slot that is given back and taken again meanwhile is not of the address: that one's mapping is in use.
        start > TAKEN && (start..slot.end.load(Ordering::Relaxed)).contains(&address)
    })
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the system hands over the description of the signal, which for SIGBUS has an address.
    let address = unsafe { (*info).si_addr() } as usize;
    // SAFETY: the thread's own.
    let errno = unsafe { *libc::__errno_location() };
    let ours = slot_of(address).is_some_and(|slot| {
        slot.faulted.store(true, Ordering::SeqCst);
        let page = PAGE_BYTES.load(Ordering::Relaxed);
        // SAFETY: replaces one page of a mapping of our own, which is there as long as it is in the table. Readers of its bytes
        // copy them and look at the mark after; nobody is lent them.
        let blank = unsafe {
            libc::mmap(
                (address & !(page - 1)) as *mut libc::c_void,
                page,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        blank != libc::MAP_FAILED
    });
    if !ours {
        call_on(signal, info, context);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Does what would have been done without us.
fn call_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let before = PREVIOUS.get();
    // Sent by somebody, not raised by an instruction that would be tried again.
    // SAFETY: the system passes a valid `siginfo_t`.
    let sent = unsafe { (*info).si_code } <= 0;
    match before.map(|before| (before.sa_sigaction, before.sa_flags & libc::SA_SIGINFO != 0)) {
        Some((handler, _)) if handler == libc::SIG_IGN && sent => {}
        Some((handler, _)) if handler == libc::SIG_DFL || handler == libc::SIG_IGN => default(signal, sent),
        None => default(signal, sent),
        Some((handler, true)) => {
            // SAFETY: whoever installed it said that it is a function of this signature.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        Some((handler, false)) => {
            // SAFETY: as above, of the other signature.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

/// The instruction is tried again when the handler returns, and then ends the process as it would have without us; where
/// there is none, the signal is raised again.
fn default(signal: libc::c_int, sent: bool) {
    // SAFETY: all zero is the default action, without flags and with no other signal blocked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = libc::SIG_DFL;
    // SAFETY: sets the default action.
    unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) };
    if sent {
        // SAFETY: sends this thread a signal; async-signal-safe.
        unsafe { libc::raise(signal) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memmap2::MmapOptions;

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no signal handlers")]
    fn slots_are_taken_and_given_back() {
        let memory = MmapOptions::new().len(8192).map_anon().unwrap();
        let first = Guarded::new(memory.as_ptr(), 8192).unwrap().unwrap();
        let at = memory.as_ptr() as usize;
        assert!(slot_of(at).is_some() && slot_of(at + 8191).is_some() && slot_of(at + 8192).is_none());
        assert!(!first.has_faulted());
        drop(first);
        assert!(slot_of(at).is_none());
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no signal handlers")]
    fn a_page_that_is_gone_is_blank_and_the_mapping_marked() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 * 4096).unwrap();
        let memory = MmapOptions::new().len(3 * 4096).map_raw(&file).unwrap();
        let guarded = Guarded::new(memory.as_ptr(), memory.len()).unwrap().unwrap();
        // SAFETY: within the mapping.
        let byte = |at: usize| unsafe { memory.as_ptr().add(at).read_volatile() };
        // SAFETY: as above.
        unsafe { memory.as_mut_ptr().write_volatile(7) };
        assert!(byte(0) == 7 && !guarded.has_faulted());
        file.set_len(4096).unwrap();
        assert!(byte(0) == 7 && !guarded.has_faulted());
        assert_eq!(byte(5000), 0);
        assert!(guarded.has_faulted());
        // SAFETY: as above.
        unsafe { memory.as_mut_ptr().add(9000).write_volatile(9) };
        assert_eq!(byte(9000), 9, "in memory alone");
        drop(guarded);
    }
}
