//! Changes of a Redis server, from its keyspace notifications.
//!
//! Flow: a subscription of its own -> names of keys, in the order in which scripts wrote them -> their values, read now, many at once ->
//! `changes::Feed`. A note is a message on a channel: the server tells of it before the write that follows.
//!
//! **At most once.** The server tells whoever is connected and keeps nothing: what happens while the connection is broken, or nobody
//! follows, is missed, and [`Told::Lagged`] says so. A value is the one that stands there when it is read: of two quick
//! writes of a key both are told, with the value of the second. A key that is gone by then is told of as deleted only.
//!
//! The server must be set up for it: `notify-keyspace-events` with at least `Kg$xe`. Whether it is, a write of our own shows, which must be
//! heard. In a cluster each node tells of its own keys alone, and notes would overtake writes: not supported.

use super::super::changes::{Changes, Feed, Telling, Told};
use super::super::remote::{Answer, RemoteBucket, Repeat};
use super::super::{Key, SetOptions};
use super::link::told;
use super::{RedisBucket, new_mark};
use crate::{Code, Error};
use ::redis::aio::{PubSubSink, PubSubStream};
use ::redis::{Client, Msg, RedisError, cmd};
use futures_util::StreamExt;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Names that wait to be told: if there are more, the oldest are given up, and that is said.
const WAITING_MAX: usize = 100_000;
/// Values that are read at once.
const READ_MAX: usize = 500;
/// How often a silent connection is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(5);
/// Longest pause before a broken connection is made anew.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// The bucket of the write that must be heard.
const TEST: &str = "kvasi:heard";

impl Changes for RedisBucket {
    fn store(&self) -> usize {
        Arc::as_ptr(&self.link).addr()
    }

    fn name(&self) -> &str {
        &self.identity
    }

    fn sibling(&self, name: &str) -> Arc<dyn RemoteBucket> {
        Arc::new(self.other(name))
    }

    fn resumes(&self) -> bool {
        false
    }

    fn note<'a>(&'a self, name: &'a str, note: &'a [u8]) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut publish = cmd("PUBLISH");
            publish.arg(channel(&self.other(name))).arg(note);
            // One that is told twice says what it said.
            self.ask(Repeat::Writes, &publish).await.map(drop)
        })
    }

    fn follow<'a>(&'a self, buckets: &'a [&'a str], notes: &'a str, _from: Option<u64>) -> Answer<'a, (u64, Feed)> {
        Box::pin(async move {
            let client = self.link.client().ok_or_else(|| Error::new(Code::Unsupported))?.clone();
            let buckets: Vec<RedisBucket> = buckets.iter().map(|name| self.other(name)).collect();
            let notes = channel(&self.other(notes)).into_bytes();
            let mut listening = Listening { client, buckets, notes, test: self.other(TEST), waiting: VecDeque::new() };
            let limit = self.policy.timeout;
            let connection = tokio::time::timeout(limit, listening.connect()).await;
            let connection = connection.map_err(|elapsed| Error::with_detail(Code::Timeout, elapsed))?;
            let connection = connection.map_err(|error| Error::with_detail(Code::Io, told(&error)))?;
            let connection = listening.heard(connection, limit / 2).await?;
            Ok((0, Feed::of(|telling| listening.run(connection, telling))))
        })
    }
}

/// Where the notes of that bucket are told.
fn channel(notes: &RedisBucket) -> String {
    format!("{}#", notes.bases[0])
}

/// What the names of a bucket's keys begin with, in the channel that tells of them.
fn keyspace(bucket: &RedisBucket) -> String {
    format!("__keyspace@{}__:{}:", bucket.database, bucket.bases[0])
}

/// That as a pattern for all that begins so.
fn pattern(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\' | '^') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern + "*"
}

struct Connection {
    sink: PubSubSink,
    stream: PubSubStream,
}

/// A change whose value is not read yet, or a note.
enum Waiting {
    Set(usize, String),
    Delete(usize, String),
    Note(Vec<u8>),
}

struct Listening {
    client: Client,
    buckets: Vec<RedisBucket>,
    notes: Vec<u8>,
    test: RedisBucket,
    waiting: VecDeque<Waiting>,
}

/// Nobody listens any more.
struct Unheard;

impl Listening {
    async fn connect(&self) -> Result<Connection, RedisError> {
        let (mut sink, stream) = self.client.get_async_pubsub().await?.split();
        sink.subscribe(&self.notes[..]).await?;
        for bucket in self.buckets.iter().chain([&self.test]) {
            sink.psubscribe(pattern(&keyspace(bucket))).await?;
        }
        Ok(Connection { sink, stream })
    }

    /// The connection, once a write of our own was heard on it.
    async fn heard(&mut self, mut connection: Connection, limit: Duration) -> Result<Connection, Error> {
        let key: String = new_mark().iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = keyspace(&self.test) + &key;
        let ttl = SetOptions { ttl: Some(Duration::from_secs(60)), ..SetOptions::default() };
        self.test.put(&key, b"", ttl).await?;
        let listen = async {
            while let Some(message) = connection.stream.next().await {
                if message.get_channel::<String>().is_ok_and(|channel| channel == expected) {
                    return true;
                }
                self.take(&message);
            }
            false
        };
        let heard = tokio::time::timeout(limit, listen).await;
        self.test.delete(&key).await?;
        if heard.unwrap_or(false) {
            return Ok(connection);
        }
        let text = "the server tells of no changes: its notify-keyspace-events must have K, g, $, x and e (\"Kg$xe\")";
        Err(Error::with_detail(Code::Unsupported, text))
    }

    async fn run(mut self, mut connection: Connection, telling: Telling) {
        let mut pause = Duration::from_millis(50);
        loop {
            let Err(error) = self.listen(&mut connection, &telling).await else { return };
            tracing::warn!(error = %error, "the connection that tells of changes broke, and is made anew");
            connection = loop {
                tokio::select! {
                    () = telling.closed() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                match tokio::time::timeout(PING_EVERY, self.connect()).await {
                    Ok(Ok(connection)) => break connection,
                    _ => pause = (pause * 2).min(PAUSE_MAX),
                }
            };
            pause = Duration::from_millis(50);
            // From here on all is heard again; what was said in between is not known.
            self.waiting.clear();
            if telling.send(Told::Lagged).await.is_err() {
                return;
            }
        }
    }

    /// Tells what is heard, until the connection breaks; `Ok` when nobody listens any more.
    async fn listen(&mut self, connection: &mut Connection, telling: &Telling) -> Result<(), Error> {
        let mut ping = tokio::time::interval(PING_EVERY);
        ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if !self.waiting.is_empty() {
                match self.tell(telling).await {
                    Ok(()) => {}
                    Err(Failed::Unheard(Unheard)) => return Ok(()),
                    Err(Failed::Store(error)) => return Err(error),
                }
            }
            tokio::select! {
                biased;
                message = connection.stream.next() => match message {
                    Some(message) => self.take(&message),
                    None => return Err(Error::with_detail(Code::Io, "the connection ended")),
                },
                () = telling.closed() => return Ok(()),
                _ = ping.tick() => {
                    let answer = tokio::time::timeout(PING_EVERY, connection.sink.ping::<::redis::Value>()).await;
                    let answer = answer.map_err(|elapsed| Error::with_detail(Code::Io, elapsed))?;
                    answer.map_err(|error| Error::with_detail(Code::Io, told(&error)))?;
                }
            }
            // Whatever has come already, so that many values are read at once.
            while let Some(Some(message)) = futures_util::FutureExt::now_or_never(connection.stream.next()) {
                self.take(&message);
                if self.waiting.len() > WAITING_MAX {
                    self.waiting.clear();
                    if telling.send(Told::Lagged).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Keeps what a message says, if it is about a change or is a note. A script of ours makes one `set` of each key that it
    /// writes, whatever else it does to it.
    fn take(&mut self, message: &Msg) {
        let (Ok(channel), Ok(what)) = (message.get_channel::<Vec<u8>>(), message.get_payload::<Vec<u8>>()) else {
            return;
        };
        if channel == self.notes {
            self.waiting.push_back(Waiting::Note(what));
            return;
        }
        for (i, bucket) in self.buckets.iter().enumerate() {
            let key = channel.strip_prefix(keyspace(bucket).as_bytes()).and_then(|key| std::str::from_utf8(key).ok());
            let Some(key) = key else { continue };
            match &what[..] {
                b"set" => self.waiting.push_back(Waiting::Set(i, key.to_owned())),
                b"del" | b"expired" | b"evicted" => self.waiting.push_back(Waiting::Delete(i, key.to_owned())),
                _ => {}
            }
            return;
        }
    }

    /// Tells the first of what waits, with the values that stand there.
    async fn tell(&mut self, telling: &Telling) -> Result<(), Failed> {
        let count = self.waiting.len().min(READ_MAX);
        let mut sets: Vec<Vec<&str>> = vec![Vec::new(); self.buckets.len()];
        for waiting in self.waiting.iter().take(count) {
            if let Waiting::Set(bucket, key) = waiting {
                sets[*bucket].push(key);
            }
        }
        let mut values: Vec<HashMap<String, bytes::Bytes>> = Vec::with_capacity(sets.len());
        for (bucket, keys) in self.buckets.iter().zip(&sets) {
            let names: Vec<Key<'_>> = keys.iter().map(|key| Key::from(*key)).collect();
            let found = if names.is_empty() { Vec::new() } else { bucket.get_many(&names).await? };
            values.push(found.into_iter().flatten().map(|(key, value)| (key.to_string(), value)).collect());
        }
        for waiting in self.waiting.drain(..count) {
            let told = match waiting {
                Waiting::Note(note) => Told::Note(note),
                Waiting::Delete(bucket, key) => Told::Change { bucket, key, value: None, before: 0 },
                Waiting::Set(bucket, key) => match values[bucket].get(&key) {
                    Some(value) => Told::Change { bucket, value: Some(value.clone()), key, before: 0 },
                    // Its deletion comes next.
                    None => continue,
                },
            };
            telling.send(told).await.map_err(|_| Failed::Unheard(Unheard))?;
        }
        Ok(())
    }
}

enum Failed {
    Unheard(Unheard),
    Store(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed::Store(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_the_marks_of_a_pattern_is_a_pattern_for_itself() {
        assert_eq!(pattern("__keyspace@0__:p*[a]?\\{b}:"), "__keyspace@0__:p\\*\\[a\\]\\?\\\\{b}:*");
    }
}
