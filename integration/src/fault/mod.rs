//! A registry that misbehaves on request: at any request, in any way that real ones do, at any byte.
//!
//! It serves images from memory over raw TCP, since no HTTP server would send what the faults need. Every request is
//! logged with the bytes that were sent for it.

mod auth;
mod content;
mod http2;
mod plan;
mod request;
mod script;
mod serve;
mod tls;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use auth::Challenge;
pub(crate) use auth::base64;
pub use request::Request;
pub use script::{Cut, Face, Fault, When};
pub use tls::Transport;

use crate::process::logs_are_shown;
use crate::{Blob, Host, Image, Namespace, free_port};
use content::Content;
use script::Script;
use tls::Tls;

/// The registry. Dropped, it is gone, with its connections.
#[derive(Debug)]
pub struct FaultRegistry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    namespace: Option<Namespace>,
    scheme: &'static str,
    tls: Option<Tls>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    content: Content,
    script: Script,
    challenge: Option<Challenge>,
    // HEAD is unknown here.
    headless: bool,
    tokens: Vec<auth::Token>,
    log: Vec<Request>,
    // Requests ever, whatever became of the log.
    arrived: u64,
    // Requests that met a fault.
    met: usize,
    connections: usize,
    // Bodies that are being sent, and the most that were at once.
    sending: usize,
    most_at_once: usize,
    // Of all bodies of a connection together.
    rate: Option<u64>,
    face: Face,
    // None: connections are refused.
    listening: Option<DropGuard>,
    // Ends the connections that there are.
    open: CancellationToken,
}

impl FaultRegistry {
    /// An empty one over plain HTTP, without faults.
    pub async fn start() -> Result<Self> {
        Self::start_over(Transport::Plain).await
    }

    /// An empty one over this; [`FaultRegistry::ca`] says whom to trust.
    pub async fn start_over(transport: Transport) -> Result<Self> {
        Self::start_at((Ipv4Addr::LOCALHOST, free_port()?).into(), None, transport)
    }

    /// An empty one over plain HTTP on a machine of its own, at port 80.
    pub fn start_on(host: &Host) -> Result<Self> {
        Self::start_at((host.address(), 80).into(), Some(host.namespace().clone()), Transport::Plain)
    }

    /// An empty one over plain HTTP at this address of a network namespace.
    pub fn start_within(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        Self::start_at(address, Some(namespace.clone()), Transport::Plain)
    }

    fn start_at(address: SocketAddr, namespace: Option<Namespace>, transport: Transport) -> Result<Self> {
        let tls = Tls::new(transport)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mut registry =
            Self { shared: Arc::new(Shared { address, namespace, scheme, tls, state: Mutex::default() }) };
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

    /// Forgets a tag, and all content of the image that had it.
    pub fn forget(&self, image: &Image, repository: &str, tag: &str) {
        let mut state = self.shared.state();
        state.content.remove_tag(repository, tag);
        image.blobs().iter().chain(image.manifests()).for_each(|blob| state.content.remove(blob));
    }

    /// This repository hasn't this blob, whatever the others have.
    pub fn hide(&self, repository: &str, blob: &Blob) {
        self.shared.state().content.hide(repository, &blob.digest);
    }

    /// From now on, requests for which `when` holds meet `fault`. Where several hold, the first given counts.
    pub fn fault(&self, when: When, fault: Fault) {
        self.shared.state().script.add(when, fault);
    }

    /// From now on, no faults.
    pub fn heal(&self) {
        self.shared.state().script.clear();
    }

    /// From now on, HEAD is answered, or by 405 alone: that is no fault.
    pub fn knows_head(&self, knows: bool) {
        self.shared.state().headless = !knows;
    }

    /// From now on, no connection gets more of all bodies than so many bytes in a second; `None`: no limit.
    pub fn limit_each_connection(&self, bytes_per_second: Option<u64>) {
        self.shared.state().rate = bytes_per_second;
    }

    /// From now on, content is given only to who answers this challenge; `None`: to all. Tokens given before are void.
    pub fn challenge(&self, challenge: Option<Challenge>) {
        let mut state = self.shared.state();
        state.challenge = challenge;
        state.tokens.clear();
    }

    /// What opens content: the tokens that were given, and all that clients have shown, as it was sent.
    pub fn secrets(&self) -> BTreeSet<String> {
        let state = self.shared.state();
        let shown = state.log.iter().flat_map(Request::secrets);
        state.tokens.iter().map(|token| token.text.clone()).chain(shown).collect()
    }

    /// Whether anybody has shown this password, alone or with its user's name.
    pub fn was_shown(&self, user: &str, password: &str) -> bool {
        let basic = base64(format!("{user}:{password}").as_bytes());
        let secrets = self.shared.state().log.iter().flat_map(Request::secrets).collect::<Vec<String>>();
        secrets.iter().any(|secret| secret == password || secret == basic.trim_end_matches('='))
    }

    /// From now on, new connections are met by this face. Those that there are end.
    pub fn turn(&self, face: Face) {
        self.shared.turn(face);
    }

    /// Refuses connections from now on, and drops those it has, as a registry does that was stopped.
    pub fn refuse(&mut self) {
        self.shared.turn(Face::Refusing);
    }

    /// Accepts connections (again), on the same port, as they should be.
    pub fn accept(&mut self) -> Result<()> {
        self.shared.turn(Face::Right);
        if self.shared.state().listening.is_some() {
            return Ok(());
        }
        let is_v4 = self.shared.address.is_ipv4();
        let new = || if is_v4 { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = match &self.shared.namespace {
            Some(namespace) => namespace.inside(new)?,
            None => new()?,
        };
        // The port is ours again also while old connections linger.
        socket.set_reuseaddr(true)?;
        socket.bind(self.shared.address).with_context(|| format!("listening on {}", self.shared.address))?;
        let listener: TcpListener = socket.listen(256)?;
        let stop = CancellationToken::new();
        let serve = serve::accept(listener, self.shared.clone());
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(serve).await });
        self.shared.state().listening = Some(stop.drop_guard());
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

    /// The authority to trust, as PEM; empty over plain HTTP.
    pub fn ca(&self) -> &str {
        self.shared.tls.as_ref().map_or("", |tls| &tls.ca)
    }

    /// A certificate that it takes from clients, and its key, as PEM; empty over plain HTTP.
    pub fn client_certificate(&self) -> (&str, &str) {
        self.shared.tls.as_ref().map_or(("", ""), |tls| (&tls.client.0, &tls.client.1))
    }

    /// Every request so far, in the order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().log.clone()
    }

    /// Every request so far that had `path` in its path, a line each.
    pub fn shown(&self, path: &str) -> String {
        let state = self.shared.state();
        let requests = state.log.iter().filter(|request| request.target.contains(path));
        requests.fold(String::new(), |lines, request| format!("{lines}\n{request}"))
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

    /// How many bytes of manifests and blobs were sent so far, for each byte that the image has: copies that left.
    pub fn copies(&self, image: &Image) -> f64 {
        let state = self.shared.state();
        let gets = state.log.iter().filter(|request| request.method == "GET" && request.status / 100 == 2);
        let of_image = gets.filter(|request| {
            let mut blobs = image.manifests().iter().chain(image.blobs());
            blobs.any(|blob| request.target.contains(&blob.digest))
        });
        of_image.map(|request| request.sent).sum::<u64>() as f64 / image.size() as f64
    }

    /// Whether each byte of an image has left it at least once.
    pub fn has_given(&self, image: &Image) -> bool {
        image.manifests().iter().chain(image.blobs()).all(|blob| {
            let mut end = 0;
            for (from, to) in self.parts(blob) {
                if from > end {
                    return false;
                }
                end = end.max(to);
            }
            end >= blob.bytes.len() as u64
        })
    }

    /// How many bytes of a blob were sent more than once, counted each time.
    pub fn sent_again(&self, blob: &Blob) -> u64 {
        let mut again = 0;
        let mut end = 0;
        for (from, to) in self.parts(blob) {
            again += end.min(to).saturating_sub(from);
            end = end.max(to);
        }
        again
    }

    /// From where to where it was sent, by each request, in the order of the blob.
    fn parts(&self, blob: &Blob) -> Vec<(u64, u64)> {
        let state = self.shared.state();
        let gets = state.log.iter().filter(|request| request.method == "GET" && request.target.contains(&blob.digest));
        let mut parts: Vec<(u64, u64)> = gets.map(Request::delivered).collect();
        parts.sort_unstable();
        parts
    }

    /// How many requests met a fault so far.
    pub fn met(&self) -> usize {
        self.shared.state().met
    }

    /// Whether it accepts connections.
    pub fn is_listening(&self) -> bool {
        self.shared.state().listening.is_some()
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.state().connections
    }

    /// The most bodies that were being sent at the same time so far.
    pub fn most_at_once(&self) -> usize {
        self.shared.state().most_at_once
    }

    /// Forgets the requests so far, and the counts.
    pub fn clear_log(&self) {
        let mut state = self.shared.state();
        // Requests under way find their place no more, and are not counted.
        state.log.clear();
        (state.met, state.connections, state.most_at_once) = (0, 0, state.sending);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, face: Face) {
        let mut state = self.state();
        state.face = face;
        if face == Face::Refusing {
            state.listening = None;
        }
        if face != Face::Right {
            std::mem::take(&mut state.open).cancel();
        }
    }
}

impl Drop for FaultRegistry {
    fn drop(&mut self) {
        // Its connections hold the state, and with it what keeps them going.
        self.shared.turn(Face::Refusing);
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
