//! The kvasi engine without files as a back end: for tests, and for data that may go with the process.
//!
//! Flow: as `engine`, over `kvasi::Store::in_memory`. Nothing touches a disk.

use super::{Backend, Capabilities, LocalBucket};
use crate::Error;
use kvasi::{Options, Store};
use std::sync::Arc;

/// A store in memory. Cheap to clone; all clones are one store, gone with the last handle.
#[derive(Clone, Debug)]
pub struct Memory(Store);

impl Memory {
    /// A new, empty one.
    ///
    /// # Errors
    /// [`Code::Io`](crate::Code::Io) if the system has no memory or randomness to give.
    pub fn new() -> Result<Self, Error> {
        Ok(Memory(Store::in_memory(Options::new())?))
    }
}

impl Backend for Memory {
    fn capabilities(&self) -> Capabilities {
        Capabilities { durable: false, ..Capabilities::ENGINE }
    }

    fn bucket(&self, name: &str) -> Result<Arc<dyn LocalBucket>, Error> {
        Backend::bucket(&self.0, name)
    }
}
