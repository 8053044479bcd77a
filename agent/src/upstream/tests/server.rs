//! A server that does what its script says, and remembers what it was asked.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// What a server does next.
pub(crate) enum Act {
    Send(Vec<u8>),
    /// Goes on when the test says so.
    Await(watch::Receiver<bool>),
    /// Goes on after so long.
    Wait(Duration),
    /// Says nothing more, and keeps the connection.
    Hang,
    /// Ends the connection.
    Close,
}

/// From the head of a request, and its body if it has one, to what is done about it. Without an `Act::Close` the connection is kept.
pub(crate) type Script = Arc<dyn Fn(&str) -> Vec<Act> + Send + Sync>;

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    seen: watch::Sender<Vec<String>>,
    connections: Arc<AtomicUsize>,
    scheme: &'static str,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(crate) async fn plain(script: impl Fn(&str) -> Vec<Act> + Send + Sync + 'static) -> Self {
        Self::start(Arc::new(script), None).await
    }

    /// TLS as a test sets it up.
    pub(crate) async fn tls_by(
        acceptor: TlsAcceptor,
        script: impl Fn(&str) -> Vec<Act> + Send + Sync + 'static,
    ) -> Self {
        Self::start(Arc::new(script), Some(acceptor)).await
    }

    pub(crate) async fn tls(ca: &Ca, script: impl Fn(&str) -> Vec<Act> + Send + Sync + 'static) -> Self {
        Self::start(Arc::new(script), Some(ca.acceptor(&[]))).await
    }

    async fn start(script: Script, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = watch::Sender::new(Vec::new());
        let connections = Arc::new(AtomicUsize::new(0));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mut tasks = JoinSet::new();
        let (log, count) = (seen.clone(), Arc::clone(&connections));
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (script, log, tls) = (Arc::clone(&script), log.clone(), tls.clone());
                open.spawn(async move {
                    match tls {
                        None => serve(stream, script, log).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, script, log).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, seen, connections, scheme, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// The heads of all requests so far.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.borrow().clone()
    }

    /// How many requests had this in their head.
    pub(crate) fn count(&self, needle: &str) -> usize {
        self.seen.borrow().iter().filter(|head| head.contains(needle)).count()
    }

    /// How many connections were taken.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) async fn wait_until(&self, condition: impl FnMut(&Vec<String>) -> bool) {
        let mut seen = self.seen.subscribe();
        tokio::time::timeout(Duration::from_secs(5), seen.wait_for(condition)).await.unwrap().unwrap();
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, script: Script, seen: watch::Sender<Vec<String>>) {
    let mut pending = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = pending.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read_buf(&mut pending).await {
                Ok(n) if n > 0 => {}
                _ => return,
            }
        };
        let mut head = String::from_utf8(pending.drain(..end).collect()).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        while pending.len() < length {
            match stream.read_buf(&mut pending).await {
                Ok(n) if n > 0 => {}
                _ => return,
            }
        }
        head.push_str(str::from_utf8(&pending.drain(..length).collect::<Vec<u8>>()).unwrap());
        seen.send_modify(|seen| seen.push(head.clone()));
        for act in script(&head) {
            match act {
                Act::Send(bytes) => {
                    if stream.write_all(&bytes).await.is_err() || stream.flush().await.is_err() {
                        return;
                    }
                }
                Act::Await(mut gate) => drop(gate.wait_for(|open| *open).await),
                Act::Wait(time) => tokio::time::sleep(time).await,
                Act::Hang => std::future::pending().await,
                Act::Close => {
                    // The other side may be gone already.
                    let _ = stream.shutdown().await;
                    return;
                }
            }
        }
    }
}

/// Sends this, byte for byte.
pub(crate) fn raw(text: impl AsRef<[u8]>) -> Act {
    Act::Send(text.as_ref().to_vec())
}

/// A whole answer, with Content-Length.
pub(crate) fn answer(status: &str, headers: &[(&str, &str)], body: &str) -> Vec<Act> {
    let mut text = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        write!(text, "{name}: {value}\r\n").unwrap();
    }
    write!(text, "\r\n{body}").unwrap();
    vec![raw(text)]
}

pub(crate) fn ok(body: &str) -> Vec<Act> {
    answer("200 OK", &[], body)
}

/// A certificate authority of the test's own, and certificates for loopback.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: NamedTempFile,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let mut pem = NamedTempFile::new().unwrap();
        pem.write_all(certificate.pem().as_bytes()).unwrap();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.pem.path()
    }

    /// A certificate and its key, each in PEM.
    pub(crate) fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub(crate) fn acceptor(&self, alpn: &[&[u8]]) -> TlsAcceptor {
        self.acceptor_for(alpn, None)
    }

    /// One whose certificate held until years ago.
    pub(crate) fn expired_acceptor(&self) -> TlsAcceptor {
        let mut params = loopback();
        (params.not_before, params.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1));
        self.acceptor_with(&params, &[], None)
    }

    /// One that wants a client certificate of an authority, if one is named.
    pub(crate) fn acceptor_for(&self, alpn: &[&[u8]], clients: Option<&Self>) -> TlsAcceptor {
        self.acceptor_with(&loopback(), alpn, clients)
    }

    fn acceptor_with(&self, params: &CertificateParams, alpn: &[&[u8]], clients: Option<&Self>) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_file(clients.path()).unwrap()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let mut config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// A certificate for the servers' names and address.
fn loopback() -> CertificateParams {
    CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap()
}
