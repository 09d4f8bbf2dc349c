//! Buckets in Redis, measured against what there is without us: the client library, and `redis-benchmark`.
//!
//! `cargo run --release -p kvasi-bench --no-default-features --features remote --bin remote -- [--seconds S] [--rounds R] [--keys N]
//! [--only latency,guests,copy]`
//!
//! Flow: a server of its own on a free loopback port -> the rows below, one line each: ours, theirs, the ratio. Both sides take turns, slice
//! by slice or round by round, so that whatever else the machine does hits both alike; figures are medians.
//!
//! | row | ours | theirs |
//! |---|---|---|
//! | latency | a guest's `get`, from before the call into WebAssembly to after it | `GET` by the same client library, waited for in the same way |
//! | guests | 64 guests that get, one call of each on its way, all over one connection | `redis-benchmark -c 64 -P 1 -t get`: as many on their way, a connection each |
//! | copy | keys a second from engine to engine, and from engine to Redis | `redis-benchmark -P 16 -t set` for the second |

#[path = "../guest/guest.rs"]
#[allow(dead_code, reason = "one of the drafts, one of the calls")]
mod guest;

use clap::Parser;
use guest::{Call, Class, Draft};
use kvasi_bench::keys::{KEY_BYTES, Values, key};
use kvasi_bench::{Result, median};
use kvasi_wasmtime::backend::remote::{Blocking, Local, Policy, RemoteBucket, connect};
use kvasi_wasmtime::backend::{Key, LocalBucket};
use kvasi_wasmtime::copy::{Position, Settings, copy};
use kvasi_wasmtime::{Rights, WasiKeyValueCtx, WasiKeyValueCtxView, WasiKeyValueView};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use wasmtime::component::{Linker, ResourceTable};
use wasmtime::{Config, Engine, Store};

const GUESTS: usize = 64;
const VALUE_BYTES: u32 = 100;
/// What is copied: keys of 21 bytes, values of so many.
const COPIED_BYTES: usize = 16;

/// Measures buckets in Redis.
#[derive(Parser)]
struct Arguments {
    /// How long each side of a row is measured, in each round.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// How often the sides take turns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Keys that are copied.
    #[arg(long, default_value_t = 500_000)]
    keys: u64,
    /// Only these rows.
    #[arg(long, value_delimiter = ',', default_values = ["latency", "guests", "copy"])]
    only: Vec<String>,
}

/// A Redis server in a directory of its own, which ends with the value.
struct Server {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start() -> Result<Server> {
        let dir = tempfile::tempdir()?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .spawn()?;
        let server = Server { child, port, _dir: dir };
        let begun = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if begun.elapsed() > Duration::from_secs(10) {
                return Err("redis-server does not answer".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Forgets all keys.
    fn empty(&self) -> Result<()> {
        let done = Command::new("redis-cli").args(["-p", &self.port.to_string(), "flushall"]).output()?;
        if done.status.success() { Ok(()) } else { Err("redis-cli flushall fails".into()) }
    }

    /// Requests a second, as `redis-benchmark` counts them.
    fn benchmark(&self, args: &[&str]) -> Result<f64> {
        let output =
            Command::new("redis-benchmark").args(["-p", &self.port.to_string(), "--csv"]).args(args).output()?;
        let text = String::from_utf8(output.stdout)?;
        let line = text.lines().rfind(|line| line.starts_with("\"SET\"") || line.starts_with("\"GET\""));
        let figure = line.and_then(|line| line.split('"').nth(3)).ok_or_else(|| format!("no figure in {text:?}"))?;
        Ok(figure.parse()?)
    }
}

struct State {
    keyvalue: WasiKeyValueCtx,
    table: ResourceTable,
}

impl WasiKeyValueView for State {
    fn keyvalue(&mut self) -> WasiKeyValueCtxView<'_> {
        WasiKeyValueCtxView { ctx: &mut self.keyvalue, table: &mut self.table }
    }
}

/// What every row needs: a server with keys in it, and threads for connections.
struct World {
    server: Server,
    runtime: Runtime,
    bucket: Arc<dyn RemoteBucket>,
}

const CLASS: Class = Class { first: 0, count: 10_000, value_bytes: VALUE_BYTES };

impl World {
    fn new() -> Result<World> {
        let server = Server::start()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let service = runtime.block_on(connect(&server.url().parse()?, Policy::default()))?;
        let bucket = service.bucket("bench")?;
        let values = Values::new(VALUE_BYTES as usize);
        let keys: Vec<[u8; KEY_BYTES]> = (0..u64::from(CLASS.count)).map(key).collect();
        for (page, keys) in keys.chunks(1_000).enumerate() {
            let pairs: Vec<(Key<'_>, &[u8])> = keys
                .iter()
                .enumerate()
                .filter_map(|(i, key)| {
                    Some((std::str::from_utf8(key).ok()?.into(), values.get((page * 1_000 + i) as u64)))
                })
                .collect();
            runtime.block_on(bucket.set_many(&pairs))?;
        }
        Ok(World { server, runtime, bucket })
    }

    fn context(&self) -> WasiKeyValueCtx {
        let local: Arc<dyn LocalBucket> = Arc::new(Blocking::new(self.bucket.clone(), self.runtime.handle().clone()));
        WasiKeyValueCtx::builder().grant("", local, Rights::ALL).build()
    }
}

fn engine() -> Result<Engine> {
    let mut config = Config::new();
    config.concurrency_support(false);
    Ok(Engine::new(&config)?)
}

/// Medians of single calls, in slices that take turns.
fn latency(world: &World, arguments: &Arguments) -> Result<()> {
    let time = Duration::from_secs(arguments.seconds) * u32::try_from(arguments.rounds)?;
    let engine = engine()?;
    let mut linker = Linker::new(&engine);
    kvasi_wasmtime::add_to_linker_sync(&mut linker)?;
    let component = Draft::Two.component(&engine)?;
    let mut store = Store::new(&engine, State { keyvalue: world.context(), table: ResourceTable::new() });
    let instance = linker.instantiate(&mut store, &component)?;
    instance.get_typed_func::<(), ()>(&mut store, "start")?.call(&mut store, ())?;
    let get = instance.get_typed_func::<(u32, u32, u32, u32), (u64,)>(&mut store, "run-get")?;

    let client = redis::Client::open(world.server.url())?;
    let mut connection = world.runtime.block_on(client.get_multiplexed_async_connection())?;
    let names: Vec<String> = (0..1_000).map(|n| format!("{{bench}}:{}", String::from_utf8_lossy(&key(n)))).collect();

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    while begun.elapsed() < 2 * time {
        for _ in 0..500 {
            let at = Instant::now();
            let (sum,) = get.call(&mut store, (1, CLASS.first, CLASS.count, CLASS.value_bytes))?;
            ours.push(at.elapsed().as_nanos() as f64);
            if sum == 0 {
                return Err("a key is not there".into());
            }
        }
        for name in &names[..500] {
            let at = Instant::now();
            // As the binding waits: the runtime's thread brings the answer.
            let value: Vec<u8> = {
                let _entered = world.runtime.enter();
                pollster::block_on(redis::cmd("GET").arg(name).query_async(&mut connection))?
            };
            theirs.push(at.elapsed().as_nanos() as f64);
            if value.len() <= VALUE_BYTES as usize {
                return Err("a value is not there".into());
            }
        }
    }
    let (ours, theirs) = (median(&mut ours).unwrap_or(f64::NAN), median(&mut theirs).unwrap_or(f64::NAN));
    println!(
        "latency   guest {:8.1} us     client {:8.1} us     ratio {:.3}   (p50, at most 1.05)",
        ours / 1e3,
        theirs / 1e3,
        ours / theirs
    );
    Ok(())
}

/// 64 guests that get, side by side, each as soon as it has its last answer: calls a second.
fn served(world: &World, time: Duration) -> Result<f64> {
    let engine = engine()?;
    let mut linker = Linker::new(&engine);
    kvasi_wasmtime::add_to_linker_async(&mut linker)?;
    let component = Draft::Two.component(&engine)?;
    let linked = linker.instantiate_pre(&component)?;
    let begun = Instant::now();
    let tasks: Vec<_> = (0..GUESTS)
        .map(|_| {
            let (engine, linked, keyvalue) = (engine.clone(), linked.clone(), world.context());
            world.runtime.spawn(async move {
                let mut store = Store::new(&engine, State { keyvalue, table: ResourceTable::new() });
                let instance = linked.instantiate_async(&mut store).await?;
                instance.get_typed_func::<(), ()>(&mut store, "start")?.call_async(&mut store, ()).await?;
                let get = instance.get_typed_func::<(u32, u32, u32, u32), (u64,)>(&mut store, Call::Get.export())?;
                let mut calls = 0_u64;
                while begun.elapsed() < time {
                    get.call_async(&mut store, (100, CLASS.first, CLASS.count, CLASS.value_bytes)).await?;
                    calls += 100;
                }
                Ok::<u64, wasmtime::Error>(calls)
            })
        })
        .collect();
    let mut calls = 0;
    for task in tasks {
        calls += world.runtime.block_on(task)??;
    }
    Ok(calls as f64 / begun.elapsed().as_secs_f64())
}

fn guests(world: &World, arguments: &Arguments) -> Result<()> {
    let (time, size) = (Duration::from_secs(arguments.seconds), VALUE_BYTES.to_string());
    // The keys that it asks for are there, as ours are.
    world.server.benchmark(&["-c", "64", "-P", "16", "-t", "set", "-d", &size, "-r", "10000", "-n", "200000"])?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..arguments.rounds {
        let rate = served(world, time)?;
        ours.push(rate);
        let requests = ((rate * time.as_secs_f64()) as u64).max(10_000).to_string();
        theirs.push(world.server.benchmark(&["-c", "64", "-P", "1", "-t", "get", "-r", "10000", "-n", &requests])?);
    }
    let (ours, theirs) = (median(&mut ours).unwrap_or(f64::NAN), median(&mut theirs).unwrap_or(f64::NAN));
    println!(
        "guests    64 over one {ours:9.0} /s    redis-benchmark -c 64 {theirs:9.0} /s    ratio {:.2}   (at least 0.8)",
        ours / theirs
    );
    Ok(())
}

/// A bucket of small keys, from engine to engine and from engine to Redis, which is empty before each round.
fn copying(world: &World, arguments: &Arguments) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let open = |name: &str, durability| -> Result<Arc<dyn RemoteBucket>> {
        let store = kvasi::Store::open(dir.path().join(name), kvasi::Options::new().durability(durability))?;
        Ok(Arc::new(Local::new(Arc::new(store.bucket("bench")?))))
    };
    let from = open("from", kvasi::Durability::Os)?;
    let values = Values::new(COPIED_BYTES);
    let numbers: Vec<u64> = (0..arguments.keys).collect();
    for page in numbers.chunks(1_000) {
        let names: Vec<[u8; KEY_BYTES]> = page.iter().map(|n| key(*n)).collect();
        let pairs = names.iter().zip(page);
        let pairs: Vec<(Key<'_>, &[u8])> =
            pairs.filter_map(|(name, n)| Some((std::str::from_utf8(name).ok()?.into(), values.get(*n)))).collect();
        world.runtime.block_on(from.set_many(&pairs))?;
    }
    let rate = |to: Arc<dyn RemoteBucket>| -> Result<f64> {
        let begun = Instant::now();
        let copied = copy(&from, &to, Settings::default(), Position::default(), |_| Ok(()));
        // As the command has it: a thread a core.
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let done = runtime.block_on(copied)?;
        if done.keys != arguments.keys {
            return Err(format!("{} of {} keys were copied", done.keys, arguments.keys).into());
        }
        Ok(arguments.keys as f64 / begun.elapsed().as_secs_f64())
    };
    let (mut engine, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    let (keys, size) = (arguments.keys.to_string(), COPIED_BYTES.to_string());
    for round in 0..arguments.rounds {
        // Synced, as the command does it.
        engine.push(rate(open(&format!("to {round}"), kvasi::Durability::Sync)?)?);
        world.server.empty()?;
        let policy = Policy { timeout: Duration::from_secs(30), ..Policy::default() };
        let service = world.runtime.block_on(connect(&world.server.url().parse()?, policy))?;
        ours.push(rate(service.bucket("copied")?)?);
        world.server.empty()?;
        theirs.push(world.server.benchmark(&["-P", "16", "-t", "set", "-d", &size, "-r", &keys, "-n", &keys])?);
    }
    let middle = |rates: &mut Vec<f64>| median(rates).unwrap_or(f64::NAN);
    let (engine, ours, theirs) = (middle(&mut engine), middle(&mut ours), middle(&mut theirs));
    println!("copy      engine to engine {engine:9.0} keys/s     (at least 100,000)");
    println!(
        "copy      engine to Redis {ours:9.0} keys/s     redis-benchmark -P 16 SET {theirs:9.0} /s     ratio {:.2}   (at least 0.5)",
        ours / theirs
    );
    Ok(())
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let world = World::new()?;
    let asked = |row: &str| arguments.only.iter().any(|only| only == row);
    if asked("latency") {
        latency(&world, &arguments)?;
    }
    if asked("guests") {
        guests(&world, &arguments)?;
    }
    // Last: it empties the server.
    if asked("copy") {
        copying(&world, &arguments)?;
    }
    Ok(())
}
