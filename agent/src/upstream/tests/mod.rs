//! The room against real sockets: servers on loopback that answer byte for byte what a test says.

mod adopted;
mod bodies;
mod chain;
mod credentials;
mod failures;
mod guard;
mod own;
mod proxies;
mod reach;
mod redirects;
pub(crate) mod server;
mod state;
mod tls;
mod tokens;

use crate::upstream::{Grant, Part};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::address;
use super::{Answer, ErrorKind, Upstream, UpstreamError, Upstreams};
use crate::config::{Config, RegistryConfig, Span, UpstreamConfig};
use crate::image::{Digest, Reference, Registry, Repository};

const CONNECT: Duration = Duration::from_secs(1);
const HEADER: Duration = Duration::from_secs(2);
const STALL: Duration = Duration::from_millis(500);

/// The room, with one upstream configured.
struct Room {
    upstreams: Upstreams,
    upstream: Arc<Upstream>,
}

impl Room {
    /// As it ships.
    fn of(url: &str) -> Self {
        Self::new(address::refused, url, None, false)
    }

    /// With a guard that lets loopback pass for the world.
    fn of_world(url: &str, ca: Option<&Path>, insecure: bool) -> Self {
        Self::new(nothing, url, ca, insecure)
    }

    fn new(refused: fn(IpAddr) -> Option<&'static str>, url: &str, ca: Option<&Path>, insecure: bool) -> Self {
        let ca = ca.map(Path::to_owned).into_iter().collect();
        Self::with(refused, UpstreamConfig { ca, insecure, ..at(url) })
    }

    fn with(refused: fn(IpAddr) -> Option<&'static str>, upstream: UpstreamConfig) -> Self {
        let upstreams = Upstreams::guarded_by(refused, &config(vec![upstream])).unwrap();
        let upstream = Arc::clone(&upstreams.of(&registry())[0]);
        Self { upstreams, upstream }
    }

    async fn blob(&self, from: u64) -> Result<Answer, UpstreamError> {
        self.upstream.blob(&Grant::Anonymous, &repository(), &digest(), Part::from(from)).await
    }

    async fn bytes(&self) -> Result<Vec<u8>, UpstreamError> {
        Ok(self.blob(0).await?.body.whole(1 << 20).await?.to_vec())
    }

    async fn kind(&self) -> ErrorKind {
        self.bytes().await.unwrap_err().kind().clone()
    }

    async fn tag(&self) -> Result<Answer, UpstreamError> {
        self.upstream.head_manifest(&Grant::Anonymous, &repository(), &reference()).await
    }
}

/// A guard that lets loopback pass for the world.
fn nothing(_: IpAddr) -> Option<&'static str> {
    None
}

/// An upstream with nothing else said about it.
fn at(url: &str) -> UpstreamConfig {
    UpstreamConfig::new(url.parse().unwrap())
}

/// Waits until something holds; fails the test if it doesn't for ten seconds.
async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("it never held");
}

fn config(upstreams: Vec<UpstreamConfig>) -> Config {
    let mut config = Config::default();
    config.mirror.connect_timeout = Span(CONNECT);
    config.mirror.header_timeout = Span(HEADER);
    config.mirror.stall_timeout = Span(STALL);
    config.registries = vec![RegistryConfig { name: registry(), upstreams }];
    config
}

fn registry() -> Registry {
    "registry.test".parse().unwrap()
}

fn repository() -> Repository {
    "acme/app".parse().unwrap()
}

fn reference() -> Reference {
    "v1".parse().unwrap()
}

/// The digest of `hello`, which the servers' blobs mostly are.
fn digest() -> Digest {
    Digest::of(b"hello")
}
