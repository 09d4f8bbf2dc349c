//! Redis and Redis Cluster as a back end. URLs: `redis://[user[:password]@]host[:port][/db][?prefix=P]`, `rediss://` with TLS,
//! `redis-cluster://host[:port][?node=host:port&…&prefix=P]`, `rediss-cluster://`; with TLS also `ca`, `cert` and `key`, see `tls`.
//!
//! A bucket is one group of keys, of 64 in a cluster, so that it spreads over the nodes; a group's names share a hash tag:
//!
//! | name | type | what |
//! |---|---|---|
//! | `P{bucket}:key`, `P{bucket/g}:key` | string | the byte 1; 16 bytes drawn at random by the write that left it so; the value |
//! | `P{bucket}!`, `P{bucket/g}!` | sorted set | the group's keys, all with score 0: byte order for `list-keys` |
//! | `P{bucket}+`, `P{bucket/g}+` | string | a number, while a script adds to it |
//!
//! Flow: [`RemoteBucket`] -> [`Policy::run`] -> `link`: a command, or a script by its digest -> the server.
//! Invariants: 1. A call is one request per group of keys: 1 of single calls and of up to 1,000 keys on one server. 2. The first 17 bytes of
//! a key, its mark, are never the same after a write, also after delete and re-creation: 128 random bits, so a compare-and-swap
//! cannot be fooled. 3. A key stands in the sorted set from the script that writes it to the one that deletes it; one that has
//! expired is passed over and taken out when a listing meets it.
//!
//! Weighed: `SCAN` instead of the sorted set. It costs no memory, but it visits the whole database for each bucket, may give a key
//! twice, and knows no order; a listing must give each key once. A hash of value and mark instead of one string: it counts by itself, but
//! docs/decisions/0018 has what it costs. The value alone: a guard that compares values takes A→B→A for nothing. So data that
//! other programs keep in Redis is not served.

mod changes;
mod link;

use super::changes::Changes;
use super::remote::{Answer, Policy, RemoteBackend, RemoteBucket, Repeat, escaped, partly, query};
use super::{Capabilities, Guard, Key, Observed, Page, PageBounds, Pair, SetOptions, Swap};
use crate::{Code, Error, Utf8Bytes};
use ::redis::{Cmd, RedisWrite, Value, cmd};
use bytes::Bytes;
use futures_util::future::try_join_all;
use link::{Link, Script};
use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use url::Url;

/// Groups of keys of a bucket in a cluster: more than a bucket needs nodes, few enough to list one after the other.
const CLUSTER_GROUPS: u8 = 64;
/// How a cursor writes its group.
const GROUPS: &[u8; CLUSTER_GROUPS as usize] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";
/// Most keys and most bytes of values in one script: the server does nothing else meanwhile.
const CHUNK_KEYS: usize = 1_000;
const CHUNK_BYTES: usize = 4 << 20;

const CAPABILITIES: Capabilities = Capabilities {
    atomic_batches: false,
    snapshot_reads: false,
    ordered: true,
    watchable: true,
    durable: true,
    expiring: true,
    key_bytes_max: kvasi::KEY_BYTES_MAX,
    value_bytes_max: (512 << 20) - size_of::<Mark>(),
    batch_keys_max: CHUNK_KEYS,
    batch_bytes_max: CHUNK_BYTES,
};

/// Keys: the sorted set, then one for each pair. Arguments: milliseconds to live or 0, 1 if only where there is no value (asked of one
/// pair alone), then key and stored value of each. Answers how many were written.
static SET: Script = Script::new(
    "local ttl, members, values = ARGV[1], {}, {}
if ARGV[2] == '1' and redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
for i = 2, #KEYS do
  local at = 2 * i - 3
  members[at], members[at + 1] = '0', ARGV[at + 2]
  values[at], values[at + 1] = KEYS[i], ARGV[at + 3]
end
redis.call('ZADD', KEYS[1], unpack(members))
if ttl == '0' then redis.call('MSET', unpack(values)) return #KEYS - 1 end
for i = 1, #values, 2 do redis.call('SET', values[i], values[i + 1], 'PX', ttl) end
return #KEYS - 1",
);

/// Keys: the sorted set, then those to delete. Arguments: the names of these in the set.
static DELETE: Script = Script::new(
    "redis.call('UNLINK', unpack(KEYS, 2))
redis.call('ZREM', KEYS[1], unpack(ARGV))
return 0",
);

/// Keys: the sorted set, the key, and one to add in. Arguments: the new mark, delta, the key's name in the set. The server adds, since
/// Lua's numbers have 53 bits. A time to live stays, as with any increment in Redis.
static INCREMENT: Script = Script::new(
    "local now, number = redis.call('GET', KEYS[2]), '0'
if now then
  if #now < 17 or string.byte(now) ~= 1 then return redis.error_reply('WRONGTYPE another program has written there') end
  if #now > 37 then return redis.error_reply('ERR value is not an integer or out of range') end
  number = string.sub(now, 18)
end
redis.call('SET', KEYS[3], number)
local sum = redis.pcall('INCRBY', KEYS[3], ARGV[2])
local text = redis.call('GET', KEYS[3])
redis.call('DEL', KEYS[3])
if type(sum) == 'table' then return sum end
redis.call('ZADD', KEYS[1], '0', ARGV[3])
redis.call('SET', KEYS[2], ARGV[1] .. text, 'KEEPTTL')
return text",
);

/// Keys: the sorted set, the key. Arguments: the mark expected or nothing for absent, the key's name in the set, the stored value. Answers
/// 1, or what stands there.
static SWAP: Script = Script::new(
    "if redis.call('GETRANGE', KEYS[2], 0, 16) ~= ARGV[1] then return redis.call('GET', KEYS[2]) end
redis.call('ZADD', KEYS[1], '0', ARGV[2])
redis.call('SET', KEYS[2], ARGV[3])
return 1",
);

/// Keys: the sorted set. Arguments: lower and upper bound, most keys, most bytes, and what a key's name begins with. Answers
/// whether more is to come, the last key looked at, and the keys.
static LIST: Script = Script::new(
    "local max, room = tonumber(ARGV[3]), tonumber(ARGV[4])
local found = redis.call('ZRANGEBYLEX', KEYS[1], ARGV[1], ARGV[2], 'LIMIT', 0, max + 1)
local more, last, keys = 0, '', {}
for i = 1, #found do
  local key = found[i]
  if i > max or (i > 1 and room < #key) then more = 1 break end
  last, room = key, room - #key
  if redis.call('EXISTS', ARGV[5] .. key) == 1 then keys[#keys + 1] = key else redis.call('ZREM', KEYS[1], key) end
end
return {more, last, keys}",
);

/// A Redis server or cluster.
#[derive(Clone)]
pub struct Redis {
    link: Arc<Link>,
    policy: Policy,
    prefix: String,
    groups: u8,
    /// Its number on the server.
    database: u32,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("prefix", &self.prefix).field("groups", &self.groups).finish_non_exhaustive()
    }
}

impl Redis {
    /// The server or cluster at `url`; it is connected to by the first call.
    ///
    /// # Errors
    /// [`Code::Invalid`] for a URL that the client library does not take, and for files of certificates that cannot be used.
    pub fn new(url: &Url, policy: Policy) -> Result<Self, Error> {
        let clustered = url.scheme().ends_with("-cluster");
        let link = Link::new(url, clustered, policy)?;
        let groups = if clustered { CLUSTER_GROUPS } else { 1 };
        let prefix = query(url, "prefix").unwrap_or_default();
        if prefix.contains(['{', '}']) {
            return Err(Error::with_detail(Code::Invalid, "a prefix has no braces: they mark the part that is hashed"));
        }
        // Whether it is a number, the link has looked at.
        let database = url.path().trim_matches('/').parse().unwrap_or(0);
        Ok(Redis { link: Arc::new(link), policy, prefix, groups, database })
    }
}

impl RemoteBackend for Redis {
    fn capabilities(&self) -> Capabilities {
        if self.groups == 1 {
            return CAPABILITIES;
        }
        // Keys of one batch may be of several groups, each of which is on a node of its own.
        Capabilities { ordered: false, watchable: false, batch_keys_max: 1, batch_bytes_max: 0, ..CAPABILITIES }
    }

    fn bucket(&self, name: &str) -> Result<Arc<dyn RemoteBucket>, Error> {
        Ok(Arc::new(RedisBucket {
            link: self.link.clone(),
            policy: self.policy,
            identity: name.to_owned(),
            bases: bases(&self.prefix, name, self.groups),
            prefix: self.prefix.clone(),
            database: self.database,
        }))
    }
}

#[derive(Clone)]
struct RedisBucket {
    link: Arc<Link>,
    policy: Policy,
    identity: String,
    /// What the names of each group begin with.
    bases: Vec<String>,
    prefix: String,
    database: u32,
}

fn bases(prefix: &str, bucket: &str, groups: u8) -> Vec<String> {
    let bucket = escaped(bucket);
    match groups {
        1 => vec![format!("{prefix}{{{bucket}}}")],
        groups => (0..groups).map(|group| format!("{prefix}{{{bucket}/{group}}}")).collect(),
    }
}

/// What a stored value begins with: the form that it has, and bytes that no other write has.
type Mark = [u8; 17];

/// The form of stored values.
const FORM: u8 = 1;

fn new_mark() -> Mark {
    let mut mark = [FORM; 17];
    fastrand::fill(&mut mark[1..]);
    mark
}

/// An argument in several parts: none is copied to be put before another.
fn push(command: &mut Cmd, parts: &[&[u8]]) {
    let mut argument = command.writer_for_next_arg();
    for part in parts {
        // Writing to a command does not fail.
        let _ = argument.write_all(part);
    }
}

impl RedisBucket {
    /// Another bucket of the same server, which is no cluster.
    fn other(&self, name: &str) -> RedisBucket {
        RedisBucket { identity: name.to_owned(), bases: bases(&self.prefix, name, 1), ..self.clone() }
    }

    /// The group of a key: by a hash that is the same in every process.
    fn group(&self, key: &str) -> usize {
        match self.bases.len() {
            1 => 0,
            groups => usize::from(crc32(key) as u16) % groups,
        }
    }

    fn base(&self, key: &str) -> &str {
        &self.bases[self.group(key)]
    }

    /// A key's name on the server.
    fn at(&self, key: &str) -> String {
        format!("{}:{key}", self.base(key))
    }

    /// The name of the sorted set that a key stands in.
    fn index(&self, key: &str) -> String {
        format!("{}!", self.base(key))
    }

    async fn ask(&self, repeat: Repeat, command: &Cmd) -> Result<Value, Error> {
        self.policy.run(repeat, || self.link.ask(repeat, command)).await
    }

    /// Runs a script of so many keys; `write` adds them, and then the arguments.
    async fn run(
        &self,
        repeat: Repeat,
        script: &Script,
        keys: usize,
        write: &(dyn Fn(&mut Cmd) + Sync),
    ) -> Result<Value, Error> {
        self.policy.run(repeat, || self.link.run(repeat, script, keys, write)).await
    }

    async fn put(&self, key: &str, value: &[u8], options: SetOptions) -> Result<bool, Error> {
        check(key)?;
        // Zero would mean for ever, and Redis has no shorter time.
        let ttl = options.ttl.map_or(0, |ttl| ttl.as_millis().max(1)).to_string();
        let mark = new_mark();
        let write = |command: &mut Cmd| {
            command.arg(self.index(key)).arg(self.at(key)).arg(&ttl).arg(u8::from(options.if_absent)).arg(key);
            push(command, &[&mark, value]);
        };
        // Done a second time, "only if absent" would find the first.
        let repeat = if options.if_absent { Repeat::Never } else { Repeat::Writes };
        Ok(self.run(repeat, &SET, 2, &write).await? == Value::Int(1))
    }

    /// Positions of `keys`, by group, in pieces that one script may hold; a key's order within its group is kept.
    fn chunks<'k>(
        &self,
        count: usize,
        key: impl Fn(usize) -> &'k str,
        bytes: impl Fn(usize) -> usize,
    ) -> Result<Vec<Vec<usize>>, Error> {
        let mut chunks: Vec<Vec<usize>> = Vec::new();
        let mut open: Vec<(Option<usize>, usize)> = vec![(None, 0); self.bases.len()];
        for i in 0..count {
            check(key(i))?;
            let (chunk, filled) = &mut open[self.group(key(i))];
            let size = bytes(i);
            match chunk.map(|at| &mut chunks[at]) {
                Some(chunk) if chunk.len() < CHUNK_KEYS && *filled + size <= CHUNK_BYTES => {
                    chunk.push(i);
                    *filled += size;
                }
                _ => {
                    *chunk = Some(chunks.len());
                    *filled = size;
                    chunks.push(vec![i]);
                }
            }
        }
        Ok(chunks)
    }

    async fn get_chunk(&self, keys: &[Key<'_>], chunk: &[usize]) -> Result<Vec<Value>, Error> {
        let mut command = cmd("MGET");
        for &i in chunk {
            let key: &str = keys[i].as_ref();
            push(&mut command, &[self.base(key).as_bytes(), b":", key.as_bytes()]);
        }
        match self.ask(Repeat::Reads, &command).await? {
            Value::Array(values) if values.len() == chunk.len() => Ok(values),
            other => Err(unexpected(&other)),
        }
    }

    async fn set_chunk(&self, pairs: &[(Key<'_>, &[u8])], chunk: &[usize]) -> Result<(), Error> {
        let Some(first) = chunk.first() else { return Ok(()) };
        let base = self.base(pairs[*first].0.as_ref()).as_bytes();
        let mark = new_mark();
        let write = |command: &mut Cmd| {
            push(command, &[base, b"!"]);
            chunk.iter().for_each(|&i| push(command, &[base, b":", pairs[i].0.as_ref()]));
            command.arg(b"0").arg(b"0");
            for &i in chunk {
                let (key, value) = &pairs[i];
                push(command, &[key.as_ref()]);
                push(command, &[&mark, value]);
            }
        };
        self.run(Repeat::Writes, &SET, 1 + chunk.len(), &write).await.map(drop)
    }

    async fn delete_chunk(&self, keys: &[Key<'_>], chunk: &[usize]) -> Result<(), Error> {
        let Some(first) = chunk.first() else { return Ok(()) };
        let base = self.base(keys[*first].as_ref()).as_bytes();
        let write = |command: &mut Cmd| {
            push(command, &[base, b"!"]);
            chunk.iter().for_each(|&i| push(command, &[base, b":", keys[i].as_ref()]));
            chunk.iter().for_each(|&i| push(command, &[keys[i].as_ref()]));
        };
        self.run(Repeat::Writes, &DELETE, 1 + chunk.len(), &write).await.map(drop)
    }

    /// One page, of one group or of the end of one and the beginning of the next. A cursor is the last key; in a cluster the group
    /// stands before it.
    async fn page(&self, prefix: &str, after: Option<&[u8]>, bounds: PageBounds) -> Result<Page, Error> {
        let (mut group, mut last) = match after {
            None => (0, None),
            Some(last) if self.bases.len() == 1 => (0, Some(last.to_vec())),
            Some(after) => {
                let (group, last) = after.split_first().ok_or(Error::new(Code::InvalidCursor))?;
                let group = GROUPS.iter().position(|name| name == group).ok_or(Error::new(Code::InvalidCursor))?;
                (group, Some(last.to_vec()))
            }
        };
        let mut page = Page::default();
        let mut room = bounds.bytes_max;
        while group < self.bases.len() {
            let max = bounds.keys_max.min(bounds.entries_max) - page.keys.len();
            let (more, seen, keys) = self.page_of_group(group, prefix, last.take(), max, room).await?;
            room = room.saturating_sub(keys.iter().map(|key| key.len()).sum());
            page.keys.extend(keys);
            if more {
                page.next = Some(self.cursor(group, &seen));
                return Ok(page);
            }
            group += 1;
            if page.keys.len() >= bounds.keys_max.min(bounds.entries_max) || room == 0 {
                break;
            }
        }
        // No cursor says that no key is left: the groups that were not looked at must be.
        for group in group..self.bases.len() {
            if self.holds_some(group, prefix).await? {
                page.next = Some(self.cursor(group, b""));
                break;
            }
        }
        Ok(page)
    }

    async fn page_of_group(
        &self,
        group: usize,
        prefix: &str,
        last: Option<Vec<u8>>,
        max: usize,
        room: usize,
    ) -> Result<(bool, Vec<u8>, Vec<Utf8Bytes>), Error> {
        let base = &self.bases[group];
        let (lower, upper) = (lower_bound(prefix, last.as_deref()), upper_bound(prefix));
        let (max, room, name) = (max.to_string(), room.to_string(), format!("{base}:"));
        let write = |command: &mut Cmd| {
            push(command, &[base.as_bytes(), b"!"]);
            command.arg(&lower).arg(&upper).arg(&max).arg(&room).arg(&name);
        };
        // It takes out what has expired: repeating that does no harm, but it must reach the node that writes.
        let answer = self.run(Repeat::Reads, &LIST, 1, &write).await?;
        let Value::Array(parts) = answer else { return Err(unexpected(&answer)) };
        match <[Value; 3]>::try_from(parts) {
            Ok([Value::Int(more), Value::BulkString(seen), Value::Array(keys)]) => {
                let keys = keys.into_iter().filter_map(|key| match key {
                    Value::BulkString(key) => Utf8Bytes::new(Bytes::from(key)),
                    _ => None,
                });
                Ok((more == 1, seen, keys.collect()))
            }
            _ => Err(Error::with_detail(Code::Io, "the listing's answer has another shape")),
        }
    }

    fn cursor(&self, group: usize, last: &[u8]) -> Bytes {
        let mut cursor = Vec::with_capacity(1 + last.len());
        if self.bases.len() > 1 {
            cursor.push(GROUPS[group]);
        }
        cursor.extend_from_slice(last);
        cursor.into()
    }

    async fn holds_some(&self, group: usize, prefix: &str) -> Result<bool, Error> {
        let (_, _, keys) = self.page_of_group(group, prefix, None, 1, usize::MAX >> 12).await?;
        Ok(!keys.is_empty())
    }
}

/// Where a listing of `prefix` begins, in the words of `ZRANGEBYLEX`. An empty last key is the place before a group.
fn lower_bound(prefix: &str, last: Option<&[u8]>) -> Vec<u8> {
    match last {
        Some(last) if !last.is_empty() => [b"(", last].concat(),
        _ if prefix.is_empty() => b"-".to_vec(),
        _ => [b"[", prefix.as_bytes()].concat(),
    }
}

/// Where it ends: no key has the byte 255, which UTF-8 does not use.
fn upper_bound(prefix: &str) -> Vec<u8> {
    if prefix.is_empty() { b"+".to_vec() } else { [b"(", prefix.as_bytes(), b"\xff"].concat() }
}

fn crc32(key: &str) -> u32 {
    crc32fast::hash(key.as_bytes())
}

fn check(key: &str) -> Result<(), Error> {
    if key.len() > CAPABILITIES.key_bytes_max { Err(Error::new(Code::TooLarge)) } else { Ok(()) }
}

fn unexpected(answer: &Value) -> Error {
    // The kind alone: an answer may hold a value.
    let kind = match answer {
        Value::Nil => "nothing",
        Value::Int(_) => "a number",
        Value::BulkString(_) | Value::SimpleString(_) => "text",
        Value::Array(_) => "a list",
        _ => "another kind",
    };
    Error::with_detail(Code::Io, format!("the server answered {kind} where something else belongs"))
}

/// A stored value's mark and the value itself.
fn parts(stored: Vec<u8>) -> Result<(Bytes, Bytes), Error> {
    if stored.len() < size_of::<Mark>() || stored[0] != FORM {
        return Err(Error::with_detail(Code::Invalid, "another program's data stands at the key"));
    }
    let mut mark = Bytes::from(stored);
    let value = mark.split_off(size_of::<Mark>());
    Ok((mark, value))
}

fn observed(answer: Value) -> Result<Observed, Error> {
    match answer {
        Value::Nil => Ok(Observed { value: None, guard: Guard::Absent }),
        Value::BulkString(stored) => {
            let (mark, value) = parts(stored)?;
            Ok(Observed { value: Some(value), guard: Guard::Token(mark) })
        }
        other => Err(unexpected(&other)),
    }
}

impl RemoteBucket for RedisBucket {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn changes(&self) -> Option<Arc<dyn Changes>> {
        let one = self.bases.len() == 1;
        one.then(|| -> Arc<dyn Changes> { Arc::new(self.clone()) })
    }

    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Bytes>> {
        Box::pin(async move {
            check(key)?;
            Ok(observed(self.ask(Repeat::Reads, cmd("GET").arg(self.at(key))).await?)?.value)
        })
    }

    fn exists<'a>(&'a self, key: &'a str) -> Answer<'a, bool> {
        Box::pin(async move {
            check(key)?;
            Ok(self.ask(Repeat::Reads, cmd("EXISTS").arg(self.at(key))).await? == Value::Int(1))
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
            check(key)?;
            let write = |command: &mut Cmd| {
                command.arg(self.index(key)).arg(self.at(key)).arg(key);
            };
            self.run(Repeat::Writes, &DELETE, 2, &write).await.map(drop)
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a [u8]>, bounds: PageBounds) -> Answer<'a, Page> {
        Box::pin(self.page(prefix, after, bounds))
    }

    fn increment<'a>(&'a self, key: &'a str, delta: i64) -> Answer<'a, i64> {
        Box::pin(async move {
            check(key)?;
            let mark = new_mark();
            let write = |command: &mut Cmd| {
                command.arg(self.index(key)).arg(self.at(key));
                push(command, &[self.base(key).as_bytes(), b"+"]);
                command.arg(&mark[..]).arg(delta).arg(key);
            };
            let answer = self.run(Repeat::Never, &INCREMENT, 3, &write).await?;
            let Value::BulkString(sum) = &answer else { return Err(unexpected(&answer)) };
            let sum = std::str::from_utf8(sum).ok().and_then(|sum| sum.parse().ok());
            sum.ok_or_else(|| unexpected(&answer))
        })
    }

    fn observe<'a>(&'a self, key: &'a str) -> Answer<'a, Observed> {
        Box::pin(async move {
            check(key)?;
            observed(self.ask(Repeat::Reads, cmd("GET").arg(self.at(key))).await?)
        })
    }

    fn swap<'a>(&'a self, key: &'a str, guard: &'a Guard, value: &'a [u8]) -> Answer<'a, Swap> {
        Box::pin(async move {
            check(key)?;
            let expected: &[u8] = match guard {
                Guard::Absent => b"",
                Guard::Token(token) => token,
                Guard::Version(_) => return Err(Error::new(Code::Invalid)),
            };
            let mark = new_mark();
            let write = |command: &mut Cmd| {
                command.arg(self.index(key)).arg(self.at(key)).arg(expected).arg(key);
                push(command, &[&mark, value]);
            };
            match self.run(Repeat::Never, &SWAP, 2, &write).await? {
                Value::Int(1) => Ok(Swap::Done),
                other => Ok(Swap::Conflict(observed(other)?)),
            }
        })
    }

    fn get_many<'a>(&'a self, keys: &'a [Key<'a>]) -> Answer<'a, Vec<Option<Pair>>> {
        Box::pin(async move {
            let chunks = self.chunks(keys.len(), |i| keys[i].as_ref(), |_| 0)?;
            let answers = try_join_all(chunks.iter().map(|chunk| self.get_chunk(keys, chunk))).await?;
            let mut found = vec![None; keys.len()];
            for (chunk, values) in chunks.iter().zip(answers) {
                for (&i, value) in chunk.iter().zip(values) {
                    if let Some(value) = observed(value)?.value {
                        let key = Bytes::copy_from_slice(keys[i].as_ref());
                        found[i] = Utf8Bytes::new(key).map(|key| (key, value));
                    }
                }
            }
            Ok(found)
        })
    }

    fn set_many<'a>(&'a self, pairs: &'a [(Key<'a>, &'a [u8])]) -> Answer<'a, ()> {
        Box::pin(async move {
            let chunks = self.chunks(pairs.len(), |i| pairs[i].0.as_ref(), |i| pairs[i].1.len())?;
            let (pieces, done) = (chunks.len(), AtomicUsize::new(0));
            // One after the other within a group, where the last of equal keys must win; groups side by side.
            let written = for_each_group(
                self,
                chunks,
                |i| pairs[i].0.as_ref(),
                |chunk| async move { self.set_chunk(pairs, &chunk).await },
                &done,
            );
            // Of several groups another one's chunk may be under way.
            let begun = |error| partly(error, if self.bases.len() > 1 { pieces > 1 } else { done.load(Relaxed) > 0 });
            written.await.map_err(begun)
        })
    }

    fn delete_many<'a>(&'a self, keys: &'a [Key<'a>]) -> Answer<'a, ()> {
        Box::pin(async move {
            let chunks = self.chunks(keys.len(), |i| keys[i].as_ref(), |_| 0)?;
            let deleted = try_join_all(chunks.iter().map(|chunk| self.delete_chunk(keys, chunk))).await;
            deleted.map(drop).map_err(|error| partly(error, chunks.len() > 1))
        })
    }
}

async fn for_each_group<'k, F>(
    bucket: &RedisBucket,
    chunks: Vec<Vec<usize>>,
    key: impl Fn(usize) -> &'k str,
    call: impl Fn(Vec<usize>) -> F + Copy,
    done: &AtomicUsize,
) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>>,
{
    let mut groups: Vec<Vec<Vec<usize>>> = vec![Vec::new(); bucket.bases.len()];
    for chunk in chunks {
        if let Some(&first) = chunk.first() {
            groups[bucket.group(key(first))].push(chunk);
        }
    }
    let in_order = |chunks: Vec<Vec<usize>>| async move {
        for chunk in chunks {
            call(chunk).await?;
            done.fetch_add(1, Relaxed);
        }
        Ok(())
    };
    try_join_all(groups.into_iter().filter(|chunks| !chunks.is_empty()).map(in_order)).await.map(drop)
}
