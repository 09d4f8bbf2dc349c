//! Back ends that make the caller wait: a bucket behind a network, how its calls fail, and how they are tried again.
//!
//! Flow: `store`, `batch`, `atomics` (rights and limits checked) -> [`RemoteBucket`] -> [`Policy::run`] -> a client library;
//! [`Blocking`] makes a [`LocalBucket`] of it, for callers that wait and for those that await. One service, one file beside this one.
//! Invariants: 1. A call ends within its policy's time, whatever the service does. 2. A call that may be applied twice
//! without harm is tried again; one that may not, and whose outcome is unknown, is [`Code::Indeterminate`]. 3. What the
//! service said goes into the error's detail, which no guest reads.

use super::changes::{Changes, Watched};
use super::{
    Capabilities, Guard, Key, LocalBucket, Observed, Page, PageBounds, Pair, Reply, SetOptions, Swap, refuse_below_zero,
};
#[cfg(any(feature = "cosmosdb", feature = "dynamodb", feature = "firestore"))]
use crate::Utf8Bytes;
use crate::{Code, Error};
use bytes::Bytes;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use url::Url;

/// What a call of a remote bucket will answer. It may be dropped at any time: a write is then wholly done or not at all.
pub type Answer<'a, R> = Pin<Box<dyn Future<Output = Result<R, Error>> + Send + 'a>>;

/// A service with buckets in it.
pub trait RemoteBackend: Send + Sync + 'static {
    /// What guests of this back end may rely on.
    fn capabilities(&self) -> Capabilities;

    /// The bucket of that name. Does not ask the service: a bucket is there as soon as it is named.
    ///
    /// # Errors
    /// A name that the service cannot tell apart from others.
    fn bucket(&self, name: &str) -> Result<Arc<dyn RemoteBucket>, Error>;
}

/// A bucket whose calls are answered later. The methods mean what those of [`LocalBucket`] mean.
///
/// To implementers: a future does nothing before it is first polled, and may be dropped at any poll; keep nothing
/// that only its end would put back. Keys of any UTF-8 are kept apart; what the service cannot hold is
/// [`Code::TooLarge`], on every call alike. An empty batch makes no request.
pub trait RemoteBucket: Send + Sync + 'static {
    /// As [`LocalBucket::identity`].
    fn identity(&self) -> &str;
    /// The same bucket, if its service tells of changes.
    fn changes(&self) -> Option<Arc<dyn Changes>> {
        None
    }
    /// As [`LocalBucket::get`].
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Bytes>>;
    /// As [`LocalBucket::exists`].
    fn exists<'a>(&'a self, key: &'a str) -> Answer<'a, bool>;
    /// As [`LocalBucket::set`].
    fn set<'a>(&'a self, key: &'a str, value: &'a [u8]) -> Answer<'a, ()>;
    /// As [`LocalBucket::delete`].
    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()>;
    /// Writes `value` with an expiry, or only where no value is; `false` if there was one and nothing was written.
    /// The default, for services without either: [`Code::Unsupported`] for whatever plain [`set`](RemoteBucket::set) cannot do.
    fn set_with<'a>(&'a self, key: &'a str, value: &'a [u8], options: SetOptions) -> Answer<'a, bool> {
        if options != SetOptions::default() {
            return Box::pin(std::future::ready(Err(Error::new(Code::Unsupported))));
        }
        Box::pin(async move { self.set(key, value).await.map(|()| true) })
    }
    /// As [`LocalBucket::list`], in an order of the service's own, of keys that begin with `prefix`; `after` is the `next` of
    /// a page with that prefix, whose bytes are the service's own too.
    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a [u8]>, bounds: PageBounds) -> Answer<'a, Page>;
    /// As [`LocalBucket::increment`].
    fn increment<'a>(&'a self, key: &'a str, delta: i64) -> Answer<'a, i64>;
    /// As [`LocalBucket::observe`].
    fn observe<'a>(&'a self, key: &'a str) -> Answer<'a, Observed>;
    /// As [`LocalBucket::swap`].
    fn swap<'a>(&'a self, key: &'a str, guard: &'a Guard, value: &'a [u8]) -> Answer<'a, Swap>;
    /// As [`LocalBucket::get_many`].
    fn get_many<'a>(&'a self, keys: &'a [Key<'a>]) -> Answer<'a, Vec<Option<Pair>>>;
    /// As [`LocalBucket::set_many`].
    fn set_many<'a>(&'a self, pairs: &'a [(Key<'a>, &'a [u8])]) -> Answer<'a, ()>;
    /// As [`LocalBucket::delete_many`].
    fn delete_many<'a>(&'a self, keys: &'a [Key<'a>]) -> Answer<'a, ()>;
}

/// How long a call may take and how often it is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// From the call to its answer, all attempts and pauses included. Default: 5 s.
    pub timeout: Duration,
    /// Most attempts. Default: 4.
    pub attempts_max: u32,
    /// The pause before the second attempt; it doubles from there, and each is cut at random to between half and all of
    /// it, so that many callers do not come back together. Default: 20 ms.
    pub pause: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Policy { timeout: Duration::from_secs(5), attempts_max: 4, pause: Duration::from_millis(20) }
    }
}

/// Why one attempt failed, as far as the next step depends on it.
#[derive(Debug)]
pub enum Failure {
    /// The service answered, and asking again would not change the answer.
    Final(Error),
    /// Nothing was applied (no connection, throttled, no leader): any call may be tried again.
    NotApplied(Error),
    /// Nothing was applied, and the service says how long to stay away. Such an attempt does not count.
    Later(Error, Duration),
    /// The request may have been applied: the connection broke before the answer.
    Unknown(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Final(error)
    }
}

/// What a second application of a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Nothing more than the first: it reads.
    Reads,
    /// Nothing more than the first: it writes what it wrote.
    Writes,
    /// Harm: it counts, or it compares with what the first one changed.
    Never,
}

impl Policy {
    /// Makes attempts until one succeeds, its failure is final, or time or attempts are used up.
    ///
    /// # Errors
    /// The last attempt's; [`Code::Indeterminate`] where a write may have been applied; [`Code::Timeout`] where the time is
    /// up and nothing was written.
    pub async fn run<R, F>(&self, repeat: Repeat, mut attempt: impl FnMut() -> F) -> Result<R, Error>
    where
        F: Future<Output = Result<R, Failure>>,
    {
        let deadline = Instant::now() + self.timeout;
        let mut unknown = false;
        let mut pause = self.pause;
        let mut left = self.attempts_max.max(1);
        loop {
            left -= 1;
            let mut least = Duration::ZERO;
            // A request that is cut off by the clock is under way: a write may still arrive.
            let failed = match tokio::time::timeout_at(deadline, attempt()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Failure::Final(error))) if unknown => return Err(Self::doubtful(error)),
                Ok(Err(Failure::Final(error))) => return Err(error),
                Ok(Err(Failure::NotApplied(error))) => error,
                Ok(Err(Failure::Later(error, wait))) => {
                    left += 1;
                    least = wait;
                    error
                }
                Ok(Err(Failure::Unknown(error))) => {
                    unknown |= repeat != Repeat::Reads;
                    if repeat == Repeat::Never {
                        return Err(Self::doubtful(error));
                    }
                    error
                }
                Err(_elapsed) if unknown || repeat != Repeat::Reads => return Err(Error::new(Code::Indeterminate)),
                Err(_elapsed) => return Err(Error::new(Code::Timeout)),
            };
            let wait = least + jittered(pause);
            if left == 0 || Instant::now() + wait >= deadline {
                return Err(if unknown { Self::doubtful(failed) } else { failed });
            }
            tokio::time::sleep(wait).await;
            if least.is_zero() {
                pause = pause.saturating_mul(2);
            }
        }
    }

    fn doubtful(error: Error) -> Error {
        Error::with_detail(Code::Indeterminate, error)
    }
}

/// Between half of `pause` and all of it.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + 0.5 * f64::from(fastrand::u16(..)) / f64::from(u16::MAX))
}

/// The pauses of a call that the service answers piece by piece, since it has no room for more now.
#[cfg(feature = "dynamodb")]
pub(crate) struct Pauses {
    first: Duration,
    next: Duration,
    deadline: Instant,
}

#[cfg(feature = "dynamodb")]
impl Pauses {
    pub(crate) fn of(policy: &Policy) -> Self {
        Pauses { first: policy.pause, next: policy.pause, deadline: Instant::now() + policy.timeout }
    }

    /// Waits, longer than the last time if nothing was done since.
    ///
    /// # Errors
    /// [`Code::Busy`] when the time of the call is used up.
    pub(crate) async fn wait(&mut self, some_done: bool) -> Result<(), Error> {
        self.next = if some_done { self.first } else { self.next.saturating_mul(2) };
        let until = Instant::now() + jittered(self.next);
        if until >= self.deadline {
            return Err(Error::new(Code::Busy));
        }
        tokio::time::sleep_until(until).await;
        Ok(())
    }
}

/// Whether no server took the connection: then nothing was sent.
#[cfg(any(feature = "dynamodb", feature = "etcd"))]
pub(crate) fn refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut source = Some(error);
    while let Some(error) = source {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused) {
            return true;
        }
        source = error.source();
    }
    false
}

/// An error and what caused it, in words, none of which is an address.
#[cfg(any(feature = "cosmosdb", feature = "dynamodb", feature = "etcd", feature = "firestore"))]
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        words = format!("{words}: {error}");
        source = error.source();
    }
    nameless(words)
}

/// These words, unless they tell which server was asked: then what they mean.
#[cfg(any(feature = "cosmosdb", feature = "dynamodb", feature = "etcd", feature = "firestore", feature = "redis"))]
pub(crate) fn nameless(words: String) -> String {
    // A failed handshake quotes the name that it expected.
    if words.contains("not valid for name") {
        return "the server's certificate is for another name than the one in the URL".to_owned();
    }
    words
}

/// A part of a URL without its escapes.
#[cfg(any(feature = "cosmosdb", feature = "dynamodb", feature = "etcd", feature = "firestore"))]
pub(crate) fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// The error of a write in pieces, or of keys one by one: where `some` of it may be written, the caller is told so.
#[cfg(any(
    feature = "cosmosdb",
    feature = "dynamodb",
    feature = "etcd",
    feature = "firestore",
    feature = "memcached",
    feature = "redis"
))]
pub(crate) fn partly(error: Error, some: bool) -> Error {
    if some && error.code() != Code::Indeterminate { Policy::doubtful(error) } else { error }
}

/// The number that a value says in decimal, in the one spelling that counts as one: as the engine's increment reads it.
#[cfg(any(feature = "cosmosdb", feature = "dynamodb", feature = "etcd", feature = "firestore", feature = "memcached"))]
pub(crate) fn number(value: &[u8]) -> Result<i64, Error> {
    let text = std::str::from_utf8(value).ok();
    let number = text.and_then(|text| text.parse::<i64>().ok().filter(|number| number.to_string() == text));
    number.ok_or_else(|| Error::new(Code::NotANumber))
}

/// An increment for services that have none which stops where ours does: what stands there is read, and the sum is written if it still
/// stands there.
///
/// # Errors
/// [`Code::Busy`] for who loses too many races; nothing was changed.
#[cfg(any(feature = "cosmosdb", feature = "firestore"))]
pub(crate) async fn add_by_swap(bucket: &dyn RemoteBucket, key: &str, delta: i64) -> Result<i64, Error> {
    let mut now = bucket.observe(key).await?;
    for _ in 0..ROUNDS_MAX {
        let before = now.value.as_deref().map_or(Ok(0), number)?;
        let sum = before.checked_add(delta).ok_or_else(|| Error::new(Code::Overflow))?;
        match bucket.swap(key, &now.guard, sum.to_string().as_bytes()).await? {
            Swap::Done => return Ok(sum),
            Swap::Conflict(rival) => now = rival,
        }
    }
    Err(Error::new(Code::Busy))
}

/// Rounds of an increment that reads and writes, before its caller is told that the key is busy.
#[cfg(any(feature = "cosmosdb", feature = "dynamodb", feature = "etcd", feature = "firestore", feature = "memcached"))]
pub(crate) const ROUNDS_MAX: u32 = 64;

/// The pairs that are left when of equal keys the last one wins, in their order: services take a key once in a request.
#[cfg(any(feature = "cosmosdb", feature = "dynamodb", feature = "etcd", feature = "firestore"))]
pub(crate) fn last_of_equal<'a>(pairs: &'a [(Key<'_>, &'a [u8])]) -> Vec<(&'a str, &'a [u8])> {
    let mut seen = std::collections::HashSet::with_capacity(pairs.len());
    let pairs = pairs.iter().rev().map(|(key, value)| (AsRef::<str>::as_ref(key), *value));
    let mut last: Vec<_> = pairs.filter(|(key, _)| seen.insert(*key)).collect();
    last.reverse();
    last
}

/// A page of keys that come in order, while it has room.
#[cfg(any(feature = "cosmosdb", feature = "dynamodb", feature = "firestore"))]
pub(crate) struct Filling {
    page: Page,
    keys_max: usize,
    room: usize,
}

#[cfg(any(feature = "cosmosdb", feature = "dynamodb", feature = "firestore"))]
impl Filling {
    pub(crate) fn within(bounds: PageBounds) -> Self {
        let keys_max = bounds.keys_max.min(bounds.entries_max).max(1);
        Filling { page: Page::default(), keys_max, room: bounds.bytes_max }
    }

    /// How many keys to ask for: one more than there is room for tells whether any is left.
    pub(crate) fn wanted(&self) -> usize {
        self.keys_max.saturating_sub(self.page.keys.len()).saturating_add(1)
    }

    /// Takes the next key; `false` if there was no room, and the page is whole.
    pub(crate) fn take(&mut self, key: &str) -> bool {
        let begun = !self.page.keys.is_empty();
        if self.page.keys.len() == self.keys_max || (begun && key.len() > self.room) {
            self.page.next = self.page.keys.last().map(|key| Bytes::copy_from_slice(key.as_bytes()));
            return false;
        }
        self.room = self.room.saturating_sub(key.len());
        self.page.keys.extend(Utf8Bytes::new(Bytes::copy_from_slice(key.as_bytes())));
        true
    }

    /// Has room for no more keys than it has, if it has any.
    #[cfg(feature = "dynamodb")]
    pub(crate) fn end_soon(&mut self) {
        if !self.page.keys.is_empty() {
            self.keys_max = self.page.keys.len();
        }
    }

    pub(crate) fn page(self) -> Page {
        self.page
    }
}

/// A parameter of a target's URL.
#[cfg(any(
    feature = "cosmosdb",
    feature = "dynamodb",
    feature = "etcd",
    feature = "firestore",
    feature = "memcached",
    feature = "redis"
))]
pub(crate) fn query(url: &Url, name: &str) -> Option<String> {
    queries(url, name).next()
}

/// All parameters of that name.
#[cfg(any(
    feature = "cosmosdb",
    feature = "dynamodb",
    feature = "etcd",
    feature = "firestore",
    feature = "memcached",
    feature = "redis"
))]
pub(crate) fn queries<'u>(url: &'u Url, name: &'u str) -> impl Iterator<Item = String> + 'u {
    url.query_pairs().filter(move |(found, _)| found == name).map(|(_, value)| value.into_owned())
}

/// A bucket's name in a key or table of the service: letters, digits, `-`, `_` and `.` as they are, all else as `%` and two
/// hex digits a byte. So it holds no separator, and two buckets never share a key.
pub fn escaped(name: &str) -> String {
    escaped_by('%', name)
}

/// As [`escaped`], with `mark` in place of `%`.
pub(crate) fn escaped_by(mark: char, text: &str) -> String {
    use fmt::Write;
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(escaped, "{mark}{byte:02x}");
        }
    }
    escaped
}

/// The service at `target`, a URL of one of the kinds this build was made with. Credentials that are not in it come from the
/// environment or from the provider's own chain.
///
/// # Errors
/// [`Code::Unsupported`] for a kind that this build has not; whatever the client library refuses in the URL.
#[allow(clippy::unused_async, reason = "without any of the services there is nothing to wait for")]
pub async fn connect(target: &Url, policy: Policy) -> Result<Arc<dyn RemoteBackend>, Error> {
    let _ = policy;
    match target.scheme() {
        #[cfg(feature = "redis")]
        "redis" | "rediss" | "redis-cluster" | "rediss-cluster" => {
            Ok(Arc::new(super::redis::Redis::new(target, policy)?))
        }
        #[cfg(feature = "cosmosdb")]
        "cosmos" => Ok(Arc::new(super::cosmosdb::CosmosDb::new(target, policy).await?)),
        #[cfg(feature = "dynamodb")]
        "dynamodb" => Ok(Arc::new(super::dynamodb::DynamoDb::new(target, policy).await?)),
        #[cfg(feature = "etcd")]
        "etcd" | "etcds" => Ok(Arc::new(super::etcd::Etcd::new(target, policy)?)),
        #[cfg(feature = "firestore")]
        "firestore" => Ok(Arc::new(super::firestore::Firestore::new(target, policy)?)),
        #[cfg(feature = "memcached")]
        "memcached" => Ok(Arc::new(super::memcached::Memcached::new(target, policy)?)),
        scheme => Err(Error::with_detail(
            Code::Unsupported,
            format!("this build has no back end for {scheme}://: it is made with the cargo feature of that name"),
        )),
    }
}

/// A remote bucket as a local one. Its calls make the calling thread wait for the answer, which other threads bring; its `start_`
/// calls do not.
///
/// On a thread that drives async tasks the first kind holds them all up.
#[derive(Clone)]
pub struct Blocking {
    bucket: Arc<dyn RemoteBucket>,
    runtime: tokio::runtime::Handle,
}

impl fmt::Debug for Blocking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Blocking").field(&self.bucket.identity()).finish()
    }
}

impl Blocking {
    /// `bucket`, whose connections `runtime` drives: a multi-threaded one, or one that another thread drives.
    pub fn new(bucket: Arc<dyn RemoteBucket>, runtime: tokio::runtime::Handle) -> Self {
        Blocking { bucket, runtime }
    }

    /// Not the runtime's own `block_on`, which panics on a thread that drives async tasks: a guest's call must not.
    fn wait<R>(&self, answer: Answer<'_, R>) -> Result<R, Error> {
        let _entered = self.runtime.enter();
        pollster::block_on(answer)
    }

    /// The answer of a call that is made with the bucket when it is first polled.
    fn start<R, F>(&self, call: impl FnOnce(Arc<dyn RemoteBucket>) -> F) -> Reply<R>
    where
        R: 'static,
        F: Future<Output = Result<R, Error>> + Send + 'static,
    {
        Reply::later(Entered { runtime: self.runtime.clone(), answer: Box::pin(call(self.bucket.clone())) })
    }
}

/// An answer that is polled within its own runtime, whatever the caller's is: timers and connections belong there.
struct Entered<F> {
    runtime: tokio::runtime::Handle,
    answer: Pin<Box<F>>,
}

impl<F: Future> Future for Entered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<F::Output> {
        let Self { runtime, answer } = &mut *self;
        let _entered = runtime.enter();
        answer.as_mut().poll(context)
    }
}

impl LocalBucket for Blocking {
    fn identity(&self) -> &str {
        self.bucket.identity()
    }

    fn waits(&self) -> bool {
        true
    }

    fn watched(&self) -> Option<Watched> {
        Some(Watched::new(self.bucket.changes()?, self.runtime.clone()))
    }

    fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        self.wait(self.bucket.get(key))
    }

    fn exists(&self, key: &str) -> Result<bool, Error> {
        self.wait(self.bucket.exists(key))
    }

    fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        self.wait(self.bucket.set(key, value))
    }

    fn set_with(&self, key: &str, value: &[u8], options: SetOptions) -> Result<bool, Error> {
        self.wait(self.bucket.set_with(key, value, options))
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        self.wait(self.bucket.delete(key))
    }

    fn list(&self, after: Option<&[u8]>, bounds: PageBounds) -> Result<Page, Error> {
        self.wait(self.bucket.list("", after, bounds))
    }

    fn list_prefix(&self, prefix: &str, after: Option<&[u8]>, bounds: PageBounds) -> Result<Page, Error> {
        self.wait(self.bucket.list(prefix, after, bounds))
    }

    fn increment(&self, key: &str, delta: i64) -> Result<i64, Error> {
        self.wait(self.bucket.increment(key, delta))
    }

    fn observe(&self, key: &str) -> Result<Observed, Error> {
        self.wait(self.bucket.observe(key))
    }

    fn swap(&self, key: &str, guard: &Guard, value: &[u8]) -> Result<Swap, Error> {
        self.wait(self.bucket.swap(key, guard, value))
    }

    fn get_many(&self, keys: &[Key<'_>]) -> Result<Vec<Option<Pair>>, Error> {
        self.wait(self.bucket.get_many(keys))
    }

    fn set_many(&self, pairs: &[(Key<'_>, &[u8])]) -> Result<(), Error> {
        self.wait(self.bucket.set_many(pairs))
    }

    fn delete_many(&self, keys: &[Key<'_>]) -> Result<(), Error> {
        self.wait(self.bucket.delete_many(keys))
    }

    fn start_get(&self, key: &str) -> Reply<Option<Bytes>> {
        let key = key.to_owned();
        self.start(|bucket| async move { bucket.get(&key).await })
    }

    fn start_exists(&self, key: &str) -> Reply<bool> {
        let key = key.to_owned();
        self.start(|bucket| async move { bucket.exists(&key).await })
    }

    fn start_set(&self, key: &str, value: &[u8]) -> Reply<()> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.start(|bucket| async move { bucket.set(&key, &value).await })
    }

    fn start_set_with(&self, key: &str, value: &[u8], options: SetOptions) -> Reply<bool> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.start(move |bucket| async move { bucket.set_with(&key, &value, options).await })
    }

    fn start_delete(&self, key: &str) -> Reply<()> {
        let key = key.to_owned();
        self.start(|bucket| async move { bucket.delete(&key).await })
    }

    fn start_list(&self, prefix: &str, after: Option<&[u8]>, bounds: PageBounds) -> Reply<Page> {
        let (prefix, after) = (prefix.to_owned(), after.map(<[u8]>::to_vec));
        self.start(move |bucket| async move { bucket.list(&prefix, after.as_deref(), bounds).await })
    }

    fn start_increment(&self, key: &str, delta: i64) -> Reply<i64> {
        let key = key.to_owned();
        self.start(move |bucket| async move { bucket.increment(&key, delta).await })
    }

    fn start_increment_unsigned(&self, key: &str, delta: i64) -> Reply<i64> {
        let key = key.to_owned();
        self.start(move |bucket| async move {
            refuse_below_zero(bucket.get(&key).await?.as_deref(), delta)?;
            let sum = bucket.increment(&key, delta).await?;
            if sum < 0 {
                bucket.increment(&key, -delta).await?;
                return Err(Error::new(Code::Overflow));
            }
            Ok(sum)
        })
    }

    fn start_observe(&self, key: &str) -> Reply<Observed> {
        let key = key.to_owned();
        self.start(|bucket| async move { bucket.observe(&key).await })
    }

    fn start_swap(&self, key: &str, guard: &Guard, value: &[u8]) -> Reply<Swap> {
        let (key, guard, value) = (key.to_owned(), guard.clone(), value.to_owned());
        self.start(|bucket| async move { bucket.swap(&key, &guard, &value).await })
    }

    fn start_get_many(&self, keys: &[Key<'_>]) -> Reply<Vec<Option<Pair>>> {
        let keys: Vec<Key<'static>> = keys.iter().map(Key::to_static).collect();
        self.start(|bucket| async move { bucket.get_many(&keys).await })
    }

    fn start_set_many(&self, pairs: &[(Key<'_>, &[u8])]) -> Reply<()> {
        let pairs: Vec<(Key<'static>, Vec<u8>)> =
            pairs.iter().map(|(key, value)| (key.to_static(), value.to_vec())).collect();
        self.start(|bucket| async move {
            let views: Vec<(Key<'_>, &[u8])> =
                pairs.iter().map(|(key, value)| (Key::from(key.as_ref()), value.as_slice())).collect();
            bucket.set_many(&views).await
        })
    }

    fn start_delete_many(&self, keys: &[Key<'_>]) -> Reply<()> {
        let keys: Vec<Key<'static>> = keys.iter().map(Key::to_static).collect();
        self.start(|bucket| async move { bucket.delete_many(&keys).await })
    }
}

/// A local bucket for callers that await: every answer is ready at the first poll, and the polling thread does the work.
#[derive(Clone)]
pub struct Local(Arc<dyn LocalBucket>);

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Local").field(&self.0.identity()).finish()
    }
}

impl Local {
    /// `bucket`, asked in the thread that polls.
    pub fn new(bucket: Arc<dyn LocalBucket>) -> Self {
        Local(bucket)
    }
}

/// A call that is made when it is polled, and not before.
fn lazily<'a, R>(call: impl FnOnce() -> Result<R, Error> + Send + 'a) -> Answer<'a, R> {
    Box::pin(async move { call() })
}

impl RemoteBucket for Local {
    fn identity(&self) -> &str {
        self.0.identity()
    }

    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Bytes>> {
        lazily(move || self.0.get(key))
    }

    fn exists<'a>(&'a self, key: &'a str) -> Answer<'a, bool> {
        lazily(move || self.0.exists(key))
    }

    fn set<'a>(&'a self, key: &'a str, value: &'a [u8]) -> Answer<'a, ()> {
        lazily(move || self.0.set(key, value))
    }

    fn set_with<'a>(&'a self, key: &'a str, value: &'a [u8], options: SetOptions) -> Answer<'a, bool> {
        lazily(move || self.0.set_with(key, value, options))
    }

    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        lazily(move || self.0.delete(key))
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a [u8]>, bounds: PageBounds) -> Answer<'a, Page> {
        lazily(move || self.0.list_prefix(prefix, after, bounds))
    }

    fn increment<'a>(&'a self, key: &'a str, delta: i64) -> Answer<'a, i64> {
        lazily(move || self.0.increment(key, delta))
    }

    fn observe<'a>(&'a self, key: &'a str) -> Answer<'a, Observed> {
        lazily(move || self.0.observe(key))
    }

    fn swap<'a>(&'a self, key: &'a str, guard: &'a Guard, value: &'a [u8]) -> Answer<'a, Swap> {
        lazily(move || self.0.swap(key, guard, value))
    }

    fn get_many<'a>(&'a self, keys: &'a [Key<'a>]) -> Answer<'a, Vec<Option<Pair>>> {
        lazily(move || self.0.get_many(keys))
    }

    fn set_many<'a>(&'a self, pairs: &'a [(Key<'a>, &'a [u8])]) -> Answer<'a, ()> {
        lazily(move || self.0.set_many(pairs))
    }

    fn delete_many<'a>(&'a self, keys: &'a [Key<'a>]) -> Answer<'a, ()> {
        lazily(move || self.0.delete_many(keys))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn run<R>(future: impl Future<Output = R>) -> R {
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(future)
    }

    fn failing(repeat: Repeat, failure: fn(Error) -> Failure) -> (Code, u32) {
        let tries = Cell::new(0);
        let failed = run(Policy::default().run(repeat, || {
            tries.set(tries.get() + 1);
            async { Err::<(), _>(failure(Error::new(Code::Io))) }
        }));
        (failed.unwrap_err().code(), tries.get())
    }

    #[test]
    fn what_may_be_repeated_is_and_what_may_not_is_told() {
        assert_eq!(failing(Repeat::Reads, Failure::Unknown), (Code::Io, 4));
        assert_eq!(failing(Repeat::Writes, Failure::Unknown), (Code::Indeterminate, 4));
        assert_eq!(failing(Repeat::Never, Failure::Unknown), (Code::Indeterminate, 1));
        assert_eq!(failing(Repeat::Never, Failure::NotApplied), (Code::Io, 4));
        assert_eq!(failing(Repeat::Reads, Failure::Final), (Code::Io, 1));
    }

    #[test]
    fn a_refusal_after_an_unknown_outcome_does_not_say_that_nothing_was_written() {
        let tries = Cell::new(0);
        let failed = run(Policy::default().run(Repeat::Writes, || {
            tries.set(tries.get() + 1);
            let first = tries.get() == 1;
            async move {
                let error = Error::new(Code::ReadOnly);
                Err::<(), _>(if first { Failure::Unknown(error) } else { Failure::Final(error) })
            }
        }));
        assert_eq!(failed.unwrap_err().code(), Code::Indeterminate);
    }

    #[test]
    fn a_service_that_says_when_is_asked_again_then_and_as_often_as_time_allows() {
        let tries = Cell::new(0);
        let waited = run(async {
            let begun = tokio::time::Instant::now();
            let policy = Policy::default();
            let answer = policy.run(Repeat::Never, || {
                tries.set(tries.get() + 1);
                let later = tries.get() < 8;
                async move {
                    let wait = Duration::from_millis(100);
                    if later { Err(Failure::Later(Error::new(Code::Busy), wait)) } else { Ok(()) }
                }
            });
            answer.await.unwrap();
            begun.elapsed()
        });
        assert!(tries.get() == 8 && waited >= Duration::from_millis(700), "{} in {waited:?}", tries.get());
        let refused = run(Policy::default().run(Repeat::Never, || async {
            Err::<(), _>(Failure::Later(Error::new(Code::Busy), Duration::from_secs(60)))
        }));
        assert_eq!(refused.unwrap_err().code(), Code::Busy, "nothing was applied, and it says so");
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        for (repeat, code) in [(Repeat::Reads, Code::Timeout), (Repeat::Writes, Code::Indeterminate)] {
            // Time is the test's own: no second passes.
            let silent = run(async {
                let policy = Policy::default();
                let begun = tokio::time::Instant::now();
                let answer = policy.run(repeat, std::future::pending::<Result<(), Failure>>).await;
                assert!(begun.elapsed() <= policy.timeout + Duration::from_secs(1));
                answer
            });
            assert_eq!(silent.unwrap_err().code(), code);
        }
    }

    #[test]
    fn escaped_names_hold_no_separator_and_stay_apart() {
        assert_eq!(escaped("a.b-c_D9"), "a.b-c_D9");
        assert_eq!(escaped("a:b/ü%"), "a%3ab%2f%c3%bc%25");
        assert_ne!(escaped("%3a"), escaped(":"));
    }
}
