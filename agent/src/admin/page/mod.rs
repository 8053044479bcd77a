//! The status page: what runs here and whether it is safe, for people with a browser on this node.
//!
//! It is rendered here, in one piece: no script, nothing that is fetched from elsewhere, one request. It listens on
//! loopback alone and answers only those who name a loopback host, since a web site could otherwise have its own name
//! point here and read the page through its visitor's browser.

mod guard;
mod images;
mod picture;
mod render;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::flows::Minute;
use super::port;
use super::view::Status;
use super::view::images::Images;
use crate::peers::ShownPart;
use crate::wire;

/// Browsers of people on this node; no more are served at a time.
const MAX_CONNECTIONS: usize = 16;
const BACKLOG: u32 = 16;

const STYLE: &str = include_str!("style.css");

/// Nothing but the page itself and its own style: no script, no frame around it, nothing from anywhere.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let style = STANDARD.encode(Sha256::digest(STYLE));
    format!(
        "default-src 'none'; style-src 'sha256-{style}'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    )
});

/// What is the same in every reply.
const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff")),
    (HeaderName::from_static("referrer-policy"), HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
];

/// All that the page shows, of one moment.
#[derive(Debug, Clone)]
pub struct Sight {
    /// This machine's name, if it has one.
    pub host: Option<String>,
    /// That moment.
    pub now: Timestamp,
    /// What the agent is doing.
    pub status: Status,
    /// The images that are known here.
    pub images: Images,
    /// The cluster.
    pub peers: ShownPart,
    /// Where bytes came from within the last hour, minute by minute.
    pub flows: Vec<Minute>,
}

/// Takes a look.
pub type Look = Arc<dyn Fn() -> BoxFuture<'static, Sight> + Send + Sync>;

/// The port of the page.
#[derive(Debug)]
pub struct Page(TcpListener);

impl Page {
    /// Takes the port.
    ///
    /// # Errors
    /// When it isn't on loopback, or can't be had.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let said = |e: io::Error| io::Error::new(e.kind(), format!("admin.page {address}: {e}"));
        if !address.ip().is_loopback() {
            return Err(said(io::Error::new(io::ErrorKind::InvalidInput, "not on loopback")));
        }
        wire::listen(address, BACKLOG).map(Self).map_err(said)
    }

    /// Where it listens.
    ///
    /// # Errors
    /// As the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Serves until `stop`.
    pub async fn serve(self, look: Look, stop: CancellationToken) {
        port::serve(self.0, MAX_CONNECTIONS, stop, move || {
            let look = Arc::clone(&look);
            service_fn(move |request| {
                let look = Arc::clone(&look);
                async move { Ok::<_, Infallible>(answer(&look, &request).await) }
            })
        })
        .await;
    }
}

async fn answer(look: &Look, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !guard::names_loopback(request.uri(), request.headers()) {
        // Whoever asks under another name doesn't get to know more than that.
        return plain(StatusCode::MISDIRECTED_REQUEST, "this page is at localhost alone\n");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/" => {
            let page = render::page(&look().await).into_string();
            let mut response = reply(StatusCode::OK, "text/html; charset=utf-8", page.into());
            if let Ok(policy) = HeaderValue::from_str(&POLICY) {
                response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
            }
            response
        }
        _ => plain(StatusCode::NOT_FOUND, "the page is at /\n"),
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", text.into())
}

fn reply(status: StatusCode, kind: &'static str, body: Full<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().extend(HEADERS);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests;
