//! The connection to a Redis server or cluster: made by the first call, shared by all, made anew after it broke; and what each failure
//! says about the request.

use super::super::remote::{Failure, Policy, Repeat, nameless, queries};
use super::super::tls::Tls;
use crate::{Code, Error};
use ::redis::aio::{ConnectionLike, MultiplexedConnection};
use ::redis::cluster::{ClusterClient, ClusterClientBuilder};
use ::redis::cluster_async::ClusterConnection;
use ::redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ErrorKind, RedisError, ServerErrorKind, TlsCertificates,
    Value, cmd,
};
use sha1_smol::Sha1;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::sync::Mutex;
use url::Url;

/// A script that the server runs as one step, called by the digest of its text.
pub(super) struct Script {
    text: &'static str,
    digest: OnceLock<String>,
}

impl Script {
    pub(super) const fn new(text: &'static str) -> Self {
        Script { text, digest: OnceLock::new() }
    }

    fn digest(&self) -> &str {
        self.digest.get_or_init(|| Sha1::from(self.text).hexdigest())
    }

    fn command(&self, by: &str, what: &str, keys: usize, write: &(dyn Fn(&mut Cmd) + Sync)) -> Cmd {
        let mut command = cmd(by);
        command.arg(what).arg(keys);
        write(&mut command);
        command
    }
}

enum Server {
    One(Box<Client>),
    /// One client repeats by itself what a node that has moved or fallen did not answer; the other never does.
    Cluster {
        repeating: Box<ClusterClient>,
        once: Box<ClusterClient>,
    },
}

#[derive(Clone)]
enum Wire {
    One(MultiplexedConnection),
    Cluster { repeating: ClusterConnection, once: ClusterConnection },
}

pub(super) struct Link {
    server: Server,
    timeout: Duration,
    /// The connection, with how many there were before it: a call that finds it broken takes away this one and no later one.
    wire: Mutex<(u64, Option<Wire>)>,
}

impl Link {
    pub(super) fn new(url: &Url, clustered: bool, policy: Policy) -> Result<Self, Error> {
        let invalid = |error: RedisError| Error::with_detail(Code::Invalid, error);
        let certificates = if url.scheme().starts_with("rediss") { Some(certificates(Tls::of(url)?)) } else { None };
        // An attempt that is not answered leaves time for another one on a fresh connection.
        let timeout = policy.timeout / 2;
        let server = if clustered {
            let scheme = if url.scheme() == "rediss-cluster" { "rediss" } else { "redis" };
            let mut nodes = vec![address(url, scheme)];
            for node in queries(url, "node") {
                nodes.push(format!("{scheme}://{}{node}", authority(url)));
            }
            let build = |retries: u32| -> Result<ClusterClient, RedisError> {
                let mut builder = ClusterClientBuilder::new(nodes.clone()).retries(retries);
                if let Some(certificates) = &certificates {
                    builder = builder.certs(certificates.clone());
                }
                builder.response_timeout(timeout).connection_timeout(timeout).build()
            };
            Server::Cluster {
                repeating: Box::new(build(4).map_err(invalid)?),
                once: Box::new(build(0).map_err(invalid)?),
            }
        } else {
            let address = address(url, url.scheme());
            let client = match certificates {
                Some(certificates) => Client::build_with_tls(address, certificates),
                None => Client::open(address),
            };
            Server::One(Box::new(client.map_err(invalid)?))
        };
        Ok(Link { server, timeout, wire: Mutex::new((0, None)) })
    }

    /// The client of a server that is no cluster.
    pub(super) fn client(&self) -> Option<&Client> {
        match &self.server {
            Server::One(client) => Some(client),
            Server::Cluster { .. } => None,
        }
    }

    /// Sends a command once.
    pub(super) async fn ask(&self, repeat: Repeat, command: &Cmd) -> Result<Value, Failure> {
        self.send(repeat, command).await?.map_err(|error| failure(&error))
    }

    /// Sends a command once, and gives what the server or its connection says of it.
    async fn send(&self, repeat: Repeat, command: &Cmd) -> Result<Result<Value, RedisError>, Failure> {
        let (number, wire) = self.wire().await?;
        let answer = match wire {
            Wire::One(mut connection) => connection.req_packed_command(command).await,
            Wire::Cluster { repeating: mut connection, .. } if repeat != Repeat::Never => {
                connection.req_packed_command(command).await
            }
            Wire::Cluster { once: mut connection, .. } => connection.req_packed_command(command).await,
        };
        // An error that the server answered may come as a value.
        let answer = answer.and_then(Value::extract_error);
        if answer.as_ref().is_err_and(|error| error.is_io_error() || error.is_connection_dropped()) {
            self.drop_wire(number).await;
        }
        Ok(answer)
    }

    /// Runs a script once; one that the server does not know is sent with its text.
    pub(super) async fn run(
        &self,
        repeat: Repeat,
        script: &Script,
        keys: usize,
        write: &(dyn Fn(&mut Cmd) + Sync),
    ) -> Result<Value, Failure> {
        match self.send(repeat, &script.command("EVALSHA", script.digest(), keys, write)).await? {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.ask(repeat, &script.command("EVAL", script.text, keys, write)).await
            }
            answer => answer.map_err(|error| failure(&error)),
        }
    }

    async fn wire(&self) -> Result<(u64, Wire), Failure> {
        let mut slot = self.wire.lock().await;
        if let (number, Some(wire)) = &*slot {
            return Ok((*number, wire.clone()));
        }
        // Nothing was sent yet: whatever fails here may be tried again, a refused password alone may not.
        let wire = tokio::time::timeout(self.timeout, self.connect()).await;
        let wire = wire.map_err(|elapsed| Failure::NotApplied(Error::with_detail(Code::Io, elapsed)))?;
        let wire = wire.map_err(|error| match error.kind() {
            ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig => {
                Failure::Final(Error::with_detail(Code::Io, told(&error)))
            }
            _ => Failure::NotApplied(Error::with_detail(Code::Io, told(&error))),
        })?;
        slot.1 = Some(wire.clone());
        Ok((slot.0, wire))
    }

    async fn connect(&self) -> Result<Wire, RedisError> {
        match &self.server {
            Server::One(client) => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(self.timeout))
                    .set_response_timeout(Some(self.timeout));
                Ok(Wire::One(client.get_multiplexed_async_connection_with_config(&config).await?))
            }
            Server::Cluster { repeating, once } => {
                let (repeating, once) =
                    tokio::try_join!(repeating.get_async_connection(), once.get_async_connection())?;
                Ok(Wire::Cluster { repeating, once })
            }
        }
    }

    async fn drop_wire(&self, number: u64) {
        let mut slot = self.wire.lock().await;
        if slot.0 == number {
            *slot = (number + 1, None);
        }
    }
}

fn certificates(tls: Tls) -> TlsCertificates {
    let client_tls = tls.identity.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
    TlsCertificates { client_tls, root_cert: tls.ca }
}

/// The URL as the client library takes it: our own parameters are none of its business.
fn address(url: &Url, scheme: &str) -> String {
    let port = url.port().unwrap_or(6379);
    format!("{scheme}://{}{}:{port}{}", authority(url), url.host_str().unwrap_or("localhost"), url.path())
}

/// User and password, still escaped, with their `@`.
fn authority(url: &Url) -> String {
    match (url.username(), url.password()) {
        ("", None) => String::new(),
        (user, None) => format!("{user}@"),
        (user, Some(password)) => format!("{user}:{password}@"),
    }
}

/// An error in words, none of which is an address: one that points at another node names it.
pub(super) fn told(error: &RedisError) -> String {
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask) => {
            "the key is at another node: a cluster has a URL of redis-cluster://".to_owned()
        }
        _ => nameless(error.to_string()),
    }
}

/// What a failed request says about itself.
fn failure(error: &RedisError) -> Failure {
    let as_code = |code| Error::with_detail(code, told(error));
    let code = match (error.kind(), error.code()) {
        (ErrorKind::Server(kind), _) => match kind {
            ServerErrorKind::ReadOnly
            | ServerErrorKind::BusyLoading
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask
            | ServerErrorKind::NoScript => return Failure::NotApplied(as_code(Code::Busy)),
            _ => of_text(error),
        },
        (ErrorKind::Extension, Some("BUSY")) => return Failure::NotApplied(as_code(Code::Busy)),
        (ErrorKind::Extension, Some("OOM")) => Code::NoSpace,
        (ErrorKind::Extension, Some("WRONGTYPE")) => Code::Invalid,
        (ErrorKind::Extension, Some("MISCONF" | "NOREPLICAS")) => Code::ReadOnly,
        (ErrorKind::Extension, _) => of_text(error),
        (ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig | ErrorKind::Client, _) => Code::Io,
        (ErrorKind::ClusterConnectionNotFound, _) => return Failure::NotApplied(as_code(Code::Io)),
        (ErrorKind::Io, _) if error.is_connection_refusal() => {
            return Failure::NotApplied(as_code(Code::Io));
        }
        _ => return Failure::Unknown(as_code(Code::Io)),
    };
    Failure::Final(as_code(code))
}

/// The server has one code for many errors; the text tells them apart. Inside a script the text stands within a longer one.
fn of_text(error: &RedisError) -> Code {
    let text = error.to_string();
    let has = |words: &str| text.contains(words);
    if has("not an integer") {
        Code::NotANumber
    } else if has("would overflow") {
        Code::Overflow
    } else if has("WRONGTYPE") {
        Code::Invalid
    } else if has("OOM ") || has("used memory >") {
        Code::NoSpace
    } else {
        Code::Io
    }
}
