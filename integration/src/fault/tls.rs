//! Certificates for the registry: the right one, and those that nobody should take.

use std::sync::Arc;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::script::Face;

/// What is spoken on the registry's port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// HTTP/1.1 without TLS.
    Plain,
    /// HTTP/1.1 over TLS.
    Tls,
    /// HTTP/1.1 over TLS, for those that show a certificate of the registry's own authority.
    Mutual,
    /// HTTP/2 over TLS.
    Http2,
}

/// TLS, with every face of it.
pub(super) struct Tls {
    right: TlsAcceptor,
    unknown: TlsAcceptor,
    expired: TlsAcceptor,
    /// The authority, as PEM.
    pub(super) ca: String,
    /// A certificate that opens [`Transport::Mutual`], and its key, as PEM.
    pub(super) client: (String, String),
    pub(super) is_http2: bool,
}

impl Tls {
    /// `None` for [`Transport::Plain`].
    pub(super) fn new(transport: Transport) -> Result<Option<Self>> {
        if transport == Transport::Plain {
            return Ok(None);
        }
        let (authority, stranger) = (Authority::new()?, Authority::new()?);
        let clients = (transport == Transport::Mutual).then_some(&authority);
        let acceptor = |issued: Issued| issued.acceptor(clients, transport == Transport::Http2);
        let (client, key) = authority.issue(false)?.pem();
        Ok(Some(Self {
            right: acceptor(authority.issue(false)?)?,
            unknown: acceptor(stranger.issue(false)?)?,
            expired: acceptor(authority.issue(true)?)?,
            ca: authority.pem,
            client: (client, key),
            is_http2: transport == Transport::Http2,
        }))
    }

    pub(super) fn acceptor(&self, face: Face) -> &TlsAcceptor {
        match face {
            Face::Right | Face::Refusing => &self.right,
            Face::UnknownCa => &self.unknown,
            Face::Expired => &self.expired,
        }
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    pem: String,
}

impl Authority {
    fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Self { der: certificate.der().clone(), pem: certificate.pem(), issuer: Issuer::new(params, key) })
    }

    fn issue(&self, expired: bool) -> Result<Issued> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        if expired {
            (params.not_before, params.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1));
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { certificate, key })
    }
}

struct Issued {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Issued {
    fn pem(&self) -> (String, String) {
        (self.certificate.pem(), self.key.serialize_pem())
    }

    fn acceptor(&self, clients: Option<&Authority>, http2: bool) -> Result<TlsAcceptor> {
        let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let builder = match clients {
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.der.clone())?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
                builder.with_client_cert_verifier(verifier)
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(vec![self.certificate.der().clone()], key)?;
        if http2 {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        Ok(Arc::new(config).into())
    }
}
