//! Firestore as a back end, over its REST interface. URL: `firestore://project[/database][?prefix=P&endpoint=URL]`. Credentials come from
//! the provider's own chain (a service account's file, the user's, the machine's); an `endpoint` of `http://`, or the variable
//! `FIRESTORE_EMULATOR_HOST`, is an emulator and gets none.
//!
//! A bucket is a collection, `P` + its name, escaped + `:`; a key is a document, `k` + the key in an order-preserving
//! spelling, since the service refuses `/`, `.`, `__x__` and nothing at all.
//!
//! | field | what it holds                                     |
//! |   `v` | the value                                         |
//! |   `e` | 128 random bits, new with every write             |
//!
//! Flow: [`RemoteBucket`] -> [`Policy::run`] -> `documents:batchGet`, `:commit`, `:runQuery`.
//! Invariants: 1. The guard of a compare-and-swap is the document's update time. The service leaves it where it was if a write changes
//! nothing, so every write changes `e`. 2. Reads are strongly consistent. 3. A batch is atomic up to what one commit takes here, 500 keys
//! and 3.5 MiB. 4. An increment is a loop of read and conditional write: the service's own stops at the end of an i64 without a
//! word, and replaces what is no number.

use super::http::{Http, Reply};
use super::remote::{
    Answer, Failure, Filling, Policy, RemoteBackend, RemoteBucket, Repeat, add_by_swap, decoded, escaped,
    last_of_equal, partly, query,
};
use super::{Capabilities, Guard, Key, Observed, Page, PageBounds, Pair, SetOptions, Swap};
use crate::{Code, Error, Utf8Bytes};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use gcp_auth::TokenProvider;
use http_body_util::Full;
use hyper::Request;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use tokio::sync::OnceCell;
use url::Url;

const SERVICE: &str = "https://firestore.googleapis.com";
const SCOPES: &[&str] = &["https://www.googleapis.com/auth/datastore"];
/// What one request holds here. The service takes 10 MiB, and a value grows by a third on its way; its emulator takes 4 MiB.
const READS_MAX: usize = 100;
const WRITES_MAX: usize = 500;
const COMMIT_BYTES_MAX: usize = 7 << 19;
/// Longest name of a document or collection.
const ID_BYTES_MAX: usize = 1500;

const CAPABILITIES: Capabilities = Capabilities {
    atomic_batches: false,
    snapshot_reads: false,
    ordered: true,
    watchable: false,
    durable: true,
    expiring: false,
    key_bytes_max: ID_BYTES_MAX - 1,
    // A document has 1 MiB, its name and the version among them.
    value_bytes_max: (1 << 20) - 4096,
    batch_keys_max: WRITES_MAX,
    batch_bytes_max: COMMIT_BYTES_MAX,
};

/// A Firestore database.
#[derive(Clone)]
pub struct Firestore {
    link: Arc<Link>,
    prefix: String,
}

impl fmt::Debug for Firestore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Firestore").field("root", &self.link.root).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Firestore {
    /// The database at `url`, `(default)` if it names none; the service is first asked by the first call.
    ///
    /// # Errors
    /// [`Code::Invalid`] for a URL without a project; [`Code::Io`] if the system's certificates cannot be read.
    pub fn new(url: &Url, policy: Policy) -> Result<Self, Error> {
        let project = url.host_str().filter(|project| !project.is_empty()).map(decoded);
        let project =
            project.ok_or_else(|| Error::with_detail(Code::Invalid, "firestore://PROJECT: the project is missing"))?;
        let database = decoded(url.path().trim_matches('/'));
        let database = if database.is_empty() { "(default)".to_owned() } else { database };
        let emulator = || std::env::var("FIRESTORE_EMULATOR_HOST").ok().map(|host| format!("http://{host}"));
        let endpoint = query(url, "endpoint").or_else(emulator).unwrap_or_else(|| SERVICE.to_owned());
        let root = format!("projects/{project}/databases/{database}/documents");
        let base = format!("{}/v1/{root}", endpoint.trim_end_matches('/'));
        let http = Http::new(&policy)?;
        let link = Link { http, base, root, policy, signs: endpoint.starts_with("https:"), tokens: OnceCell::new() };
        Ok(Firestore { link: Arc::new(link), prefix: query(url, "prefix").unwrap_or_default() })
    }
}

impl RemoteBackend for Firestore {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn bucket(&self, name: &str) -> Result<Arc<dyn RemoteBucket>, Error> {
        let collection = format!("{}{}:", self.prefix, escaped(name));
        if collection.len() > ID_BYTES_MAX || collection.contains('/') {
            return Err(Error::with_detail(Code::Invalid, "no name of a collection: too long, or a / in its prefix"));
        }
        let base = format!("{}/{collection}/", self.link.root);
        Ok(Arc::new(Bucket { link: self.link.clone(), identity: name.to_owned(), collection, base }))
    }
}

struct Link {
    http: Http,
    /// Where the service answers.
    base: String,
    /// What names of documents begin with.
    root: String,
    policy: Policy,
    signs: bool,
    tokens: OnceCell<Arc<dyn TokenProvider>>,
}

impl Link {
    async fn authorization(&self) -> Result<String, Failure> {
        if !self.signs {
            // What emulators take for an owner, whom no rule binds.
            return Ok("Bearer owner".to_owned());
        }
        let denied = |error| Failure::NotApplied(Error::with_detail(Code::Io, error));
        let tokens = self.tokens.get_or_try_init(gcp_auth::provider).await.map_err(denied)?;
        let token = tokens.token(SCOPES).await.map_err(denied)?;
        Ok(format!("Bearer {}", token.as_str()))
    }

    /// One request: its answer, or what the service refused it with.
    async fn ask(&self, method: &str, body: &Bytes) -> Result<Result<Bytes, Refusal>, Failure> {
        let request = Request::post(format!("{}:{method}", self.base))
            .header("authorization", self.authorization().await?)
            .header("content-type", "application/json")
            .body(Full::new(body.clone()))
            .map_err(|error| Error::with_detail(Code::Invalid, error))?;
        let reply = self.http.send(request).await?;
        if reply.status.is_success() { Ok(Ok(reply.body)) } else { Ok(Err(Refusal::of(&reply))) }
    }

    async fn read(&self, method: &str, body: &Value) -> Result<Bytes, Error> {
        let body = &Bytes::from(body.to_string());
        let attempt = || async move { self.ask(method, body).await?.map_err(Refusal::into_failure) };
        self.policy.run(Repeat::Reads, attempt).await
    }
}

/// What the service says of a request that it did not do.
struct Refusal {
    status: u16,
    /// The service's own word, such as `ABORTED`.
    kind: String,
    message: String,
}

#[derive(Default, Deserialize)]
struct ErrorBody {
    #[serde(default)]
    error: ErrorWords,
}

#[derive(Default, Deserialize)]
struct ErrorWords {
    #[serde(default)]
    status: String,
    #[serde(default)]
    message: String,
}

impl Refusal {
    fn of(reply: &Reply) -> Self {
        // Calls that answer with a list put their error into one.
        let body = serde_json::from_slice::<ErrorBody>(&reply.body).ok();
        let body = body.or_else(|| serde_json::from_slice::<Vec<ErrorBody>>(&reply.body).ok()?.pop());
        let ErrorWords { status: kind, message } = body.unwrap_or_default().error;
        Refusal { status: reply.status.as_u16(), kind, message }
    }

    /// Whether a condition of the write did not hold.
    fn is_of_the_condition(&self) -> bool {
        matches!(self.kind.as_str(), "ALREADY_EXISTS" | "FAILED_PRECONDITION" | "NOT_FOUND")
    }

    fn into_failure(self) -> Failure {
        let code = |code| Error::with_detail(code, format!("{} {}: {}", self.status, self.kind, self.message));
        let has = |words: &str| self.message.contains(words);
        match (self.kind.as_str(), self.status) {
            ("RESOURCE_EXHAUSTED", _) if has("maximum size") => Failure::Final(code(Code::TooLarge)),
            // Others wrote the same documents, or there is too much to do.
            ("ABORTED" | "RESOURCE_EXHAUSTED", _) | (_, 429) => Failure::NotApplied(code(Code::Busy)),
            ("INVALID_ARGUMENT", _) if has("too big") || has("exceeds the maximum") || has("longer than") => {
                Failure::Final(code(Code::TooLarge))
            }
            ("INVALID_ARGUMENT" | "FAILED_PRECONDITION", _) => Failure::Final(code(Code::Invalid)),
            (_, 500..) => Failure::Unknown(code(Code::Io)),
            _ => Failure::Final(code(Code::Io)),
        }
    }
}

/// One part of the answer of `batchGet` and `runQuery`.
#[derive(Deserialize)]
struct Part {
    #[serde(alias = "document")]
    found: Option<Document>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    name: String,
    #[serde(default)]
    update_time: String,
    #[serde(default)]
    fields: Fields,
}

#[derive(Default, Deserialize)]
struct Fields {
    v: Option<Field>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Field {
    /// Left out by nobody, but an empty one may be.
    #[serde(default)]
    bytes_value: String,
}

impl Document {
    fn value(&self) -> Result<Bytes, Error> {
        let field = self.fields.v.as_ref().ok_or_else(|| damaged("a document without a value"))?;
        Ok(BASE64.decode(&field.bytes_value).map_err(damaged)?.into())
    }
}

fn damaged(detail: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::with_detail(Code::Corrupt, detail)
}

fn parts(body: &[u8]) -> Result<impl Iterator<Item = Document> + use<>, Error> {
    let parts: Vec<Part> = serde_json::from_slice(body).map_err(|error| Error::with_detail(Code::Io, error))?;
    Ok(parts.into_iter().filter_map(|part| part.found))
}

fn observed(document: Option<Document>) -> Result<Observed, Error> {
    let Some(document) = document else { return Ok(Observed { value: None, guard: Guard::Absent }) };
    Ok(Observed { value: Some(document.value()?), guard: Guard::Token(document.update_time.into()) })
}

fn check_value(value: &[u8]) -> Result<(), Error> {
    if value.len() > CAPABILITIES.value_bytes_max { Err(Error::new(Code::TooLarge)) } else { Ok(()) }
}

/// A key as the name of a document: in the order of the keys, without a `/`, `.` or control character, never empty.
///
/// `.` is `.0` and `/`, which follows it, is `.1`; a control character is a space and a letter, and a space, which follows
/// them all, a space and `~`.
fn document_id(key: &str) -> String {
    let mut id = String::with_capacity(key.len() + 8);
    id.push('k');
    for letter in key.chars() {
        match letter {
            '.' => id.push_str(".0"),
            '/' => id.push_str(".1"),
            ' ' => id.push_str(" ~"),
            '\0'..' ' => id.extend([' ', char::from(b'0' + letter as u8)]),
            letter => id.push(letter),
        }
    }
    id
}

/// The key that a document stands for, if it is one of ours.
fn key_of(id: &str) -> Option<String> {
    let mut key = String::with_capacity(id.len());
    let mut letters = id.strip_prefix('k')?.chars();
    while let Some(letter) = letters.next() {
        key.push(match letter {
            '.' => match letters.next()? {
                '0' => '.',
                '1' => '/',
                _ => return None,
            },
            ' ' => match letters.next()? {
                '~' => ' ',
                letter @ '0'..='O' => char::from(letter as u8 - b'0'),
                _ => return None,
            },
            letter => letter,
        });
    }
    Some(key)
}

struct Bucket {
    link: Arc<Link>,
    identity: String,
    collection: String,
    /// What the names of its documents begin with.
    base: String,
}

impl Bucket {
    /// The name of a key's document.
    fn at(&self, key: &str) -> Result<String, Error> {
        let id = document_id(key);
        if id.len() > ID_BYTES_MAX {
            return Err(Error::new(Code::TooLarge));
        }
        Ok(self.base.clone() + &id)
    }

    /// The documents of those names that there are, in any order; `mask` names the fields to read.
    async fn find_many(&self, names: &[String], mask: &[&str]) -> Result<impl Iterator<Item = Document>, Error> {
        let body = json!({ "documents": names, "mask": { "fieldPaths": mask } });
        parts(&self.link.read("batchGet", &body).await?)
    }

    async fn find(&self, key: &str) -> Result<Option<Document>, Error> {
        Ok(self.find_many(&[self.at(key)?], &["v"]).await?.next())
    }

    /// Commits what `writes` makes, anew for each attempt; `false` if a condition did not hold.
    async fn commit(&self, repeat: Repeat, writes: impl Fn() -> Vec<Value>) -> Result<bool, Error> {
        let writes = &writes;
        let attempt = || async move {
            let body = Bytes::from(json!({ "writes": writes() }).to_string());
            match self.link.ask("commit", &body).await? {
                Ok(_) => Ok(true),
                Err(refusal) if repeat == Repeat::Never && refusal.is_of_the_condition() => Ok(false),
                Err(refusal) => Err(refusal.into_failure()),
            }
        };
        self.link.policy.run(repeat, attempt).await
    }

    /// Writes where `guard`, if there is one, still holds; `false` where it does not.
    async fn put(&self, key: &str, value: &[u8], guard: Option<&Guard>) -> Result<bool, Error> {
        let name = self.at(key)?;
        check_value(value)?;
        let condition = match guard {
            None => None,
            Some(Guard::Absent) => Some(json!({ "exists": false })),
            Some(Guard::Token(token)) => Some(json!({ "updateTime": std::str::from_utf8(token).unwrap_or_default() })),
            Some(Guard::Version(_)) => return Err(Error::new(Code::Invalid)),
        };
        let repeat = if guard.is_some() { Repeat::Never } else { Repeat::Writes };
        let write = || {
            let mut write = update(&name, value);
            if let Some(condition) = &condition {
                write["currentDocument"] = condition.clone();
            }
            vec![write]
        };
        self.commit(repeat, write).await
    }

    async fn page(&self, prefix: &str, after: Option<&[u8]>, bounds: PageBounds) -> Result<Page, Error> {
        let from = match after.map(std::str::from_utf8) {
            None => prefix,
            Some(Ok(after)) => after,
            Some(Err(_)) => return Err(Error::new(Code::InvalidCursor)),
        };
        let mut filling = Filling::within(bounds);
        let body = json!({ "structuredQuery": {
            "from": [{ "collectionId": self.collection }],
            "select": { "fields": [{ "fieldPath": "__name__" }] },
            "orderBy": [{ "field": { "fieldPath": "__name__" }, "direction": "ASCENDING" }],
            "startAt": {
                "values": [{ "referenceValue": self.base.clone() + &document_id(from) }],
                "before": after.is_none(),
            },
            "limit": i32::try_from(filling.wanted()).unwrap_or(i32::MAX),
        }});
        for document in parts(&self.link.read("runQuery", &body).await?)? {
            let Some(key) = document.name.strip_prefix(&self.base).and_then(key_of) else { continue };
            if !key.starts_with(prefix) || !filling.take(&key) {
                break;
            }
        }
        Ok(filling.page())
    }

    /// Commits chunk by chunk; `size` is what a write weighs.
    async fn commit_many<T>(
        &self,
        writes: &[T],
        size: impl Fn(&T) -> usize,
        write: impl Fn(&T) -> Value,
    ) -> Result<(), Error> {
        let (mut begin, mut end, mut bytes) = (0, 0, 0);
        while begin < writes.len() {
            while end < writes.len() && end - begin < WRITES_MAX {
                bytes += size(&writes[end]);
                if bytes > COMMIT_BYTES_MAX && end > begin {
                    break;
                }
                end += 1;
            }
            let chunk = &writes[begin..end];
            let committed = self.commit(Repeat::Writes, || chunk.iter().map(&write).collect()).await;
            // What an earlier chunk has written stays.
            committed.map_err(|error| partly(error, begin > 0))?;
            (begin, bytes) = (end, 0);
        }
        Ok(())
    }
}

/// The write of a value, of a version of its own.
fn update(name: &str, value: &[u8]) -> Value {
    json!({ "update": { "name": name, "fields": {
        "v": { "bytesValue": BASE64.encode(value) },
        "e": { "bytesValue": BASE64.encode(fastrand::u128(..).to_le_bytes()) },
    }}})
}

impl RemoteBucket for Bucket {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Bytes>> {
        Box::pin(async move { self.find(key).await?.map(|document| document.value()).transpose() })
    }

    fn exists<'a>(&'a self, key: &'a str) -> Answer<'a, bool> {
        Box::pin(async move { Ok(self.find_many(&[self.at(key)?], &["e"]).await?.next().is_some()) })
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
        Box::pin(async move {
            let name = self.at(key)?;
            self.commit(Repeat::Writes, || vec![json!({ "delete": name })]).await.map(drop)
        })
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
            let names = keys.iter().map(|key| self.at(key.as_ref())).collect::<Result<Vec<_>, _>>()?;
            let mut seen = HashSet::new();
            let different: Vec<String> = names.iter().filter(|name| seen.insert(*name)).cloned().collect();
            let mut found = HashMap::with_capacity(different.len());
            for chunk in different.chunks(READS_MAX) {
                for document in self.find_many(chunk, &["v"]).await? {
                    let value = document.value()?;
                    found.insert(document.name, value);
                }
            }
            let pairs = keys.iter().zip(&names).map(|(key, name)| {
                let value = found.get(name)?.clone();
                Some((Utf8Bytes::new(Bytes::copy_from_slice(key.as_ref()))?, value))
            });
            Ok(pairs.collect())
        })
    }

    fn set_many<'a>(&'a self, pairs: &'a [(Key<'a>, &'a [u8])]) -> Answer<'a, ()> {
        Box::pin(async move {
            let writes = last_of_equal(pairs).into_iter().map(|(key, value)| {
                check_value(value)?;
                Ok((self.at(key)?, value))
            });
            let writes = writes.collect::<Result<Vec<_>, Error>>()?;
            self.commit_many(
                &writes,
                |(name, value)| 100 + name.len() + value.len(),
                |(name, value)| update(name, value),
            )
            .await
        })
    }

    fn delete_many<'a>(&'a self, keys: &'a [Key<'a>]) -> Answer<'a, ()> {
        Box::pin(async move {
            let names = keys.iter().map(|key| self.at(key.as_ref())).collect::<Result<HashSet<_>, _>>()?;
            let names: Vec<String> = names.into_iter().collect();
            self.commit_many(&names, |name| 100 + name.len(), |name| json!({ "delete": name })).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Vec<String> {
        let mut keys: Vec<String> = ["", ".", "..", "__x__", "a/b", "a.b", "a b", "a", "~", "\u{7f}", "\u{10ffff}"]
            .into_iter()
            .map(str::to_owned)
            .collect();
        keys.extend((0..0x30_u8).flat_map(|a| [format!("{}", char::from(a)), format!("x{}y", char::from(a))]));
        keys.extend((0..0x30_u8).map(|a| format!(".{} ", char::from(a))));
        keys
    }

    #[test]
    fn every_key_comes_back_from_its_document_and_in_the_same_order() {
        let mut keys = keys();
        keys.sort();
        keys.dedup();
        let ids: Vec<String> = keys.iter().map(|key| document_id(key)).collect();
        assert!(ids.is_sorted(), "{ids:?}");
        for (key, id) in keys.iter().zip(&ids) {
            assert_eq!(key_of(id).as_ref(), Some(key));
            assert!(!id.contains('/') && !id.starts_with("__") && id != "." && id != ".." && !id.is_empty(), "{id}");
            assert!(id.chars().all(|letter| letter >= ' '), "{id:?}");
        }
    }

    #[test]
    fn a_document_of_somebody_else_is_no_key() {
        for id in ["", "x", "k.", "k.2", "k ", "kabc .", "k P"] {
            assert_eq!(key_of(id), None, "{id:?}");
        }
    }
}
