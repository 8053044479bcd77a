//! Transfers against real sockets and a real store: what upstreams may do, and what their readers get.

mod background;
mod failover;
mod hearsay;
mod leftover;
mod little;
mod neighbour;
mod peers;
mod ranges;
mod registry;
mod rot;
mod tags;
mod wrong;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::registry::{Manner, Registry};
use super::{EndedShort, Found, Kind, Place, Pull, PullError, Reader, Wanted};
use crate::config::Config;
use crate::containerd::client::Client;
use crate::image::Digest;
use crate::peers::{Membership, Peers};
use crate::store::{Options, Store};
use crate::upstream::{Grant, Upstream, Upstreams};

const MIB: u64 = 1 << 20;

/// What differs in every place.
fn blob(mebibytes: u64) -> Bytes {
    let mut state = mebibytes | 1;
    let words = (0..mebibytes * MIB / 8).flat_map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 8).to_le_bytes()
    });
    words.collect::<Vec<u8>>().into()
}

/// A node that pulls one blob from some registries, in their order.
struct Node {
    pull: Pull,
    store: Store,
    wanted: Wanted,
    blob: Bytes,
    stop: CancellationToken,
    dir: TempDir,
}

impl Node {
    fn new(blob: &Bytes, registries: &[&Registry]) -> Self {
        Self::with(blob, registries, "")
    }

    /// With some more lines of configuration for `[mirror]`.
    fn with(blob: &Bytes, registries: &[&Registry], mirror: &str) -> Self {
        Self::among(blob, registries, mirror, None)
    }

    /// The same, in a cluster.
    fn among(blob: &Bytes, registries: &[&Registry], mirror: &str, peers: Option<Peers>) -> Self {
        Self::configured(blob, registries, ["", mirror], (peers, None))
    }

    /// One that passes everything through.
    fn ignoring(blob: &Bytes, registries: &[&Registry]) -> Self {
        Self::configured(blob, registries, ["ignore = [\"reg.test/*\"]", ""], (None, None))
    }

    /// The same, beside a containerd.
    fn beside(
        blob: &Bytes,
        registries: &[&Registry],
        mirror: &str,
        peers: Option<Peers>,
        containerd: Option<Arc<Client>>,
    ) -> Self {
        Self::configured(blob, registries, ["", mirror], (peers, containerd))
    }

    fn configured(
        blob: &Bytes,
        registries: &[&Registry],
        [cache, mirror]: [&str; 2],
        (peers, containerd): (Option<Peers>, Option<Arc<Client>>),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut text = format!(
            "[cache]\ndir = {:?}\nmax_disk_percent = 100\n{cache}\n[mirror]\n{mirror}\n[[registry]]\nname = \"reg.test\"\n",
            dir.path()
        );
        for registry in registries {
            text += &format!("[[registry.upstream]]\nurl = \"http://{}\"\ninsecure = true\n", registry.address);
        }
        let config: Config = toml::from_str(&text).unwrap();
        let store = Store::open(Options::from(&config.cache)).unwrap();
        let upstreams = Arc::new(Upstreams::new(&config).unwrap());
        let stop = CancellationToken::new();
        let peers = peers.map_or_else(Membership::off, Membership::of);
        let pull = Pull::new(&config, store.clone(), upstreams, containerd, peers, TaskTracker::new(), stop.clone());
        let place = Place { registry: "reg.test".parse().unwrap(), repository: "acme/app".parse().unwrap() };
        let wanted = Wanted { place, grant: Grant::Anonymous, digest: Digest::of(blob), kind: Kind::Blob };
        Self { pull, store, wanted, blob: blob.clone(), stop, dir }
    }

    /// As a manifest would say it.
    fn learn_size(&self) {
        let Wanted { place, digest, .. } = &self.wanted;
        let manifest = format!(r#"{{"layers":[{{"digest":"{digest}","size":{}}}]}}"#, self.blob.len());
        self.pull.0.sizes.learn(place, &Digest::of(manifest.as_bytes()), manifest.as_bytes());
    }

    /// One of the registries, as the node knows it.
    fn upstream(&self, registry: &Registry) -> Arc<Upstream> {
        let chain = self.pull.0.upstreams.of(&self.wanted.place.registry);
        let found = chain.iter().find(|upstream| *upstream.name() == registry.address.to_string());
        Arc::clone(found.expect("it is in the chain"))
    }

    async fn fetch(&self, start: u64) -> Result<Found, PullError> {
        self.pull.fetch(&self.wanted, start).await
    }

    /// All of it, by one reader.
    async fn whole(&self) -> Result<(), EndedShort> {
        let found = self.fetch(0).await.expect("a source answers");
        self.check(found.read(), 0..self.blob.len() as u64).await
    }

    /// A range that says where it ends.
    async fn part(&self, range: Range<u64>) -> Result<(), EndedShort> {
        let found = self.pull.fetch_part(&self.wanted, range.clone()).await.expect("a source answers");
        self.check(found.read_part(range.clone()), range).await
    }

    /// What a reader gives has to be what the blob has there, whether or not it is all of it.
    async fn check(&self, mut reader: Reader, range: Range<u64>) -> Result<(), EndedShort> {
        let mut at = range.start as usize;
        while let Some(bytes) = reader.next().await? {
            assert!(self.blob[at..].starts_with(&bytes), "wrong bytes at {at}");
            at += bytes.len();
        }
        assert_eq!(at as u64, range.end);
        Ok(())
    }

    async fn is_stored(&self) -> bool {
        self.store.blob(&self.wanted.digest).await.is_some()
    }

    /// Until the transfer under way has all.
    async fn stored(&self) {
        let waiting = async {
            while !self.is_stored().await {
                self.store.grown().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("it arrives");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
