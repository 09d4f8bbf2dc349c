//! Cosmos DB for NoSQL as a back end, over its REST interface.
//! URL: `cosmos://[:key@]account/database/container[?prefix=P&endpoint=URL&create=true]`; without a key in the URL it is that of the
//! variable `AZURE_COSMOS_KEY`.
//!
//! A bucket is a logical partition: the container's partition key is `/b`. An item:
//!
//! | property | what it holds                                                                       |
//! |     `id` | `k` + key; all but letters, digits, `-`, `_`, `.` as `=` and two hex digits a byte   |
//! |      `b` | `P` + bucket, escaped + `/`                                                          |
//! |      `v` | the value in base64                                                                 |
//!
//! Flow: [`RemoteBucket`] -> [`Policy::run`] -> a signed request. What differs between requests is in their bodies and headers; of a guest's
//! words only the escaped key stands in a path, and none in the text of a query.
//! Invariants: 1. The guard of a compare-and-swap is the item's ETag, which the service changes with every write. 2. A bucket reads
//! what it wrote: it hands the service's session token back; what others wrote is seen as the account's consistency has it, and a
//! conditional write meets what is really there. 3. A batch is each key by itself. 4. An increment is a loop of read and conditional
//! write: the service's own counts in doubles.

use super::http::{Http, Reply};
use super::remote::{
    Answer, Failure, Filling, Policy, RemoteBackend, RemoteBucket, Repeat, add_by_swap, decoded, escaped, escaped_by,
    last_of_equal, partly, query,
};
use super::{Capabilities, Guard, Key, Observed, Page, PageBounds, Pair, SetOptions, Swap};
use crate::{Code, Error, Utf8Bytes};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::Full;
use hyper::{Method, Request};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::Sha256;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use url::Url;

const API_VERSION: &str = "2018-12-31";
/// Where the key comes from that is not in the URL.
const KEY_VARIABLE: &str = "AZURE_COSMOS_KEY";
/// Keys of one query.
const READS_MAX: usize = 100;
/// Requests of one batch on their way at once.
const PARALLEL: usize = 16;
/// Longest id of an item, longest partition key.
const ID_BYTES_MAX: usize = 1023;
const PARTITION_BYTES_MAX: usize = 2048;

const CAPABILITIES: Capabilities = Capabilities {
    atomic_batches: false,
    snapshot_reads: false,
    ordered: false,
    watchable: false,
    durable: true,
    expiring: false,
    key_bytes_max: ID_BYTES_MAX - 1,
    // An item has 2 MiB of JSON, in which the value is a third longer; the rest is for names and what the service adds.
    value_bytes_max: ((2 << 20) - (8 << 10)) / 4 * 3,
    batch_keys_max: 1,
    // One key by itself is bounded by what is said of keys and values.
    batch_bytes_max: 0,
};

/// A container of a Cosmos DB account.
#[derive(Clone)]
pub struct CosmosDb {
    link: Arc<Link>,
    prefix: String,
}

impl fmt::Debug for CosmosDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CosmosDb").field("container", &self.link.container).finish_non_exhaustive()
    }
}

impl CosmosDb {
    /// The container at `url`. With `create=true` it and its database are made if they are not there; otherwise the service is
    /// first asked by the first call.
    ///
    /// # Errors
    /// [`Code::Invalid`] for a URL without account, database or container, and without a key that is one.
    pub async fn new(url: &Url, policy: Policy) -> Result<Self, Error> {
        let invalid = |what: &'static str| Error::with_detail(Code::Invalid, what);
        let account = url.host_str().filter(|account| !account.is_empty()).map(decoded);
        let parts: Vec<String> = url.path().split('/').filter(|part| !part.is_empty()).map(decoded).collect();
        let (Some(account), [database, container]) = (account, &parts[..]) else {
            return Err(invalid("cosmos://ACCOUNT/DATABASE/CONTAINER: a part of it is missing"));
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !database.bytes().chain(container.bytes()).all(plain) {
            return Err(invalid("names of database and container are letters, digits, -, _ and ."));
        }
        let key = match url.password() {
            Some(key) => decoded(key),
            None => std::env::var(KEY_VARIABLE)
                .map_err(|_| invalid("there is no key: it comes from the variable AZURE_COSMOS_KEY"))?,
        };
        let key = BASE64.decode(key.trim()).map_err(|_| invalid("the account's key is not in base64"))?;
        let host = if account.contains('.') { account } else { format!("{account}.documents.azure.com") };
        let base = query(url, "endpoint").unwrap_or_else(|| match url.port() {
            None => format!("https://{host}"),
            Some(port) => format!("https://{host}:{port}"),
        });
        let base = base.trim_end_matches('/').to_owned();
        let database = format!("dbs/{database}");
        let link =
            Link { http: Http::new(&policy)?, base, container: format!("{database}/colls/{container}"), key, policy };
        if query(url, "create").is_some_and(|create| create == "true") {
            link.create(&database, container).await?;
        }
        Ok(CosmosDb { link: Arc::new(link), prefix: query(url, "prefix").unwrap_or_default() })
    }
}

impl RemoteBackend for CosmosDb {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn bucket(&self, name: &str) -> Result<Arc<dyn RemoteBucket>, Error> {
        let partition = format!("{}{}/", self.prefix, escaped(name));
        if partition.len() > PARTITION_BYTES_MAX {
            return Err(Error::new(Code::TooLarge));
        }
        let partition_header = ascii_json(&json!([partition]));
        let session = Mutex::default();
        Ok(Arc::new(Bucket {
            link: self.link.clone(),
            identity: name.to_owned(),
            partition,
            partition_header,
            session,
        }))
    }
}

/// JSON that a header can hold: all beyond ASCII as `\u` escapes.
fn ascii_json(value: &Value) -> String {
    use fmt::Write;
    let mut ascii = String::new();
    for unit in value.to_string().encode_utf16() {
        match u8::try_from(unit) {
            Ok(byte) if byte.is_ascii() => ascii.push(char::from(byte)),
            // Writing to a string does not fail.
            _ => drop(write!(ascii, "\\u{unit:04x}")),
        }
    }
    ascii
}

struct Link {
    http: Http,
    /// Where the service answers.
    base: String,
    /// The container's place: `dbs/D/colls/C`.
    container: String,
    key: Vec<u8>,
    policy: Policy,
}

/// A request before it is signed: that is done for each attempt, with the time.
struct Ask<'a> {
    method: Method,
    /// What kind of thing is asked for: `docs`, `colls`, `dbs`.
    kind: &'static str,
    /// The thing that the signature is over: the one asked for, or the one that it will be part of.
    resource: &'a str,
    /// Where it is sent, below the service.
    path: &'a str,
    headers: Vec<(&'static str, &'a str)>,
    body: Bytes,
}

impl Link {
    async fn send(&self, ask: &Ask<'_>) -> Result<Reply, Failure> {
        let date = httpdate::fmt_http_date(SystemTime::now());
        let authorization = self.signature(ask, &date).map_err(Failure::Final)?;
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(format!("{}/{}", self.base, ask.path))
            .header("authorization", authorization)
            .header("x-ms-date", date)
            .header("x-ms-version", API_VERSION);
        for (name, value) in &ask.headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(ask.body.clone()));
        self.http.send(request.map_err(|error| Error::with_detail(Code::Invalid, error))?).await
    }

    /// Source: "Access control on Azure Cosmos DB resources", the signature of a primary key.
    fn signature(&self, ask: &Ask<'_>, date: &str) -> Result<String, Error> {
        let text = format!(
            "{}\n{}\n{}\n{}\n\n",
            ask.method.as_str().to_ascii_lowercase(),
            ask.kind,
            ask.resource,
            date.to_ascii_lowercase()
        );
        let mac = Hmac::<Sha256>::new_from_slice(&self.key);
        let mut mac = mac.map_err(|_| Error::with_detail(Code::Invalid, "the account's key is none"))?;
        mac.update(text.as_bytes());
        let signature = BASE64.encode(mac.finalize().into_bytes());
        Ok(escaped_by('%', &format!("type=master&ver=1.0&sig={signature}")))
    }

    async fn create(&self, database: &str, container: &str) -> Result<(), Error> {
        let name = database.trim_start_matches("dbs/");
        let colls = format!("{database}/colls");
        // Values are not looked for: to index them costs with every write.
        let paths = json!([{ "path": "/v/?" }, { "path": "/\"_etag\"/?" }]);
        let indexing = json!({
            "indexingMode": "consistent", "automatic": true,
            "includedPaths": [{ "path": "/*" }], "excludedPaths": paths,
        });
        let key = json!({ "paths": ["/b"], "kind": "Hash", "version": 2 });
        let body = json!({ "id": container, "partitionKey": key, "indexingPolicy": indexing });
        for (kind, resource, path, body) in
            [("dbs", "", "dbs", json!({ "id": name })), ("colls", database, colls.as_str(), body)]
        {
            let body = Bytes::from(body.to_string());
            let headers = vec![("content-type", "application/json")];
            let ask = &Ask { method: Method::POST, kind, resource, path, headers, body };
            let created = self.policy.run(Repeat::Writes, || async move {
                let reply = self.send(ask).await?;
                // It is there already: as good.
                if reply.status.is_success() || reply.status.as_u16() == 409 { Ok(()) } else { Err(failure(&reply)) }
            });
            created.await?;
        }
        Ok(())
    }
}

/// What the service says of a request that it did not do.
fn failure(reply: &Reply) -> Failure {
    let header = |name: &str| reply.headers.get(name).and_then(|value| value.to_str().ok());
    let (status, substatus) = (reply.status.as_u16(), header("x-ms-substatus").unwrap_or_default());
    let words = serde_json::from_slice::<Refusal>(&reply.body).unwrap_or_default();
    let code = |code| Error::with_detail(code, format!("{status} {substatus} {}: {}", words.code, words.message));
    match (status, substatus) {
        (429, _) => {
            let wait = header("x-ms-retry-after-ms")
                .and_then(|ms| ms.parse().ok())
                .map_or(Duration::ZERO, Duration::from_millis);
            Failure::Later(code(Code::Busy), wait)
        }
        // Others wrote the same; the replica asked has not yet what this session has written.
        (449, _) | (404, "1002") => Failure::NotApplied(code(Code::Busy)),
        // A logical partition has 20 GB.
        (403, "1014") => Failure::Final(code(Code::NoSpace)),
        (413, _) => Failure::Final(code(Code::TooLarge)),
        (400 | 409 | 412, _) => Failure::Final(code(Code::Invalid)),
        (408 | 410 | 500.., _) => Failure::Unknown(code(Code::Io)),
        _ => Failure::Final(code(Code::Io)),
    }
}

#[derive(Default, Deserialize)]
struct Refusal {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// Whether an item is missing, and not something else on the way to it.
fn is_missing(reply: &Reply) -> bool {
    let substatus = reply.headers.get("x-ms-substatus").and_then(|value| value.to_str().ok());
    reply.status.as_u16() == 404 && substatus.is_none_or(|substatus| substatus == "0")
}

#[derive(Deserialize)]
struct Item {
    id: String,
    #[serde(default)]
    v: Option<String>,
    #[serde(rename = "_etag", default)]
    etag: String,
}

#[derive(Deserialize)]
struct Found {
    #[serde(rename = "Documents")]
    items: Vec<Item>,
}

impl Item {
    fn value(&self) -> Result<Bytes, Error> {
        let damaged = |detail: &'static str| Error::with_detail(Code::Corrupt, detail);
        let value = self.v.as_ref().ok_or_else(|| damaged("an item without a value"))?;
        Ok(BASE64.decode(value).map_err(|_| damaged("an item whose value is not in base64"))?.into())
    }
}

fn parsed<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| Failure::Final(Error::with_detail(Code::Io, error)))
}

fn observed(item: Option<Item>) -> Result<Observed, Error> {
    let Some(item) = item else { return Ok(Observed { value: None, guard: Guard::Absent }) };
    Ok(Observed { value: Some(item.value()?), guard: Guard::Token(item.etag.into()) })
}

fn check_value(value: &[u8]) -> Result<(), Error> {
    if value.len() > CAPABILITIES.value_bytes_max { Err(Error::new(Code::TooLarge)) } else { Ok(()) }
}

/// The id of a key's item.
fn id_of(key: &str) -> Result<String, Error> {
    let id = format!("k{}", escaped_by('=', key));
    if id.len() > ID_BYTES_MAX { Err(Error::new(Code::TooLarge)) } else { Ok(id) }
}

/// The key that an id stands for, if it is one of ours.
fn key_of(id: &str) -> Option<String> {
    let mut bytes = id.strip_prefix('k')?.bytes();
    let mut key = Vec::with_capacity(id.len());
    while let Some(byte) = bytes.next() {
        key.push(match byte {
            b'=' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    let key = String::from_utf8(key).ok()?;
    // One spelling a key.
    (id_of(&key).is_ok_and(|spelled| spelled == id)).then_some(key)
}

/// How far this bucket's own writes are, in the service's terms.
#[derive(Default)]
struct Session {
    token: Option<String>,
}

impl Session {
    /// A token names a range of partitions and a position in it: `0:-1#123`, or with more numbers after a further `#`.
    fn position(token: &str) -> Option<(&str, u64)> {
        let (range, rest) = token.split_once(':')?;
        Some((range, rest.split('#').nth(1)?.parse().ok()?))
    }

    fn saw(&mut self, token: &str) {
        let older = match (self.token.as_deref().and_then(Self::position), Self::position(token)) {
            (Some((range, position)), Some((new_range, new))) => range == new_range && new < position,
            _ => false,
        };
        if !older {
            self.token = Some(token.to_owned());
        }
    }
}

struct Bucket {
    link: Arc<Link>,
    identity: String,
    partition: String,
    partition_header: String,
    session: Mutex<Session>,
}

impl Bucket {
    /// One request about items of this bucket.
    async fn send(
        &self,
        method: Method,
        id: Option<&str>,
        more: &[(&'static str, &str)],
        body: &Bytes,
    ) -> Result<Reply, Failure> {
        let place = id.map(|id| format!("{}/docs/{id}", self.link.container));
        let docs = format!("{}/docs", self.link.container);
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).token.clone();
        let mut headers = vec![("x-ms-documentdb-partitionkey", self.partition_header.as_str())];
        headers.extend(session.as_deref().map(|session| ("x-ms-session-token", session)));
        headers.extend(more);
        let ask = Ask {
            method,
            kind: "docs",
            resource: place.as_deref().unwrap_or(&self.link.container),
            path: place.as_deref().unwrap_or(&docs),
            headers,
            body: body.clone(),
        };
        let reply = self.link.send(&ask).await?;
        if let Some(token) = reply.headers.get("x-ms-session-token").and_then(|token| token.to_str().ok()) {
            self.session.lock().unwrap_or_else(PoisonError::into_inner).saw(token);
        }
        Ok(reply)
    }

    async fn find(&self, key: &str) -> Result<Option<Item>, Error> {
        let id = &id_of(key)?;
        let attempt = || async move {
            let reply = self.send(Method::GET, Some(id), &[], &Bytes::new()).await?;
            match reply.status.is_success() {
                true => parsed(&reply.body).map(Some),
                false if is_missing(&reply) => Ok(None),
                false => Err(failure(&reply)),
            }
        };
        self.link.policy.run(Repeat::Reads, attempt).await
    }

    /// Writes where `guard`, if there is one, still holds; `false` where it does not.
    async fn put(&self, key: &str, value: &[u8], guard: Option<&Guard>) -> Result<bool, Error> {
        let id = id_of(key)?;
        check_value(value)?;
        let body = &Bytes::from(json!({ "id": id, "b": self.partition, "v": BASE64.encode(value) }).to_string());
        let content = ("content-type", "application/json");
        // An upsert makes an item that is gone: what stands on a version replaces.
        let (method, place, more) = match guard {
            None => (Method::POST, None, ("x-ms-documentdb-is-upsert", "True")),
            Some(Guard::Absent) => (Method::POST, None, ("x-ms-documentdb-is-upsert", "False")),
            Some(Guard::Token(token)) => {
                (Method::PUT, Some(id.as_str()), ("if-match", std::str::from_utf8(token).unwrap_or("-")))
            }
            Some(Guard::Version(_)) => return Err(Error::new(Code::Invalid)),
        };
        let repeat = if guard.is_some() { Repeat::Never } else { Repeat::Writes };
        let (method, more) = (&method, &[content, more]);
        let attempt = || async move {
            let reply = self.send(method.clone(), place, more, body).await?;
            match reply.status.as_u16() {
                200..300 => Ok(true),
                409 | 412 if guard.is_some() => Ok(false),
                404 if guard.is_some() && is_missing(&reply) => Ok(false),
                _ => Err(failure(&reply)),
            }
        };
        self.link.policy.run(repeat, attempt).await
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        let id = &id_of(key)?;
        let attempt = || async move {
            let reply = self.send(Method::DELETE, Some(id), &[], &Bytes::new()).await?;
            if reply.status.is_success() || is_missing(&reply) { Ok(()) } else { Err(failure(&reply)) }
        };
        self.link.policy.run(Repeat::Writes, attempt).await
    }

    /// One page of a query's answer, and where the next begins.
    async fn query(
        &self,
        body: &Bytes,
        items_max: usize,
        from: Option<&str>,
    ) -> Result<(Vec<Item>, Option<String>), Error> {
        let items_max = &items_max.to_string();
        let attempt = || async move {
            let mut more = vec![
                ("content-type", "application/query+json"),
                ("x-ms-documentdb-isquery", "True"),
                ("x-ms-max-item-count", items_max.as_str()),
            ];
            more.extend(from.map(|from| ("x-ms-continuation", from)));
            let reply = self.send(Method::POST, None, &more, body).await?;
            if !reply.status.is_success() {
                return Err(failure(&reply));
            }
            let next = reply.headers.get("x-ms-continuation").and_then(|next| next.to_str().ok()).map(str::to_owned);
            Ok((parsed::<Found>(&reply.body)?.items, next))
        };
        self.link.policy.run(Repeat::Reads, attempt).await
    }

    async fn page(&self, prefix: &str, after: Option<&[u8]>, bounds: PageBounds) -> Result<Page, Error> {
        let after = match after.map(std::str::from_utf8) {
            None => None,
            Some(Ok(after)) => Some(id_of(after)?),
            Some(Err(_)) => return Err(Error::new(Code::InvalidCursor)),
        };
        let text = match &after {
            None => "SELECT c.id FROM c WHERE c.b = @bucket AND STARTSWITH(c.id, @prefix) ORDER BY c.id",
            Some(_) => {
                "SELECT c.id FROM c WHERE c.b = @bucket AND STARTSWITH(c.id, @prefix) AND c.id > @after ORDER BY c.id"
            }
        };
        let parameter = |name: &str, value: &str| json!({ "name": name, "value": value });
        let prefix = format!("k{}", escaped_by('=', prefix));
        let mut parameters = vec![parameter("@bucket", &self.partition), parameter("@prefix", &prefix)];
        parameters.extend(after.iter().map(|after| parameter("@after", after)));
        let body = Bytes::from(json!({ "query": text, "parameters": parameters }).to_string());

        let (mut filling, mut from) = (Filling::within(bounds), None);
        loop {
            let (items, next) = self.query(&body, filling.wanted(), from.as_deref()).await?;
            for item in items {
                let Some(key) = key_of(&item.id) else { continue };
                if !filling.take(&key) {
                    return Ok(filling.page());
                }
            }
            if next.is_none() {
                return Ok(filling.page());
            }
            from = next;
        }
    }

    /// The items of up to 100 ids.
    async fn find_many(&self, ids: &[String]) -> Result<Vec<Item>, Error> {
        let names: Vec<String> = (0..ids.len()).map(|i| format!("@k{i}")).collect();
        let text = format!("SELECT c.id, c.v FROM c WHERE c.b = @bucket AND c.id IN ({})", names.join(", "));
        let parameters = names.iter().zip(ids).map(|(name, id)| json!({ "name": name, "value": id }));
        let bucket = json!({ "name": "@bucket", "value": self.partition });
        let parameters: Vec<Value> = std::iter::once(bucket).chain(parameters).collect();
        let body = Bytes::from(json!({ "query": text, "parameters": parameters }).to_string());
        let (mut found, mut from) = (Vec::with_capacity(ids.len()), None);
        loop {
            let (items, next) = self.query(&body, ids.len(), from.as_deref()).await?;
            found.extend(items);
            if next.is_none() {
                return Ok(found);
            }
            from = next;
        }
    }
}

impl RemoteBucket for Bucket {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Bytes>> {
        Box::pin(async move { self.find(key).await?.map(|item| item.value()).transpose() })
    }

    fn exists<'a>(&'a self, key: &'a str) -> Answer<'a, bool> {
        Box::pin(async move { Ok(self.find(key).await?.is_some()) })
    }

    fn set<'a>(&'a self, key: &'a str, value: &'a [u8]) -> Answer<'a, ()> {
        Box::pin(async move { self.put(key, value, None).await.map(drop) })
    }

    fn set_with<'a>(&'a self, key: &'a str, value: &'a [u8], options: SetOptions) -> Answer<'a, bool> {
        Box::pin(async move {
            if options.ttl.is_some() {
                return Err(Error::new(Code::Unsupported));
            }
            self.put(key, value, options.if_absent.then_some(&Guard::Absent)).await
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        Box::pin(self.remove(key))
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a [u8]>, bounds: PageBounds) -> Answer<'a, Page> {
        Box::pin(self.page(prefix, after, bounds))
    }

    fn increment<'a>(&'a self, key: &'a str, delta: i64) -> Answer<'a, i64> {
        Box::pin(add_by_swap(self, key, delta))
    }

    fn observe<'a>(&'a self, key: &'a str) -> Answer<'a, Observed> {
        Box::pin(async move { observed(self.find(key).await?) })
    }

    fn swap<'a>(&'a self, key: &'a str, guard: &'a Guard, value: &'a [u8]) -> Answer<'a, Swap> {
        Box::pin(async move {
            if self.put(key, value, Some(guard)).await? {
                return Ok(Swap::Done);
            }
            Ok(Swap::Conflict(observed(self.find(key).await?)?))
        })
    }

    fn get_many<'a>(&'a self, keys: &'a [Key<'a>]) -> Answer<'a, Vec<Option<Pair>>> {
        Box::pin(async move {
            let ids = keys.iter().map(|key| id_of(key.as_ref())).collect::<Result<Vec<_>, _>>()?;
            let mut seen = HashSet::new();
            let different: Vec<String> = ids.iter().filter(|id| seen.insert(*id)).cloned().collect();
            let chunks: Vec<Vec<String>> = different.chunks(READS_MAX).map(<[_]>::to_vec).collect();
            let chunks = chunks.into_iter().map(|chunk| async move { self.find_many(&chunk).await });
            let chunks: Vec<Vec<Item>> = stream::iter(chunks).buffer_unordered(PARALLEL).try_collect().await?;
            let mut found = HashMap::with_capacity(different.len());
            for item in chunks.into_iter().flatten() {
                let value = item.value()?;
                found.insert(item.id, value);
            }
            let pairs = keys
                .iter()
                .zip(&ids)
                .map(|(key, id)| Some((Utf8Bytes::new(Bytes::copy_from_slice(key.as_ref()))?, found.get(id)?.clone())));
            Ok(pairs.collect())
        })
    }

    fn set_many<'a>(&'a self, pairs: &'a [(Key<'a>, &'a [u8])]) -> Answer<'a, ()> {
        Box::pin(async move {
            let last = last_of_equal(pairs);
            for (key, value) in &last {
                id_of(key)?;
                check_value(value)?;
            }
            let keys = last.len();
            let writes: Vec<Answer<'a, ()>> = last.into_iter().map(|(key, value)| self.set(key, value)).collect();
            let written = stream::iter(writes).buffer_unordered(PARALLEL).try_collect::<()>().await;
            written.map_err(|error| partly(error, keys > 1))
        })
    }

    fn delete_many<'a>(&'a self, keys: &'a [Key<'a>]) -> Answer<'a, ()> {
        Box::pin(async move {
            keys.iter().try_for_each(|key| id_of(key.as_ref()).map(drop))?;
            let different: HashSet<&'a str> = keys.iter().map(AsRef::as_ref).collect();
            let count = different.len();
            let deletes: Vec<Answer<'a, ()>> = different.into_iter().map(|key| self.delete(key)).collect();
            let deleted = stream::iter(deletes).buffer_unordered(PARALLEL).try_collect::<()>().await;
            deleted.map_err(|error| partly(error, count > 1))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_comes_back_from_its_id_and_no_id_needs_an_escape_in_a_path() {
        let mut keys: Vec<String> = ["", ".", "..", "a/b", "=", "=2f", "ключ", "\u{10ffff}"].map(str::to_owned).into();
        keys.extend((0..=127_u8).map(|byte| format!("x{}", char::from(byte))));
        for key in &keys {
            let id = id_of(key).unwrap();
            assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.=".contains(&byte)), "{id}");
            assert_eq!(key_of(&id).as_ref(), Some(key));
        }
        for id in ["", "x", "k=", "k=2", "k=zz", "k=61", "k=2F", "k/", "k=ff"] {
            assert_eq!(key_of(id), None, "{id}");
        }
    }

    #[test]
    fn a_request_is_signed_as_the_documentation_shows() {
        // The example of "Access control on Azure Cosmos DB resources".
        let key = "dsZQi3KtZmCv1ljt3VNWNm7sQUF1y5rJfC6kv5JiwvW0EndXdDku/dkKBp8/ufDToSxLzR4y+O/0H/t4bQtVNw==";
        let link = Link {
            http: Http::new(&Policy::default()).unwrap(),
            base: String::new(),
            container: String::new(),
            key: BASE64.decode(key).unwrap(),
            policy: Policy::default(),
        };
        let ask = Ask {
            method: Method::GET,
            kind: "dbs",
            resource: "dbs/ToDoList",
            path: "",
            headers: Vec::new(),
            body: Bytes::new(),
        };
        let signed = link.signature(&ask, "Thu, 27 Apr 2017 00:51:12 GMT").unwrap();
        assert_eq!(signed, "type%3dmaster%26ver%3d1.0%26sig%3dc09PEVJrgp2uQRkr934kFbTqhByc7TVr3OHyqlu%2bc%2bc%3d");
    }

    #[test]
    fn a_session_does_not_go_back() {
        let mut session = Session::default();
        session.saw("0:-1#12");
        session.saw("0:-1#9");
        assert_eq!(session.token.as_deref(), Some("0:-1#12"));
        session.saw("0:1#13#4=7");
        assert_eq!(session.token.as_deref(), Some("0:1#13#4=7"));
        // After a split the partition is in a range of its own.
        session.saw("1:-1#2");
        assert_eq!(session.token.as_deref(), Some("1:-1#2"));
    }

    #[test]
    fn a_header_holds_any_name() {
        assert_eq!(ascii_json(&json!(["a\"ü\u{1f511}/"])), "[\"a\\\"\\u00fc\\ud83d\\udd11/\"]");
    }
}
