//! Keys and values on their way to a guest: [`Utf8Bytes`], a counted slice of bytes known to be UTF-8, which spares keys a `String`
//! each; and [`Got`] and [`FoundPair`], what a look-up gives.
//!
//! Flow: a back end's buffer -> here -> guest memory, one copy. Wasmtime lowers all of these types itself, each part of an answer on
//! its own: it finds the guest's memory again for every number that it writes, a dozen times for a pair. Here an answer's numbers are
//! written at once. That is for the results of functions, which go to memory; whatever goes elsewhere, and text for guests whose
//! strings are not UTF-8, goes wasmtime's way.
//! Invariants: 1. The bytes of a `Utf8Bytes` are valid UTF-8 from its construction on; `Bytes` never change. 2. The guest is
//! asked for memory, and that memory written, in the order of the canonical ABI.
//!
//! The only file of the crate with `unsafe`. The items of wasmtime used here are hidden from its documentation and may
//! change with any minor version, always as a compile error; the workspace therefore pins one.

use bytes::Bytes;
use std::fmt;
use std::mem::MaybeUninit;
use std::ops::Deref;
use wasmtime::Result;
use wasmtime::component::__internal::wasmtime_environ::component::StringEncoding;
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

    /// As [`Utf8Bytes::new`], for bytes that ought to be this text: to compare them is quicker than to look at each character.
    pub(crate) fn of_text(text: &str, bytes: Bytes) -> Option<Self> {
        (*bytes == *text.as_bytes()).then_some(Utf8Bytes(bytes))
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

// SAFETY: the first method hands over to `str`, which initializes `dst`; the second does so, or writes the eight bytes of pointer and
// length that a string is in memory.
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
        match place_text(cx, self)? {
            Some(at) => *cx.get(offset) = at.to_bytes(),
            None => <str as Lower>::linear_lower_to_memory(self, cx, ty, offset)?,
        }
        Ok(())
    }
}

/// Where bytes lie in guest memory.
struct Placed {
    at: u32,
    len: u32,
}

impl Placed {
    /// Pointer and length of a list or a string, as they stand in memory.
    fn to_bytes(&self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.at.to_le_bytes());
        bytes[4..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }
}

/// Copies bytes to where the guest says.
#[inline]
fn place<T>(cx: &mut LowerContext<'_, T>, bytes: &[u8]) -> Result<Placed> {
    Ok(place_and(cx, bytes)?.0)
}

/// As [`place`], and gives all of the guest's memory, for what is to be written next: to find it takes as long as to copy a short value.
#[inline]
fn place_and<'m, T>(cx: &'m mut LowerContext<'_, T>, bytes: &[u8]) -> Result<(Placed, &'m mut [u8])> {
    let len = u32::try_from(bytes.len())?;
    let at = cx.realloc(0, 0, 1, bytes.len())?;
    let memory = cx.as_slice_mut();
    copy(bytes, &mut memory[at..][..bytes.len()]);
    Ok((Placed { at: u32::try_from(at)?, len }, memory))
}

/// As `copy_from_slice`. The GNU C library copies more than `PIECE_BYTES` by one instruction of the processor's, which on some (Zen 3)
/// takes eight times as long (4 KiB) or 27 times (64 KiB) where `from` lies, within a page, up to 31 bytes before `into`: one
/// place of 132, if they are where they happen to be. Piece by piece it takes another way. The engine does so too.
#[inline]
fn copy(from: &[u8], into: &mut [u8]) {
    const PIECE_BYTES: usize = 2 << 10;
    const PAGE_BYTES: usize = 4 << 10;
    let before = (into.as_ptr() as usize).wrapping_sub(from.as_ptr() as usize) % PAGE_BYTES;
    if from.len() <= PIECE_BYTES || !(1..32).contains(&before) {
        return into.copy_from_slice(from);
    }
    assert_eq!(from.len(), into.len());
    for (from, into) in from.chunks(PIECE_BYTES).zip(into.chunks_mut(PIECE_BYTES)) {
        into.copy_from_slice(from);
    }
}

/// As [`place`], if the guest's strings are as ours are; `None`, and nothing done, if not.
#[inline]
fn place_text<T>(cx: &mut LowerContext<'_, T>, text: &str) -> Result<Option<Placed>> {
    /// The canonical ABI knows no longer strings.
    const TEXT_BYTES_MAX: usize = (1 << 31) - 1;
    let plain = matches!(cx.options().string_encoding, StringEncoding::Utf8) && text.len() <= TEXT_BYTES_MAX;
    if plain { place(cx, text.as_bytes()).map(Some) } else { Ok(None) }
}

type PlainFound = Option<Bytes>;

/// What a `get` came to. Lowers as the WIT type `result<option<list<u8>>, E>`.
pub(crate) struct Got<E>(pub(crate) PlainGot<E>);

type PlainGot<E> = std::result::Result<PlainFound, E>;

// SAFETY: layout, ABI and type check are those of `PlainGot`, word for word, and so is every lowering below.
unsafe impl<E: ComponentType> ComponentType for Got<E> {
    type Lower = <PlainGot<E> as ComponentType>::Lower;
    const ABI: CanonicalAbiInfo = <PlainGot<E> as ComponentType>::ABI;

    fn typecheck(ty: &InterfaceType, types: &InstanceType<'_>) -> Result<()> {
        <PlainGot<E> as ComponentType>::typecheck(ty, types)
    }
}

// SAFETY: the first method hands over to `PlainGot`, which initializes `dst`; the second does so, or writes the byte that says that a
// result is one, and, where the largest of its parts is aligned, the twelve bytes that such an option is in memory.
unsafe impl<E: Lower> Lower for Got<E> {
    fn linear_lower_to_flat<T>(
        &self,
        cx: &mut LowerContext<'_, T>,
        ty: InterfaceType,
        dst: &mut MaybeUninit<Self::Lower>,
    ) -> Result<()> {
        self.0.linear_lower_to_flat(cx, ty, dst)
    }

    #[inline]
    fn linear_lower_to_memory<T>(&self, cx: &mut LowerContext<'_, T>, ty: InterfaceType, offset: usize) -> Result<()> {
        const BYTES: usize = <PlainFound as ComponentType>::SIZE32;
        let Ok(Some(value)) = &self.0 else { return self.0.linear_lower_to_memory(cx, ty, offset) };
        let (value, memory) = place_and(cx, value)?;
        let result = &mut memory[offset..][..<PlainGot<E> as ComponentType>::SIZE32];
        result[0] = 0;
        let option = &mut result[<PlainGot<E> as ComponentType>::ALIGN32 as usize..][..BYTES];
        option[0] = 1;
        option[4..].copy_from_slice(&value.to_bytes());
        Ok(())
    }
}

/// A key that was looked for with its value. Lowers as the WIT type `option<tuple<string, list<u8>>>`.
pub(crate) struct FoundPair(pub(crate) Option<(Utf8Bytes, Bytes)>);

type PlainPair = Option<(Utf8Bytes, Bytes)>;

// SAFETY: layout, ABI and type check are those of `PlainPair`, word for word, and so is every lowering below.
unsafe impl ComponentType for FoundPair {
    type Lower = <PlainPair as ComponentType>::Lower;
    const ABI: CanonicalAbiInfo = <PlainPair as ComponentType>::ABI;

    fn typecheck(ty: &InterfaceType, types: &InstanceType<'_>) -> Result<()> {
        <PlainPair as ComponentType>::typecheck(ty, types)
    }
}

// SAFETY: the first method hands over to `PlainPair`, which initializes `dst`; the second does so, or writes the twenty bytes that
// such an option is in memory.
unsafe impl Lower for FoundPair {
    fn linear_lower_to_flat<T>(
        &self,
        cx: &mut LowerContext<'_, T>,
        ty: InterfaceType,
        dst: &mut MaybeUninit<Self::Lower>,
    ) -> Result<()> {
        self.0.linear_lower_to_flat(cx, ty, dst)
    }

    #[inline]
    fn linear_lower_to_memory<T>(&self, cx: &mut LowerContext<'_, T>, ty: InterfaceType, offset: usize) -> Result<()> {
        const BYTES: usize = <PlainPair as ComponentType>::SIZE32;
        let plainly = |cx: &mut LowerContext<'_, T>| self.0.linear_lower_to_memory(cx, ty, offset);
        let Some((key, value)) = &self.0 else { return plainly(cx) };
        let Some(key) = place_text(cx, key)? else { return plainly(cx) };
        let (value, memory) = place_and(cx, value)?;
        let option = &mut memory[offset..][..BYTES];
        option[0] = 1;
        option[4..12].copy_from_slice(&key.to_bytes());
        option[12..].copy_from_slice(&value.to_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasmtime::component::{Component, Linker};
    use wasmtime::{Engine, Store};

    #[test]
    fn only_utf8_becomes_text() {
        assert_eq!(&*Utf8Bytes::new(Bytes::from_static("k\u{f6}".as_bytes())).unwrap(), "k\u{f6}");
        assert!(Utf8Bytes::new(Bytes::from_static(b"")).is_some());
        assert!(Utf8Bytes::new(Bytes::from_static(b"a\xff")).is_none());
        assert!(Utf8Bytes::of_text("a", Bytes::from_static(b"a")).is_some());
        assert!(Utf8Bytes::of_text("a", Bytes::from_static(b"\xff")).is_none());
    }

    #[test]
    fn a_copy_is_one_wherever_in_a_page_it_is_from() {
        let from: Vec<u8> = (0..20_000_u32).map(|i| (i ^ i >> 8) as u8).collect();
        for len in [0, 100, 2048, 2049, 4096, 10_001] {
            for lead in (0..4096).step_by(7).chain(4060..4096) {
                let mut into = vec![0; len + 5000];
                let begin = (from.as_ptr() as usize).wrapping_sub(into.as_ptr() as usize) % 4096;
                let (from, at) = (&from[lead..][..len], begin);
                copy(from, &mut into[at..][..len]);
                assert!(into[at..][..len] == *from, "{len} bytes, {lead} into a page");
                assert!(into[..at].iter().chain(&into[at + len..]).all(|byte| *byte == 0));
            }
        }
    }

    /// What stands in a guest's memory after it was answered so: `ty` is the type of the answer, `encoding` that of the guest's strings.
    fn lowered<A: Lower + ComponentType + 'static>(
        ty: &str,
        encoding: &str,
        answer: impl Fn() -> A + Send + Sync + 'static,
    ) -> Vec<u8> {
        let text = format!(
            r#"(component
                (import "answer" (func $answer (result {ty})))
                (core module $Memory
                    (memory (export "memory") 1)
                    (global $free (mut i32) (i32.const 1024))
                    (func (export "realloc") (param $old i32) (param $old-len i32) (param $align i32) (param $len i32) (result i32)
                        (local $at i32)
                        (local.set $at (i32.and
                            (i32.add (global.get $free) (i32.sub (local.get $align) (i32.const 1)))
                            (i32.sub (i32.const 0) (local.get $align))))
                        (global.set $free (i32.add (local.get $at) (local.get $len)))
                        (if (i32.lt_u (local.get $len) (local.get $old-len)) (then (return (local.get $old))))
                        (memory.copy (local.get $at) (local.get $old) (local.get $old-len))
                        (local.get $at)))
                (core instance $memory (instantiate $Memory))
                (alias core export $memory "memory" (core memory $mem))
                (alias core export $memory "realloc" (core func $realloc))
                (core func $answer' (canon lower (func $answer) (memory $mem) (realloc $realloc) string-encoding={encoding}))
                (core module $Main
                    (import "host" "answer" (func $answer (param i32)))
                    (import "memory" "memory" (memory 1))
                    (func (export "run") (result i32)
                        (call $answer (i32.const 16))
                        (i32.store offset=4 (i32.const 8) (i32.const 4096))
                        (i32.const 8)))
                (core instance $main (instantiate $Main
                    (with "host" (instance (export "answer" (func $answer'))))
                    (with "memory" (instance $memory))))
                (func (export "run") (result (list u8)) (canon lift (core func $main "run") (memory $mem))))"#
        );
        let engine = Engine::default();
        let component = Component::new(&engine, wat::parse_str(text).unwrap()).unwrap();
        let mut linker = Linker::<()>::new(&engine);
        linker.root().func_wrap("answer", move |_, (): ()| Ok((answer(),))).unwrap();
        let mut store = Store::new(&engine, ());
        let instance = linker.instantiate(&mut store, &component).unwrap();
        let run = instance.get_typed_func::<(), (Vec<u8>,)>(&mut store, "run").unwrap();
        run.call(&mut store, ()).unwrap().0
    }

    const ENCODINGS: [&str; 3] = ["utf8", "utf16", "latin1+utf16"];

    fn pairs() -> Vec<PlainPair> {
        let pair =
            |key: &str, value: &'static [u8]| Some((Utf8Bytes::from(String::from(key)), Bytes::from_static(value)));
        vec![pair("key", b"value"), None, pair("", b""), pair("k\u{f6}", &[7; 300]), pair("\u{1f600}x", b"\0")]
    }

    #[test]
    fn a_value_lowers_byte_for_byte_as_wasmtime_lowers_it() {
        fn agree<E: Lower + ComponentType + Clone + Send + Sync + 'static>(ty: &str, error: E) {
            let ty = format!("(result (option (list u8)) (error {ty}))");
            for got in [Err(error), Ok(None), Ok(Some(Bytes::new())), Ok(Some(Bytes::from_static(b"value")))] {
                let plain = got.clone();
                let expected = lowered(&ty, "utf8", move || plain.clone());
                assert_eq!(lowered(&ty, "utf8", move || Got(got.clone())), expected, "{ty}");
            }
        }
        agree("u8", 7_u8);
        agree("string", String::from("error"));
        agree("u64", u64::MAX - 1);
        agree("(tuple u64 u64 u64)", (1_u64, 2_u64, 3_u64));
    }

    #[test]
    fn pairs_lower_byte_for_byte_as_wasmtime_lowers_them_whatever_the_guests_strings() {
        for encoding in ENCODINGS {
            let ty = "(list (option (tuple string (list u8))))";
            let expected = lowered(ty, encoding, pairs);
            assert!(expected.windows(5).any(|bytes| bytes == b"value"));
            let ours = lowered(ty, encoding, || pairs().into_iter().map(FoundPair).collect::<Vec<_>>());
            assert_eq!(ours, expected, "{encoding}");
        }
    }

    #[test]
    fn keys_lower_byte_for_byte_as_wasmtime_lowers_strings() {
        for encoding in ENCODINGS {
            let keys = || pairs().into_iter().flatten().map(|(key, _)| key);
            let expected =
                lowered("(list string)", encoding, move || keys().map(|key| String::from(&*key)).collect::<Vec<_>>());
            assert_eq!(lowered("(list string)", encoding, move || keys().collect::<Vec<_>>()), expected, "{encoding}");
        }
    }
}
