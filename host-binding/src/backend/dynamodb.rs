//! DynamoDB as a back end. URL: `dynamodb://[key-id:secret@]table[?region=R&endpoint=URL&prefix=P&create=true]`; without a key,
//! credentials and region come from the provider's own chain (environment, profile, role of the machine).
//!
//! | attribute | what it holds                                                                          |
//! |       `b` | partition key, a string: `P` + bucket, escaped + `/`                                    |
//! |       `k` | sort key, a string: `/` + key, since the service refuses empty ones                     |
//! |       `v` | the value in binary, or                                                                |
//! |       `n` | the value as a number, if its bytes are an i64 in the one spelling that counts as one   |
//! |       `e` | the version: 128 random bits, new with every write                                     |
//!
//! Flow: [`RemoteBucket`] -> [`Policy::run`] -> the service's API; the SDK's own retries are off, they know nothing of doubt.
//! Invariants: 1. Reads are consistent: they see every write acknowledged before. 2. The guard of a compare-and-swap is `e`, which no two
//! writes share, a write that is tried again included. 3. An increment is one conditional update of `n`: `ADD` alone would run past an i64.
//! 4. A batch is 25 writes or 100 reads a request, and each key by itself; what the service leaves undone is asked for again.

use super::remote::{
    Answer, Failure, Filling, Pauses, Policy, ROUNDS_MAX, RemoteBackend, RemoteBucket, Repeat, chain, decoded, escaped,
    last_of_equal, number, partly, query, refused,
};
use super::{Capabilities, Guard, Key, Observed, Page, PageBounds, Pair, SetOptions, Swap};
use crate::{Code, Error, Utf8Bytes};
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{Credentials, http::HttpResponse};
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::create_table::CreateTableError;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, DeleteRequest, KeySchemaElement, KeyType, KeysAndAttributes,
    PutRequest, ReturnValue, ReturnValuesOnConditionCheckFailure, ScalarAttributeType, TableStatus, WriteRequest,
};
use aws_smithy_http_client::tls;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// What one request holds.
const READS_MAX: usize = 100;
const WRITES_MAX: usize = 25;
/// Requests of one batch on their way at once.
const PARALLEL: usize = 8;
/// Longest partition key.
const PARTITION_BYTES_MAX: usize = 2048;
/// How long a new table may take.
const CREATION: Duration = Duration::from_secs(60);

const CAPABILITIES: Capabilities = Capabilities {
    atomic_batches: false,
    snapshot_reads: false,
    ordered: true,
    watchable: false,
    durable: true,
    expiring: false,
    // A sort key has 1,024 bytes, one of them ours.
    key_bytes_max: 1023,
    // An item has 400 KiB, both keys, the names and the version among them.
    value_bytes_max: (400 << 10) - 4096,
    batch_keys_max: 1,
    // One key by itself is bounded by what is said of keys and values.
    batch_bytes_max: 0,
};

type Item = HashMap<String, AttributeValue>;

/// A table of DynamoDB.
#[derive(Clone)]
pub struct DynamoDb {
    link: Arc<Link>,
    prefix: String,
}

impl fmt::Debug for DynamoDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoDb")
            .field("table", &self.link.table)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl DynamoDb {
    /// The table at `url`. With `create=true` it is made if it is not there, billed by request; otherwise the service is
    /// first asked by the first call.
    ///
    /// # Errors
    /// [`Code::Invalid`] for a URL without a table; what the service says of a table that cannot be made.
    pub async fn new(url: &Url, policy: Policy) -> Result<Self, Error> {
        let table = url.host_str().filter(|table| !table.is_empty()).map(decoded);
        let table = table.ok_or_else(|| Error::with_detail(Code::Invalid, "dynamodb://TABLE: the table is missing"))?;
        let provider = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
        let http = aws_smithy_http_client::Builder::new().tls_provider(provider).build_https();
        let timeouts = TimeoutConfig::builder().connect_timeout(policy.timeout / 2).build();
        let mut config = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        if let Some(region) = query(url, "region") {
            config = config.region(Region::new(region));
        }
        if let Some(endpoint) = query(url, "endpoint") {
            config = config.endpoint_url(endpoint);
        }
        if !url.username().is_empty() {
            let secret = decoded(url.password().unwrap_or_default());
            config = config.credentials_provider(Credentials::new(decoded(url.username()), secret, None, None, "url"));
        }
        let client = Client::new(&config.load().await);
        let link = Link { client, table, policy };
        if query(url, "create").is_some_and(|create| create == "true") {
            link.create().await?;
        }
        Ok(DynamoDb { link: Arc::new(link), prefix: query(url, "prefix").unwrap_or_default() })
    }
}

impl RemoteBackend for DynamoDb {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn bucket(&self, name: &str) -> Result<Arc<dyn RemoteBucket>, Error> {
        let partition = format!("{}{}/", self.prefix, escaped(name));
        if partition.len() > PARTITION_BYTES_MAX {
            return Err(Error::new(Code::TooLarge));
        }
        Ok(Arc::new(Bucket { link: self.link.clone(), identity: name.to_owned(), partition }))
    }
}

struct Link {
    client: Client,
    table: String,
    policy: Policy,
}

impl Link {
    async fn run<R, E, F>(&self, repeat: Repeat, call: impl Fn() -> F) -> Result<R, Error>
    where
        F: Future<Output = Result<R, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let call = &call;
        self.policy.run(repeat, || async move { call().await.map_err(failure) }).await
    }

    async fn create(&self) -> Result<(), Error> {
        let key = |name: &str, kind| KeySchemaElement::builder().attribute_name(name).key_type(kind).build();
        let string = |name: &str| {
            AttributeDefinition::builder().attribute_name(name).attribute_type(ScalarAttributeType::S).build()
        };
        let invalid = |error| Error::with_detail(Code::Invalid, error);
        let create = self
            .client
            .create_table()
            .table_name(&self.table)
            .attribute_definitions(string("b").map_err(invalid)?)
            .attribute_definitions(string("k").map_err(invalid)?)
            .key_schema(key("b", KeyType::Hash).map_err(invalid)?)
            .key_schema(key("k", KeyType::Range).map_err(invalid)?)
            .billing_mode(BillingMode::PayPerRequest);
        let created = self.policy.run(Repeat::Writes, || async {
            match create.clone().send().await {
                Ok(_) => Ok(()),
                Err(error) if matches!(error.as_service_error(), Some(CreateTableError::ResourceInUseException(_))) => {
                    Ok(())
                }
                Err(error) => Err(failure(error)),
            }
        });
        created.await?;
        let ready = async {
            loop {
                let describe = || self.client.describe_table().table_name(&self.table).send();
                let answer = self.run(Repeat::Reads, describe).await?;
                if answer.table().and_then(|table| table.table_status()) == Some(&TableStatus::Active) {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        };
        tokio::time::timeout(CREATION, ready).await.unwrap_or_else(|_elapsed| Err(Error::new(Code::Timeout)))
    }
}

/// What a failed request says about itself. The detail holds the service's own words, not the SDK's dump of the request.
fn failure<E>(error: SdkError<E, HttpResponse>) -> Failure
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let service = match error {
        SdkError::ServiceError(service) => service,
        // It was never sent: a request that cannot be made, or no credentials to sign it with.
        SdkError::ConstructionFailure(_) => return Failure::NotApplied(Error::with_detail(Code::Io, chain(&error))),
        _ if refused(&error) => return Failure::NotApplied(Error::with_detail(Code::Io, chain(&error))),
        _ => return Failure::Unknown(Error::with_detail(Code::Io, chain(&error))),
    };
    let status = service.raw().status().as_u16();
    let meta = service.err().meta();
    let (kind, message) = (meta.code().unwrap_or_default(), meta.message().unwrap_or_default());
    let as_code = |code| Error::with_detail(code, format!("{kind}: {message}"));
    match kind {
        "ProvisionedThroughputExceededException"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "LimitExceededException"
        | "ReplicatedWriteConflictException"
        | "TransactionConflictException" => Failure::NotApplied(as_code(Code::Busy)),
        "ItemCollectionSizeLimitExceededException" => Failure::Final(as_code(Code::NoSpace)),
        "ValidationException" if message.contains("size") => Failure::Final(as_code(Code::TooLarge)),
        "ValidationException" => Failure::Final(as_code(Code::Invalid)),
        _ if status >= 500 => Failure::Unknown(as_code(Code::Io)),
        _ => Failure::Final(as_code(Code::Io)),
    }
}

fn damaged() -> Error {
    Error::with_detail(Code::Corrupt, "an item of the table is none of those that are written here")
}

/// An item's value and version.
fn stored(mut item: Item) -> Result<(Bytes, Bytes), Error> {
    let Some(AttributeValue::B(version)) = item.remove("e") else { return Err(damaged()) };
    let value = match (item.remove("v"), item.remove("n")) {
        (Some(AttributeValue::B(value)), None) => Bytes::from(value.into_inner()),
        (None, Some(AttributeValue::N(number))) => {
            Bytes::from(number.parse::<i64>().map_err(|_| damaged())?.to_string())
        }
        _ => return Err(damaged()),
    };
    Ok((value, Bytes::from(version.into_inner())))
}

fn observed(item: Option<Item>) -> Result<Observed, Error> {
    let Some(item) = item else { return Ok(Observed { value: None, guard: Guard::Absent }) };
    let (value, version) = stored(item)?;
    Ok(Observed { value: Some(value), guard: Guard::Token(version) })
}

fn version() -> AttributeValue {
    AttributeValue::B(Blob::new(fastrand::u128(..).to_le_bytes()))
}

fn check_value(value: &[u8]) -> Result<(), Error> {
    if value.len() > CAPABILITIES.value_bytes_max { Err(Error::new(Code::TooLarge)) } else { Ok(()) }
}

/// The numbers to which `delta` may be added.
fn addends(delta: i64) -> (i64, i64) {
    if delta >= 0 { (i64::MIN, i64::MAX - delta) } else { (i64::MIN - delta, i64::MAX) }
}

struct Bucket {
    link: Arc<Link>,
    identity: String,
    partition: String,
}

/// What a conditional write found to be so instead: the item, as far as the service shows it.
type Refused = Option<Item>;

impl Bucket {
    /// The key of an item.
    fn at(&self, key: &str) -> Result<Item, Error> {
        if key.len() > CAPABILITIES.key_bytes_max {
            return Err(Error::new(Code::TooLarge));
        }
        Ok(self.unchecked(key))
    }

    fn unchecked(&self, key: &str) -> Item {
        let string = |text: String| AttributeValue::S(text);
        [("b".to_owned(), string(self.partition.clone())), ("k".to_owned(), string(format!("/{key}")))].into()
    }

    /// A whole item, of a version of its own.
    fn item(&self, key: &str, value: &[u8]) -> Result<Item, Error> {
        let mut item = self.at(key)?;
        check_value(value)?;
        match number(value) {
            Ok(number) => item.insert("n".to_owned(), AttributeValue::N(number.to_string())),
            Err(_) => item.insert("v".to_owned(), AttributeValue::B(Blob::new(value))),
        };
        item.insert("e".to_owned(), version());
        Ok(item)
    }

    async fn find(&self, key: &str) -> Result<Option<Item>, Error> {
        let get = self.link.client.get_item().table_name(&self.link.table).consistent_read(true);
        let get = get.set_key(Some(self.at(key)?));
        Ok(self.link.run(Repeat::Reads, || get.clone().send()).await?.item)
    }

    /// Writes where `guard`, if there is one, still holds.
    async fn put(&self, key: &str, value: &[u8], guard: Option<&Guard>) -> Result<Result<(), Refused>, Error> {
        let item = self.item(key, value)?;
        let mut put = self.link.client.put_item().table_name(&self.link.table);
        put = match guard {
            None => put,
            Some(Guard::Absent) => put.condition_expression("attribute_not_exists(b)"),
            Some(Guard::Token(token)) => put
                .condition_expression("e = :guard")
                .expression_attribute_values(":guard", AttributeValue::B(Blob::new(token.as_ref()))),
            Some(Guard::Version(_)) => return Err(Error::new(Code::Invalid)),
        };
        if guard.is_some() {
            put = put.return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        }
        let repeat = if guard.is_some() { Repeat::Never } else { Repeat::Writes };
        let (put, item) = (&put, &item);
        let attempt = || async move {
            // Of a version of its own, as `renewed` says.
            let put = put.clone().set_item(Some(item.clone())).item("e", version());
            match put.send().await {
                Ok(_) => Ok(Ok(())),
                Err(error) => match error.as_service_error() {
                    Some(PutItemError::ConditionalCheckFailedException(refused)) => Ok(Err(refused.item.clone())),
                    _ => Err(failure(error)),
                },
            }
        };
        self.link.policy.run(repeat, attempt).await
    }

    /// What a refused write met. Not every service that speaks this protocol shows it with the refusal.
    async fn met(&self, key: &str, refused: Refused) -> Result<Option<Item>, Error> {
        if refused.is_some() { Ok(refused) } else { self.find(key).await }
    }

    async fn add(&self, key: &str, delta: i64) -> Result<i64, Error> {
        let (lowest, highest) = addends(delta);
        let number = |number: i64| AttributeValue::N(number.to_string());
        let update = self
            .link
            .client
            .update_item()
            .table_name(&self.link.table)
            .set_key(Some(self.at(key)?))
            .update_expression("SET n = if_not_exists(n, :zero) + :delta, e = :version")
            .condition_expression("attribute_not_exists(v) AND (attribute_not_exists(n) OR n BETWEEN :low AND :high)")
            .expression_attribute_values(":zero", number(0))
            .expression_attribute_values(":delta", number(delta))
            .expression_attribute_values(":low", number(lowest))
            .expression_attribute_values(":high", number(highest))
            .return_values(ReturnValue::UpdatedNew)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        for _ in 0..ROUNDS_MAX {
            let update = &update;
            let attempt = || async move {
                match update.clone().expression_attribute_values(":version", version()).send().await {
                    Ok(updated) => Ok(Ok(updated.attributes)),
                    Err(error) => match error.as_service_error() {
                        Some(UpdateItemError::ConditionalCheckFailedException(refused)) => {
                            Ok(Err(refused.item.clone()))
                        }
                        _ => Err(failure(error)),
                    },
                }
            };
            let refused = match self.link.policy.run(Repeat::Never, attempt).await? {
                Ok(updated) => {
                    let sum = updated.as_ref().and_then(|item| item.get("n")?.as_n().ok()?.parse().ok());
                    return sum.ok_or_else(damaged);
                }
                Err(refused) => refused,
            };
            // Gone or changed since it was refused: once more.
            let Some(item) = self.met(key, refused).await? else { continue };
            let before = super::remote::number(&stored(item)?.0)?;
            if before.checked_add(delta).is_none() {
                return Err(Error::new(Code::Overflow));
            }
        }
        Err(Error::new(Code::Busy))
    }

    async fn page(&self, prefix: &str, after: Option<&[u8]>, bounds: PageBounds) -> Result<Page, Error> {
        let begin = match after.map(std::str::from_utf8) {
            None => None,
            Some(Ok(after)) => Some(self.unchecked(after)),
            Some(Err(_)) => return Err(Error::new(Code::InvalidCursor)),
        };
        let mut query = self
            .link
            .client
            .query()
            .table_name(&self.link.table)
            .consistent_read(true)
            .projection_expression("k")
            .expression_attribute_values(":bucket", AttributeValue::S(self.partition.clone()));
        query = if prefix.is_empty() {
            query.key_condition_expression("b = :bucket")
        } else {
            let prefix = AttributeValue::S(format!("/{prefix}"));
            let query = query.key_condition_expression("b = :bucket AND begins_with(k, :prefix)");
            query.expression_attribute_values(":prefix", prefix)
        };
        let (mut filling, mut begin) = (Filling::within(bounds), begin);
        loop {
            let limit = i32::try_from(filling.wanted()).unwrap_or(i32::MAX);
            let ask = || query.clone().limit(limit).set_exclusive_start_key(begin.clone()).send();
            let answer = self.link.run(Repeat::Reads, ask).await?;
            for item in answer.items.unwrap_or_default() {
                let Some(AttributeValue::S(key)) = item.get("k") else { return Err(damaged()) };
                let Some(key) = key.strip_prefix('/') else { continue };
                if !filling.take(key) {
                    return Ok(filling.page());
                }
            }
            if answer.last_evaluated_key.is_none() {
                return Ok(filling.page());
            }
            begin = answer.last_evaluated_key;
            // A request reads a megabyte, values included. A page is one of them, and a look at whether it was the last.
            filling.end_soon();
        }
    }

    /// Reads up to 100 different keys.
    async fn get_chunk(&self, mut left: Vec<Item>) -> Result<Vec<Item>, Error> {
        let mut found = Vec::with_capacity(left.len());
        let mut pauses = Pauses::of(&self.link.policy);
        loop {
            let asked = left.len();
            let keys = KeysAndAttributes::builder().set_keys(Some(left)).consistent_read(true).build();
            let keys = keys.map_err(|error| Error::with_detail(Code::Invalid, error))?;
            let get = self.link.client.batch_get_item().request_items(&self.link.table, keys);
            let mut answer = self.link.run(Repeat::Reads, || get.clone().send()).await?;
            let items = answer.responses.as_mut().and_then(|tables| tables.remove(&self.link.table));
            found.extend(items.unwrap_or_default());
            let undone = answer.unprocessed_keys.as_mut().and_then(|tables| tables.remove(&self.link.table));
            left = undone.map(|undone| undone.keys).unwrap_or_default();
            if left.is_empty() {
                return Ok(found);
            }
            pauses.wait(left.len() < asked).await?;
        }
    }

    /// Makes up to 25 writes of different keys.
    async fn write_chunk(&self, mut left: Vec<WriteRequest>) -> Result<(), Error> {
        let mut pauses = Pauses::of(&self.link.policy);
        let whole = left.len();
        loop {
            let asked = left.len();
            let send = || {
                let fresh = left.iter().map(renewed).collect();
                self.link.client.batch_write_item().request_items(&self.link.table, fresh).send()
            };
            let written = self.link.run(Repeat::Writes, send).await;
            // What an earlier round has written stays.
            let mut answer = written.map_err(|error| partly(error, asked < whole))?;
            let undone = answer.unprocessed_items.as_mut().and_then(|tables| tables.remove(&self.link.table));
            left = undone.unwrap_or_default();
            if left.is_empty() {
                return Ok(());
            }
            let waited = pauses.wait(left.len() < asked).await;
            waited.map_err(|error| partly(error, left.len() < whole))?;
        }
    }

    async fn write_many(&self, writes: Vec<WriteRequest>) -> Result<(), Error> {
        let chunks: Vec<Vec<WriteRequest>> = writes.chunks(WRITES_MAX).map(<[_]>::to_vec).collect();
        let pieces = chunks.len();
        let sent = stream::iter(chunks.into_iter().map(|chunk| self.write_chunk(chunk)));
        let written = sent.buffer_unordered(PARALLEL).try_collect::<()>().await;
        written.map_err(|error| partly(error, pieces > 1))
    }
}

/// The same write once more, of a version of its own: with the one it had it could hide a write that came between.
fn renewed(write: &WriteRequest) -> WriteRequest {
    let mut write = write.clone();
    if let Some(put) = &mut write.put_request {
        put.item.insert("e".to_owned(), version());
    }
    write
}

impl RemoteBucket for Bucket {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Bytes>> {
        Box::pin(async move { self.find(key).await?.map(|item| Ok(stored(item)?.0)).transpose() })
    }

    fn exists<'a>(&'a self, key: &'a str) -> Answer<'a, bool> {
        Box::pin(async move {
            let get = self.link.client.get_item().table_name(&self.link.table).consistent_read(true);
            let get = get.set_key(Some(self.at(key)?)).projection_expression("b");
            Ok(self.link.run(Repeat::Reads, || get.clone().send()).await?.item.is_some())
        })
    }

    fn set<'a>(&'a self, key: &'a str, value: &'a [u8]) -> Answer<'a, ()> {
        Box::pin(async move { self.put(key, value, None).await.map(drop) })
    }

    fn set_with<'a>(&'a self, key: &'a str, value: &'a [u8], options: SetOptions) -> Answer<'a, bool> {
        Box::pin(async move {
            if options.ttl.is_some() {
                return Err(Error::new(Code::Unsupported));
            }
            let guard = options.if_absent.then_some(&Guard::Absent);
            Ok(self.put(key, value, guard).await?.is_ok())
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let delete = self.link.client.delete_item().table_name(&self.link.table).set_key(Some(self.at(key)?));
            self.link.run(Repeat::Writes, || delete.clone().send()).await.map(drop)
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a [u8]>, bounds: PageBounds) -> Answer<'a, Page> {
        Box::pin(self.page(prefix, after, bounds))
    }

    fn increment<'a>(&'a self, key: &'a str, delta: i64) -> Answer<'a, i64> {
        Box::pin(self.add(key, delta))
    }

    fn observe<'a>(&'a self, key: &'a str) -> Answer<'a, Observed> {
        Box::pin(async move { observed(self.find(key).await?) })
    }

    fn swap<'a>(&'a self, key: &'a str, guard: &'a Guard, value: &'a [u8]) -> Answer<'a, Swap> {
        Box::pin(async move {
            match self.put(key, value, Some(guard)).await? {
                Ok(()) => Ok(Swap::Done),
                Err(refused) => Ok(Swap::Conflict(observed(self.met(key, refused).await?)?)),
            }
        })
    }

    fn get_many<'a>(&'a self, keys: &'a [Key<'a>]) -> Answer<'a, Vec<Option<Pair>>> {
        Box::pin(async move {
            // The service refuses a key that is asked for twice.
            let mut seen = HashSet::new();
            let mut different = Vec::with_capacity(keys.len());
            for key in keys {
                let at = self.at(key.as_ref())?;
                if seen.insert(AsRef::<str>::as_ref(key)) {
                    different.push(at);
                }
            }
            let chunks: Vec<Vec<Item>> = different.chunks(READS_MAX).map(<[_]>::to_vec).collect();
            let chunks = stream::iter(chunks.into_iter().map(|chunk| self.get_chunk(chunk)));
            let chunks: Vec<Vec<Item>> = chunks.buffer_unordered(PARALLEL).try_collect().await?;
            let mut found = HashMap::with_capacity(different.len());
            for item in chunks.into_iter().flatten() {
                let Some(key) = item.get("k").and_then(|key| Some(key.as_s().ok()?.strip_prefix('/')?.to_owned()))
                else {
                    return Err(damaged());
                };
                let value = stored(item)?.0;
                found.insert(Bytes::from(key), value);
            }
            let pairs = keys.iter().map(|key| {
                let (name, value) = found.get_key_value(AsRef::<[u8]>::as_ref(key))?;
                Some((Utf8Bytes::new(name.clone())?, value.clone()))
            });
            Ok(pairs.collect())
        })
    }

    fn set_many<'a>(&'a self, pairs: &'a [(Key<'a>, &'a [u8])]) -> Answer<'a, ()> {
        Box::pin(async move {
            let writes = last_of_equal(pairs).into_iter().map(|(key, value)| {
                let put = PutRequest::builder().set_item(Some(self.item(key, value)?)).build();
                let put = put.map_err(|error| Error::with_detail(Code::Invalid, error))?;
                Ok(WriteRequest::builder().put_request(put).build())
            });
            self.write_many(writes.collect::<Result<_, Error>>()?).await
        })
    }

    fn delete_many<'a>(&'a self, keys: &'a [Key<'a>]) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut seen = HashSet::new();
            let mut writes = Vec::with_capacity(keys.len());
            for key in keys {
                let at = self.at(key.as_ref())?;
                if seen.insert(AsRef::<str>::as_ref(key)) {
                    let delete = DeleteRequest::builder().set_key(Some(at)).build();
                    let delete = delete.map_err(|error| Error::with_detail(Code::Invalid, error))?;
                    writes.push(WriteRequest::builder().delete_request(delete).build());
                }
            }
            self.write_many(writes).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_added_to_is_bounded_on_the_side_that_would_overflow() {
        for delta in [0, 1, -1, i64::MAX, i64::MIN, i64::MIN + 1] {
            let (low, high) = addends(delta);
            assert!(low.checked_add(delta).is_some() && high.checked_add(delta).is_some(), "{delta}");
            assert!(low.checked_sub(1).is_none_or(|below| below.checked_add(delta).is_none()), "{delta}");
            assert!(high.checked_add(1).is_none_or(|above| above.checked_add(delta).is_none()), "{delta}");
        }
    }

    #[test]
    fn an_item_of_somebody_else_is_damage_and_no_panic() {
        let string = || AttributeValue::S("1".to_owned());
        let foreign: [&[(&str, AttributeValue)]; 5] = [
            &[],
            &[("e", version())],
            &[("e", string()), ("n", AttributeValue::N("1".to_owned()))],
            &[("e", version()), ("n", AttributeValue::N("1.5".to_owned()))],
            &[("e", version()), ("v", string())],
        ];
        for item in foreign {
            let item = item.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            assert_eq!(stored(item).unwrap_err().code(), Code::Corrupt);
        }
    }
}
