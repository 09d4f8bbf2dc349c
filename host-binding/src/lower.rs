//! Keys on their way to a guest without a `String` each: [`Utf8Bytes`], a counted slice of bytes known to be UTF-8.
//!
//! Flow: a back end's buffer -> `Utf8Bytes` -> guest memory, one copy, by wasmtime's own lowering of `str`. Values need
//! nothing of this: wasmtime lowers `bytes::Bytes` itself (its feature `component-model-bytes`).
//! Invariant: the bytes of a `Utf8Bytes` are valid UTF-8 from its construction on; `Bytes` never change.
//!
//! The only file of the crate with `unsafe`. The items of wasmtime used here are hidden from its documentation and may
//! change with any minor version, always as a compile error; the workspace therefore pins one.

use bytes::Bytes;
use std::fmt;
use std::mem::MaybeUninit;
use std::ops::Deref;
use wasmtime::Result;
use wasmtime::component::__internal::{CanonicalAbiInfo, InstanceType, InterfaceType, LowerContext};
use wasmtime::component::{ComponentType, Lower};

/// A string that shares the buffer it was cut from: cloning and slicing count, they do not copy.
///
/// Lowers as the WIT type `string`. Keeps the whole buffer alive.
#[derive(Clone, PartialEq, Eq)]
pub struct Utf8Bytes(Bytes);

impl Utf8Bytes {
    /// The same bytes as text; `None` if they are not valid UTF-8. One pass, no copy.
    pub fn new(bytes: Bytes) -> Option<Self> {
        std::str::from_utf8(&bytes).is_ok().then_some(Utf8Bytes(bytes))
    }

    /// Takes the first `at` bytes off.
    pub(crate) fn split_to(&mut self, at: usize) -> Utf8Bytes {
        assert!(self.is_char_boundary(at), "text is cut between characters");
        Utf8Bytes(self.0.split_to(at))
    }
}

impl From<String> for Utf8Bytes {
    fn from(text: String) -> Self {
        Utf8Bytes(text.into())
    }
}

impl Deref for Utf8Bytes {
    type Target = str;
    fn deref(&self) -> &str {
        // SAFETY: `new` has checked these bytes, or they come from a `String`, or were cut from such at the boundary of a
        // character; there is no other way to make one, and `Bytes` are immutable.
        unsafe { std::str::from_utf8_unchecked(&self.0) }
    }
}

impl fmt::Debug for Utf8Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

// SAFETY: layout, ABI and type check are those of `str`, word for word, and so is every lowering below.
unsafe impl ComponentType for Utf8Bytes {
    type Lower = <str as ComponentType>::Lower;
    const ABI: CanonicalAbiInfo = <str as ComponentType>::ABI;

    fn typecheck(ty: &InterfaceType, types: &InstanceType<'_>) -> Result<()> {
        <str as ComponentType>::typecheck(ty, types)
    }
}

// SAFETY: both methods hand over to `str`, which initializes `dst` and stays within `offset .. offset + SIZE32`.
unsafe impl Lower for Utf8Bytes {
    fn linear_lower_to_flat<T>(
        &self,
        cx: &mut LowerContext<'_, T>,
        ty: InterfaceType,
        dst: &mut MaybeUninit<Self::Lower>,
    ) -> Result<()> {
        <str as Lower>::linear_lower_to_flat(self, cx, ty, dst)
    }

    fn linear_lower_to_memory<T>(&self, cx: &mut LowerContext<'_, T>, ty: InterfaceType, offset: usize) -> Result<()> {
        <str as Lower>::linear_lower_to_memory(self, cx, ty, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_utf8_becomes_text() {
        assert_eq!(&*Utf8Bytes::new(Bytes::from_static("k\u{f6}".as_bytes())).unwrap(), "k\u{f6}");
        assert!(Utf8Bytes::new(Bytes::from_static(b"")).is_some());
        assert!(Utf8Bytes::new(Bytes::from_static(b"a\xff")).is_none());
    }
}
