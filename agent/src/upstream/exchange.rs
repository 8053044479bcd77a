use std::error::Error;
use std::io;
use std::iter::successors;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, RANGE, USER_AGENT};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout, timeout_at};

use super::body::Received;
use super::breaker::SILENCE;
use super::connect::{DialError, HttpClient, Over};
use super::error::{ErrorKind, Unreachable, UpstreamError};
use super::home::Home;
use super::places::{Load, Place, Places, STANDS};
use super::quota::Quota;
use super::record::Record;
use super::redirect;

const MAX_REDIRECTS: usize = 5;
/// What is read of a body that nobody wants, so that its connection can be used again, and for how long.
const DRAIN_BYTES: u64 = 64 << 10;
const DRAIN_TIME: Duration = Duration::from_millis(250);

/// Carries requests to one upstream, and to where it sends us.
#[derive(Debug)]
pub(super) struct Exchange {
    /// Host and port of the upstream: what errors call it.
    pub(super) name: Arc<str>,
    /// The upstream's own address.
    pub(super) home: Home,
    /// Sent there and nowhere else.
    pub(super) headers: HeaderMap,
    /// Who may ask there at the same time.
    pub(super) places: Option<Places>,
    /// For the upstream's own host and port, if the configuration names them.
    pub(super) named: Option<HttpClient>,
    /// For everything else.
    pub(super) guarded: HttpClient,
    /// From a request to the head of the last answer.
    pub(super) header_timeout: Duration,
    /// The longest pause in a body.
    pub(super) stall_timeout: Duration,
    /// Where it is written down how things go.
    pub(super) record: Record,
}

/// Where redirects have led a request. Dropped before the answer, it says where the request was given up.
struct Led<'a> {
    record: &'a Record,
    to: Option<Authority>,
}

/// The part of a blob that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The first byte.
    pub from: u64,
    /// The byte after the last, beyond `from`; `None` for the end of the blob.
    pub to: Option<u64>,
}

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) accept: HeaderValue,
    pub(super) part: Part,
    /// Goes to the upstream itself only, never along with a redirect elsewhere.
    pub(super) authorization: Option<HeaderValue>,
    /// A form that is posted; only ever with [`Exchange::ask`].
    pub(super) form: Option<Bytes>,
    pub(super) load: Load,
    /// Later by each wait for a place of ours.
    pub(super) deadline: Instant,
    /// How long it has waited for what isn't the upstream's to give.
    pub(super) waited: Duration,
}

/// The head of an answer, with who gave it.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) response: Response<Received>,
    /// Where the last redirect led.
    pub(super) uri: Uri,
    /// Whether the upstream itself answered.
    pub(super) is_home: bool,
}

impl Exchange {
    /// Asks, follows redirects, and returns the first answer that is none, whatever its status.
    pub(super) async fn follow(&self, call: &mut Call) -> Result<Reply, UpstreamError> {
        let mut uri = call.uri.clone();
        let mut is_home = self.home.is_trusted_at(&uri);
        let mut place = if is_home { self.place(call).await? } else { None };
        let mut authorization = call.authorization.as_ref();
        let mut led = Led { record: &self.record, to: None };
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(call, &uri, authorization, is_home).await?;
            let Some(next) = redirect::target(&uri, response.status(), response.headers()) else {
                led.to = None;
                let response = response.map(|incoming| Received::new(incoming, place.take()));
                return Ok(Reply { response, is_home: self.home.is_at(&uri), uri });
            };
            let next = next.map_err(|what| self.error(&uri, ErrorKind::Protocol(what)))?;
            if !redirect::same_origin(&uri, &next) {
                // Whoever is there may send us back here, to a URL of its choice: nothing of ours goes along again.
                (authorization, is_home) = (None, false);
            }
            drain(Received::new(response.into_body(), None)).await;
            tracing::debug!(upstream = %self.name, to = next.host(), "redirected");
            uri = next;
            led.to = uri.authority().filter(|_| !self.home.is_at(&uri)).cloned();
        }
        Err(self.error(&uri, ErrorKind::Protocol(format!("more than {MAX_REDIRECTS} redirects"))))
    }

    /// Asks one URL. Nothing is sent along to where a redirect leads: there is none for what carries a secret.
    pub(super) async fn ask(&self, call: &Call) -> Result<Reply, UpstreamError> {
        let uri = call.uri.clone();
        let is_home = self.home.is_trusted_at(&uri);
        let response = self.send(call, &uri, call.authorization.as_ref(), is_home).await?;
        if response.status().is_redirection() {
            return Err(self.error(&uri, ErrorKind::Protocol("a redirect of credentials".to_owned())));
        }
        let response = response.map(|incoming| Received::new(incoming, None));
        Ok(Reply { response, is_home: self.home.is_at(&uri), uri })
    }

    /// Asks for nothing in particular, to see whether anybody answers, and with which status.
    pub(super) async fn knock(&self, uri: &Uri) -> Result<StatusCode, UpstreamError> {
        const ANYTHING: HeaderValue = HeaderValue::from_static("*/*");
        let call = Call {
            method: Method::GET,
            uri: uri.clone(),
            accept: ANYTHING,
            part: Part::WHOLE,
            authorization: None,
            form: None,
            load: Load::Quick,
            deadline: Instant::now() + SILENCE,
            waited: Duration::ZERO,
        };
        let response = self.send(&call, uri, None, self.home.is_trusted_at(uri)).await?;
        let status = response.status();
        drain(Received::new(response.into_body(), None)).await;
        Ok(status)
    }

    async fn place(&self, call: &mut Call) -> Result<Option<Place>, UpstreamError> {
        let Some(places) = &self.places else { return Ok(None) };
        let began = Instant::now();
        let place = places.take(call.load, self.header_timeout.max(STANDS)).await;
        let waited = began.elapsed();
        call.deadline += waited;
        call.waited += waited;
        let busy = || UpstreamError::new(Arc::clone(&self.name), ErrorKind::Busy(places.most));
        place.map(Some).ok_or_else(busy)
    }

    /// An error that happened there.
    pub(super) fn error(&self, uri: &Uri, kind: ErrorKind) -> UpstreamError {
        let host = uri.authority().map_or("", |a| a.as_str());
        UpstreamError::new(Arc::clone(&self.name), kind).at(host)
    }

    async fn send(
        &self,
        call: &Call,
        uri: &Uri,
        authorization: Option<&HeaderValue>,
        is_home: bool,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let client = self.client_for(uri);
        let ours = is_home.then_some(&self.headers);
        let mut again = true;
        let mut over = if call.part.to.is_some() { Over::Apart } else { Over::Shared };
        loop {
            let request = client.request(call.request(uri, ours, authorization), over);
            match timeout_at(call.deadline, request).await {
                Ok(Ok(response)) => {
                    if let (true, Some(quota)) = (is_home, Quota::read(response.headers())) {
                        self.record.quota(quota);
                    }
                    return match client.refusing_proxy(uri, response.status()) {
                        Some(proxy) => {
                            Err(self.error(uri, ErrorKind::Unreachable(Unreachable::ProxyAuthorization(proxy))))
                        }
                        None => Ok(response),
                    };
                }
                Ok(Err(error)) if over == Over::Apart && has_http2_alone(&error) => over = Over::Shared,
                // A kept connection that the other side closes as we write looks like this. Once more, on a new one.
                Ok(Err(error)) if again && !error.is_connect() && !is_wrong_http(&error) => again = false,
                Ok(Err(error)) => return Err(self.error(uri, classify(&error))),
                Err(_) => return Err(self.error(uri, ErrorKind::Timeout(self.header_timeout))),
            }
        }
    }

    /// The client whose reach covers a URL. Plain HTTP at a host that is named with `https://` is not named.
    fn client_for(&self, uri: &Uri) -> &HttpClient {
        match &self.named {
            Some(named) if self.home.is_trusted_at(uri) => named,
            _ => &self.guarded,
        }
    }
}

impl Drop for Led<'_> {
    fn drop(&mut self) {
        if let Some(to) = &self.to {
            self.record.given_up_at(to.as_str());
        }
    }
}

impl Part {
    /// All of it.
    pub const WHOLE: Self = Self::from(0);

    /// From a byte on to the end.
    #[must_use]
    pub const fn from(from: u64) -> Self {
        Self { from, to: None }
    }

    /// The value of a Range header; none for the whole.
    fn header(self) -> Option<HeaderValue> {
        let range = match self.to {
            None if self.from == 0 => return None,
            None => format!("bytes={}-", self.from),
            Some(to) => format!("bytes={}-{}", self.from, to.saturating_sub(1)),
        };
        HeaderValue::from_str(&range).ok()
    }
}

impl Call {
    fn request(
        &self,
        uri: &Uri,
        configured: Option<&HeaderMap>,
        authorization: Option<&HeaderValue>,
    ) -> Request<Full<Bytes>> {
        const AGENT: HeaderValue = HeaderValue::from_static(concat!("larder/", env!("CARGO_PKG_VERSION")));
        const IDENTITY: HeaderValue = HeaderValue::from_static("identity");
        const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");
        let mut headers = configured.cloned().unwrap_or_default();
        headers.entry(USER_AGENT).or_insert(AGENT);
        headers.insert(ACCEPT, self.accept.clone());
        headers.insert(ACCEPT_ENCODING, IDENTITY);
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        if let Some(range) = self.part.header() {
            headers.insert(RANGE, range);
        }
        if self.form.is_some() {
            headers.insert(CONTENT_TYPE, FORM);
        }
        let mut request = Request::new(Full::new(self.form.clone().unwrap_or_default()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = headers;
        request
    }
}

/// Reads a small body to its end, so that its connection is free for the next request. Costs little, fails silently.
pub(super) async fn drain(mut body: Received) {
    if body.size_hint().lower() > DRAIN_BYTES {
        return;
    }
    let reading = async {
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, |data| data.len() as u64);
            if read > DRAIN_BYTES {
                break;
            }
        }
    };
    // What does not come in time is given up with its connection.
    let _ = timeout(DRAIN_TIME, reading).await;
}

fn classify(error: &(dyn Error + 'static)) -> ErrorKind {
    let mut innermost = error;
    for cause in causes(error) {
        innermost = cause;
        if let Some(dial) = cause.downcast_ref::<DialError>() {
            return match dial {
                DialError::Forbidden(what) => ErrorKind::Forbidden(what.clone()),
                DialError::Lookup(why) => ErrorKind::Unreachable(Unreachable::Dns(why.to_string())),
                DialError::Timeout(within) => ErrorKind::Unreachable(Unreachable::ConnectTimeout(*within)),
                DialError::ProxyAuthorization(proxy) => {
                    ErrorKind::Unreachable(Unreachable::ProxyAuthorization(proxy.clone()))
                }
                DialError::Proxy { proxy, reason } => {
                    ErrorKind::Unreachable(Unreachable::Proxy { proxy: proxy.clone(), reason: reason.clone() })
                }
            };
        }
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return ErrorKind::Unreachable(Unreachable::Tls(tls.to_string()));
        }
        match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::ConnectionRefused) => return ErrorKind::Unreachable(Unreachable::Refused),
            // One of several addresses used up its share of the time.
            Some(io::ErrorKind::TimedOut) => {
                return ErrorKind::Unreachable(Unreachable::Broken("the connection timed out".to_owned()));
            }
            _ => {}
        }
    }
    if is_wrong_http(error) {
        return ErrorKind::Protocol(innermost.to_string());
    }
    ErrorKind::Unreachable(Unreachable::Broken(innermost.to_string()))
}

fn has_http2_alone(error: &(dyn Error + 'static)) -> bool {
    let refused = rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol);
    causes(error).any(|cause| cause.downcast_ref::<rustls::Error>() == Some(&refused))
}

fn is_wrong_http(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse))
}

/// An error and its causes. `io::Error` hides the one that it was made of, so that is looked into.
pub(super) fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |&error| match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner as &(dyn Error + 'static)),
        None => error.source(),
    })
}
