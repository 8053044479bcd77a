//! A small HTTP client for the tests' own requests.

use std::net::IpAddr;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpSocket, TcpStream};
use tower::Service;

use crate::Namespace;

/// Plain HTTP/1.1 over kept connections.
#[derive(Debug, Clone)]
pub struct Http(Client<Dialer, Full<Bytes>>);

/// Connects to addresses, from a network namespace.
#[derive(Debug, Clone)]
pub(crate) struct Dialer(Option<Namespace>);

impl Dialer {
    /// One whose connections begin in this network namespace.
    pub(crate) fn within(namespace: Option<Namespace>) -> Self {
        Self(namespace)
    }
}

/// What came back.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// As much of the body as came.
    pub body: Bytes,
    /// Why the body ended early, where it did.
    pub cut: Option<String>,
    /// From the request to the head.
    pub to_head: Duration,
    /// From the request to the end of the body.
    pub to_end: Duration,
}

impl Http {
    /// A client with no connections yet.
    pub fn new() -> Self {
        Self::within(None)
    }

    /// One whose connections begin in this network namespace.
    pub fn within(namespace: Option<Namespace>) -> Self {
        Self(Client::builder(TokioExecutor::new()).build(Dialer(namespace)))
    }

    /// Sends a request. Fails when no head comes back; a body that is cut is part of the reply.
    pub async fn send(&self, method: Method, url: &str, headers: &[(&str, &str)], body: Bytes) -> Result<Reply> {
        let mut request = Request::builder().method(&method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).with_context(|| format!("asking {url}"))?;
        let begun = Instant::now();
        let response = self.0.request(request).await.with_context(|| format!("{method} {url}"))?;
        let to_head = begun.elapsed();
        let (head, mut incoming) = response.into_parts();
        let (mut body, mut cut) = (BytesMut::new(), None);
        while let Some(frame) = incoming.frame().await {
            match frame {
                Ok(frame) => body.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..])),
                Err(error) => {
                    cut = Some(error.to_string());
                    break;
                }
            }
        }
        Ok(Reply {
            status: head.status,
            headers: head.headers,
            body: body.freeze(),
            cut,
            to_head,
            to_end: begun.elapsed(),
        })
    }

    /// GET.
    pub async fn get(&self, url: &str) -> Result<Reply> {
        self.send(Method::GET, url, &[], Bytes::new()).await
    }

    /// GET with a `Range` header.
    pub async fn get_range(&self, url: &str, range: &str) -> Result<Reply> {
        self.send(Method::GET, url, &[("range", range)], Bytes::new()).await
    }

    /// HEAD.
    pub async fn head(&self, url: &str) -> Result<Reply> {
        self.send(Method::HEAD, url, &[], Bytes::new()).await
    }
}

impl Default for Http {
    fn default() -> Self {
        Self::new()
    }
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<TcpStream>;
    type Error = anyhow::Error;
    type Future = BoxFuture<'static, Result<TokioIo<TcpStream>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let namespace = self.0.clone();
        Box::pin(async move {
            let host = uri.host().context("a URL without a host")?.replace("localhost", "127.0.0.1");
            let ip: IpAddr = host.trim_matches(['[', ']']).parse().context("not an address")?;
            let new = || if ip.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
            let socket = match namespace {
                Some(namespace) => namespace.inside(new)?,
                None => new()?,
            };
            let stream = socket.connect((ip, uri.port_u16().unwrap_or(80)).into()).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(stream))
        })
    }
}

impl Reply {
    /// A header's text; empty where it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Fails, showing the body, unless the status is `expected`.
    pub fn expect(self, expected: StatusCode) -> Result<Self> {
        let body = String::from_utf8_lossy(&self.body[..self.body.len().min(500)]);
        ensure!(self.status == expected, "expected {expected}, got {}: {body}", self.status);
        Ok(self)
    }
}
