//! The guest component, in WebAssembly text, for one draft of the interface or the other.
//!
//! Flow: `guest.wat` with the draft's version and cursor type filled in -> `wat` -> [`Guest`]: instantiated against a
//! host, its loops callable. The code of the guest is the same for every host.

use kvasi_bench::Result;
use wasmtime::component::{Component, Instance, InstancePre, Linker};
use wasmtime::{Engine, Store};

/// Which draft of `wasi:keyvalue` a host serves. `store` and `batch` differ in the type of a listing's cursor only.
#[derive(Clone, Copy)]
pub(crate) enum Draft {
    /// `0.2.0-draft`: what wasmtime's own crate serves.
    One,
    /// `0.2.0-draft2`.
    Two,
}

impl Draft {
    pub(crate) const fn version(self) -> &'static str {
        match self {
            Draft::One => "0.2.0-draft",
            Draft::Two => "0.2.0-draft2",
        }
    }

    /// The guest for this draft.
    pub(crate) fn component(self, engine: &Engine) -> Result<Component> {
        // The answer area begins at 16; an option of 64 bits moves what follows the tag to 8 instead of 4.
        let (cursor, flat, none, keys_len_at) = match self {
            Draft::One => ("u64", "i64", "(i64.const 0)", "28"),
            Draft::Two => ("string", "i32 i32", "(i32.const 0) (i32.const 0)", "24"),
        };
        let text = include_str!("guest.wat")
            .replace("{VERSION}", self.version())
            .replace("{CURSOR}", cursor)
            .replace("{CURSOR_FLAT}", flat)
            .replace("{CURSOR_NONE}", none)
            .replace("{KEYS_LEN_AT}", keys_len_at);
        Ok(Component::new(engine, wat::parse_str(text)?)?)
    }
}

/// A loop of the guest's: which call it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// None; the key alone.
    Keys,
    Get,
    Exists,
    Set,
    Open,
    /// 100 keys at once.
    GetMany,
    List,
    /// An instance of its own that opens, gets and drops; see [`Requests`].
    Request,
}

impl Call {
    pub(crate) fn export(self) -> &'static str {
        match self {
            Call::Keys => "run-keys",
            Call::Get | Call::Request => "run-get",
            Call::Exists => "run-exists",
            Call::Set => "run-set",
            Call::Open => "run-open",
            Call::GetMany => "run-get-many",
            Call::List => "run-list",
        }
    }
}

/// Keys by number, and the size of each one's value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Class {
    pub(crate) first: u32,
    pub(crate) count: u32,
    pub(crate) value_bytes: u32,
}

/// What a guest draws from where nothing else is said: the same keys in the same order, whatever the host.
pub(crate) const DICE: u64 = 0x1234_5678;

/// An instance with an open bucket.
pub(crate) struct Guest<T: 'static> {
    store: Store<T>,
    instance: Instance,
}

impl<T: Send + 'static> Guest<T> {
    pub(crate) fn new(linker: &Linker<T>, component: &Component, state: T, dice: u64) -> Result<Guest<T>> {
        let mut store = Store::new(linker.engine(), state);
        let instance = linker.instantiate(&mut store, component)?;
        instance.get_typed_func::<(u64,), ()>(&mut store, "start")?.call(&mut store, (dice,))?;
        Ok(Guest { store, instance })
    }
}

/// Requests, each served by an instance of its own: what a host that trusts nobody does.
pub(crate) struct Requests<T: 'static> {
    guest: InstancePre<T>,
    state: Box<dyn Fn() -> T>,
    served: u32,
}

impl<T: Send + 'static> Requests<T> {
    /// `state` is the host's state for one more request.
    pub(crate) fn new(linker: &Linker<T>, component: &Component, state: impl Fn() -> T + 'static) -> Result<Self> {
        Ok(Requests { guest: linker.instantiate_pre(component)?, state: Box::new(state), served: 0 })
    }

    /// Opens the bucket, gets a key, drops the bucket and all the rest.
    fn serve(&self, class: Class) -> Result<u64> {
        let mut store = Store::new(self.guest.engine(), (self.state)());
        let instance = self.guest.instantiate(&mut store)?;
        instance.get_typed_func::<(u64,), ()>(&mut store, "start")?.call(&mut store, (DICE,))?;
        let get = instance.get_typed_func::<(u32, u32, u32, u32), (u64,)>(&mut store, Call::Request.export())?;
        let key = class.first + self.served.wrapping_mul(7_919) % class.count;
        let (sum,) = get.call(&mut store, (1, key, 1, class.value_bytes))?;
        instance.get_typed_func::<(), ()>(&mut store, "finish")?.call(&mut store, ())?;
        Ok(sum)
    }
}

/// A guest, whatever its host.
pub(crate) trait Run {
    /// `calls` calls over random keys of `class`; what the guest counted.
    fn run(&mut self, call: Call, calls: u32, class: Class) -> Result<u64>;
}

impl<T: Send + 'static> Run for Requests<T> {
    fn run(&mut self, _: Call, calls: u32, class: Class) -> Result<u64> {
        let mut sum = 0;
        for _ in 0..calls {
            sum += self.serve(class)?;
            self.served = self.served.wrapping_add(1);
        }
        Ok(sum)
    }
}

impl<T: Send + 'static> Run for Guest<T> {
    fn run(&mut self, call: Call, calls: u32, class: Class) -> Result<u64> {
        let function = self.instance.get_typed_func::<(u32, u32, u32, u32), (u64,)>(&mut self.store, call.export())?;
        let Class { first, count, value_bytes } = class;
        let (sum,) = function.call(&mut self.store, (calls, first, count, value_bytes))?;
        Ok(sum)
    }
}
