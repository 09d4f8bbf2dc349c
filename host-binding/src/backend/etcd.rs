//! etcd as a back end. URL: `etcd://[user:password@]host[:port][?node=host:port&…&prefix=P]`, `etcds://` with TLS and also `ca`, `cert` and
//! `key`, see `tls`.
//!
//! A key stands at `P` + bucket, escaped + `/` + key; an expiry is a lease of its own.
//!
//! Flow: [`RemoteBucket`] -> [`Policy::run`] -> the key-value service of etcd's version 3 protocol.
//! Invariants: 1. The guard of a compare-and-swap is the key's modification revision, which the whole cluster never gives twice. 2. Reads
//! are linearizable: a quorum is asked. 3. A batch is atomic up to 128 keys and 1 MiB, what one transaction holds; larger
//! ones are several, in order, and where a later one fails the caller is told that some may be written. 4. An increment is a loop of read and conditional write; whoever loses too many races is told that the key is busy.

use super::changes::{Changes, Feed, Telling, Told};
use super::remote::{
    Answer, Failure, Policy, ROUNDS_MAX, RemoteBackend, RemoteBucket, Repeat, chain, decoded, escaped, last_of_equal,
    nameless, partly, queries, query, refused,
};
use super::tls::Tls;
use super::{Capabilities, Guard, Key, Observed, Page, PageBounds, Pair, SetOptions, Swap};
use crate::{Code, Error, Utf8Bytes};
use bytes::Bytes;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Event, EventType, GetOptions, GetResponse,
    Identity, KeyValue, KvClient, PutOptions, SortOrder, SortTarget, TlsOptions, Txn, TxnOp, TxnOpResponse,
    TxnResponse, WatchOptions,
};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;
use url::Url;

/// What one transaction holds where the server is set up as it comes.
const TXN_KEYS_MAX: usize = 128;
const TXN_BYTES_MAX: usize = 1 << 20;
/// Largest answer taken: 128 values of the greatest length.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Longest pause before a broken watch is begun anew.
const PAUSE_MAX: Duration = Duration::from_secs(2);

const CAPABILITIES: Capabilities = Capabilities {
    atomic_batches: false,
    snapshot_reads: false,
    ordered: true,
    watchable: true,
    durable: true,
    expiring: true,
    key_bytes_max: 32 << 10,
    value_bytes_max: TXN_BYTES_MAX,
    batch_keys_max: TXN_KEYS_MAX,
    batch_bytes_max: TXN_BYTES_MAX,
};

/// An etcd cluster.
#[derive(Clone)]
pub struct Etcd {
    link: Arc<Link>,
    prefix: String,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Etcd {
    /// The cluster at `url`; it is connected to by the first call.
    ///
    /// # Errors
    /// [`Code::Invalid`] for files of certificates that cannot be used. An address that is none is found by the first call.
    pub fn new(url: &Url, policy: Policy) -> Result<Self, Error> {
        let scheme = if url.scheme() == "etcds" { "https" } else { "http" };
        let first = format!("{}:{}", url.host_str().unwrap_or("localhost"), url.port().unwrap_or(2379));
        let nodes = std::iter::once(first).chain(queries(url, "node")).map(|node| format!("{scheme}://{node}"));
        // A node that is gone is noticed while calls wait for it, and another one is asked.
        let mut options = ConnectOptions::new()
            .with_timeout(policy.timeout / 2)
            .with_connect_timeout(policy.timeout / 2)
            .with_keep_alive(Duration::from_secs(2), policy.timeout / 4);
        if !url.username().is_empty() {
            options = options.with_user(decoded(url.username()), decoded(url.password().unwrap_or_default()));
        }
        if scheme == "https" {
            options = options.with_tls(trusting(Tls::of(url)?));
        }
        let link = Link { nodes: nodes.collect(), options, policy, client: OnceCell::new() };
        Ok(Etcd { link: Arc::new(link), prefix: query(url, "prefix").unwrap_or_default() })
    }
}

fn trusting(tls: Tls) -> TlsOptions {
    let trusting = match tls.ca {
        Some(ca) => TlsOptions::new().ca_certificate(Certificate::from_pem(ca)),
        None => TlsOptions::new().with_native_roots(),
    };
    match tls.identity {
        Some((certificate, key)) => trusting.identity(Identity::from_pem(certificate, key)),
        None => trusting,
    }
}

impl RemoteBackend for Etcd {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn bucket(&self, name: &str) -> Result<Arc<dyn RemoteBucket>, Error> {
        Ok(Arc::new(EtcdBucket::new(&self.link, &self.prefix, name)))
    }
}

struct Link {
    nodes: Vec<String>,
    options: ConnectOptions,
    policy: Policy,
    client: OnceCell<Client>,
}

impl Link {
    async fn client(&self) -> Result<&Client, Failure> {
        // Signing in is the only request that connecting makes: none of it writes.
        let connect = || Client::connect(&self.nodes, Some(self.options.clone()));
        self.client.get_or_try_init(connect).await.map_err(|error| match failure(error) {
            Failure::Unknown(error) => Failure::NotApplied(error),
            other => other,
        })
    }

    async fn run<R, F>(&self, repeat: Repeat, call: impl Fn(KvClient) -> F) -> Result<R, Error>
    where
        F: Future<Output = Result<R, etcd_client::Error>>,
    {
        let call = &call;
        let attempt = || async move {
            let service = self.client().await?.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX);
            call(service).await.map_err(failure)
        };
        self.policy.run(repeat, attempt).await
    }
}

/// What a failed request says about itself.
fn failure(error: etcd_client::Error) -> Failure {
    let as_code = |code| Error::with_detail(code, told(&error));
    let etcd_client::Error::GRpcStatus(status) = &error else {
        return match &error {
            etcd_client::Error::InvalidArgs(_) | etcd_client::Error::InvalidUri(_) => {
                Failure::Final(as_code(Code::Invalid))
            }
            _ => Failure::Unknown(as_code(Code::Io)),
        };
    };
    let has = |words: &str| status.message().contains(words);
    let code = match i32::from(status.code()) {
        // A connection that was refused carried no request.
        GRPC_UNAVAILABLE if refused(status) || has("no leader") => {
            return Failure::NotApplied(as_code(Code::Busy));
        }
        GRPC_RESOURCE_EXHAUSTED if has("too many requests") => {
            return Failure::NotApplied(as_code(Code::Busy));
        }
        GRPC_INVALID_ARGUMENT | GRPC_RESOURCE_EXHAUSTED if has("too large") || has("larger than max") => Code::TooLarge,
        GRPC_RESOURCE_EXHAUSTED if has("space exceeded") => Code::NoSpace,
        GRPC_INVALID_ARGUMENT | GRPC_FAILED_PRECONDITION => Code::Invalid,
        GRPC_PERMISSION_DENIED | GRPC_UNAUTHENTICATED => Code::Io,
        _ => return Failure::Unknown(as_code(Code::Io)),
    };
    Failure::Final(as_code(code))
}

/// An error in words, none of which is an address: as the client library shows one, it names the node.
fn told(error: &etcd_client::Error) -> String {
    match error {
        etcd_client::Error::GRpcStatus(status) => {
            let said = format!("{}: {}", status.code(), status.message());
            let cause =
                std::error::Error::source(status).map_or_else(String::new, |cause| format!(": {}", chain(cause)));
            nameless(said + &cause)
        }
        etcd_client::Error::TransportError(error) => chain(error),
        other => other.to_string(),
    }
}

const GRPC_INVALID_ARGUMENT: i32 = 3;
const GRPC_PERMISSION_DENIED: i32 = 7;
const GRPC_RESOURCE_EXHAUSTED: i32 = 8;
const GRPC_FAILED_PRECONDITION: i32 = 9;
const GRPC_UNAVAILABLE: i32 = 14;
const GRPC_UNAUTHENTICATED: i32 = 16;

#[derive(Clone)]
struct EtcdBucket {
    link: Arc<Link>,
    identity: String,
    prefix: String,
    base: String,
}

impl EtcdBucket {
    fn new(link: &Arc<Link>, prefix: &str, name: &str) -> Self {
        let base = format!("{prefix}{}/", escaped(name));
        EtcdBucket { link: link.clone(), identity: name.to_owned(), prefix: prefix.to_owned(), base }
    }

    fn at(&self, key: &str) -> Result<Vec<u8>, Error> {
        if key.len() > CAPABILITIES.key_bytes_max {
            return Err(Error::new(Code::TooLarge));
        }
        Ok(format!("{}{key}", self.base).into_bytes())
    }

    async fn find(&self, at: &[u8]) -> Result<Option<KeyValue>, Error> {
        let found = self.link.run(Repeat::Reads, |mut service| async move { service.get(at, None).await }).await?;
        Ok(first(found))
    }

    async fn transact(&self, repeat: Repeat, txn: Txn) -> Result<TxnResponse, Error> {
        let txn = &txn;
        self.link.run(repeat, |mut service| async move { service.txn(txn.clone()).await }).await
    }

    async fn put(&self, key: &str, value: &[u8], options: SetOptions) -> Result<bool, Error> {
        let at = self.at(key)?;
        check_value(value)?;
        let lease = match options.ttl {
            None => None,
            Some(ttl) => Some(PutOptions::new().with_lease(self.lease(ttl).await?)),
        };
        let put = TxnOp::put(at.clone(), value, lease);
        if options.if_absent {
            let txn = Txn::new().when([Compare::create_revision(at, CompareOp::Equal, 0)]).and_then([put]);
            return Ok(self.transact(Repeat::Never, txn).await?.succeeded());
        }
        self.transact(Repeat::Writes, Txn::new().and_then([put])).await.map(|_| true)
    }

    /// A lease for one key. One that is never used ends by itself.
    async fn lease(&self, ttl: Duration) -> Result<i64, Error> {
        let seconds = i64::try_from(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).unwrap_or(i64::MAX).max(1);
        let granted = self.link.policy.run(Repeat::Reads, || async move {
            let mut leases = self.link.client().await?.lease_client();
            leases.grant(seconds, None).await.map_err(failure)
        });
        Ok(granted.await?.id())
    }

    async fn get_chunk(&self, keys: &[Key<'_>]) -> Result<Vec<Option<Pair>>, Error> {
        let mut gets = Vec::with_capacity(keys.len());
        for key in keys {
            gets.push(TxnOp::get(self.at(key.as_ref())?, None));
        }
        let answers = self.transact(Repeat::Reads, Txn::new().and_then(gets)).await?.op_responses();
        let pairs = keys.iter().zip(answers).map(|(key, answer)| {
            let TxnOpResponse::Get(found) = answer else { return None };
            let value = first(found)?.into_key_value().1;
            Some((Utf8Bytes::new(Bytes::copy_from_slice(key.as_ref()))?, Bytes::from(value)))
        });
        Ok(pairs.collect())
    }

    async fn page(&self, prefix: &str, after: Option<&[u8]>, bounds: PageBounds) -> Result<Page, Error> {
        let begin = [self.base.as_bytes(), prefix.as_bytes()].concat();
        // No key of the bucket has the byte 255 after its base: UTF-8 does not use it.
        let end = [&begin[..], b"\xff"].concat();
        let from = match after {
            None => begin,
            // The least key above `after`.
            Some(after) => [self.base.as_bytes(), after, b"\0"].concat(),
        };
        if from >= end {
            return Ok(Page::default());
        }
        let limit = bounds.keys_max.min(bounds.entries_max).max(1);
        let options = GetOptions::new().with_range(end).with_keys_only().with_limit(limit as i64);
        let options = options.with_sort(SortTarget::Key, SortOrder::Ascend);
        let (from, options) = (&from, &options);
        let get = |mut service: KvClient| async move { service.get(from.clone(), Some(options.clone())).await };
        let mut found = self.link.run(Repeat::Reads, get).await?;
        let (mut more, mut room) = (found.more(), bounds.bytes_max);
        let mut page = Page::default();
        let mut last = None;
        for entry in found.take_kvs() {
            let key = Bytes::from(entry.into_key_value().0);
            let key = key.slice(self.base.len().min(key.len())..);
            if last.is_some() && key.len() > room {
                more = true;
                break;
            }
            room = room.saturating_sub(key.len());
            last = Some(key.clone());
            page.keys.extend(Utf8Bytes::new(key));
        }
        page.next = if more { last } else { None };
        Ok(page)
    }

    async fn add(&self, key: &str, delta: i64) -> Result<i64, Error> {
        let at = self.at(key)?;
        for _ in 0..ROUNDS_MAX {
            let now = self.find(&at).await?;
            let before = now.as_ref().map_or(Ok(0), |now| super::remote::number(now.value()))?;
            let sum = before.checked_add(delta).ok_or_else(|| Error::new(Code::Overflow))?;
            let guard = now.as_ref().map_or(0, KeyValue::mod_revision);
            // The key stays on the lease it has.
            let keep = now.as_ref().filter(|now| now.lease() != 0).map(|now| PutOptions::new().with_lease(now.lease()));
            let txn = Txn::new()
                .when([Compare::mod_revision(at.clone(), CompareOp::Equal, guard)])
                .and_then([TxnOp::put(at.clone(), sum.to_string(), keep)]);
            if self.transact(Repeat::Never, txn).await?.succeeded() {
                return Ok(sum);
            }
        }
        Err(Error::new(Code::Busy))
    }
}

/// The key of a note, in the bucket of that name.
const NOTE: &str = "note";

/// Changes are told in the order of their revisions, over all keys of the prefix, by one watch; a revision is a position, good as
/// long as the cluster has not compacted it away.
impl Changes for EtcdBucket {
    fn store(&self) -> usize {
        Arc::as_ptr(&self.link).addr()
    }

    fn name(&self) -> &str {
        &self.identity
    }

    fn sibling(&self, name: &str) -> Arc<dyn RemoteBucket> {
        Arc::new(EtcdBucket::new(&self.link, &self.prefix, name))
    }

    fn resumes(&self) -> bool {
        true
    }

    fn note<'a>(&'a self, name: &'a str, note: &'a [u8]) -> Answer<'a, ()> {
        let notes = EtcdBucket::new(&self.link, &self.prefix, name);
        Box::pin(async move { notes.put(NOTE, note, SetOptions::default()).await.map(drop) })
    }

    fn follow<'a>(&'a self, buckets: &'a [&'a str], notes: &'a str, from: Option<u64>) -> Answer<'a, (u64, Feed)> {
        Box::pin(async move {
            let from = match from {
                Some(from) => i64::try_from(from).map_err(|_| Error::new(Code::Corrupt))?,
                None => {
                    let now = |mut service: KvClient| async move {
                        service.get(self.base.as_str(), Some(GetOptions::new().with_count_only())).await
                    };
                    let now = self.link.run(Repeat::Reads, now).await?;
                    now.header().ok_or_else(|| Error::new(Code::Io))?.revision()
                }
            };
            let watching = Watching {
                link: self.link.clone(),
                prefix: self.prefix.clone(),
                buckets: buckets.iter().map(|name| escaped(name)).collect(),
                note: format!("{}/{NOTE}", escaped(notes)),
                upto: from,
            };
            Ok((from.unsigned_abs(), Feed::of(|telling| watching.run(telling))))
        })
    }
}

/// A watch that is begun anew where it was, as long as somebody listens.
struct Watching {
    link: Arc<Link>,
    prefix: String,
    /// Their escaped names.
    buckets: Vec<String>,
    /// The key of notes, without the prefix.
    note: String,
    /// The last revision that was told as a whole.
    upto: i64,
}

/// Why a watch is begun anew.
enum Broken {
    Failure(Failure),
    /// Revisions before this one are gone.
    Compacted(i64),
    NobodyListens,
}

impl Watching {
    async fn run(mut self, telling: Telling) {
        let mut pause = self.link.policy.pause;
        loop {
            let begun = self.upto;
            match self.watch(&telling).await {
                Broken::NobodyListens => return,
                Broken::Compacted(revision) => {
                    self.upto = revision - 1;
                    if telling.send(Told::Lagged).await.is_err() {
                        return;
                    }
                }
                Broken::Failure(failure) => {
                    tracing::warn!(?failure, "the watch of etcd broke, and is begun anew");
                    pause = if self.upto > begun { self.link.policy.pause } else { (pause * 2).min(PAUSE_MAX) };
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn watch(&mut self, telling: &Telling) -> Broken {
        let client = match self.link.client().await {
            Ok(client) => client,
            Err(failure) => return Broken::Failure(failure),
        };
        let options = WatchOptions::new().with_start_revision(self.upto + 1);
        let options = if self.prefix.is_empty() { options.with_all_keys() } else { options.with_prefix() };
        let mut service = client.watch_client().max_decoding_message_size(ANSWER_BYTES_MAX);
        let mut stream = match service.watch(self.prefix.as_str(), Some(options)).await {
            Ok(stream) => stream,
            Err(error) => return Broken::Failure(failure(error)),
        };
        loop {
            let answer = tokio::select! {
                answer = stream.message() => answer,
                () = telling.closed() => return Broken::NobodyListens,
            };
            let answer = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => return Broken::Failure(Error::with_detail(Code::Io, "the stream ended").into()),
                Err(error) => return Broken::Failure(failure(error)),
            };
            if answer.canceled() {
                return match answer.compact_revision() {
                    0 => {
                        let reason = answer.cancel_reason().to_owned();
                        Broken::Failure(Error::with_detail(Code::Io, reason).into())
                    }
                    revision => Broken::Compacted(revision),
                };
            }
            for event in answer.events() {
                if let Some(told) = self.told(event)
                    && telling.send(told).await.is_err()
                {
                    return Broken::NobodyListens;
                }
            }
            // An answer holds whole revisions.
            if let Some(last) = answer.events().iter().filter_map(Event::kv).map(KeyValue::mod_revision).max() {
                self.upto = last;
                if telling.send(Told::UpTo(last.unsigned_abs())).await.is_err() {
                    return Broken::NobodyListens;
                }
            }
        }
    }

    /// An event of a bucket that is followed, or a note.
    fn told(&self, event: &Event) -> Option<Told> {
        let entry = event.kv()?;
        let own = entry.key().strip_prefix(self.prefix.as_bytes())?;
        let set = event.event_type() == EventType::Put;
        if own == self.note.as_bytes() {
            return set.then(|| Told::Note(entry.value().to_vec()));
        }
        let (bucket, key) = std::str::from_utf8(own).ok()?.split_once('/')?;
        let bucket = self.buckets.iter().position(|name| name == bucket)?;
        let value = set.then(|| Bytes::copy_from_slice(entry.value()));
        let before = (entry.mod_revision() - 1).unsigned_abs();
        Some(Told::Change { bucket, key: key.to_owned(), value, before })
    }
}

fn check_value(value: &[u8]) -> Result<(), Error> {
    if value.len() > CAPABILITIES.value_bytes_max { Err(Error::new(Code::TooLarge)) } else { Ok(()) }
}

fn first(mut found: GetResponse) -> Option<KeyValue> {
    found.take_kvs().into_iter().next()
}

fn observed(now: Option<KeyValue>) -> Observed {
    match now {
        None => Observed { value: None, guard: Guard::Absent },
        Some(now) => {
            let guard = Guard::Token(Bytes::copy_from_slice(&now.mod_revision().to_le_bytes()));
            Observed { value: Some(now.into_key_value().1.into()), guard }
        }
    }
}

impl RemoteBucket for EtcdBucket {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn changes(&self) -> Option<Arc<dyn Changes>> {
        Some(Arc::new(self.clone()))
    }

    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Bytes>> {
        Box::pin(async move { Ok(self.find(&self.at(key)?).await?.map(|found| found.into_key_value().1.into())) })
    }

    fn exists<'a>(&'a self, key: &'a str) -> Answer<'a, bool> {
        Box::pin(async move {
            let at = &self.at(key)?;
            let count = |mut service: KvClient| async move {
                service.get(at.clone(), Some(GetOptions::new().with_count_only())).await
            };
            Ok(self.link.run(Repeat::Reads, count).await?.count() > 0)
        })
    }

    fn set<'a>(&'a self, key: &'a str, value: &'a [u8]) -> Answer<'a, ()> {
        Box::pin(async move { self.put(key, value, SetOptions::default()).await.map(drop) })
    }

    fn set_with<'a>(&'a self, key: &'a str, value: &'a [u8], options: SetOptions) -> Answer<'a, bool> {
        Box::pin(self.put(key, value, options))
    }

    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let at = &self.at(key)?;
            let delete = |mut service: KvClient| async move { service.delete(at.clone(), None).await };
            self.link.run(Repeat::Writes, delete).await.map(drop)
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a [u8]>, bounds: PageBounds) -> Answer<'a, Page> {
        Box::pin(self.page(prefix, after, bounds))
    }

    fn increment<'a>(&'a self, key: &'a str, delta: i64) -> Answer<'a, i64> {
        Box::pin(self.add(key, delta))
    }

    fn observe<'a>(&'a self, key: &'a str) -> Answer<'a, Observed> {
        Box::pin(async move { Ok(observed(self.find(&self.at(key)?).await?)) })
    }

    fn swap<'a>(&'a self, key: &'a str, guard: &'a Guard, value: &'a [u8]) -> Answer<'a, Swap> {
        Box::pin(async move {
            let at = self.at(key)?;
            check_value(value)?;
            let revision = match guard {
                Guard::Absent => 0,
                Guard::Token(token) => {
                    let bytes = token.as_ref().try_into().map_err(|_| Error::new(Code::Invalid))?;
                    i64::from_le_bytes(bytes)
                }
                Guard::Version(_) => return Err(Error::new(Code::Invalid)),
            };
            let txn = Txn::new()
                .when([Compare::mod_revision(at.clone(), CompareOp::Equal, revision)])
                .and_then([TxnOp::put(at.clone(), value, None)])
                .or_else([TxnOp::get(at, None)]);
            let answer = self.transact(Repeat::Never, txn).await?;
            if answer.succeeded() {
                return Ok(Swap::Done);
            }
            let now = match answer.op_responses().pop() {
                Some(TxnOpResponse::Get(found)) => first(found),
                _ => None,
            };
            Ok(Swap::Conflict(observed(now)))
        })
    }

    fn get_many<'a>(&'a self, keys: &'a [Key<'a>]) -> Answer<'a, Vec<Option<Pair>>> {
        Box::pin(async move {
            let mut found = Vec::with_capacity(keys.len());
            for chunk in keys.chunks(TXN_KEYS_MAX) {
                found.extend(self.get_chunk(chunk).await?);
            }
            Ok(found)
        })
    }

    fn set_many<'a>(&'a self, pairs: &'a [(Key<'a>, &'a [u8])]) -> Answer<'a, ()> {
        Box::pin(async move {
            // Nothing is sent before all of it is known to fit.
            let mut chunks: Vec<Vec<TxnOp>> = Vec::new();
            let mut room = 0;
            for (key, value) in last_of_equal(pairs) {
                let at = self.at(key)?;
                check_value(value)?;
                let size = at.len() + value.len();
                let put = TxnOp::put(at, value, None);
                match chunks.last_mut() {
                    Some(chunk) if chunk.len() < TXN_KEYS_MAX && size <= room => chunk.push(put),
                    _ => {
                        room = TXN_BYTES_MAX.max(size);
                        chunks.push(vec![put]);
                    }
                }
                room -= size;
            }
            for (done, chunk) in chunks.into_iter().enumerate() {
                let written = self.transact(Repeat::Writes, Txn::new().and_then(chunk)).await;
                written.map_err(|error| partly(error, done > 0))?;
            }
            Ok(())
        })
    }

    fn delete_many<'a>(&'a self, keys: &'a [Key<'a>]) -> Answer<'a, ()> {
        Box::pin(async move {
            let deletes: Result<Vec<TxnOp>, Error> =
                keys.iter().map(|key| Ok(TxnOp::delete(self.at(key.as_ref())?, None::<DeleteOptions>))).collect();
            for (done, chunk) in deletes?.chunks(TXN_KEYS_MAX).enumerate() {
                let deleted = self.transact(Repeat::Writes, Txn::new().and_then(chunk)).await;
                deleted.map_err(|error| partly(error, done > 0))?;
            }
            Ok(())
        })
    }
}
