//! `kvasi serve`: a proxy component (wasi:http), with wasi:keyvalue, until it is told to end.
//!
//! Flow: flags over the configuration -> component compiled, linked and checked -> stores opened -> a connection -> a request, if
//! there is room -> an instance of its own, out of a pool -> its answer -> a line in the access log.
//! Limits: requests at once (503), time (504, or a body cut short), memory of an instance; all that `kvasi.toml` says of calls.
//! The end: no new connection, requests at work may go on for a while, then the stores are synced.
//! Invariants: 1. A request has its place until its instance is gone, whatever the client does meanwhile. 2. An instance is used
//! for one request. 3. The access log holds no header and no query: they may be secrets.
//!
//! A guest that computes is interrupted at ticks of the epoch: it gives its thread to others, or is stopped if its time is up. The
//! ticks come from a thread outside the runtime, whose threads may all be in guests. Requests that a guest makes are refused.

use crate::args::ServeArgs;
use crate::compiled::Compiled;
use crate::component::{self, World};
use crate::failure::Failure;
use crate::run;
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use kvasi_wasmtime::{WasiKeyValueCtx, WasiKeyValueCtxView, WasiKeyValueView};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use wasmtime::component::{Linker, ResourceTable};
use wasmtime::{
    Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store, StoreLimits, StoreLimitsBuilder, UpdateDeadline,
};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::{RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

/// How long a guest computes before it gives its thread to another.
const TICK: Duration = Duration::from_millis(10);
/// Tasks that a thread polls before it looks for connections and timers.
const POLLS: u32 = 4;
/// How long a client may take for the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// Core instances, memories and tables that a component may have: what tools make of one program stays far below.
const PARTS_MAX: u32 = 16;

struct Host {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: NoRequests,
    keyvalue: WasiKeyValueCtx,
    table: ResourceTable,
    limits: StoreLimits,
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Host {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.hooks }
    }
}

impl WasiKeyValueView for Host {
    fn keyvalue(&mut self) -> WasiKeyValueCtxView<'_> {
        WasiKeyValueCtxView { ctx: &mut self.keyvalue, table: &mut self.table }
    }
}

/// A component has no network but the request that it answers.
struct NoRequests;

type Sent = Result<
    (Response<WasiBody>, Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>),
    wasmtime_wasi_http::Error,
>;

impl WasiHttpHooks for NoRequests {
    fn send_request(
        &mut self,
        _: Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        Box::new(std::future::ready(Err(ErrorCode::HttpRequestDenied.into())))
    }
}

/// Why a guest that computes is stopped.
#[derive(Debug)]
struct TimeUp;

impl std::fmt::Display for TimeUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the time of the request was up")
    }
}

impl std::error::Error for TimeUp {}

/// What all requests share.
struct Server {
    proxy: ProxyPre<Host>,
    keyvalue: WasiKeyValueCtx,
    env: Vec<(String, String)>,
    places: Arc<Semaphore>,
    request_time: Duration,
    memory_bytes: usize,
}

pub(crate) fn serve(args: &ServeArgs) -> Result<ExitCode, Failure> {
    let compiled = args.component.compiled();
    let engine = engine(args, &compiled)?;
    component::clock(&engine, TICK);
    let proxy = proxy(&engine, args, &compiled)?;
    let metrics =
        args.metrics.map(|at| crate::metrics::Endpoint::install().map(|endpoint| (at, endpoint))).transpose()?;
    let mut config = run::config(&args.component)?;
    config.metrics |= metrics.is_some();
    let opened = config.open()?;
    let server = Arc::new(Server {
        proxy,
        keyvalue: opened.context(&component::name(&args.component.component)),
        env: args.component.env.clone(),
        places: Arc::new(Semaphore::new(args.requests_at_once.get() as usize)),
        request_time: Duration::from_millis(args.request_ms.get().into()),
        memory_bytes: memory_bytes(args),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // A write under a quota holds its thread until it is on the disk.
        .worker_threads(std::thread::available_parallelism().map_or(8, |cores| cores.get() * 4))
        // A guest that computes is polled again at once, for a tick each time: connections and timers get their turn soon all the same.
        .event_interval(POLLS)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("cannot start threads: {error}")))?;
    let served = runtime.block_on(async {
        if let Some((at, endpoint)) = metrics {
            let listener = listen(at).await?;
            tokio::spawn(endpoint.serve(listener));
        }
        let listener = listen(args.listen).await?;
        accept(&listener, &server, Duration::from_millis(args.grace_ms.into()), args).await
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    served?;
    opened.sync().map_err(|error| Failure::new(format!("the store did not sync at the end: {error}")))?;
    tracing::info!("ended, all is on the disk");
    Ok(ExitCode::SUCCESS)
}

fn memory_bytes(args: &ServeArgs) -> usize {
    (args.request_memory.get() as usize).saturating_mul(1 << 20)
}

fn engine(args: &ServeArgs, compiled: &Compiled) -> Result<Engine, Failure> {
    let places = args.requests_at_once.get();
    let parts = places.saturating_mul(PARTS_MAX);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(places)
        .total_core_instances(parts)
        .total_memories(places.saturating_mul(2))
        .total_tables(parts)
        .total_stacks(places)
        .max_memories_per_component(PARTS_MAX)
        .max_core_instances_per_component(PARTS_MAX)
        .max_memory_size(memory_bytes(args))
        // What a request touched stays in memory for the next one, up to so much: page faults cost more than clearing it.
        .linear_memory_keep_resident(64 << 10)
        .table_keep_resident(16 << 10);
    let mut config = wasmtime::Config::new();
    compiled.configure(&mut config);
    // A proxy of WASI 0.2 cannot use it, and it costs each host call about a third of its time.
    config.concurrency_support(false).epoch_interruption(true).wasm_component_model_implements(true);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    let fail = |error: wasmtime::Error| Failure::new(format!("wasmtime does not start: {error:#}"));
    match Engine::new(&config) {
        Ok(engine) => Ok(engine),
        Err(error) => {
            // The pool reserves addresses, of which a container may have few.
            tracing::warn!("no pool of instances, each is made anew: {error:#}");
            config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
            Engine::new(&config).map_err(fail)
        }
    }
}

fn proxy(engine: &Engine, args: &ServeArgs, compiled: &Compiled) -> Result<ProxyPre<Host>, Failure> {
    let path = &args.component.component;
    let component = component::load_for(engine, path, compiled)?;
    component::check_imports(path, &component, World::Proxy)?;
    let fail = |error: wasmtime::Error| Failure::new(format!("{} does not link: {error:#}", path.display()));
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker).map_err(fail)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker).map_err(fail)?;
    kvasi_wasmtime::link_async(&mut linker, &component).map_err(fail)?;
    let linked = linker.instantiate_pre(&component).map_err(fail)?;
    ProxyPre::new(linked).map_err(|error| {
        let path = path.display();
        Failure::new(format!("{path} is not a proxy: it does not export wasi:http/incoming-handler@0.2.x ({error})"))
    })
}

async fn listen(at: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(at).await.map_err(|error| Failure::new(format!("cannot listen at {at}: {error}")))
}

/// Serves until a signal, then for as long as requests are at work, but no longer than `grace`.
async fn accept(
    listener: &TcpListener,
    server: &Arc<Server>,
    grace: Duration,
    args: &ServeArgs,
) -> Result<(), Failure> {
    let fail = |error: std::io::Error| Failure::new(format!("cannot listen for signals: {error}"));
    let mut ended = std::pin::pin!(signal().map_err(fail)?);
    let at =
        listener.local_addr().map_err(|error| Failure::new(format!("cannot listen at {}: {error}", args.listen)))?;
    tracing::info!("listening on http://{at}");
    let open = GracefulShutdown::new();
    loop {
        let (stream, peer) = tokio::select! {
            connection = listener.accept() => match connection {
                Ok(connection) => connection,
                Err(error) => {
                    // Of the process, as a rule: no files are left. Others may end meanwhile.
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = &mut ended => break,
        };
        let server = server.clone();
        let service = service_fn(move |request| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.logged(request, peer).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .serve_connection(TokioIo::new(stream), service);
        let connection = open.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%peer, error = ?error.to_string(), "the connection broke");
            }
        });
    }
    tracing::info!(
        "ending: {} requests are at work",
        args.requests_at_once.get() as usize - server.places.available_permits()
    );
    let all = server.places.acquire_many(args.requests_at_once.get());
    let done = async { tokio::join!(open.shutdown(), all).1.is_ok() };
    if tokio::time::timeout(grace, done).await.is_err() {
        tracing::warn!("requests that were still at work were cut off");
    }
    Ok(())
}

/// The first SIGINT or SIGTERM.
#[cfg(unix)]
fn signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
#[cfg(not(unix))]
fn signal() -> std::io::Result<impl Future<Output = ()>> {
    Ok(async {
        let _ = tokio::signal::ctrl_c().await;
    })
}

impl Server {
    /// Answers a request, and says so in the access log.
    async fn logged(self: Arc<Self>, request: Request<Incoming>, peer: SocketAddr) -> Response<WasiBody> {
        let begun = Instant::now();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response = self.answer(request).await;
        // Escaped: both are the client's.
        tracing::info!(
            target: "kvasi::access",
            peer = %peer,
            method = ?method.as_str(),
            path = ?path,
            status = response.status().as_u16(),
            us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX),
            "request"
        );
        crate::metrics::request(response.status().as_u16(), begun.elapsed());
        response
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<WasiBody> {
        // What the component's own parser of requests would stumble over.
        let host = request.headers().get(hyper::header::HOST).map(|host| host.to_str().is_ok());
        if host == Some(false) || (host.is_none() && request.uri().authority().is_none()) {
            return plain(StatusCode::BAD_REQUEST);
        }
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            return plain(StatusCode::SERVICE_UNAVAILABLE);
        };
        let (sender, receiver) = oneshot::channel();
        let handled = tokio::spawn(self.handle(request, sender, place));
        match receiver.await {
            Ok(Ok(response)) => response,
            Ok(Err(code)) => {
                tracing::debug!(?code, "the component answered with an error");
                plain(StatusCode::BAD_GATEWAY)
            }
            // The instance is gone without an answer: it says why.
            Err(_) => plain(handled.await.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)),
        }
    }

    /// One instance, for one request. Goes on after the answer was begun, until the component returns or its time is up.
    async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        sender: oneshot::Sender<Result<Response<WasiBody>, ErrorCode>>,
        place: OwnedSemaphorePermit,
    ) -> StatusCode {
        let (begun, limit) = (Instant::now(), self.request_time);
        let call = async {
            let mut store = Store::new(self.proxy.engine(), self.host());
            store.limiter(|host| &mut host.limits);
            store.set_epoch_deadline(1);
            // A guest that computes is stopped here, whatever the runtime's timers are waiting for.
            store.epoch_deadline_callback(move |_| match begun.elapsed() < limit {
                true => Ok(UpdateDeadline::Yield(1)),
                false => Err(wasmtime::Error::new(TimeUp)),
            });
            kvasi_wasmtime::limit_store(&mut store);
            let request = store.data_mut().http().new_incoming_request(Scheme::Http, request)?;
            let out = store.data_mut().http().new_response_outparam(sender)?;
            let proxy = self.proxy.instantiate_async(&mut store).await?;
            proxy.wasi_http_incoming_handler().call_handle(&mut store, request, out).await
        };
        // What is dropped at the end of the time is the instance itself, wherever it is.
        let ended = tokio::time::timeout(limit, call).await;
        drop(place);
        let ended = match ended {
            Ok(Err(error)) if error.is::<TimeUp>() => None,
            Ok(ended) => Some(ended),
            Err(_elapsed) => None,
        };
        match ended {
            Some(Ok(())) => {
                tracing::debug!("the component returned without an answer, or after it");
                StatusCode::BAD_GATEWAY
            }
            Some(Err(error)) => {
                tracing::error!("the component trapped: {}", component::shown(&error));
                StatusCode::INTERNAL_SERVER_ERROR
            }
            None => {
                tracing::warn!(ms = limit.as_millis() as u64, "the component was stopped, its time was up");
                StatusCode::GATEWAY_TIMEOUT
            }
        }
    }

    fn host(&self) -> Host {
        let mut wasi = WasiCtx::builder();
        wasi.inherit_stdout().inherit_stderr().envs(&self.env);
        let limits = StoreLimitsBuilder::new().memory_size(self.memory_bytes).build();
        Host {
            wasi: wasi.build(),
            http: WasiHttpCtx::new(),
            hooks: NoRequests,
            keyvalue: self.keyvalue.clone(),
            table: ResourceTable::new(),
            limits,
        }
    }
}

/// An answer of the host's own.
fn plain(status: StatusCode) -> Response<WasiBody> {
    let text = Bytes::from(format!("{status}\n"));
    let body = http_body_util::Full::new(text).map_err(|never: Infallible| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(hyper::header::RETRY_AFTER, hyper::header::HeaderValue::from_static("1"));
    }
    response
}
