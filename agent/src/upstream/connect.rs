use std::future::ready;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::PROXY_AUTHORIZATION;
use http::uri::Scheme;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tower_service::Service;

use super::exchange::causes;
use super::proxy::Proxies;
use super::redirect;
use super::tasks::Tasks;
use super::tls::Tls;
use super::tunnel::Hop;

/// Idle connections that are kept for each host, and for how long.
const IDLE_CONNECTIONS: usize = 8;
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Looking up a name blocks a thread for as long as the resolver likes.
const LOOKUPS_AT_ONCE: usize = 32;
/// The most that HTTP/1.1 reads at a time; it starts small and doubles while reads fill it.
const HTTP1_BUFFER: usize = 256 << 10;
/// HTTP/2: 4 MiB in flight for each stream fills 1 Gbit/s at a round trip of 30 ms.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
const FRAME: u32 = 256 << 10;
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// Sends requests, over kept connections where there are any. A cheap clone.
#[derive(Debug, Clone)]
pub(super) struct HttpClient {
    shared: Client<Connector, Full<Bytes>>,
    apart: Client<Connector, Full<Bytes>>,
    proxies: Proxies,
}

/// Over what connection a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// HTTP/2 where the other side has it: one connection for many.
    Shared,
    /// HTTP/1.1: no other request's bytes come by it meanwhile. Parts of a blob are asked for at once because each
    /// connection is limited, or loses packets; over one connection they would gain nothing.
    Apart,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// What kind of address an address is, if it is one that nobody is sent to.
pub(super) type Refused = fn(IpAddr) -> Option<&'static str>;

/// Where a client may go.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reach {
    /// Anywhere: its requests go to what the configuration names, and nowhere else.
    Named,
    /// By HTTPS, and to no refused address.
    Guarded(Refused),
}

/// Why nothing was dialled.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    Lookup(io::Error),
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("the proxy {0} demands authorization")]
    ProxyAuthorization(String),
    #[error("the proxy {proxy}: {reason}")]
    Proxy { proxy: String, reason: String },
}

/// Makes clients that share their limits.
#[derive(Debug, Clone)]
pub(super) struct Clients {
    lookups: Arc<Semaphore>,
    tasks: Tasks,
    connect_timeout: Duration,
    /// To proxies that speak TLS themselves.
    proxy_tls: Arc<Tls>,
}

impl Clients {
    pub(super) fn new(connect_timeout: Duration, tasks: Tasks, proxy_tls: Arc<Tls>) -> Self {
        Self { lookups: Arc::new(Semaphore::new(LOOKUPS_AT_ONCE)), tasks, connect_timeout, proxy_tls }
    }

    pub(super) fn client(&self, reach: Reach, tls: &Arc<Tls>, proxies: Proxies) -> HttpClient {
        let route = Route {
            dial: self.dial(reach),
            // A proxy is named by the configuration or the environment.
            to_proxy: self.dial(Reach::Named),
            proxies: proxies.clone(),
            proxy_tls: Arc::clone(&self.proxy_tls),
        };
        let pool = |over| {
            self.pool(Connector { route: route.clone(), tls: Arc::clone(tls), over, within: self.connect_timeout })
        };
        HttpClient { shared: pool(Over::Shared), apart: pool(Over::Apart), proxies }
    }

    fn dial(&self, reach: Reach) -> Dial {
        let mut tcp = HttpConnector::new_with_resolver(Resolver { lookups: Arc::clone(&self.lookups), reach });
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(TCP_KEEPALIVE));
        // Shared out among the addresses of a name: one that is dead leaves time for the next.
        tcp.set_connect_timeout(Some(self.connect_timeout));
        Dial { tcp, reach }
    }

    fn pool(&self, connector: Connector) -> Client<Connector, Full<Bytes>> {
        Client::builder(self.tasks.clone())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .http1_max_buf_size(HTTP1_BUFFER)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .http2_max_frame_size(FRAME)
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .build(connector)
    }
}

impl HttpClient {
    pub(super) fn request(
        &self,
        mut request: Request<Full<Bytes>>,
        over: Over,
    ) -> impl Future<Output = Result<Response<Incoming>, legacy::Error>> + Send + use<> {
        // Of HTTPS a proxy reads nothing: it is told while the connection is made.
        if request.uri().scheme() == Some(&Scheme::HTTP)
            && let Some(authorization) = self.proxies.of(request.uri()).and_then(|proxy| proxy.authorization())
        {
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization.clone());
        }
        match over {
            Over::Shared => self.shared.request(request),
            Over::Apart => self.apart.request(request),
        }
    }

    /// The proxy that gave an answer in the place of the server: it demands authorization.
    pub(super) fn refusing_proxy(&self, uri: &Uri, status: StatusCode) -> Option<String> {
        let is_refused = status == StatusCode::PROXY_AUTHENTICATION_REQUIRED && uri.scheme() == Some(&Scheme::HTTP);
        self.proxies.of(uri).filter(|_| is_refused).map(ToString::to_string)
    }
}

impl Reach {
    /// What can be told before a name is looked up.
    fn check(self, uri: &Uri) -> Result<(), DialError> {
        let Self::Guarded(refused) = self else { return Ok(()) };
        let host = uri.host().unwrap_or_default();
        if uri.scheme() != Some(&Scheme::HTTPS) {
            return Err(DialError::Forbidden(format!("plain HTTP at {host}")));
        }
        let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse() else { return Ok(()) };
        refused(ip).map_or(Ok(()), |kind| Err(DialError::Forbidden(format!("{kind} {ip}"))))
    }

    /// What can be told before a proxy looks a name up. To what address it then connects is its own affair, and its
    /// administrator's: we only withhold the names that mean the proxy's own machine. Addresses in disguise (`127.1`)
    /// are no names that TLS knows, so they don't come so far.
    fn check_behind_proxy(self, uri: &Uri) -> Result<(), DialError> {
        let host = uri.host().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
        match self {
            Self::Guarded(_) if host == "localhost" || host.ends_with(".localhost") => Err(DialError::Forbidden(host)),
            _ => Ok(()),
        }
    }

    /// The addresses of a name that may be dialled.
    fn filter(self, name: &Name, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, DialError> {
        let Self::Guarded(refused) = self else { return Ok(found) };
        let mut because = None;
        let mut allowed = found;
        allowed.retain(|address| match refused(address.ip()) {
            Some(kind) => {
                because = Some(format!("{kind} {} (of {name})", address.ip()));
                false
            }
            None => true,
        });
        match because {
            Some(because) if allowed.is_empty() => Err(DialError::Forbidden(because)),
            _ => Ok(allowed),
        }
    }
}

/// Name, TCP, proxy and TLS within one deadline.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    route: Route,
    tls: Arc<Tls>,
    over: Over,
    within: Duration,
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<Hop>;
    type Error = BoxError;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { route, tls, over, within } = self.clone();
        Box::pin(async move {
            let connecting = async {
                let mut tls = tls.current().await;
                if over == Over::Apart {
                    Arc::make_mut(&mut tls).alpn_protocols = vec![b"http/1.1".to_vec()];
                }
                HttpsConnector::from((route, tls)).call(uri).await
            };
            tokio::time::timeout(within, connecting).await.map_err(|_| DialError::Timeout(within))?
        })
    }
}

/// TCP to a server, or to the proxy before it.
#[derive(Debug, Clone)]
struct Route {
    dial: Dial,
    to_proxy: Dial,
    proxies: Proxies,
    proxy_tls: Arc<Tls>,
}

impl Service<Uri> for Route {
    type Response = Hop;
    type Error = BoxError;
    type Future = Connecting<Hop>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { mut dial, to_proxy, proxies, proxy_tls } = self.clone();
        Box::pin(async move {
            dial.reach.check(&uri)?;
            let Some(proxy) = proxies.of(&uri) else { return Ok(Hop::direct(dial.call(uri).await?)) };
            dial.reach.check_behind_proxy(&uri)?;
            let connecting = HttpsConnector::from((to_proxy, proxy_tls.current().await)).call(proxy.uri());
            let stream = connecting.await.map_err(|error| {
                let reason = causes(&*error).last().map_or(String::new(), ToString::to_string);
                DialError::Proxy { proxy: proxy.to_string(), reason }
            })?;
            if uri.scheme() == Some(&Scheme::HTTP) {
                return Ok(Hop::to_proxy(stream));
            }
            let server = format!("{}:{}", uri.host().unwrap_or_default(), redirect::port(&uri));
            Ok(Hop::through(stream, proxy, &server).await?)
        })
    }
}

/// TCP, to where the guard allows it.
#[derive(Debug, Clone)]
struct Dial {
    tcp: HttpConnector<Resolver>,
    reach: Reach,
}

impl Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        if let Err(forbidden) = self.reach.check(&uri) {
            return Box::pin(ready(Err(forbidden.into())));
        }
        let connecting = self.tcp.call(uri);
        Box::pin(async move { Ok(connecting.await?) })
    }
}

/// Looks names up, and drops the addresses that the guard refuses: what it returns is what gets dialled.
#[derive(Debug, Clone)]
struct Resolver {
    lookups: Arc<Semaphore>,
    reach: Reach,
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (lookups, reach) = (Arc::clone(&self.lookups), self.reach);
        Box::pin(async move {
            let failed = |e: BoxError| DialError::Lookup(io::Error::other(e));
            let permit = lookups.acquire_owned().await.map_err(|e| failed(e.into()))?;
            let host = name.as_str().to_owned();
            // The permit goes along: the thread is busy until the resolver answers, whether we still wait or not.
            let lookup = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                (host.as_str(), 0).to_socket_addrs().map(Vec::from_iter)
            });
            let found = lookup.await.map_err(|e| failed(e.into()))?.map_err(DialError::Lookup)?;
            Ok(reach.filter(&name, found)?.into_iter())
        })
    }
}
