//! A registry with private repositories, and its token server.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;

use crate::image::Digest;
use crate::upstream::tests::server::{Act, Server, raw};

/// What it does; changed while it runs.
#[derive(Default)]
pub(super) struct State {
    /// It wants a token of everybody.
    pub(super) challenges: bool,
    /// It wants alice's.
    pub(super) private: bool,
    /// It, and its token server, know alice no more.
    pub(super) dismissed: bool,
    /// It closes every connection.
    pub(super) down: bool,
    /// Its token server closes every connection.
    pub(super) tokens_down: bool,
    /// It takes so long before it answers of content.
    pub(super) slow: Duration,
    /// It says yes to every HEAD.
    pub(super) says_yes: bool,
    /// By repository and tag or digest.
    pub(super) content: HashMap<(String, String), Vec<u8>>,
    /// Bodies of blobs wait for it.
    pub(super) gate: Option<watch::Receiver<bool>>,
}

pub(super) struct Registry {
    pub(super) server: Server,
    state: Arc<Mutex<State>>,
}

pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

impl Registry {
    pub(super) async fn start(state: State) -> Self {
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        Self { server: Server::plain(move |head| answer(&shared.lock().unwrap(), head)).await, state }
    }

    pub(super) fn now(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How many requests for content there were whose line begins so.
    pub(super) fn count(&self, line: &str) -> usize {
        self.server.seen().iter().filter(|head| head.starts_with(line)).count()
    }
}

impl State {
    /// An image of one layer; the digests of manifest and layer.
    pub(super) fn push(&mut self, repository: &str, tag: &str, layer: &[u8]) -> (Digest, Digest) {
        let of_layer = self.push_blob(repository, layer);
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_TYPE}","config":{{"digest":"{of_layer}"}},"layers":[]}}"#
        );
        let of_manifest = self.push_blob(repository, manifest.as_bytes());
        self.content.insert((repository.to_owned(), tag.to_owned()), manifest.into_bytes());
        (of_manifest, of_layer)
    }

    pub(super) fn push_blob(&mut self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.content.insert((repository.to_owned(), digest.to_string()), bytes.to_vec());
        digest
    }
}

fn answer(state: &State, head: &str) -> Vec<Act> {
    let mut line = head.split(' ');
    let (method, path) = (line.next().unwrap(), line.next().unwrap());
    let is_token = path.starts_with("/token");
    if state.down || (is_token && state.tokens_down) {
        return vec![Act::Close];
    }
    let status = |line: &str| vec![raw(format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n"))];
    if is_token {
        let token = match (method, head.contains("authorization:")) {
            ("POST", _) if !state.dismissed && head.ends_with("&username=alice&password=secret") => "alice",
            ("GET", false) => "anybody",
            _ => return status("401 No"),
        };
        let body = format!(r#"{{"token":"{token}"}}"#);
        return vec![raw(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()))];
    }
    let shows = |token: &str| head.contains(&format!("authorization: Bearer {token}\r\n"));
    let is_alice = shows("alice") && !state.dismissed;
    let opens = is_alice || (!state.private && (shows("anybody") || !state.challenges));
    if !opens {
        let host = head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
        let challenge = format!(r#"Bearer realm="http://{host}/token",service="test""#);
        return vec![raw(format!("HTTP/1.1 401 No\r\nContent-Length: 0\r\nWWW-Authenticate: {challenge}\r\n\r\n"))];
    }
    let mut parts = path.strip_prefix("/v2/").unwrap().rsplitn(3, '/');
    let (reference, kind, repository) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    let reference = reference.split('?').next().unwrap();
    let content = state.content.get(&(repository.to_owned(), reference.to_owned()));
    let content = match content {
        Some(content) => content,
        None if state.says_yes && method == "HEAD" => &Vec::new(),
        None => return status("404 Not Found"),
    };
    let media_type = if kind == "manifests" { MANIFEST_TYPE } else { "application/octet-stream" };
    let mut text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nContent-Type: {media_type}\r\n", content.len());
    if !state.says_yes {
        write!(text, "Docker-Content-Digest: {}\r\n", Digest::of(content)).unwrap();
    }
    text.push_str("\r\n");
    let mut acts = vec![Act::Wait(state.slow), raw(text)];
    if method == "GET" {
        if let (Some(gate), "blobs") = (&state.gate, kind) {
            acts.push(Act::Await(gate.clone()));
        }
        acts.push(raw(content));
    }
    acts
}
