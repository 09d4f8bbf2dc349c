//! The operating system's disk: one directory, opened by one store at a time.
//!
//! Files are made with mode 0600 and never opened through a symbolic link. Syncs are the standard library's
//! (`F_FULLFSYNC` on Apple systems). Directories cannot be synced on Windows, where NTFS journals names itself.
#![allow(clippy::disallowed_methods, reason = "the seam itself")]

use std::fs::{self, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::map::{Map, Private, copies_on_write, mapping_is_a_hazard};
use super::window::Budget;
use super::{Disk, File, pause};
use crate::error::{Error, ErrorKind, Result};
use crate::options::Options;

/// The file whose lock says that the directory is in use. Its contents do not matter.
pub(crate) const LOCK_FILE: &str = "LOCK";

/// A directory held under its lock until dropped.
#[derive(Debug)]
pub(crate) struct RealDisk {
    dir: PathBuf,
    read_only: bool,
    unmapped: Option<Arc<Budget>>,
    guards: bool,
    copies_on_write: bool,
    /// Held, never read: closing it releases the lock.
    _lock: Option<fs::File>,
}

impl RealDisk {
    /// Opens the directory for one writer, making it (and its parents) if `create` says so. `refuse` sees the names in it
    /// before anything is put there.
    pub(crate) fn open(dir: &Path, how: &Options, refuse: impl FnOnce(&dyn Disk) -> Result<()>) -> Result<RealDisk> {
        let create = how.create;
        match fs::metadata(dir) {
            Ok(meta) if !meta.is_dir() => {
                let message = format!("{} is a file, and a store is a directory: name another place", dir.display());
                return Err(Error::new(ErrorKind::Format, message));
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound && create => make_dir(dir)?,
            Err(e) => return Err(Error::path("cannot open the store directory", dir, e)),
        }
        refuse(&RealDisk {
            dir: dir.to_owned(),
            read_only: !create,
            unmapped: None,
            guards: false,
            copies_on_write: false,
            _lock: None,
        })?;
        let path = dir.join(LOCK_FILE);
        let lock = options(true).create(true).truncate(false).open(&path).map_err(|e| {
            if matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) {
                return Error::path("the store directory is not writable (open it read-only, or change it):", dir, e);
            }
            Error::path("cannot open", &path, e)
        })?;
        take_lock(|| lock.try_lock(), dir)?;
        let copies_on_write = copies_on_write(dir);
        let (unmapped, guards) = how.unmapped(|| copies_on_write || mapping_is_a_hazard(dir, false));
        Ok(RealDisk { dir: dir.to_owned(), read_only: false, unmapped, guards, copies_on_write, _lock: Some(lock) })
    }

    /// Opens the directory to look at only: makes nothing, changes nothing, works on read-only media. Where a writer
    /// has the lock, this fails; where there is no lock file to hold, the caller answers for there being no writer.
    pub(crate) fn open_read_only(dir: &Path, how: &Options) -> Result<RealDisk> {
        let path = dir.join(LOCK_FILE);
        let lock = match options(false).open(&path) {
            Ok(lock) => {
                take_lock(|| lock.try_lock_shared(), dir)?;
                Some(lock)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound && dir.is_dir() => None,
            Err(e) => return Err(Error::path("cannot open the store directory", dir, e)),
        };
        let (unmapped, guards) = how.unmapped(|| mapping_is_a_hazard(dir, true));
        Ok(RealDisk { dir: dir.to_owned(), read_only: true, unmapped, guards, copies_on_write: false, _lock: lock })
    }
}

fn locked(dir: &Path) -> Error {
    let message = format!("{} is in use by another process or handle: close it there first", dir.display());
    Error::new(ErrorKind::Locked, message)
}

/// Tries again for some 40 ms: a child that the last holder's process is just starting has its files, and so its lock, until it
/// becomes another program.
fn take_lock(attempt: impl Fn() -> std::result::Result<(), TryLockError>, dir: &Path) -> Result<()> {
    for pause_ms in [1, 2, 4, 8, 25, 0] {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => pause(Duration::from_millis(pause_ms)),
            Err(TryLockError::Error(e)) => return Err(Error::path("cannot lock", dir.join(LOCK_FILE), e)),
        }
    }
    Err(locked(dir))
}

/// Makes the directory and has its name survive a power cut.
fn make_dir(dir: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).map_err(|e| Error::path("cannot make the store directory", dir, e))?;
    let parent = match dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    sync_dir(parent).map_err(|e| Error::path("cannot sync", parent, e))
}

/// Has a file system that copies on write (Btrfs) put what is written over a byte of this file, which is empty, where that was: what was reserved
/// is to be had then where the disk is full. Damage is found by our checksums as well as by its own. A hint: others know no such thing.
#[cfg(target_os = "linux")]
fn write_in_place(file: &fs::File) {
    use std::os::fd::AsRawFd;
    /// `FS_NOCOW_FL` of linux/fs.h.
    const NO_COPY_ON_WRITE: libc::c_int = 0x0080_0000;
    let mut flags: libc::c_int = 0;
    // SAFETY: an open descriptor, and memory for the flags.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) } == 0 {
        flags |= NO_COPY_ON_WRITE;
        // SAFETY: the same.
        let _ = unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_SETFLAGS, &raw const flags) };
    }
}

#[cfg(not(target_os = "linux"))]
fn write_in_place(_file: &fs::File) {}

#[cfg(unix)]
fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
fn sync_dir(_dir: &Path) -> io::Result<()> {
    Ok(())
}

fn options(writable: bool) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(writable);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    }
    #[cfg(windows)]
    {
        use std::os::windows::fs::OpenOptionsExt;
        // Read, write and delete: an obsolete file goes while a reader still has it open.
        options.share_mode(0x1 | 0x2 | 0x4);
    }
    options
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            // A name that is not UTF-8 is none of ours; it still counts as "not empty".
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = options(true).create_new(true).open(self.dir.join(name))?;
        if self.copies_on_write {
            write_in_place(&file);
        }
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(RealFile(options(!self.read_only).open(self.dir.join(name))?)))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        sync_dir(&self.dir)
    }

    fn recycles(&self) -> bool {
        cfg!(unix)
    }

    #[cfg(unix)]
    fn recycle(&self, old: &str, new: &str) -> io::Result<Arc<dyn File>> {
        use std::os::unix::fs::MetadataExt;
        let (old, new) = (self.dir.join(old), self.dir.join(new));
        // Whoever has linked the file has it for good: a backup, or a tool that we do not know of.
        let file = options(true).open(&old)?;
        if file.metadata()?.nlink() != 1 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // Under a new name there must be nothing, and renaming would not say so.
        if new.try_exists()? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        fs::rename(old, new)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn link_to(&self, name: &str, to: &dyn Disk) -> io::Result<()> {
        let Some(dir) = to.path() else { return Err(io::ErrorKind::Unsupported.into()) };
        fs::hard_link(self.dir.join(name), dir.join(name))
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.dir)
    }

    fn location(&self) -> String {
        self.dir.display().to_string()
    }

    #[cfg(unix)]
    fn space(&self) -> Option<super::Space> {
        use std::os::unix::ffi::OsStrExt;
        let dir = std::ffi::CString::new(self.dir.as_os_str().as_bytes()).ok()?;
        let mut found = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: a string that ends in a zero, and space for what is told.
        if unsafe { libc::statvfs(dir.as_ptr(), found.as_mut_ptr()) } != 0 {
            return None;
        }
        // SAFETY: the call has filled it.
        let found = unsafe { found.assume_init() };
        #[allow(clippy::unnecessary_cast, reason = "narrower on other systems")]
        let bytes = |blocks: libc::fsblkcnt_t| (blocks as u64).saturating_mul(found.f_frsize as u64);
        // Of some file systems nothing is known.
        (found.f_blocks > 0).then(|| super::Space { total: bytes(found.f_blocks), free: bytes(found.f_bavail) })
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn unmapped(&self) -> Option<&Arc<Budget>> {
        self.unmapped.as_ref()
    }

    fn guards(&self) -> bool {
        self.guards
    }
}

#[derive(Debug)]
struct RealFile(fs::File);

impl File for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    #[cfg(unix)]
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.0, into, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(&self.0, into, offset)
    }

    #[cfg(unix)]
    fn write_at(&self, offset: u64, from: &[u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::write_at(&self.0, from, offset)
    }

    #[cfg(windows)]
    fn write_at(&self, offset: u64, from: &[u8]) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_write(&self.0, from, offset)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    /// Writes zeros past the end. Where blocks are only promised (`fallocate`), the first touch of each page costs 2.8 us
    /// instead of 0.09, and a copy-on-write file system would not keep the promise; written zeros are kept by all but
    /// the latter.
    fn reserve(&self, bytes: u64, piece: usize) -> io::Result<()> {
        super::write_zeros(self, self.len()?, bytes, piece)
    }

    #[cfg(target_os = "linux")]
    fn promise(&self, bytes: u64) -> io::Result<bool> {
        use std::os::fd::AsRawFd;
        let Ok(len) = libc::off_t::try_from(bytes) else { return Ok(false) };
        // SAFETY: an open descriptor, and numbers.
        if unsafe { libc::fallocate(self.0.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 0, len) } == 0 {
            return Ok(true);
        }
        let e = io::Error::last_os_error();
        match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Err(e),
            // A file system that does not know the call.
            _ => Ok(false),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn map(&self, bytes: u64, writable: bool) -> io::Result<Map> {
        // Past the end of the file a mapping is a trap, so the file is looked at first.
        if !(writable && super::MAPS_PAST_END) && self.len()? < bytes {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it should be"));
        }
        Map::file(&self.0, bytes, writable)
    }

    fn map_private(&self, bytes: u64) -> io::Result<Private> {
        if self.len()? < bytes {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it should be"));
        }
        Private::file(&self.0, bytes)
    }
}
