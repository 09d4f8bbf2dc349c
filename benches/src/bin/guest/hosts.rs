//! What answers the guest: wasmtime's own crate, kvasi (on disk, in memory), another back end behind kvasi's binding, and a host that
//! does nothing.

use crate::guest::{Class, DICE, Draft, Guest, Requests, Run};
use bytes::Bytes;
use kvasi_bench::Result;
use kvasi_bench::keys::{Values, key};
use kvasi_wasmtime::backend::LocalBucket;
use kvasi_wasmtime::bindings::store::Error as WitError;
use kvasi_wasmtime::{Rights, Utf8Bytes, WasiKeyValueCtx, WasiKeyValueCtxView, WasiKeyValueView};
use std::cell::OnceCell;
use std::sync::Arc;
use wasmtime::component::{
    Component, ComponentType, Linker, Lower, Resource, ResourceTable, ResourceType, WasmList, WasmStr,
};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, StoreContextMut};

/// Wasmtime with the guest compiled for both drafts.
pub(crate) struct Hosts {
    engine: Engine,
    draft: Component,
    draft2: Component,
    /// Made where it is asked for: it reserves more addresses than a profiler's machine has.
    pooling: OnceCell<Pooling>,
}

/// The same with instances from a pool, as hosts have it that make one for each request.
struct Pooling {
    engine: Engine,
    draft: Component,
    draft2: Component,
}

struct PeerState {
    keyvalue: Arc<wasmtime_wasi_keyvalue::WasiKeyValueCtx>,
    table: ResourceTable,
}

struct KvasiState {
    keyvalue: WasiKeyValueCtx,
    table: ResourceTable,
}

impl WasiKeyValueView for KvasiState {
    fn keyvalue(&mut self) -> WasiKeyValueCtxView<'_> {
        WasiKeyValueCtxView { ctx: &mut self.keyvalue, table: &mut self.table }
    }
}

impl PeerState {
    fn new(keyvalue: &Arc<wasmtime_wasi_keyvalue::WasiKeyValueCtx>) -> PeerState {
        PeerState { keyvalue: keyvalue.clone(), table: ResourceTable::new() }
    }
}

impl KvasiState {
    fn new(keyvalue: &WasiKeyValueCtx) -> KvasiState {
        KvasiState { keyvalue: keyvalue.clone(), table: ResourceTable::new() }
    }
}

impl Pooling {
    fn new() -> Result<Pooling> {
        let mut pool = PoolingAllocationConfig::new();
        pool.linear_memory_keep_resident(64 << 10).table_keep_resident(64 << 10);
        let mut config = Config::new();
        config.concurrency_support(false).allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        let engine = Engine::new(&config)?;
        let (draft, draft2) = (Draft::One.component(&engine)?, Draft::Two.component(&engine)?);
        Ok(Pooling { engine, draft, draft2 })
    }
}

impl Hosts {
    pub(crate) fn new() -> Result<Hosts> {
        let mut config = Config::new();
        // No guest here uses `async func`; both hosts gain the same.
        config.concurrency_support(false);
        let engine = Engine::new(&config)?;
        let (draft, draft2) = (Draft::One.component(&engine)?, Draft::Two.component(&engine)?);
        Ok(Hosts { engine, draft, draft2, pooling: OnceCell::new() })
    }

    fn pooling(&self) -> Result<&Pooling> {
        if let Some(made) = self.pooling.get() {
            return Ok(made);
        }
        let made = Pooling::new()?;
        Ok(self.pooling.get_or_init(|| made))
    }

    /// wasmtime-wasi-keyvalue: a `HashMap` of the classes' keys.
    pub(crate) fn peer(&self, classes: &[Class]) -> Result<Box<dyn Run>> {
        let state = PeerState::new(&peer_ctx(classes)?);
        Ok(Box::new(Guest::new(&peer_linker(&self.engine)?, &self.draft, state, DICE)?))
    }

    /// The same, an instance for each request.
    pub(crate) fn peer_requests(&self, classes: &[Class]) -> Result<Box<dyn Run>> {
        let (keyvalue, pooling) = (peer_ctx(classes)?, self.pooling()?);
        let linker = peer_linker(&pooling.engine)?;
        Ok(Box::new(Requests::new(&linker, &pooling.draft, move || PeerState::new(&keyvalue))?))
    }

    /// kvasi-wasmtime over a bucket of that store, filled here.
    pub(crate) fn kvasi(&self, store: &kvasi::Store, classes: &[Class]) -> Result<Box<dyn Run>> {
        let bucket = store.bucket("bench")?;
        each(classes, |key, value| Ok(bucket.set(key, value).map(drop)?))?;
        Ok(Box::new(self.behind(Arc::new(bucket), DICE)?))
    }

    /// The same, an instance for each request; the bucket is full already.
    pub(crate) fn kvasi_requests(&self, store: &kvasi::Store) -> Result<Box<dyn Run>> {
        let keyvalue = WasiKeyValueCtx::builder().bucket("", store.bucket("bench")?).build();
        let pooling = self.pooling()?;
        let linker = kvasi_linker(&pooling.engine)?;
        Ok(Box::new(Requests::new(&linker, &pooling.draft2, move || KvasiState::new(&keyvalue))?))
    }

    /// kvasi-wasmtime over any bucket, as it is.
    pub(crate) fn behind(&self, bucket: Arc<dyn LocalBucket>, dice: u64) -> Result<impl Run + Send + use<>> {
        let keyvalue = WasiKeyValueCtx::builder().grant("", bucket, Rights::ALL).build();
        Guest::new(&kvasi_linker(&self.engine)?, &self.draft2, KvasiState::new(&keyvalue), dice)
    }

    /// What wasmtime itself takes for the same calls: parameters lifted as views, every `get` answered with `value_bytes`
    /// constant bytes, nothing looked up, nothing kept.
    pub(crate) fn floor(&self, value_bytes: u32) -> Result<Box<dyn Run>> {
        let value = Bytes::from(vec![7; value_bytes as usize]);
        let mut linker = Linker::<()>::new(&self.engine);
        let mut store = linker.instance(&format!("wasi:keyvalue/store@{}", Draft::Two.version()))?;
        store.resource("bucket", ResourceType::host::<Nothing>(), |_, _| Ok(()))?;
        store.func_wrap("open", |cx: StoreContextMut<'_, ()>, (name,): (WasmStr,)| {
            name.to_str(&cx)?;
            Ok((Ok::<_, WitError>(Resource::<Nothing>::new_own(0)),))
        })?;
        let constant = value.clone();
        store.func_wrap(
            "[method]bucket.get",
            move |cx: StoreContextMut<'_, ()>, (_, key): (Resource<Nothing>, WasmStr)| {
                key.to_str(&cx)?;
                Ok((Ok::<_, WitError>(Some(constant.clone())),))
            },
        )?;
        store.func_wrap(
            "[method]bucket.set",
            |cx: StoreContextMut<'_, ()>, (_, key, value): (Resource<Nothing>, WasmStr, WasmList<u8>)| {
                key.to_str(&cx)?;
                std::hint::black_box(value.as_le_slice(&cx));
                Ok((Ok::<(), WitError>(()),))
            },
        )?;
        store.func_wrap(
            "[method]bucket.exists",
            |cx: StoreContextMut<'_, ()>, (_, key): (Resource<Nothing>, WasmStr)| {
                key.to_str(&cx)?;
                Ok((Ok::<_, WitError>(true),))
            },
        )?;
        let keys: Vec<Utf8Bytes> = (0..1000).filter_map(|n| Utf8Bytes::new(Bytes::copy_from_slice(&key(n)))).collect();
        store.func_wrap(
            "[method]bucket.list-keys",
            move |_: StoreContextMut<'_, ()>, (_, _): (Resource<Nothing>, Option<WasmStr>)| {
                Ok((Ok::<_, WitError>(Page { keys: keys.clone(), cursor: None }),))
            },
        )?;
        let mut batch = linker.instance(&format!("wasi:keyvalue/batch@{}", Draft::Two.version()))?;
        let pair = Utf8Bytes::new(Bytes::copy_from_slice(&key(0))).map(|key| (key, value));
        batch.func_wrap(
            "get-many",
            move |_: StoreContextMut<'_, ()>, (_, keys): (Resource<Nothing>, WasmList<WasmStr>)| {
                Ok((Ok::<_, WitError>(vec![pair.clone(); keys.len()]),))
            },
        )?;
        Ok(Box::new(Guest::new(&linker, &self.draft2, (), DICE)?))
    }
}

fn peer_ctx(classes: &[Class]) -> Result<Arc<wasmtime_wasi_keyvalue::WasiKeyValueCtx>> {
    let mut pairs = Vec::new();
    each(classes, |key, value| {
        pairs.push((String::from_utf8_lossy(key).into_owned(), value.to_vec()));
        Ok(())
    })?;
    Ok(Arc::new(wasmtime_wasi_keyvalue::WasiKeyValueCtxBuilder::new().in_memory_data(pairs).build()))
}

fn peer_linker(engine: &Engine) -> Result<Linker<PeerState>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi_keyvalue::add_to_linker(&mut linker, |state: &mut PeerState| {
        wasmtime_wasi_keyvalue::WasiKeyValue::new(&state.keyvalue, &mut state.table)
    })?;
    Ok(linker)
}

fn kvasi_linker(engine: &Engine) -> Result<Linker<KvasiState>> {
    let mut linker = Linker::new(engine);
    kvasi_wasmtime::add_to_linker_sync(&mut linker)?;
    Ok(linker)
}

/// The resource of the host that does nothing.
struct Nothing;

#[derive(ComponentType, Lower)]
#[component(record)]
struct Page {
    keys: Vec<Utf8Bytes>,
    cursor: Option<String>,
}

/// All keys of the classes with their values.
fn each(classes: &[Class], mut put: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
    for class in classes {
        let values = Values::new(class.value_bytes as usize);
        for number in u64::from(class.first)..u64::from(class.first) + u64::from(class.count) {
            put(&key(number), values.get(number))?;
        }
    }
    Ok(())
}
