//! Counters and latencies for `kvasi serve`: what is counted, and `GET /metrics` in the text format of Prometheus.
//!
//! Flow: `metrics` facade (the binding's calls, requests here) -> the exporter's registry -> its text, on a listener of its own.

use crate::failure::Failure;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::convert::Infallible;
use std::time::Duration;
use tokio::net::TcpListener;

/// Bounds of latency buckets, in seconds: from a hit in memory to a disk that is slow.
const SECONDS: [f64; 14] = [1e-7, 2.5e-7, 5e-7, 1e-6, 2.5e-6, 1e-5, 1e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 1e-1, 1.0, 10.0];
/// How often the exporter takes up what was recorded, and lets go of it.
const UPKEEP: Duration = Duration::from_secs(5);

/// The registry, to be served.
pub(crate) struct Endpoint(PrometheusHandle);

impl Endpoint {
    /// Has all that is counted from here on counted.
    pub(crate) fn install() -> Result<Endpoint, Failure> {
        let fail = |error: metrics_exporter_prometheus::BuildError| Failure::new(format!("cannot count: {error}"));
        let builder = PrometheusBuilder::new().set_buckets(&SECONDS).map_err(fail)?;
        let handle = builder.install_recorder().map_err(fail)?;
        metrics::describe_counter!("kvasi_requests_total", "HTTP requests, by the class of their status.");
        metrics::describe_histogram!(
            "kvasi_request_seconds",
            metrics::Unit::Seconds,
            "From a request to the head of its answer."
        );
        Ok(Endpoint(handle))
    }

    /// Answers until the process ends.
    pub(crate) async fn serve(self, listener: TcpListener) {
        if let Ok(at) = listener.local_addr() {
            tracing::info!("metrics on http://{at}/metrics");
        }
        let upkeep = self.0.clone();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(UPKEEP);
            loop {
                ticks.tick().await;
                upkeep.run_upkeep();
            }
        });
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let handle = self.0.clone();
            let service = service_fn(move |request| std::future::ready(Ok::<_, Infallible>(answer(&handle, &request))));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(10))
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    }
}

fn answer(
    handle: &PrometheusHandle,
    request: &Request<hyper::body::Incoming>,
) -> Response<http_body_util::Full<Bytes>> {
    let mut response = Response::new(http_body_util::Full::default());
    if request.method() == Method::GET && request.uri().path() == "/metrics" {
        *response.body_mut() = http_body_util::Full::new(Bytes::from(handle.render()));
        let text = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(hyper::header::CONTENT_TYPE, text);
    } else {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    response
}

/// One request was answered, with this status.
pub(crate) fn request(status: u16, took: Duration) {
    let class = match status {
        200..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        _ => "5xx",
    };
    metrics::counter!("kvasi_requests_total", "status" => class).increment(1);
    metrics::histogram!("kvasi_request_seconds").record(took.as_secs_f64());
}
