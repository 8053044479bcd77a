//! A registry that misbehaves on request: at any request, in any way that real ones do, at any byte.
//!
//! It serves images from memory over raw TCP, since no HTTP server would send what the faults need. Every request is
//! logged with the bytes that were sent for it.

mod auth;
mod content;
mod plan;
mod request;
mod script;
mod serve;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use rcgen::CertifiedKey;
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use auth::Challenge;
pub use request::Request;
pub use script::{Cut, Fault, When};

use crate::process::logs_are_shown;
use crate::{Blob, Image, free_port};
use content::Content;
use script::Script;

/// The registry. Dropped, it is gone, with its connections.
#[derive(Debug)]
pub struct FaultRegistry {
    shared: Arc<Shared>,
    tls: Option<Tls>,
    // None: connections are refused.
    listening: Option<DropGuard>,
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    scheme: &'static str,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    content: Content,
    script: Script,
    challenge: Option<Challenge>,
    tokens: Vec<String>,
    log: Vec<Request>,
    // Requests ever, whatever became of the log.
    arrived: u64,
}

#[derive(Clone)]
struct Tls {
    acceptor: TlsAcceptor,
    ca: String,
}

impl FaultRegistry {
    /// An empty one over plain HTTP, without faults.
    pub async fn start() -> Result<Self> {
        Self::start_with(None).await
    }

    /// An empty one over TLS; [`FaultRegistry::ca`] says whom to trust.
    pub async fn start_tls() -> Result<Self> {
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der()).into();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)?;
        Self::start_with(Some(Tls { acceptor: Arc::new(config).into(), ca: cert.pem() })).await
    }

    async fn start_with(tls: Option<Tls>) -> Result<Self> {
        let address = (Ipv4Addr::LOCALHOST, free_port()?).into();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared { address, scheme, state: Mutex::default() });
        let mut registry = Self { shared, tls, listening: None };
        registry.accept()?;
        Ok(registry)
    }

    /// Puts an image under a tag, in the place of what had it.
    pub fn add(&self, image: &Image, repository: &str, tag: &str) {
        self.shared.state().content.add(image, repository, tag);
    }

    /// Forgets a tag; its content stays.
    pub fn remove_tag(&self, repository: &str, tag: &str) {
        self.shared.state().content.remove_tag(repository, tag);
    }

    /// Forgets a blob or manifest: 404.
    pub fn remove(&self, blob: &Blob) {
        self.shared.state().content.remove(blob);
    }

    /// From now on, requests for which `when` holds meet `fault`. Where several hold, the first given counts.
    pub fn fault(&self, when: When, fault: Fault) {
        self.shared.state().script.add(when, fault);
    }

    /// From now on, no faults.
    pub fn heal(&self) {
        self.shared.state().script.clear();
    }

    /// From now on, content is given only to who answers this challenge; `None`: to all.
    pub fn challenge(&self, challenge: Option<Challenge>) {
        let mut state = self.shared.state();
        state.challenge = challenge;
        state.tokens.clear();
    }

    /// Refuses connections from now on, and drops those it has, as a registry does that was stopped.
    pub fn refuse(&mut self) {
        self.listening = None;
    }

    /// Accepts connections (again), on the same port.
    pub fn accept(&mut self) -> Result<()> {
        let socket = TcpSocket::new_v4()?;
        // The port is ours again also while old connections linger.
        socket.set_reuseaddr(true)?;
        socket.bind(self.shared.address).with_context(|| format!("listening on {}", self.shared.address))?;
        let listener: TcpListener = socket.listen(256)?;
        let stop = CancellationToken::new();
        let serve = serve::accept(listener, self.shared.clone(), self.tls.as_ref().map(|tls| tls.acceptor.clone()));
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(serve).await });
        self.listening = Some(stop.drop_guard());
        Ok(())
    }

    /// `http://127.0.0.1:…` or `https://…`
    pub fn url(&self) -> String {
        format!("{}://{}", self.shared.scheme, self.shared.address)
    }

    /// `127.0.0.1:…`
    pub fn host(&self) -> String {
        self.shared.address.to_string()
    }

    /// The certificate to trust, as PEM; empty over plain HTTP.
    pub fn ca(&self) -> &str {
        self.tls.as_ref().map_or("", |tls| &tls.ca)
    }

    /// Every request so far, in the order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().log.clone()
    }

    /// How many requests of this method so far had `path` in their path.
    pub fn count(&self, method: &str, path: &str) -> usize {
        let state = self.shared.state();
        state.log.iter().filter(|request| request.method == method && request.target.contains(path)).count()
    }

    /// How many bytes of bodies were sent so far for requests that had `path` in their path.
    pub fn sent(&self, path: &str) -> u64 {
        let state = self.shared.state();
        state.log.iter().filter(|request| request.target.contains(path)).map(|request| request.sent).sum()
    }

    /// Forgets the requests so far.
    pub fn clear_log(&self) {
        // Requests under way find their place no more, and are not counted.
        self.shared.state().log.clear();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Drop for FaultRegistry {
    fn drop(&mut self) {
        if !logs_are_shown() {
            return;
        }
        let state = self.shared.state();
        eprintln!("---- {}: {} requests", self.url(), state.log.len());
        for request in state.log.iter().rev().take(60).rev() {
            eprintln!("{request}");
        }
    }
}
