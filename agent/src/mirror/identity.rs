//! The certificate by which containerd knows the mirror: of a CA that this node made for itself.
//!
//! The CA lives for ten years in the cache's folder; hosts.toml pins it, so that no other process that gets hold of the
//! port can pass for the mirror. The mirror's own certificate exists in memory alone and is made anew at each start and
//! every ten days. A year before the CA ends, its successor is made and trusted beside it; it signs when the old one is
//! about to end. A CA that was made while the clock was ahead isn't valid once it is set right: it is replaced at once.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData as _,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const DAY: time::Duration = time::Duration::DAY;
const CA_LIFE: time::Duration = time::Duration::days(3650);
/// With less than this left, a CA gets a successor that is trusted beside it.
const CA_SUCCESSOR: time::Duration = time::Duration::days(365);
/// With less than this left, a CA gives way to its successor.
const CA_END: time::Duration = time::Duration::days(60);
const LEAF_LIFE: time::Duration = time::Duration::days(30);
const RENEW_AFTER: time::Duration = time::Duration::days(10);
/// By the wall clock, which may jump: a node that slept, or had no time when it started. Until it is looked at, what is shown
/// may be valid no more, or not yet.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The library refused.
    #[error("the mirror's certificate can't be made: {0}")]
    Make(#[from] rcgen::Error),
    /// TLS refused it.
    #[error("the mirror's certificate can't be used: {0}")]
    Use(#[from] rustls::Error),
}

/// The node's CA and the certificate in use.
pub struct Identity {
    dir: PathBuf,
    addresses: Vec<IpAddr>,
    current: Arc<Current>,
    trusted: watch::Sender<String>,
}

/// The certificate that new connections get.
#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

struct Authority {
    certificate: String,
    key: KeyPair,
    begins: OffsetDateTime,
    ends: OffsetDateTime,
}

impl Identity {
    /// Reads the CA below `dir` or makes it, and a certificate for a mirror at `listen`. Blocking.
    ///
    /// Where `dir` takes no files, the CA lives in memory until the process ends.
    ///
    /// # Errors
    /// When no certificate can be made.
    pub fn open(dir: &Path, listen: SocketAddr) -> Result<Self, IdentityError> {
        let loopback = [IpAddr::from([127, 0, 0, 1]), IpAddr::from(std::net::Ipv6Addr::LOCALHOST)];
        let mut addresses = loopback.to_vec();
        if !listen.ip().is_unspecified() && !addresses.contains(&listen.ip()) {
            addresses.push(listen.ip());
        }
        let (bundle, leaf) = renew(dir, &addresses, OffsetDateTime::now_utc())?;
        let current = Arc::new(Current(ArcSwap::from_pointee(leaf)));
        Ok(Self { dir: dir.to_owned(), addresses, current, trusted: watch::Sender::new(bundle) })
    }

    /// The CAs to trust, as PEM; changes when a successor joins or an old one has ended.
    #[must_use]
    pub fn trusted(&self) -> watch::Receiver<String> {
        self.trusted.subscribe()
    }

    /// For the listener.
    ///
    /// # Errors
    /// When TLS can't be set up.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, IdentityError> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&self.current) as Arc<dyn ResolvesServerCert>);
        // HTTP/1.1 alone: a body that ends short must end its connection (see `reply`).
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Makes a new certificate every ten days, and the CA's successor in time.
    pub async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        let mut made = OffsetDateTime::now_utc();
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            let now = OffsetDateTime::now_utc();
            if !is_due(made, now) {
                continue;
            }
            let identity = Arc::clone(&self);
            let renewed = tokio::task::spawn_blocking(move || identity.renew_at(now)).await;
            match renewed {
                Ok(Ok(())) => {
                    made = now;
                    tracing::debug!("the mirror's certificate is new");
                }
                Ok(Err(e)) => {
                    tracing::error!(error = %e, "the mirror's certificate is not renewed yet");
                }
                Err(e) => tracing::error!(error = %e, "the mirror's certificate is not renewed"),
            }
        }
    }

    fn renew_at(&self, now: OffsetDateTime) -> Result<(), IdentityError> {
        let (bundle, leaf) = renew(&self.dir, &self.addresses, now)?;
        self.trusted.send_if_modified(|trusted| {
            let changed = *trusted != bundle;
            *trusted = bundle;
            changed
        });
        self.current.0.store(Arc::new(leaf));
        Ok(())
    }
}

/// Whether what was made then is to be made anew: it is old, or the clock was set.
fn is_due(made: OffsetDateTime, now: OffsetDateTime) -> bool {
    now - made >= RENEW_AFTER || now <= made - DAY
}

/// The CAs to trust, and a certificate of the one that signs now.
fn renew(dir: &Path, addresses: &[IpAddr], now: OffsetDateTime) -> Result<(String, CertifiedKey), IdentityError> {
    let (ca_path, successor_path) = (dir.join("ca.pem"), dir.join("ca-next.pem"));
    let left = |authority: &Authority| authority.ends - now;
    // Whoever checks a CA looks at both ends of its life.
    let load = |path| Authority::load(path).filter(|authority| authority.begins <= now);
    let mut ca = load(&ca_path);
    let mut successor = load(&successor_path);
    if ca.as_ref().is_none_or(|ca| left(ca) < CA_END) {
        ca = match successor.take() {
            Some(successor) => {
                move_or_warn(&successor_path, &ca_path);
                Some(successor)
            }
            None => None,
        };
    }
    let ca = match ca.filter(|ca| left(ca) > CA_END) {
        Some(ca) => ca,
        None => Authority::make(now)?.saved(&ca_path),
    };
    if left(&ca) < CA_SUCCESSOR && successor.is_none() {
        successor = Some(Authority::make(now)?.saved(&successor_path));
    }
    let bundle = [Some(&ca), successor.as_ref()].into_iter().flatten().map(|ca| ca.certificate.as_str()).collect();
    let leaf = ca.sign(addresses, now)?;
    Ok((bundle, leaf))
}

impl Authority {
    fn make(now: OffsetDateTime) -> Result<Self, IdentityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Larder mirror on this node");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.not_before = now - DAY;
        params.not_after = now + CA_LIFE;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { certificate, key, begins: params.not_before, ends: params.not_after })
    }

    /// `None` for what isn't there or isn't a CA of ours.
    fn load(path: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(path).ok()?;
        let end = "-----END CERTIFICATE-----\n";
        let (certificate, key) = text.split_at(text.find(end)? + end.len());
        let key = KeyPair::from_pem(key).ok()?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
        let (begins, ends) = (parsed.validity().not_before.to_datetime(), parsed.validity().not_after.to_datetime());
        let of_this_key = parsed.public_key().raw == key.subject_public_key_info();
        of_this_key.then(|| Self { certificate: certificate.to_owned(), key, begins, ends })
    }

    fn saved(self, path: &Path) -> Self {
        if let Err(e) = self.save(path) {
            tracing::warn!(path = %path.display(), error = %e, "the mirror's CA can't be kept; the next start makes a new one");
        }
        self
    }

    fn save(&self, path: &Path) -> io::Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let new = path.with_extension("new");
        let _ = std::fs::remove_file(&new);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(self.certificate.as_bytes())?;
        file.write_all(self.key.serialize_pem().as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    }

    fn sign(&self, addresses: &[IpAddr], now: OffsetDateTime) -> Result<CertifiedKey, IdentityError> {
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, &self.key)?;
        let key = KeyPair::generate()?;
        let names: Vec<String> =
            addresses.iter().map(ToString::to_string).chain(std::iter::once("localhost".to_owned())).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "larder");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = now - DAY;
        params.not_after = now + LEAF_LIFE;
        let certificate = params.signed_by(&key, &issuer)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&private)?;
        Ok(CertifiedKey::new(vec![certificate.der().clone()], signing))
    }
}

fn move_or_warn(from: &Path, to: &Path) {
    if let Err(e) = std::fs::rename(from, to) {
        tracing::warn!(path = %to.display(), error = %e, "the mirror's new CA can't be kept in its place");
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 7439))
    }

    fn count(bundle: &str) -> usize {
        bundle.matches("BEGIN CERTIFICATE").count()
    }

    #[test]
    fn the_ca_stays_over_restarts_and_its_key_is_not_handed_out() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::open(dir.path(), listen()).unwrap().trusted().borrow().clone();
        let second = Identity::open(dir.path(), listen()).unwrap().trusted().borrow().clone();
        assert_eq!(first, second);
        assert!(!first.contains("PRIVATE"));
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(dir.path().join("ca.pem")).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_successor_is_trusted_long_before_it_signs() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::open(dir.path(), listen()).unwrap();
        let start = OffsetDateTime::now_utc();
        let old = identity.trusted().borrow().clone();
        let after = |days| {
            identity.renew_at(start + time::Duration::days(days)).unwrap();
            identity.trusted().borrow().clone()
        };
        assert_eq!(after(1000), old);
        let both = after(3650 - 300);
        assert!(both.starts_with(&old) && count(&both) == 2);
        assert_eq!(after(3650 - 100), both);
        let new = after(3650 - 50);
        assert_eq!(format!("{old}{new}"), both, "the successor has taken over");
        // A process that starts now goes on with it.
        let (again, _) = renew(dir.path(), &identity.addresses, start + time::Duration::days(3650 - 40)).unwrap();
        assert_eq!(again, new);
    }

    #[test]
    fn one_of_a_clock_that_was_ahead_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let start = OffsetDateTime::now_utc();
        let bundle = |days| renew(dir.path(), &[], start + time::Duration::days(days)).unwrap().0;
        let ahead = bundle(700);
        let right = bundle(0);
        assert_ne!(right, ahead);
        assert_eq!(count(&right), 1);
        let made = Authority::load(&dir.path().join("ca.pem")).unwrap();
        assert!(made.begins <= start && made.certificate == right);
        assert_eq!((bundle(0), bundle(20)), (right.clone(), right), "and stays");
        // Nor is a successor trusted, or taken for one, that nobody believes yet.
        let both = bundle(3650 - 300);
        assert_eq!((count(&both), count(&bundle(0))), (2, 1));
    }

    #[test]
    fn what_is_shown_is_made_anew_when_it_is_old_and_when_the_clock_was_set() {
        let made = OffsetDateTime::now_utc();
        for (days, is) in [(0, false), (9, false), (10, true), (700, true), (-1, true), (-700, true)] {
            assert_eq!(is_due(made, made + time::Duration::days(days)), is, "{days}");
        }
    }

    #[test]
    fn what_is_no_ca_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), "nonsense").unwrap();
        let identity = Identity::open(dir.path(), listen()).unwrap();
        assert_eq!(count(&identity.trusted().borrow()), 1);
        let nowhere = Identity::open(Path::new("/proc/larder"), listen()).unwrap();
        assert_eq!(count(&nowhere.trusted().borrow()), 1);
    }
}
