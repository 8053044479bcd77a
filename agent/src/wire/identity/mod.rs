//! Who this node is among its peers, and whom it believes.
//!
//! All of it is made of files that may be replaced at any time: they are looked at once a second, and a whole set that
//! fits together takes the place of the one before it. A set that doesn't (half of a pair has been replaced, and the
//! other half is about to be) is said in the log and left until it does.

mod authority;
mod ca;
mod error;
mod files;
mod material;
mod number;
mod secret;
mod trust;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::files::Stamp;
use self::material::{Material, Shown};
use self::trust::Trust;
use crate::config::{self, CertificateId};
use crate::image::NodeId;

pub use self::ca::{CaError, ClusterCa};
pub use self::error::IdentityError;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Files that are of no use and don't change are read again this often: the disk may have been to blame, or the clock.
const READ_AGAIN: Duration = Duration::from_secs(10);
/// What goes wrong again at each look is said this often.
const SAID_AGAIN: Duration = Duration::from_secs(60);
/// What somebody should do within weeks is said this often.
const SAID_DAILY: Duration = Duration::from_secs(24 * 3600);
/// Ends nearer than this are said in the log: a certificate of somebody else's, that nobody has renewed.
const END_IS_NEAR: time::Duration = time::Duration::HOUR;
/// As [`END_IS_NEAR`], for the authority whose key this node has.
const AUTHORITY_END_IS_NEAR: time::Duration = time::Duration::days(90);

/// Who this node is among its peers: its number, its certificate, and whom it trusts.
#[derive(Debug)]
pub struct Identity {
    node: NodeId,
    paths: Paths,
    allowed: Vec<CertificateId>,
    current: ArcSwap<Set>,
    seen: Mutex<Seen>,
    changed: watch::Sender<u64>,
}

/// The files that it is made of.
#[derive(Debug, Clone)]
struct Paths {
    ca: PathBuf,
    own: Own,
    secret: Option<PathBuf>,
}

/// Where this node's certificate comes from.
#[derive(Debug, Clone)]
enum Own {
    /// It issues it, with this key of the authority.
    Issued { key: PathBuf },
    /// Somebody else does.
    Given { cert: PathBuf, key: PathBuf },
}

/// What is in use: made of one state of the files.
#[derive(Debug)]
struct Set {
    material: Material,
    shown: Shown,
    trust: Trust,
    server: Arc<ServerConfig>,
    /// Counts sets: connections of an earlier one are replaced.
    generation: u64,
}

/// What the files looked like.
#[derive(Debug)]
struct Seen {
    stamps: Vec<Stamp>,
    /// When what was read last turned out to be of no use.
    failed: Option<Instant>,
    said: Option<Instant>,
}

impl Identity {
    /// Reads the files, and the node's number in `dir`, which is made if there is none. Blocks on the disk.
    ///
    /// # Errors
    /// When there is no cluster in the configuration, a file can't be read or is of no use, or the files don't fit
    /// together.
    pub fn open(config: &config::Peers, dir: &Path) -> Result<Arc<Self>, IdentityError> {
        let paths = Paths::of(config)?;
        // Looked at before they are read: what changes in between is read again.
        let stamps = paths.stamps();
        let material = Material::read(&paths)?;
        let node = match material.named() {
            Some(node) => node,
            None => number::open(dir)?,
        };
        let (is_named, allowed) = (material.named().is_some(), config.allowed_ids.clone());
        let set = Set::new(material, node, 0, OffsetDateTime::now_utc(), &allowed)?;
        set.warn_of_itself();
        paths.warn_of_open_secrets();
        if matches!(paths.own, Own::Given { .. }) && !is_named && allowed.is_empty() {
            tracing::warn!(
                "this node's certificate names no node (larder://node/...), and `allowed_ids` in [peers] is empty: \
                 whoever has a certificate of `ca` is a peer, and may speak as any"
            );
        }
        Ok(Arc::new(Self {
            node,
            paths,
            allowed,
            current: ArcSwap::from_pointee(set),
            seen: Mutex::new(Seen { stamps, failed: None, said: None }),
            changed: watch::Sender::new(0),
        }))
    }

    /// The number that this node keeps for as long as its cache's folder, or that a given certificate names.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// For a new connection from a peer: HTTP/2 alone, and nobody without a certificate.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().server)
    }

    /// For a new connection to a node. The certificate that is found there must be trusted and, where it names a node,
    /// name this one. What rustls is told as the server's name doesn't matter.
    ///
    /// # Errors
    /// When TLS can't be set up at all.
    pub fn client_config(&self, to: NodeId) -> Result<Arc<ClientConfig>, IdentityError> {
        let set = self.current.load();
        Ok(Arc::new(set.trust.client_config(&set.shown.key, to)?))
    }

    /// A key that every member derives alike, and nobody else, for one purpose. It changes with the cluster's own key:
    /// what was made with the one before it is opened with one of [`Self::cluster_keys`].
    #[must_use]
    pub fn cluster_key(&self, purpose: &[u8]) -> [u8; 32] {
        self.current.load().shown.secrets.first(purpose)
    }

    /// The keys for one purpose while the cluster's own key is being replaced; the first is [`Self::cluster_key`].
    #[must_use]
    pub fn cluster_keys(&self, purpose: &[u8]) -> Vec<[u8; 32]> {
        self.current.load().shown.secrets.all(purpose)
    }

    /// Looks at the files once a second, and issues a new certificate in time, until `stop`.
    pub async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            let this = Arc::clone(&self);
            // It fails at shutdown only.
            let _ = tokio::task::spawn_blocking(move || this.look(OffsetDateTime::now_utc())).await;
        }
    }

    /// Which set is in use: grows when certificates, trust or keys change.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// As [`Self::changes`].
    pub(super) fn generation(&self) -> u64 {
        self.current.load().generation
    }

    /// When this node's certificate ends, in seconds since the epoch.
    pub(super) fn ends(&self) -> i64 {
        self.current.load().shown.ends.unix_timestamp()
    }

    /// Who signed what this node shows, and the certificate.
    #[cfg(test)]
    pub(super) fn shows(&self) -> (String, CertificateDer<'static>) {
        let set = self.current.load();
        (set.shown.issuer.clone(), set.shown.key.cert[0].clone())
    }

    /// Whether a caller who shows this is still to be believed.
    pub(super) fn believes(&self, chain: &[CertificateDer<'static>]) -> bool {
        self.current.load().trust.check_caller(chain).is_ok()
    }

    /// The node that a certificate names, if it does.
    pub(super) fn named(certificate: &CertificateDer<'_>) -> Option<NodeId> {
        trust::named(certificate)
    }

    /// Reads what has changed, and renews what is due. Blocks on the disk.
    pub(super) fn look(&self, now: OffsetDateTime) {
        let stamps = self.paths.stamps();
        let current = self.current.load_full();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = seen.stamps != stamps;
        seen.stamps = stamps;
        let reads = is_new || seen.failed.is_some_and(|failed| failed.elapsed() >= READ_AGAIN);
        let made = if reads {
            Material::read(&self.paths).and_then(|material| self.belongs(material))
        } else if current.material.is_due(&current.shown, now) {
            Ok(current.material.clone())
        } else {
            current.warn_of_end(&mut seen, now);
            return;
        };
        let made = made.and_then(|material| Set::new(material, self.node, current.generation + 1, now, &self.allowed));
        match made {
            Ok(set) => {
                set.warn_of_itself();
                if reads {
                    seen.failed = None;
                    self.paths.warn_of_open_secrets();
                }
                let generation = set.generation;
                tracing::info!(issuer = set.shown.issuer, "this node shows its peers a new certificate");
                self.current.store(Arc::new(set));
                self.changed.send_replace(generation);
            }
            // Half of a pair, perhaps: its other half is about to change too.
            Err(error) => {
                seen.failed = Some(Instant::now());
                if is_new || seen.is_time_to_say(SAID_AGAIN) {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "changed files of [peers] are not used; those before them are");
                }
            }
        }
    }

    /// A certificate that names another node is none of this one's.
    fn belongs(&self, material: Material) -> Result<Material, IdentityError> {
        match (material.named(), &self.paths.own) {
            (Some(node), Own::Given { cert, .. }) if node != self.node => {
                let reason = format!("it names node {node}, and this one is {} until it is started again", self.node);
                Err(files::invalid("cert", cert, reason))
            }
            _ => Ok(material),
        }
    }
}

impl Paths {
    fn of(config: &config::Peers) -> Result<Self, IdentityError> {
        let ca = config.ca.clone().ok_or(IdentityError::Off)?;
        let own = match (&config.key, &config.cert) {
            (Some(key), _) => Own::Issued { key: key.clone() },
            (None, Some(cert)) => {
                let key = config.cert_key.as_ref().unwrap_or(cert);
                Own::Given { cert: cert.clone(), key: key.clone() }
            }
            (None, None) => return Err(IdentityError::Off),
        };
        Ok(Self { ca, own, secret: config.secret.clone() })
    }

    fn stamps(&self) -> Vec<Stamp> {
        let own = match &self.own {
            Own::Issued { key } => [Some(key), None],
            Own::Given { cert, key } => [Some(cert), Some(key)],
        };
        std::iter::once(&self.ca)
            .chain(own.into_iter().flatten())
            .chain(&self.secret)
            .map(|path| files::stamp(path))
            .collect()
    }

    fn warn_of_open_secrets(&self) {
        match &self.own {
            Own::Issued { key } => files::warn_if_open("key", key),
            Own::Given { key, .. } => files::warn_if_open("cert_key", key),
        }
        if let Some(secret) = &self.secret {
            files::warn_if_open("secret", secret);
        }
    }
}

impl Set {
    fn new(
        material: Material,
        node: NodeId,
        generation: u64,
        now: OffsetDateTime,
        allowed: &[CertificateId],
    ) -> Result<Self, IdentityError> {
        let shown = material.show(node, now)?;
        let trust = Trust::new(material.ca(), allowed)?;
        let server = Arc::new(trust.server_config(&shown.key)?);
        Ok(Self { material, shown, trust, server, generation })
    }

    /// What others will say of it is better known here and now.
    fn warn_of_itself(&self) {
        if let Err(error) = self.trust.check_own(&self.shown.key.cert) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                issuer = self.shown.issuer,
                "peers will refuse this node's certificate: it has to be of an authority in `ca`, valid now, for both \
                 client and server authentication, and one of `allowed_ids` where there are any"
            );
        }
    }

    fn warn_of_end(&self, seen: &mut Seen, now: OffsetDateTime) {
        let (own, authority) = (self.shown.ends - now, self.shown.authority_ends.map(|ends| ends - now));
        if own < END_IS_NEAR && seen.is_time_to_say(SAID_AGAIN) {
            tracing::error!(seconds = own.whole_seconds(), "this node's certificate ends, and nobody has renewed it");
        } else if let Some(left) = authority
            && left < AUTHORITY_END_IS_NEAR
            && seen.is_time_to_say(SAID_DAILY)
        {
            tracing::warn!(
                days = left.whole_days(),
                "the cluster's authority ends; larder certs --rotate makes its successor"
            );
        }
    }
}

impl Seen {
    fn is_time_to_say(&mut self, again: Duration) -> bool {
        let is_time = self.said.is_none_or(|said| said.elapsed() >= again);
        if is_time {
            self.said = Some(Instant::now());
        }
        is_time
    }
}
