//! What a client asked.

use std::fmt;
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// A request, as the log keeps it.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `GET`
    pub method: String,
    /// The path and the query, as sent.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Who asked, over HTTP/1.1.
    pub from: Option<IpAddr>,
    /// When.
    pub at: jiff::Timestamp,
    /// The body, where one came.
    pub body: Bytes,
    /// The status answered; 0 while or where none was.
    pub status: u16,
    /// Bytes of the body that were handed to the kernel.
    pub sent: u64,
    /// Whether all was sent that was to be sent.
    pub finished: bool,
    // Which one it is, counted over the registry's life.
    pub(super) id: u64,
}

impl Request {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// The path, without the query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// What comes behind `/v2/`, wherever the registry is said to be.
    pub(super) fn registry_path(&self) -> Option<&str> {
        Some(self.path().split_once("/v2/")?.1)
    }

    /// The repository that it is about.
    pub(super) fn repository(&self) -> Option<&str> {
        self.registry_path()?.rsplitn(3, '/').nth(2)
    }

    /// Whether it asks for a token and shows no credentials.
    pub fn is_for_an_anonymous_token(&self) -> bool {
        let shows = |name: &str| self.parameters().any(|(have, value)| have == name && !value.is_empty());
        self.path() == "/token"
            && self.header("authorization").is_none()
            && !shows("password")
            && !shows("refresh_token")
    }

    /// What it shows to be let in, without padding.
    pub(super) fn secrets(&self) -> Vec<String> {
        let shown = self.header("authorization").and_then(|value| value.split_once(' '));
        let shown = shown.map(|(_, secret)| secret.trim_end_matches('=').to_owned());
        let fields = self.parameters().filter(|(name, _)| matches!(name.as_str(), "password" | "refresh_token"));
        shown.into_iter().chain(fields.map(|(_, secret)| secret)).filter(|secret| !secret.is_empty()).collect()
    }

    /// What stands in the query, and in a body of a form.
    pub(super) fn parameters(&self) -> impl Iterator<Item = (String, String)> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        let all = form_urlencoded::parse(query.as_bytes()).chain(form_urlencoded::parse(&self.body));
        all.map(|(name, value)| (name.into_owned(), value.into_owned()))
    }

    /// Which bytes of the blob were sent: from, to, and none after a refusal.
    pub(super) fn delivered(&self) -> (u64, u64) {
        match self.status {
            200 => (0, self.sent),
            206 => match self.range(u64::MAX) {
                Some(Ok((from, _))) => (from, from + self.sent),
                _ => (0, 0),
            },
            _ => (0, 0),
        }
    }

    /// `Range: bytes=5-9` as the offsets of its first byte and of the one after its last, within `length` bytes.
    /// `None`: no range. An error: one that can't be met.
    pub(super) fn range(&self, length: u64) -> Option<Result<(u64, u64), ()>> {
        let range = self.header("range")?.strip_prefix("bytes=")?;
        let (first, last) = range.split_once('-')?;
        let (first, end) = match (first.parse::<u64>().ok(), last.parse::<u64>().ok()) {
            (None, Some(suffix)) => (length.saturating_sub(suffix), length),
            (Some(first), None) => (first, length),
            (Some(first), Some(last)) => (first, length.min(last.saturating_add(1))),
            (None, None) => return None,
        };
        Some(if first < end { Ok((first, end)) } else { Err(()) })
    }

    /// Reads the next one off a connection; its body is read and dropped. `None`: the client has closed.
    pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> Result<Option<Self>> {
        loop {
            if let Some((mut request, length)) = Self::parse(buffer)? {
                let _ = buffer.split_to(length);
                let body: usize =
                    request.header("content-length").map_or(Ok(0), str::parse).context("content-length")?;
                while buffer.len() < body {
                    ensure!(stream.read_buf(buffer).await? > 0, "closed in the middle of a body");
                }
                request.body = buffer.split_to(body).freeze();
                return Ok(Some(request));
            }
            ensure!(buffer.len() < 64 << 10, "a head that never ends");
            if stream.read_buf(buffer).await? == 0 {
                return if buffer.is_empty() { Ok(None) } else { bail!("closed in the middle of a head") };
            }
        }
    }

    fn parse(buffer: &[u8]) -> Result<Option<(Self, usize)>> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Request::new(&mut headers);
        let httparse::Status::Complete(length) = head.parse(buffer).context("not HTTP")? else { return Ok(None) };
        let headers = head
            .headers
            .iter()
            .map(|header| (header.name.to_ascii_lowercase(), String::from_utf8_lossy(header.value).into_owned()));
        let request = Self {
            method: head.method.unwrap_or_default().to_owned(),
            target: head.path.unwrap_or_default().to_owned(),
            headers: headers.collect(),
            ..Self::default()
        };
        Ok(Some((request, length)))
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, target, status, sent, .. } = self;
        if let Some(from) = self.from.filter(|from| !from.is_loopback()) {
            write!(f, "{from} ")?;
        }
        write!(f, "{method} {target}")?;
        if let Some(range) = self.header("range") {
            write!(f, " [{range}]")?;
        }
        write!(f, " → {status}, {sent} bytes{}", if self.finished { "" } else { ", unfinished" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_met_or_refused() {
        let range = |text: &str| {
            let headers = vec![("range".to_owned(), text.to_owned())];
            Request { headers, ..Request::default() }.range(10)
        };
        assert_eq!(range("bytes=2-4"), Some(Ok((2, 5))));
        assert_eq!(range("bytes=2-"), Some(Ok((2, 10))));
        assert_eq!(range("bytes=2-99"), Some(Ok((2, 10))));
        assert_eq!(range("bytes=-3"), Some(Ok((7, 10))));
        assert_eq!(range("bytes=10-"), Some(Err(())));
        assert_eq!(range("bytes=-"), None);
    }
}
