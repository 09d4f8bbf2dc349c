//! A disk that keeps nothing: files are memory and go with the store. Serves [`Durability::Ephemeral`].
//!
//! [`Durability::Ephemeral`]: crate::Durability::Ephemeral

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::map::{Map, Private};
use super::{Disk, File};

/// A directory in memory.
#[derive(Debug, Default)]
pub(crate) struct MemoryDisk(Mutex<HashMap<String, Arc<MemoryFile>>>);

/// Bytes written by `write_at`. A mapping of the file is memory of its own: a writable one starts blank, one to be read
/// is a copy of what was written by then. The engine writes a file in one way or the other, never in both.
#[derive(Debug, Default)]
struct MemoryFile(Mutex<Vec<u8>>);

impl Disk for MemoryDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut files = self.0.lock();
        if files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = Arc::<MemoryFile>::default();
        files.insert(name.to_owned(), file.clone());
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        match self.0.lock().get(name) {
            Some(file) => Ok(file.clone()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }

    fn keeps_nothing(&self) -> bool {
        true
    }

    fn location(&self) -> String {
        "memory".to_owned()
    }
}

impl File for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.0.lock();
        let from = bytes.get(offset as usize..).unwrap_or_default();
        let n = from.len().min(into.len());
        into[..n].copy_from_slice(&from[..n]);
        Ok(n)
    }

    fn write_at(&self, offset: u64, from: &[u8]) -> io::Result<usize> {
        let mut bytes = self.0.lock();
        let end = offset as usize + from.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(from);
        Ok(from.len())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.lock().resize(bytes as usize, 0);
        Ok(())
    }

    fn reserve(&self, _bytes: u64, _piece: usize) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn map(&self, bytes: u64, writable: bool) -> io::Result<Map> {
        if writable {
            return Map::anonymous(bytes);
        }
        let written = self.0.lock();
        Map::copy_of(written.get(..bytes as usize).ok_or(io::ErrorKind::UnexpectedEof)?)
    }

    fn map_private(&self, bytes: u64) -> io::Result<Private> {
        Private::copy_of(self.0.lock().get(..bytes as usize).ok_or(io::ErrorKind::UnexpectedEof)?)
    }
}
