//! What a component costs its neighbours, and what being bounded and observed costs a component: through the binding, without a guest
//! around it, so that nothing but the host's own work is measured.
//!
//! `cargo run --release -p kvasi-bench --bin isolation -- [--seconds N]`
//!
//! Part one: latencies of a component that gets, sets and lists in its own bucket, alone and beside a thread that does one
//! hostile thing without a pause, in another bucket of the same store; the ratio of the p99s. The quiet runs stand before and after each
//! hostile one, and the slower of the two counts. Part two: processor time of one call, in turns of short slices. Part three: of the question whether anybody wants to hear of a call, which
//! each call asks once.

use clap::Parser;
use hdrhistogram::Histogram;
use kvasi::{Durability, Options, Store};
use kvasi_bench::{Result, clock, median};
use kvasi_wasmtime::backend::{Backend, LocalBucket};
use kvasi_wasmtime::bindings::atomics::{CasError, Host as _, HostCas};
use kvasi_wasmtime::bindings::batch::Host as _;
use kvasi_wasmtime::bindings::store::{Host as _, HostBucket};
use kvasi_wasmtime::{Account, Bucket, Cas, Limits, Metered, Rights, Usage, WasiKeyValueCtx, WasiKeyValueCtxView};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, span};
use wasmtime::component::{Resource, ResourceTable};

/// Measures isolation.
#[derive(Parser)]
struct Arguments {
    /// Seconds of each run of part one.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

const KEYS: usize = 10_000;

/// An instance, as the binding sees one.
struct Instance {
    ctx: WasiKeyValueCtx,
    table: ResourceTable,
}

impl Instance {
    fn new(ctx: &WasiKeyValueCtx) -> Instance {
        Instance { ctx: ctx.clone(), table: ResourceTable::new() }
    }

    fn view(&mut self) -> WasiKeyValueCtxView<'_> {
        WasiKeyValueCtxView { ctx: &mut self.ctx, table: &mut self.table }
    }

    fn open(&mut self) -> Result<u32> {
        Ok(self.view().open("main".to_owned())?.map_err(|error| format!("{error:?}"))?.rep())
    }
}

fn bucket(handle: u32) -> Resource<Bucket> {
    Resource::new_borrow(handle)
}

fn key(i: usize) -> String {
    format!("user:{:08x}", i.wrapping_mul(0x9e37_79b9) as u32)
}

/// One hostile call, over and over; what it is told does not matter to it.
type Hostile = fn(&mut WasiKeyValueCtxView<'_>, u32, usize) -> Result<()>;

const HOSTILE: [(&str, Hostile); 7] = [
    ("sets of 64 KiB", |view, b, i| {
        let _ = HostBucket::set(view, bucket(b), key(i % 5_000), vec![7; 64 << 10])?;
        Ok(())
    }),
    ("sets of 100 B", |view, b, i| {
        let _ = HostBucket::set(view, bucket(b), key(i % 5_000), vec![7; 100])?;
        Ok(())
    }),
    ("sets and deletes, listed", |view, b, i| {
        let _ = HostBucket::set(view, bucket(b), key(i), Vec::new())?;
        let _ = HostBucket::delete(view, bucket(b), key(i))?;
        if i % 1_000 == 0 {
            let _ = HostBucket::list_keys(view, bucket(b), None)?;
        }
        Ok(())
    }),
    ("listings", |view, b, _| {
        let _ = HostBucket::list_keys(view, bucket(b), None)?;
        Ok(())
    }),
    ("batches of 10,000 keys", |view, b, i| {
        let pairs = (0..10_000).map(|j| (key(i % 3 + j), vec![7; 100])).collect();
        let _ = view.set_many(bucket(b), pairs)?;
        let _ = view.get_many(bucket(b), (0..10_000).map(key).collect())?;
        Ok(())
    }),
    ("compare-and-swap on one key", |view, b, _| {
        if let Ok(cas) = HostCas::new(view, bucket(b), "hot".to_owned())?
            && let Err(CasError::CasFailed(lost)) = view.swap(cas, b"value".to_vec())?
        {
            HostCas::drop(view, Resource::<Cas>::new_own(lost.rep()))?;
        }
        Ok(())
    }),
    ("opens, never dropped", |view, _, _| {
        let _ = view.open("main".to_owned())?;
        Ok(())
    }),
];

/// Latencies of the neighbour's calls for so long, in nanoseconds.
fn neighbour(ctx: &WasiKeyValueCtx, lasting: Duration) -> Result<Histogram<u64>> {
    let mut instance = Instance::new(ctx);
    let handle = instance.open()?;
    let mut latencies = Histogram::new(3)?;
    let (begun, mut i) = (Instant::now(), 0_usize);
    while begun.elapsed() < lasting {
        i += 1;
        let (key, value) = (key(i % KEYS), vec![1; 100]);
        let at = Instant::now();
        let mut view = instance.view();
        match i % 100 {
            0 => drop(HostBucket::list_keys(&mut view, bucket(handle), None)?.map_err(|error| format!("{error:?}"))?),
            1..25 => HostBucket::set(&mut view, bucket(handle), key, value)?.map_err(|error| format!("{error:?}"))?,
            _ => {
                let found = HostBucket::get(&mut view, bucket(handle), key)?.map_err(|error| format!("{error:?}"))?;
                assert_eq!(found.map(|value| value.len()), Some(100), "the neighbour has what it has");
            }
        }
        latencies.record(u64::try_from(at.elapsed().as_nanos())?)?;
    }
    Ok(latencies)
}

fn beside(
    neighbour_ctx: &WasiKeyValueCtx,
    hostile_ctx: &WasiKeyValueCtx,
    hostile: Hostile,
    lasting: Duration,
) -> Result<Histogram<u64>> {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| -> std::result::Result<(), String> {
            let mut instance = Instance::new(hostile_ctx);
            let handle = instance.open().map_err(|error| error.to_string())?;
            let mut i = 0;
            while !ended.load(Ordering::Relaxed) {
                hostile(&mut instance.view(), handle, i).map_err(|error| error.to_string())?;
                i += 1;
            }
            Ok(())
        });
        let latencies = neighbour(neighbour_ctx, lasting);
        ended.store(true, Ordering::Relaxed);
        guest.join().map_err(|_| "the hostile guest has panicked the host")??;
        latencies
    })
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let lasting = Duration::from_secs(arguments.seconds);
    let dir = tempfile::tempdir()?;
    let store = Store::open(dir.path().join("store"), Options::new().durability(Durability::Os))?;
    let quiet = Backend::bucket(&store, "neighbour")?;
    (0..KEYS).try_for_each(|i| quiet.set(&key(i), &[1; 100]))?;
    let neighbour_ctx = WasiKeyValueCtx::builder().grant("main", quiet.clone(), Rights::ALL).build();
    let account = Account::new(Usage { bytes: 256 << 20, keys: 1_000_000 });
    let metered: Arc<dyn LocalBucket> = Arc::new(Metered::new(Backend::bucket(&store, "hostile")?, [account])?);
    let hostile_ctx = WasiKeyValueCtx::builder().grant("main", metered, Rights::ALL).build();

    println!(
        "latency of the neighbour's calls (75 gets, 24 sets, 1 listing of 1,000), durability Os, {} s a run",
        arguments.seconds
    );
    println!(
        "{:<30} {:>10} {:>10} {:>10} {:>10} {:>9}",
        "beside", "p50 us", "p99 us", "p99.9 us", "max us", "p99 ratio"
    );
    let us = |histogram: &Histogram<u64>, quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    let mut before = neighbour(&neighbour_ctx, lasting)?;
    for (name, hostile) in HOSTILE {
        let latencies = beside(&neighbour_ctx, &hostile_ctx, hostile, lasting)?;
        let after = neighbour(&neighbour_ctx, lasting)?;
        let base = us(&before, 0.99).max(us(&after, 0.99));
        for (name, latencies, ratio) in
            [("nobody", &before, None), (name, &latencies, Some(us(&latencies, 0.99) / base))]
        {
            let ratio = ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
            let at = |quantile| us(latencies, quantile);
            println!(
                "{name:<30} {:>10.2} {:>10.2} {:>10.2} {:>10.0} {ratio:>9}",
                at(0.5),
                at(0.99),
                at(0.999),
                latencies.max() as f64 / 1e3
            );
        }
        before = after;
    }
    costs(&quiet)?;
    unheard()?;
    store.close()?;
    Ok(())
}

/// Part two.
fn costs(quiet: &Arc<dyn LocalBucket>) -> Result<()> {
    const CALLS: usize = 2_000;
    const SLICES: usize = 201;
    let ctx = |limits: Limits, bucket: &Arc<dyn LocalBucket>| {
        WasiKeyValueCtx::builder().limits(limits).grant("main", bucket.clone(), Rights::ALL).build()
    };
    let rated = Limits { keys_per_second_max: NonZeroU32::new(u32::MAX), ..Limits::default() };
    let metered: Arc<dyn LocalBucket> = Arc::new(Metered::new(quiet.clone(), [Account::new(Usage::UNBOUNDED)])?);
    let hosts = [
        ("as it is", ctx(Limits::default(), quiet)),
        ("with a rate", ctx(rated, quiet)),
        ("with a quota", ctx(Limits::default(), &metered)),
    ];
    let mut instances: Vec<_> = hosts.iter().map(|(name, ctx)| (*name, Instance::new(ctx))).collect();
    let keys: Vec<String> = (0..CALLS).map(key).collect();
    println!(
        "\nns of processor time a call, median of {SLICES} slices: of the back end alone, and through the binding"
    );
    println!("{:<16} {:>10} {:>10}", "", "exists", "set 100 B");
    let mut times = vec![[Vec::new(), Vec::new()]; instances.len() + 1];
    for _ in 0..SLICES {
        let mut at = clock::thread();
        let mut lap = |into: &mut Vec<f64>| {
            into.push((clock::thread() - at).as_nanos() as f64 / CALLS as f64);
            at = clock::thread();
        };
        // A copy of each key is the binding's parameter: made here as well.
        keys.iter().try_for_each(|key| quiet.exists(&key.clone()).map(|found| assert!(found)))?;
        lap(&mut times[0][0]);
        keys.iter().try_for_each(|key| quiet.set(&key.clone(), &Vec::from([1; 100])))?;
        lap(&mut times[0][1]);
        for ((_, instance), times) in instances.iter_mut().zip(&mut times[1..]) {
            let handle = instance.open()?;
            let mut view = instance.view();
            lap(&mut Vec::new());
            for key in &keys {
                let found = HostBucket::exists(&mut view, bucket(handle), key.clone())?;
                assert!(matches!(found, Ok(true)));
            }
            lap(&mut times[0]);
            for key in &keys {
                let set = HostBucket::set(&mut view, bucket(handle), key.clone(), vec![1; 100])?;
                assert!(set.is_ok());
            }
            lap(&mut times[1]);
            HostBucket::drop(&mut view, Resource::new_own(handle))?;
        }
    }
    let names = ["back end alone"].into_iter().chain(instances.iter().map(|(name, _)| *name));
    for (name, [mut exists, mut set]) in names.zip(times) {
        println!(
            "{name:<16} {:>10.1} {:>10.1}",
            median(&mut exists).unwrap_or(f64::NAN),
            median(&mut set).unwrap_or(f64::NAN)
        );
    }
    Ok(())
}

/// Wants to hear of everything but a guest's calls: so that the level alone does not answer.
struct Elsewhere;

impl tracing::Subscriber for Elsewhere {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.target() == CALLS { Interest::never() } else { Interest::always() }
    }
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() != CALLS
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// The target of the binding's spans and events, see docs/observability.md.
const CALLS: &str = "kvasi::call";

/// Part three.
fn unheard() -> Result<()> {
    println!("\nns of processor time to find that nobody wants to hear of a call, median of 101 slices; at most 5");
    println!("{:<36} {:>6.2}", "no subscriber", asked()?);
    tracing::subscriber::set_global_default(Elsewhere)?;
    println!("{:<36} {:>6.2}", "a subscriber of everything else", asked()?);
    Ok(())
}

/// One asking, less what the loop takes.
fn asked() -> Result<f64> {
    const ASKINGS: u32 = 1_000_000;
    // What a call has in its place: whether the bucket has meters, which it has not, or a subscriber listens.
    let meters = std::hint::black_box(None::<Box<u8>>);
    let wanted = || std::hint::black_box(&meters).is_some() || tracing::enabled!(target: CALLS, tracing::Level::DEBUG);
    let slice = |ask: &dyn Fn() -> bool| {
        let at = clock::thread();
        let mut heard = false;
        for _ in 0..ASKINGS {
            heard |= std::hint::black_box(ask());
        }
        assert!(!heard, "nobody listens");
        (clock::thread() - at).as_nanos() as f64 / f64::from(ASKINGS)
    };
    let mut times: Vec<f64> = (0..101).map(|_| slice(&wanted) - slice(&|| std::hint::black_box(false))).collect();
    Ok(median(&mut times).unwrap_or(f64::NAN))
}
