use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::MaybeHttpsStream;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::connect::DialError;
use crate::config::ProxyUrl;

/// The longest head of a proxy's answer.
const MAX_HEAD: usize = 16 << 10;

/// A connection to a server, or to a proxy in between.
pub(super) struct Hop {
    stream: MaybeHttpsStream<TokioIo<TcpStream>>,
    /// Whether the proxy reads our requests: they name the server then.
    is_read_by_proxy: bool,
}

impl Hop {
    pub(super) const fn direct(stream: TokioIo<TcpStream>) -> Self {
        Self { stream: MaybeHttpsStream::Http(stream), is_read_by_proxy: false }
    }

    pub(super) const fn to_proxy(stream: MaybeHttpsStream<TokioIo<TcpStream>>) -> Self {
        Self { stream, is_read_by_proxy: true }
    }

    /// Has a proxy connect us to a server, so that it reads nothing of what follows.
    pub(super) async fn through(
        stream: MaybeHttpsStream<TokioIo<TcpStream>>,
        proxy: &ProxyUrl,
        server: &str,
    ) -> Result<Self, DialError> {
        let wrong = |reason: String| DialError::Proxy { proxy: proxy.to_string(), reason };
        let mut stream = TokioIo::new(stream);
        let mut request = format!("CONNECT {server} HTTP/1.1\r\nHost: {server}\r\n").into_bytes();
        if let Some(authorization) = proxy.authorization() {
            request.extend_from_slice(b"Proxy-Authorization: ");
            request.extend_from_slice(authorization.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        stream.write_all(&request).await.map_err(|e| wrong(e.to_string()))?;
        stream.flush().await.map_err(|e| wrong(e.to_string()))?;
        let mut head = Vec::with_capacity(1024);
        while !head.ends_with(b"\r\n\r\n") {
            // Byte by byte: what follows the head belongs to the server.
            let byte = stream.read_u8().await.map_err(|e| wrong(format!("no answer to CONNECT: {e}")))?;
            head.push(byte);
            if head.len() > MAX_HEAD {
                return Err(wrong("its answer to CONNECT has no end".to_owned()));
            }
        }
        match status(&head) {
            Some(200..=299) => Ok(Self { stream: stream.into_inner(), is_read_by_proxy: false }),
            Some(407) => Err(DialError::ProxyAuthorization(proxy.to_string())),
            Some(status) => Err(wrong(format!("status {status} for CONNECT {server}"))),
            None => Err(wrong("its answer to CONNECT is no HTTP".to_owned())),
        }
    }
}

/// The status of `HTTP/1.1 200 Connection established`.
fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

impl Connection for Hop {
    fn connected(&self) -> Connected {
        self.stream.connected().proxy(self.is_read_by_proxy)
    }
}

impl Read for Hop {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl Write for Hop {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_proxies() {
        assert_eq!(status(b"HTTP/1.1 200 Connection established\r\n\r\n"), Some(200));
        assert_eq!(status(b"HTTP/1.0 407\r\nX: y\r\n\r\n"), Some(407));
        assert_eq!(status(b"SSH-2.0-OpenSSH\r\n\r\n"), None);
        assert_eq!(status(b""), None);
    }
}
