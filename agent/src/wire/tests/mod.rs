//! Nodes of test clusters, over real sockets.

mod channels;
mod datagrams;
mod rotation;
pub(crate) mod throughput;
mod tls;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tower::ServiceExt as _;

use super::metrics::Direction;
use super::refusal::Reason;
use super::*;
use crate::config::Peers;
use crate::image::NodeId;

/// Files of one cluster, and the folders of its nodes.
pub(super) struct Cluster {
    pub(super) dir: TempDir,
}

/// A node that serves.
pub(super) struct Node {
    pub(super) identity: Arc<Identity>,
    pub(super) metrics: WireMetrics,
    pub(super) address: SocketAddr,
    pub(super) channels: Arc<Channels>,
    pub(super) stop: CancellationToken,
}

impl Cluster {
    pub(super) fn new() -> Self {
        let cluster = Self { dir: tempfile::tempdir().unwrap() };
        cluster.write(&ClusterCa::make().unwrap());
        cluster
    }

    pub(super) fn ca(&self) -> ClusterCa {
        let text = |name| std::fs::read_to_string(self.path(name)).unwrap();
        ClusterCa::from_pem(text("ca.pem"), text("ca.key")).unwrap()
    }

    pub(super) fn write(&self, ca: &ClusterCa) {
        replace(&self.path("ca.pem"), ca.certificates());
        replace(&self.path("ca.key"), ca.keys());
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Of nodes that issue their own certificates.
    pub(super) fn config(&self) -> Peers {
        let mut config = Peers::default();
        config.ca = Some(self.path("ca.pem"));
        config.key = Some(self.path("ca.key"));
        config
    }

    /// Of nodes with a certificate of somebody else's making in `<name>.pem` and `<name>.key`.
    pub(super) fn config_given(&self, name: &str) -> Peers {
        replace(&self.path("secret"), &"s".repeat(32));
        let mut config = Peers::default();
        config.ca = Some(self.path("ca.pem"));
        config.cert = Some(self.path(&format!("{name}.pem")));
        config.cert_key = Some(self.path(&format!("{name}.key")));
        config.secret = Some(self.path("secret"));
        config
    }

    pub(super) fn identity(&self, name: &str) -> Arc<Identity> {
        Identity::open(&self.config(), &self.path(name)).unwrap()
    }

    pub(super) fn node(&self, name: &str) -> Node {
        Node::start(self.identity(name))
    }
}

impl Node {
    /// Serves who the caller is.
    pub(super) fn start(identity: Arc<Identity>) -> Self {
        let (metrics, stop) = (WireMetrics::default(), CancellationToken::new());
        let listener = PeerListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let service = tower::service_fn(|request: Request<Incoming>| async move {
            let caller = *request.extensions().get::<Caller>().unwrap();
            let text = caller.node.map_or("nobody".to_owned(), |node| node.to_string());
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
        });
        tokio::spawn(listener.serve(service, Arc::clone(&identity), metrics.clone(), stop.clone()));
        tokio::spawn(Arc::clone(&identity).keep_fresh(stop.clone()));
        let channels = Channels::new(Arc::clone(&identity), metrics.clone());
        Self { identity, metrics, address, channels, stop }
    }

    /// Asks another node who we are.
    pub(super) async fn ask(&self, other: &Self) -> Result<String, tonic::transport::Error> {
        ask(self.channels.to(other.identity.node(), other.address, Purpose::Small)).await
    }

    pub(super) async fn refused(&self, reason: Reason, times: u64) {
        eventually(|| self.metrics.refusals.count(reason) == times, reason).await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(super) async fn ask(channel: Channel) -> Result<String, tonic::transport::Error> {
    let request = Request::get("/").body(tonic::body::Body::empty()).unwrap();
    let reply = channel.oneshot(request).await?;
    Ok(String::from_utf8(reply.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

/// Waits until something holds, for ten seconds at most.
pub(super) async fn eventually(holds: impl Fn() -> bool, what: impl std::fmt::Debug) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(10), waiting).await.is_ok(), "{what:?} did not come about");
}

/// As those who rotate files do it.
pub(super) fn replace(path: &Path, text: &str) {
    let new = path.with_extension("tmp");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// A certificate of a cluster's authority, as PEM, and its key. It names no node.
pub(crate) fn leaf(ca: &ClusterCa, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    signed(ca.certificates(), ca.keys(), change)
}

/// The same of whoever has this certificate and its key.
pub(super) fn signed(certificate: &str, key: &str, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let issuer = Issuer::from_ca_cert_der(&certificate, KeyPair::try_from(&key).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("spiffe://corp/larder".try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = OffsetDateTime::now_utc() - time::Duration::HOUR;
    params.not_after = OffsetDateTime::now_utc() + time::Duration::HOUR;
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
}

impl Cluster {
    /// A node that shows this.
    pub(super) fn given(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Arc<Identity> {
        let (certificate, key) = leaf(&self.ca(), change);
        replace(&self.path(&format!("{name}.pem")), &certificate);
        replace(&self.path(&format!("{name}.key")), &key);
        Identity::open(&self.config_given(name), &self.path(name)).unwrap()
    }
}
