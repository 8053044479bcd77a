//! A mirror with all that stands behind it, and callers of it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::containerd::canary::Canary;
use crate::mirror::{Identity, Listener, Mirror};
use crate::peers::Membership;
use crate::pull::Pull;
use crate::store::{self, Store};
use crate::upstream::Upstreams;

pub(super) struct Node {
    pub(super) address: SocketAddr,
    pub(super) pull: Pull,
    store: Store,
    tls: TlsConnector,
    tasks: TaskTracker,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

/// A reply, read to its end.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: HashMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Node {
    /// With its store in `dir`; each registry by its name and the addresses of its upstreams.
    pub(super) async fn start(dir: &Path, registries: &[(&str, &[&str])], more: &str) -> Self {
        let mut text = format!("{more}\n[cache]\ndir = {dir:?}\nmax_disk_percent = 99\n");
        for (name, urls) in registries {
            text.push_str(&format!("[[registry]]\nname = {name:?}\n"));
            for url in *urls {
                text.push_str(&format!("[[registry.upstream]]\nurl = {url:?}\ninsecure = true\n"));
            }
        }
        let config: Config = toml::from_str(&text).unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let store = Store::open(store::Options::from(&config.cache)).unwrap();
        let upstreams = Arc::new(Upstreams::new(&config).unwrap());
        let pull = Pull::new(&config, store.clone(), upstreams, None, Membership::off(), tasks.clone(), stop.clone());
        let mirror =
            Mirror::new(pull.clone(), Arc::new(Canary::new()), config.mirror.listen, Arc::new(AtomicU64::new(0)));
        let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.bound();
        let identity = Identity::open(&dir.join("tls"), address).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(identity.trusted().borrow().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(roots).with_no_client_auth();
        let tls = TlsConnector::from(Arc::new(client));
        let serving = tokio::spawn(listener.serve(Arc::new(mirror), identity.server_config().unwrap(), stop.clone()));
        Self { address, pull, store, tls, tasks, stop, serving }
    }

    /// As if it were ended by a signal: what was remembered is on the disk.
    pub(super) async fn end(self) {
        self.stop.cancel();
        self.serving.await.unwrap();
        self.tasks.close();
        self.tasks.wait().await;
        drop(self.pull);
        self.store.close().await;
    }

    pub(super) async fn ask(&self, method: &str, target: &str, token: Option<&str>) -> Reply {
        let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let request = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{authorization}\r\n");
        self.exchange(&request).await
    }

    pub(super) async fn get(&self, target: &str, token: Option<&str>) -> Reply {
        self.ask("GET", target, token).await
    }

    pub(super) async fn get_by_tls(&self, target: &str, token: &str) -> Reply {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = self.tls.connect(name, stream).await.unwrap();
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
        read(stream, &request).await
    }

    /// The token that the challenge of `target` leads to, for a user or for nobody.
    pub(super) async fn token(&self, target: &str, user: Option<(&str, &str)>) -> String {
        let challenged = self.get(target, None).await;
        assert_eq!(challenged.status, 401, "{challenged:?}");
        let challenge = &challenged.headers["www-authenticate"];
        let field = |name: &str| {
            let rest = challenge.split_once(&format!("{name}=\"")).unwrap().1;
            rest.split_once('"').unwrap().0.to_owned()
        };
        assert_eq!(field("realm"), format!("http://{}/token", self.address));
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("service", &field("service")).append_pair("scope", &field("scope"));
        let request = match user {
            None => format!("GET /token?{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", form.finish()),
            Some((name, password)) => {
                form.append_pair("grant_type", "password").append_pair("username", name);
                let form = form.append_pair("password", password).finish();
                let length = form.len();
                format!(
                    "POST /token HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{form}"
                )
            }
        };
        let reply = self.exchange(&request).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let body: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        body["token"].as_str().unwrap().to_owned()
    }

    async fn exchange(&self, request: &str) -> Reply {
        read(TcpStream::connect(self.address).await.unwrap(), request).await
    }
}

async fn read(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> Reply {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let reading = async {
        loop {
            if let Some(reply) = Reply::parse(&bytes, request.starts_with("HEAD")) {
                return reply;
            }
            assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "{}", String::from_utf8_lossy(&bytes));
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reading).await.unwrap()
}

impl Reply {
    /// `None` as long as it isn't whole.
    fn parse(bytes: &[u8], is_head: bool) -> Option<Self> {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
        let head = str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().unwrap();
        let headers: HashMap<String, String> =
            lines.filter_map(|line| line.split_once(": ")).map(|(k, v)| (k.to_lowercase(), v.to_owned())).collect();
        let length: usize = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        let body = bytes[end + 4..].to_vec();
        (is_head || body.len() >= length).then_some(Self { status, headers, body })
    }
}
