use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::keyring::Lack;

/// What an upstream did not give: who, where, and how it failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{upstream}{}: {kind}", Elsewhere(at.as_deref()))]
pub struct UpstreamError {
    upstream: Arc<str>,
    at: Option<Arc<str>>,
    kind: ErrorKind,
    is_by_origin: bool,
    is_challenge: bool,
}

/// How a request to an upstream failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ErrorKind {
    /// The registry says that there is no such thing (404, 410).
    #[error("not found")]
    NotFound,
    /// The registry wants to know who asks, or won't have who asked (401).
    #[error("unauthorized")]
    Unauthorized,
    /// The registry refuses (403, 451).
    #[error("access denied")]
    Denied,
    /// The registry's quota is used up (429).
    #[error("too many requests{}", After(*retry_after))]
    RateLimited {
        /// How long it wants to be left alone, if it said so; at most a day.
        retry_after: Option<Duration>,
    },
    /// No connection.
    #[error(transparent)]
    Unreachable(Unreachable),
    /// No head of an answer within `header_timeout`, tokens and redirects included.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// A status that says nothing about the content: 5xx, 408, and all that have no place here.
    #[error("status {0}")]
    Server(StatusCode),
    /// The body paused for longer than `stall_timeout`, or for less where another upstream may do better.
    #[error("no byte for {}", humantime::format_duration(*.0))]
    Stalled(Duration),
    /// The body ended early.
    #[error("ended early, after {at} bytes")]
    Cut {
        /// The offset in the blob of the first byte that did not come.
        at: u64,
    },
    /// The answer is wrong in itself.
    #[error("a wrong answer: {0}")]
    Protocol(String),
    /// As many requests as its `max_connections` allows were under way, the same ones for `header_timeout` and more.
    #[error("all its {0} connections stayed in use")]
    Busy(usize),
    /// It wants credentials, and those that there may be for it couldn't be had. No fault of its own.
    #[error("no credentials for it: {0}")]
    Credentials(Lack),
    /// The guard does not let us go there.
    #[error("{0} is only contacted where the configuration names it as an upstream")]
    Forbidden(String),
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// The name has no address.
    #[error("the name can't be resolved: {0}")]
    Dns(String),
    /// Nobody listens.
    #[error("connection refused")]
    Refused,
    /// Name, TCP and TLS took longer than `connect_timeout`.
    #[error("no connection within {}", humantime::format_duration(*.0))]
    ConnectTimeout(Duration),
    /// The TLS handshake failed: mostly a certificate that is not trusted.
    #[error("TLS: {0}")]
    Tls(String),
    /// The proxy wants credentials, or others (407).
    #[error("the proxy {0} demands authorization; write it as http://user:password@host")]
    ProxyAuthorization(String),
    /// The proxy can't be reached, or does not connect us.
    #[error("the proxy {proxy}: {reason}")]
    Proxy {
        /// Where it is.
        proxy: String,
        /// What went wrong.
        reason: String,
    },
    /// Anything else: no route, reset, closed before the head of an answer.
    #[error("{0}")]
    Broken(String),
}

impl UpstreamError {
    pub(super) const fn new(upstream: Arc<str>, kind: ErrorKind) -> Self {
        Self { upstream, at: None, kind, is_by_origin: false, is_challenge: false }
    }

    /// The same, with the host where it happened, if that is not the upstream itself.
    pub(super) fn at(mut self, host: &str) -> Self {
        self.at = (*host != *self.upstream).then(|| host.into());
        self
    }

    /// The same, meaning something else.
    pub(super) fn become_(self, kind: ErrorKind) -> Self {
        Self { kind, ..self }
    }

    /// Host and port of the upstream.
    #[must_use]
    pub fn upstream(&self) -> &str {
        &self.upstream
    }

    /// The same, said by the registry itself or by a mirror of it.
    pub(super) fn said_by_origin(self, is_by_origin: bool) -> Self {
        Self { is_by_origin, ..self }
    }

    /// Whether the registry itself said it, not a mirror of it.
    #[must_use]
    pub const fn is_by_origin(&self) -> bool {
        self.is_by_origin
    }

    /// The challenge of one that wants to know who asks.
    pub(super) fn challenge(upstream: Arc<str>) -> Self {
        Self { is_challenge: true, ..Self::new(upstream, ErrorKind::Unauthorized) }
    }

    /// Whether it was said to one that had shown nothing, and may be answered otherwise once it shows who it is: by a
    /// challenge that we can meet.
    #[must_use]
    pub const fn is_challenge(&self) -> bool {
        self.is_challenge
    }

    /// How it failed.
    #[must_use]
    pub const fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// The host where it happened, if that is not the upstream itself.
    pub(super) fn elsewhere(&self) -> Option<Arc<str>> {
        self.at.clone()
    }

    /// Whether the registry doesn't give it to who asked.
    pub(super) const fn is_refusal(&self) -> bool {
        matches!(self.kind, ErrorKind::Unauthorized | ErrorKind::Denied)
    }

    /// Whether the registry did answer, with no. Where it did not, another upstream of the same registry may do better.
    #[must_use]
    pub const fn is_answer(&self) -> bool {
        matches!(self.kind, ErrorKind::NotFound | ErrorKind::Unauthorized | ErrorKind::Denied)
    }
}

impl ErrorKind {
    /// A short name that never changes, for metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Unauthorized => "unauthorized",
            Self::Denied => "denied",
            Self::RateLimited { .. } => "rate_limited",
            Self::Unreachable(Unreachable::Dns(_)) => "dns",
            Self::Unreachable(Unreachable::Refused) => "refused",
            Self::Unreachable(Unreachable::ConnectTimeout(_)) => "connect_timeout",
            Self::Unreachable(Unreachable::Tls(_)) => "tls",
            Self::Unreachable(Unreachable::ProxyAuthorization(_)) => "proxy_authorization",
            Self::Unreachable(Unreachable::Proxy { .. }) => "proxy",
            Self::Unreachable(Unreachable::Broken(_)) => "connection",
            Self::Timeout(_) => "timeout",
            Self::Server(_) => "server",
            Self::Stalled(_) => "stalled",
            Self::Cut { .. } => "cut",
            Self::Protocol(_) => "protocol",
            Self::Busy(_) => "busy",
            Self::Credentials(_) => "credentials",
            Self::Forbidden(_) => "forbidden",
        }
    }
}

struct Elsewhere<'a>(Option<&'a str>);

impl fmt::Display for Elsewhere<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |host| write!(f, ", at {host}"))
    }
}

struct After(Option<Duration>);

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |after| write!(f, ", try again in {}", humantime::format_duration(after)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_who_and_where_and_what() {
        let error = UpstreamError::new("registry-1.docker.io".into(), ErrorKind::Unreachable(Unreachable::Refused));
        assert_eq!(error.to_string(), "registry-1.docker.io: connection refused");
        assert_eq!(error.clone().at("registry-1.docker.io").to_string(), error.to_string());
        assert_eq!(
            error.at("auth.docker.io").to_string(),
            "registry-1.docker.io, at auth.docker.io: connection refused"
        );
        let limited = ErrorKind::RateLimited { retry_after: Some(Duration::from_secs(90)) };
        assert_eq!(limited.to_string(), "too many requests, try again in 1m 30s");
    }
}
