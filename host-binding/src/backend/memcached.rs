//! Memcached as a back end, by its meta commands (1.6 or later). URL: `memcached://host[:port][?prefix=P]`.
//!
//! A key stands at `P` + bucket, escaped + `:` + key, in which control characters, spaces and `%` are escaped.
//!
//! Flow: [`RemoteBucket`] -> [`Policy::run`] -> a connection of the pool: requests written and answers read side by side.
//! Invariants: 1. A connection is back in the pool only when every answer was read: a call that failed or was dropped takes
//! its connection with it. 2. The guard of a compare-and-swap is the server's own unique number of the write. The
//! server counts from the start again when it starts again, but then its data is gone too. 3. Nothing survives the server, and
//! it may forget any key when its memory is full: a cache, with every call of the interface.
//!
//! Its own `incr` wraps, knows no sign and stops at zero: an increment is a loop of read and conditional write. A listing reads the
//! server's dump of all keys for each page, for there is no other: by its table of hashes, which misses none. It gives each key once and in
//! byte order, and costs what all keys of the server cost.
//!
//! Weighed: the crate `async-memcached`. It is one connection; a pool and pipelines of meta commands around it would be most of this
//! file again.

use super::remote::{
    Answer, Failure, Policy, ROUNDS_MAX, RemoteBackend, RemoteBucket, Repeat, escaped, number, partly, query,
};
use super::{Capabilities, Guard, Key, Observed, Page, PageBounds, Pair, SetOptions, Swap};
use crate::{Code, Error, Utf8Bytes};
use bytes::Bytes;
use percent_encoding::percent_decode;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use url::Url;

/// Longest key of the server, with prefix and bucket, in bytes.
const SERVER_KEY_MAX: usize = 250;
/// Connections kept for later calls.
const IDLE_MAX: usize = 32;
/// Longest line taken from the server, in bytes: longer ones are no answer.
const LINE_MAX: u64 = 8 << 10;
/// Above this many seconds the server takes a time to live for a date.
const RELATIVE_MAX: u64 = 30 * 24 * 3600;

const CAPABILITIES: Capabilities = Capabilities {
    atomic_batches: false,
    snapshot_reads: false,
    ordered: true,
    watchable: false,
    durable: false,
    expiring: true,
    key_bytes_max: 200,
    value_bytes_max: 1_000_000,
    batch_keys_max: 1,
    // One key by itself is bounded by what is said of keys and values.
    batch_bytes_max: 0,
};

/// A Memcached server.
#[derive(Clone)]
pub struct Memcached {
    pool: Arc<Pool>,
    prefix: String,
}

impl fmt::Debug for Memcached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memcached").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Memcached {
    /// The server at `url`; it is connected to by the first call.
    ///
    /// # Errors
    /// [`Code::Invalid`] for a prefix that the server cannot hold in a key.
    pub fn new(url: &Url, policy: Policy) -> Result<Self, Error> {
        let prefix = query(url, "prefix").unwrap_or_default();
        if escaped_key(&prefix) != prefix {
            return Err(Error::with_detail(Code::Invalid, "a prefix has no spaces, control characters or `%`"));
        }
        let address = (url.host_str().unwrap_or("localhost").to_owned(), url.port().unwrap_or(11211));
        Ok(Memcached { pool: Arc::new(Pool { address, policy, idle: Mutex::new(Vec::new()) }), prefix })
    }
}

impl RemoteBackend for Memcached {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn bucket(&self, name: &str) -> Result<Arc<dyn RemoteBucket>, Error> {
        let base = format!("{}{}:", self.prefix, escaped(name));
        if base.len() + CAPABILITIES.key_bytes_max > SERVER_KEY_MAX {
            let text =
                format!("prefix and bucket leave no room for keys: they may have {} bytes together, with escapes", 49);
            return Err(Error::with_detail(Code::TooLarge, text));
        }
        Ok(Arc::new(MemcachedBucket { pool: self.pool.clone(), identity: name.to_owned(), base }))
    }
}

/// A key as the server takes one: what it cannot hold, and the escape itself, as `%` and two hex digits.
fn escaped_key(key: &str) -> String {
    use fmt::Write;
    let mut escaped = String::with_capacity(key.len());
    for c in key.chars() {
        if c <= ' ' || c == '\x7f' || c == '%' {
            // Writing to a string does not fail.
            let _ = write!(escaped, "%{:02x}", u32::from(c));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

struct Pool {
    address: (String, u16),
    policy: Policy,
    idle: Mutex<Vec<Connection>>,
}

type Connection = BufReader<TcpStream>;

/// One answer of the server.
#[derive(Debug)]
enum Reply {
    /// `HD`: done.
    Done,
    /// `EN` or `NF`: there is no such key.
    Absent,
    /// `NS` or `EX`: the condition did not hold.
    Refused,
    Value(Found),
}

#[derive(Debug)]
struct Found {
    value: Vec<u8>,
    /// The number of the write that left it so.
    unique: u64,
    /// Seconds left; `None` for ever.
    ttl: Option<u64>,
}

impl Pool {
    /// Sends requests and reads one answer to each: one round trip.
    async fn ask(&self, repeat: Repeat, requests: &[u8], answers: usize) -> Result<Vec<Reply>, Error> {
        self.policy
            .run(repeat, || self.exchange(requests, async |connection| read_replies(connection, answers).await))
            .await
    }

    /// One attempt, on a connection that goes back to the pool if all went well.
    async fn exchange<R>(
        &self,
        requests: &[u8],
        read: impl AsyncFnOnce(&mut Reading<'_>) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        // An attempt that is not answered leaves time for another one on a fresh connection.
        let attempt = async {
            let mut connection = self.connection().await?;
            let (mut reading, mut writing) = {
                let (reading, writing) = connection.get_mut().split();
                (BufReader::new(reading), writing)
            };
            // Side by side: a server that waits for us to take its answers takes no more requests.
            let write = async { writing.write_all(requests).await.map_err(broken) };
            let (result, ()) = tokio::try_join!(read(&mut reading), write)?;
            drop(reading);
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < IDLE_MAX {
                idle.push(connection);
            }
            Ok(result)
        };
        let timeout = self.policy.timeout / 2;
        tokio::time::timeout(timeout, attempt)
            .await
            .unwrap_or_else(|elapsed| Err(Failure::Unknown(Error::with_detail(Code::Io, elapsed))))
    }

    async fn connection(&self) -> Result<Connection, Failure> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(connection) = idle else { break };
            // Closed by the server since: nothing was sent on it, so there is no doubt.
            let closed = connection.get_ref().try_read(&mut [0]);
            if matches!(closed, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                return Ok(connection);
            }
        }
        let (host, port) = &self.address;
        let stream = TcpStream::connect((host.as_str(), *port)).await.and_then(|stream| {
            stream.set_nodelay(true)?;
            Ok(stream)
        });
        stream.map(BufReader::new).map_err(|error| Failure::NotApplied(Error::with_detail(Code::Io, error)))
    }
}

type Reading<'a> = BufReader<tokio::net::tcp::ReadHalf<'a>>;

fn broken(error: io::Error) -> Failure {
    Failure::Unknown(Error::with_detail(Code::Io, error))
}

async fn line(reading: &mut Reading<'_>) -> Result<String, Failure> {
    let mut line = Vec::new();
    reading.take(LINE_MAX).read_until(b'\n', &mut line).await.map_err(broken)?;
    // Lines of a dump end without a carriage return.
    if line.pop() != Some(b'\n') {
        return Err(broken(io::ErrorKind::UnexpectedEof.into()));
    }
    line.pop_if(|last| *last == b'\r');
    String::from_utf8(line).map_err(|_| broken(io::ErrorKind::InvalidData.into()))
}

async fn read_replies(reading: &mut Reading<'_>, answers: usize) -> Result<Vec<Reply>, Failure> {
    let mut replies = Vec::with_capacity(answers);
    while replies.len() < answers {
        let line = line(reading).await?;
        let mut words = line.split(' ');
        replies.push(match words.next().unwrap_or_default() {
            "HD" | "OK" => Reply::Done,
            "EN" | "NF" => Reply::Absent,
            "NS" | "EX" => Reply::Refused,
            "VA" => {
                let unlike = || Failure::Unknown(Error::with_detail(Code::Io, "an answer of another shape"));
                let size: usize = words.next().and_then(|size| size.parse().ok()).ok_or_else(unlike)?;
                if size > CAPABILITIES.value_bytes_max * 128 {
                    return Err(unlike());
                }
                let mut value = vec![0; size + 2];
                reading.read_exact(&mut value).await.map_err(broken)?;
                value.truncate(size);
                let flag = |flag: char| words.clone().find_map(|word| word.strip_prefix(flag));
                let unique = flag('c').and_then(|unique| unique.parse().ok()).unwrap_or_default();
                Reply::Value(Found { value, unique, ttl: flag('t').and_then(|left| left.parse().ok()) })
            }
            _ => return Err(Failure::Final(refusal(line))),
        });
    }
    Ok(replies)
}

/// The server is set up to dump no keys, or too old for it.
fn not_dumped(line: &str) -> Error {
    let text = format!("the server does not tell which keys it has: its lru_crawler must be on (it answers {line:?})");
    Error::with_detail(Code::Unsupported, text)
}

/// An error that the server answered. Its connection is not used again: how much it read is not known.
fn refusal(line: String) -> Error {
    let code = if line.contains("too large") {
        Code::TooLarge
    } else if line.contains("out of memory") {
        Code::NoSpace
    } else if line.starts_with("CLIENT_ERROR") {
        Code::Invalid
    } else {
        Code::Io
    };
    Error::with_detail(code, line)
}

struct MemcachedBucket {
    pool: Arc<Pool>,
    identity: String,
    base: String,
}

/// On what condition a value is stored.
#[derive(Clone, Copy)]
enum Condition {
    Always,
    Absent,
    Unique(u64),
}

impl MemcachedBucket {
    fn at(&self, key: &str) -> Result<String, Error> {
        let at =
            if key.len() > CAPABILITIES.key_bytes_max { String::new() } else { self.base.clone() + &escaped_key(key) };
        if at.is_empty() || at.len() > SERVER_KEY_MAX { Err(Error::new(Code::TooLarge)) } else { Ok(at) }
    }

    async fn one(&self, repeat: Repeat, request: &[u8]) -> Result<Reply, Error> {
        let mut replies = self.pool.ask(repeat, request, 1).await?;
        replies.pop().ok_or_else(|| Error::new(Code::Io))
    }

    async fn find(&self, key: &str) -> Result<Option<Found>, Error> {
        let request = format!("mg {} v c t\r\n", self.at(key)?);
        match self.one(Repeat::Reads, request.as_bytes()).await? {
            Reply::Value(found) => Ok(Some(found)),
            _ => Ok(None),
        }
    }

    /// The request that stores a value, added to others.
    fn push_set(
        &self,
        requests: &mut Vec<u8>,
        key: &str,
        value: &[u8],
        condition: Condition,
        ttl: Option<u64>,
    ) -> Result<(), Error> {
        if value.len() > CAPABILITIES.value_bytes_max {
            return Err(Error::new(Code::TooLarge));
        }
        let condition = match condition {
            Condition::Always => String::new(),
            Condition::Absent => " ME".to_owned(),
            Condition::Unique(unique) => format!(" C{unique}"),
        };
        let ttl = ttl.map_or_else(String::new, |ttl| format!(" T{}", server_time(ttl)));
        requests.extend_from_slice(format!("ms {} {}{condition}{ttl}\r\n", self.at(key)?, value.len()).as_bytes());
        requests.extend_from_slice(value);
        requests.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// Whether the value was stored.
    async fn store(&self, key: &str, value: &[u8], condition: Condition, ttl: Option<u64>) -> Result<bool, Error> {
        let mut request = Vec::with_capacity(value.len() + 300);
        self.push_set(&mut request, key, value, condition, ttl)?;
        let repeat = if matches!(condition, Condition::Always) { Repeat::Writes } else { Repeat::Never };
        Ok(matches!(self.one(repeat, &request).await?, Reply::Done))
    }

    async fn add(&self, key: &str, delta: i64) -> Result<i64, Error> {
        for _ in 0..ROUNDS_MAX {
            let now = self.find(key).await?;
            let before = now.as_ref().map_or(Ok(0), |now| number(&now.value))?;
            let sum = before.checked_add(delta).ok_or_else(|| Error::new(Code::Overflow))?;
            let condition = now.as_ref().map_or(Condition::Absent, |now| Condition::Unique(now.unique));
            let ttl = now.and_then(|now| now.ttl);
            if self.store(key, sum.to_string().as_bytes(), condition, ttl).await? {
                return Ok(sum);
            }
        }
        Err(Error::new(Code::Busy))
    }

    /// The least keys above `after`, of all that the server has.
    async fn page(&self, prefix: &str, after: Option<&[u8]>, bounds: PageBounds) -> Result<Page, Error> {
        let keys_max = bounds.keys_max.min(bounds.entries_max).max(1);
        let mut least = self.least("hash", prefix, after, keys_max).await?;
        if least.is_none() {
            // An older server, which walks from item to item as they are used, and may miss some that are used meanwhile.
            least = self.least("all", prefix, after, keys_max).await?;
        }
        let least = least.ok_or_else(|| not_dumped("BADCLASS"))?;
        let mut page = Page::default();
        let mut room = bounds.bytes_max;
        for key in &least {
            if page.keys.len() == keys_max || (!page.keys.is_empty() && key.len() > room) {
                break;
            }
            room = room.saturating_sub(key.len());
            page.keys.extend(Utf8Bytes::new(Bytes::copy_from_slice(key.as_bytes())));
        }
        let last = least.iter().nth(page.keys.len().saturating_sub(1));
        if let Some(last) = last
            && least.range::<String, _>((Bound::Excluded(last), Bound::Unbounded)).next().is_some()
        {
            page.next = Some(Bytes::copy_from_slice(last.as_bytes()));
        }
        Ok(page)
    }

    /// The least keys above `after`, one more than `keys_max` of them, which tells whether there is a next page: from a dump of that kind.
    /// `None` if the server does not know it.
    async fn least(
        &self,
        kind: &str,
        prefix: &str,
        after: Option<&[u8]>,
        keys_max: usize,
    ) -> Result<Option<BTreeSet<String>>, Error> {
        let request = &format!("lru_crawler metadump {kind}\r\n");
        let above = |key: &String| key.starts_with(prefix) && after.is_none_or(|after| key.as_bytes() > after);
        let attempt = || {
            self.pool.exchange(request.as_bytes(), async |reading| {
                let mut least = BTreeSet::new();
                let now = now();
                loop {
                    let line = line(reading).await?;
                    match line.split(' ').next().unwrap_or_default() {
                        "END" => return Ok(Some(least)),
                        "BADCLASS" => return Ok(None),
                        "BUSY" => return Err(Failure::NotApplied(Error::with_detail(Code::Busy, line))),
                        word if word.starts_with("key=") => {}
                        _ => return Err(Failure::Final(not_dumped(&line))),
                    }
                    if let Some(key) = self.dumped(&line, now).filter(above) {
                        least.insert(key);
                        if least.len() > keys_max + 1 {
                            least.pop_last();
                        }
                    }
                }
            })
        };
        self.pool.policy.run(Repeat::Reads, attempt).await
    }

    /// The key of ours that a line of the dump tells of.
    fn dumped(&self, line: &str, now: u64) -> Option<String> {
        let mut words = line.split(' ');
        let name = words.next()?.strip_prefix("key=")?;
        let expires = words.find_map(|word| word.strip_prefix("exp="))?;
        if expires.parse::<u64>().is_ok_and(|at| at <= now) {
            return None;
        }
        let name: Vec<u8> = percent_decode(name.as_bytes()).collect();
        let key = name.strip_prefix(self.base.as_bytes())?;
        String::from_utf8(percent_decode(key).collect()).ok()
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

/// A time to live as the server wants it: long ones as the date of the end.
fn server_time(ttl: u64) -> u64 {
    if ttl > RELATIVE_MAX { now().saturating_add(ttl) } else { ttl }
}

/// Whole seconds, and one more: the server's clock ticks once a second, and no value is to go early.
fn seconds(ttl: Duration) -> u64 {
    ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0) + 1
}

fn observed(found: Option<Found>) -> Observed {
    match found {
        None => Observed { value: None, guard: Guard::Absent },
        Some(Found { value, unique, .. }) => {
            let guard = Guard::Token(Bytes::copy_from_slice(&unique.to_le_bytes()));
            Observed { value: Some(value.into()), guard }
        }
    }
}

impl RemoteBucket for MemcachedBucket {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Bytes>> {
        Box::pin(async move { Ok(self.find(key).await?.map(|found| found.value.into())) })
    }

    fn exists<'a>(&'a self, key: &'a str) -> Answer<'a, bool> {
        Box::pin(async move {
            let request = format!("mg {}\r\n", self.at(key)?);
            Ok(matches!(self.one(Repeat::Reads, request.as_bytes()).await?, Reply::Done))
        })
    }

    fn set<'a>(&'a self, key: &'a str, value: &'a [u8]) -> Answer<'a, ()> {
        Box::pin(async move { self.store(key, value, Condition::Always, None).await.map(drop) })
    }

    fn set_with<'a>(&'a self, key: &'a str, value: &'a [u8], options: SetOptions) -> Answer<'a, bool> {
        let condition = if options.if_absent { Condition::Absent } else { Condition::Always };
        Box::pin(self.store(key, value, condition, options.ttl.map(seconds)))
    }

    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let request = format!("md {}\r\n", self.at(key)?);
            self.one(Repeat::Writes, request.as_bytes()).await.map(drop)
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a [u8]>, bounds: PageBounds) -> Answer<'a, Page> {
        Box::pin(self.page(prefix, after, bounds))
    }

    fn increment<'a>(&'a self, key: &'a str, delta: i64) -> Answer<'a, i64> {
        Box::pin(self.add(key, delta))
    }

    fn observe<'a>(&'a self, key: &'a str) -> Answer<'a, Observed> {
        Box::pin(async move { Ok(observed(self.find(key).await?)) })
    }

    fn swap<'a>(&'a self, key: &'a str, guard: &'a Guard, value: &'a [u8]) -> Answer<'a, Swap> {
        Box::pin(async move {
            let condition = match guard {
                Guard::Absent => Condition::Absent,
                Guard::Token(token) => {
                    let bytes = token.as_ref().try_into().map_err(|_| Error::new(Code::Invalid))?;
                    Condition::Unique(u64::from_le_bytes(bytes))
                }
                Guard::Version(_) => return Err(Error::new(Code::Invalid)),
            };
            if self.store(key, value, condition, None).await? {
                return Ok(Swap::Done);
            }
            Ok(Swap::Conflict(observed(self.find(key).await?)))
        })
    }

    fn get_many<'a>(&'a self, keys: &'a [Key<'a>]) -> Answer<'a, Vec<Option<Pair>>> {
        Box::pin(async move {
            let mut requests = String::new();
            for key in keys {
                requests += &format!("mg {} v\r\n", self.at(key.as_ref())?);
            }
            if keys.is_empty() {
                return Ok(Vec::new());
            }
            let replies = self.pool.ask(Repeat::Reads, requests.as_bytes(), keys.len()).await?;
            let pairs = keys.iter().zip(replies).map(|(key, reply)| match reply {
                Reply::Value(found) => {
                    Some((Utf8Bytes::new(Bytes::copy_from_slice(key.as_ref()))?, Bytes::from(found.value)))
                }
                _ => None,
            });
            Ok(pairs.collect())
        })
    }

    fn set_many<'a>(&'a self, pairs: &'a [(Key<'a>, &'a [u8])]) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut requests = Vec::new();
            for (key, value) in pairs {
                self.push_set(&mut requests, key.as_ref(), value, Condition::Always, None)?;
            }
            if pairs.is_empty() {
                return Ok(());
            }
            let written = self.pool.ask(Repeat::Writes, &requests, pairs.len()).await;
            written.map(drop).map_err(|error| partly(error, pairs.len() > 1))
        })
    }

    fn delete_many<'a>(&'a self, keys: &'a [Key<'a>]) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut requests = String::new();
            for key in keys {
                requests += &format!("md {}\r\n", self.at(key.as_ref())?);
            }
            if keys.is_empty() {
                return Ok(());
            }
            let deleted = self.pool.ask(Repeat::Writes, requests.as_bytes(), keys.len()).await;
            deleted.map(drop).map_err(|error| partly(error, keys.len() > 1))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_escaped_as_far_as_the_server_needs() {
        assert_eq!(escaped_key("a b%\r\n\0\x7fü/:"), "a%20b%25%0d%0a%00%7fü/:");
    }
}
