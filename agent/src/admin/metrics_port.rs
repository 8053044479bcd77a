use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::figures::Figures;
use super::port;
use crate::wire;

/// Scrapers and probes; no more are served at a time.
const MAX_CONNECTIONS: usize = 64;
const BACKLOG: u32 = 64;
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The port of `/metrics`, `/healthz` and `/readyz`, and of nothing else: unlike the mirror it may be reached from
/// outside the node.
pub struct MetricsPort(TcpListener);

impl MetricsPort {
    /// Takes the port. `[::]` takes IPv4 too; where the node has no IPv6, it is taken as `0.0.0.0`.
    ///
    /// # Errors
    /// When it can't be had.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        wire::listen(address, BACKLOG)
            .map(Self)
            .map_err(|e| io::Error::new(e.kind(), format!("metrics.listen {address}: {e}")))
    }

    /// Serves until `stop`. `/readyz` says yes once `ready` is true.
    pub async fn serve(self, figures: Figures, ready: watch::Receiver<bool>, stop: CancellationToken) {
        port::serve(self.0, MAX_CONNECTIONS, stop, move || {
            let (figures, ready) = (figures.clone(), ready.clone());
            service_fn(move |request| {
                let is_ready = *ready.borrow();
                answer(figures.clone(), is_ready, request)
            })
        })
        .await;
    }
}

async fn answer(
    figures: Figures,
    is_ready: bool,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    };
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n"));
    }
    Ok(match request.uri().path() {
        "/metrics" => match figures.openmetrics() {
            Ok(text) => {
                let mut response = Response::new(Full::from(text));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPENMETRICS));
                response
            }
            Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics can't be written\n"),
        },
        "/readyz" if !is_ready => plain(StatusCode::SERVICE_UNAVAILABLE, "hosts.toml is not written yet\n"),
        // The mirror serves by now, and what is wrong around it (no containerd, a full disk, no upstream) would not be
        // mended by a restart nor by taking the node's Pods elsewhere.
        "/healthz" | "/readyz" => plain(StatusCode::OK, "ok\n"),
        _ => plain(StatusCode::NOT_FOUND, "here are /metrics, /healthz and /readyz\n"),
    })
}
