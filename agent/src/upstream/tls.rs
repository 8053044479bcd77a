use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::time::Instant;

use super::trust::Trust;

/// New connections look whether files have changed, at most this often.
const CHECKS_APART: Duration = Duration::from_secs(1);

/// Why TLS can't be set up as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("the `{key}` {} can't be read", path.display())]
    Unreadable {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("the `{key}` {} is of no use: {reason}", path.display())]
    Invalid {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// TLS can't be set up at all.
    #[error("TLS to upstreams can't be set up")]
    Setup(#[from] rustls::Error),
}

/// How TLS is to be: what is believed besides the system, and what is shown.
#[derive(Debug, Clone, Default)]
pub(super) struct TlsOptions {
    /// Files of authorities.
    pub(super) ca: Vec<PathBuf>,
    /// The files of a certificate and of its key, which may be the same.
    pub(super) client: Option<(PathBuf, PathBuf)>,
    /// Whether any certificate will do.
    pub(super) is_blind: bool,
    /// Whether it is for something else than HTTP requests: no protocol is agreed upon.
    pub(super) is_bare: bool,
}

/// TLS made of files that may change under us: new connections use what they hold now.
#[derive(Debug)]
pub(super) struct Tls {
    trust: Trust,
    options: TlsOptions,
    current: ArcSwap<ClientConfig>,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    checked: Instant,
    /// Of the trust that the configuration was made with.
    generation: u64,
    stamps: Vec<Stamp>,
}

/// What changes when a file is replaced or written. `None` for one that can't be looked at.
type Stamp = Option<(u64, u64, SystemTime)>;

impl Tls {
    /// Reads the files.
    pub(super) fn new(trust: &Trust, options: TlsOptions) -> Result<Self, TlsError> {
        // Looked at before they are read: what changes in between is read again.
        let (generation, stamps) = (trust.generation(), options.files().map(stamp).collect());
        let current = ArcSwap::from_pointee(config(trust, &options)?);
        let seen = Mutex::new(Seen { checked: Instant::now(), generation, stamps });
        Ok(Self { trust: trust.clone(), options, current, seen })
    }

    /// For a new connection.
    pub(super) async fn current(self: &Arc<Self>) -> Arc<ClientConfig> {
        self.current_at(Instant::now()).await
    }

    pub(super) async fn current_at(self: &Arc<Self>, now: Instant) -> Arc<ClientConfig> {
        let is_trust_due = self.trust.is_due(now);
        if self.is_due(now) || is_trust_due {
            let this = Arc::clone(self);
            // It fails at shutdown only.
            let _ = tokio::task::spawn_blocking(move || this.refresh(is_trust_due)).await;
        }
        self.current.load_full()
    }

    fn is_due(&self, now: Instant) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let has_files = self.options.files().next().is_some();
        let is_due = has_files && now.saturating_duration_since(seen.checked) >= CHECKS_APART;
        if is_due {
            seen.checked = now;
        }
        is_due || seen.generation != self.trust.generation()
    }

    /// Makes it anew if something has changed: of the host's authorities too, where it is their time. Blocking.
    fn refresh(&self, is_trust_due: bool) {
        if is_trust_due {
            self.trust.refresh();
        }
        let (generation, stamps): (_, Vec<Stamp>) =
            (self.trust.generation(), self.options.files().map(stamp).collect());
        let files_changed = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let files_changed = seen.stamps != stamps;
            if !files_changed && seen.generation == generation {
                return;
            }
            (seen.generation, seen.stamps) = (generation, stamps);
            files_changed
        };
        match config(&self.trust, &self.options) {
            Ok(config) => {
                self.current.store(Arc::new(config));
                if files_changed {
                    tracing::info!(files = ?self.options.files().collect::<Vec<_>>(), "certificates read again");
                }
            }
            // Half of a pair, perhaps: its other half is about to change too.
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "changed certificates are not used");
            }
        }
    }
}

fn config(trust: &Trust, options: &TlsOptions) -> Result<ClientConfig, TlsError> {
    let mut roots = trust.roots();
    for path in &options.ca {
        add_authorities(Arc::make_mut(&mut roots), path)?;
    }
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(trust.provider())).with_safe_default_protocol_versions()?;
    let builder = if options.is_blind {
        let any = Arc::new(AnyCertificate(Arc::clone(trust.provider())));
        builder.dangerous().with_custom_certificate_verifier(any)
    } else {
        builder.with_root_certificates(roots)
    };
    let mut config = match &options.client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = read_chain(certificate)?;
            let key_der = read_key(key)?;
            builder.with_client_auth_cert(chain, key_der).map_err(|e| TlsError::Invalid {
                key: "client_key",
                path: key.clone(),
                reason: format!("it does not go with {}: {e}", certificate.display()),
            })?
        }
    };
    if !options.is_bare {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    }
    Ok(config)
}

impl TlsOptions {
    fn files(&self) -> impl Iterator<Item = &Path> {
        let client = self.client.iter().flat_map(|(certificate, key)| [certificate, key]);
        self.ca.iter().chain(client).map(PathBuf::as_path)
    }
}

fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.modified().ok()?))
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Unreadable { key, path: path.to_owned(), source })
}

fn invalid(key: &'static str, path: &Path, reason: impl Into<String>) -> TlsError {
    TlsError::Invalid { key, path: path.to_owned(), reason: reason.into() }
}

fn add_authorities(roots: &mut RootCertStore, path: &Path) -> Result<(), TlsError> {
    let pem = read("ca", path)?;
    let before = roots.len();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| invalid("ca", path, e.to_string()))?;
        roots.add(certificate).map_err(|e| invalid("ca", path, e.to_string()))?;
    }
    if roots.len() == before {
        return Err(invalid("ca", path, "it has no certificate (BEGIN CERTIFICATE)"));
    }
    Ok(())
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read("client_cert", path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|e| invalid("client_cert", path, e.to_string()))?;
    if chain.is_empty() {
        return Err(invalid("client_cert", path, "it has no certificate (BEGIN CERTIFICATE)"));
    }
    Ok(chain)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = read("client_key", path)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|e| invalid("client_key", path, e.to_string()))
}

/// Takes any certificate; the handshake must still be made with its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
