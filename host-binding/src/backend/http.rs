//! HTTP for the services that are spoken to without a client library: requests with bodies in memory, connections kept.
//!
//! Flow: `firestore`, `cosmosdb` -> [`Http::send`] -> a pool of connections, with TLS where the URL says `https`.
//! Invariants: 1. A failure says whether anything was sent. 2. A request that is dropped takes its connection with it: no later answer
//! is taken for another's. 3. An answer is read whole, up to a bound.

use super::remote::{Failure, Policy, chain};
use crate::{Code, Error};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::time::Duration;

/// Largest answer taken: a hundred values of the greatest length, as text.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// How long a connection may lie idle: less than what the services allow.
const IDLE: Duration = Duration::from_secs(60);

/// A pool of connections.
pub(crate) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// An answer, whatever its status.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Http {
    /// No connection is made yet.
    ///
    /// # Errors
    /// [`Code::Io`] if the system's certificates cannot be read.
    pub(crate) fn new(policy: &Policy) -> Result<Self, Error> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(policy.timeout / 2));
        let tls = HttpsConnectorBuilder::new().with_native_roots();
        let tls = tls.map_err(|error| Error::with_detail(Code::Io, error))?;
        let connector = tls.https_or_http().enable_http1().wrap_connector(connector);
        let mut client = Client::builder(TokioExecutor::new());
        client.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE);
        Ok(Http { client: client.build(connector) })
    }

    /// Sends a request and reads its answer whole.
    ///
    /// # Errors
    /// [`Failure::NotApplied`] if there is no connection, [`Failure::Unknown`] if it broke.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Reply, Failure> {
        let answer = self.client.request(request).await.map_err(|error| {
            let detail = Error::with_detail(Code::Io, chain(&error));
            if error.is_connect() { Failure::NotApplied(detail) } else { Failure::Unknown(detail) }
        })?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| Failure::Unknown(Error::with_detail(Code::Io, error)))?;
        Ok(Reply { status: head.status, headers: head.headers, body: body.to_bytes() })
    }
}
