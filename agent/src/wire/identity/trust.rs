//! Whom this node believes: certificates of the cluster's authorities, made for this use and valid now.
//!
//! Names are not asked for: a certificate of somebody else's making (SPIFFE) may have none. The one name that counts is
//! the node's, in a URI of ours, where there is one: who dials a node wants this node. Where the authorities sign others'
//! certificates too, those of nodes are told by their IDs.

use std::fmt;
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;

use crate::config::CertificateId;
use crate::image::NodeId;

/// What stands before a node's number in the URI of its certificate.
const NODE: &str = "larder://node/";

/// The 128-bit cipher first: content is large, and this one is the fastest.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let mut provider = aws_lc_rs::default_provider();
    let fast = aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.retain(|suite| *suite != fast);
    provider.cipher_suites.insert(0, fast);
    Arc::new(provider)
});

/// The authorities, and how both ends are held against them.
#[derive(Clone)]
pub(super) struct Trust {
    called: Called,
    callers: Arc<dyn ClientCertVerifier>,
}

/// Takes certificates for servers.
#[derive(Debug, Clone)]
struct Called {
    roots: Arc<RootCertStore>,
    allowed: Allowed,
}

/// Takes the certificate of one node.
#[derive(Debug)]
struct OneNode {
    called: Called,
    node: NodeId,
}

/// Takes certificates of callers.
#[derive(Debug)]
struct Callers {
    signed: Arc<dyn ClientCertVerifier>,
    allowed: Allowed,
}

/// Whose certificates are nodes', of those that the authorities have signed; empty: all.
#[derive(Debug, Clone)]
struct Allowed(Arc<[CertificateId]>);

impl Allowed {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let is_allowed = |uri: &str| self.0.iter().any(|id| id.matches(uri)).then_some(());
        match self.0.is_empty() || first_uri(certificate, is_allowed).is_some() {
            true => Ok(()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }
}

impl Trust {
    pub(super) fn new(ca: &[CertificateDer<'static>], allowed: &[CertificateId]) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in ca {
            roots.add(certificate.clone())?;
        }
        let roots = Arc::new(roots);
        let signed = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&PROVIDER))
            .clear_root_hint_subjects()
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
        let allowed = Allowed(allowed.into());
        let callers = Arc::new(Callers { signed, allowed: allowed.clone() });
        Ok(Self { called: Called { roots, allowed }, callers })
    }

    /// Nothing is resumed, on either side: a session would outlive the certificate that it began with.
    pub(super) fn server_config(&self, shown: &CertifiedKey) -> Result<ServerConfig, Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::clone(&self.callers))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown.clone())));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    pub(super) fn client_config(&self, shown: &CertifiedKey, to: NodeId) -> Result<ClientConfig, Error> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(OneNode { called: self.called.clone(), node: to }))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown.clone())));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// Whether a caller who shows this would be let in now.
    pub(super) fn check_caller(&self, chain: &[CertificateDer<'_>]) -> Result<(), Error> {
        let (end_entity, intermediates) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        self.callers.verify_client_cert(end_entity, intermediates, UnixTime::now()).map(drop)
    }

    /// Whether others who believe the same would believe this node, as caller and as called.
    pub(super) fn check_own(&self, chain: &[CertificateDer<'_>]) -> Result<(), Error> {
        let (end_entity, intermediates) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        self.called.check(end_entity, intermediates, UnixTime::now())?;
        self.check_caller(chain)
    }
}

/// The URI that names a node.
pub(super) fn uri(node: NodeId) -> String {
    format!("{NODE}{node}")
}

/// The node that a certificate names, if it does.
pub(super) fn named(certificate: &CertificateDer<'_>) -> Option<NodeId> {
    first_uri(certificate, |uri| uri.strip_prefix(NODE)?.parse().ok())
}

/// What the first of a certificate's URIs says that says something.
fn first_uri<T>(certificate: &CertificateDer<'_>, says: impl Fn(&str) -> Option<T>) -> Option<T> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => says(uri),
        _ => None,
    })
}

/// Who signed a certificate, and when it ends.
pub(super) fn issuer(certificate: &CertificateDer<'_>) -> Option<(String, OffsetDateTime)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some((parsed.issuer().to_string(), parsed.validity().not_after.to_datetime()))
}

impl Called {
    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = PROVIDER.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        self.allowed.check(end_entity)
    }
}

impl ClientCertVerifier for Callers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.signed.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.signed.verify_client_cert(end_entity, intermediates, now)?;
        self.allowed.check(end_entity).map(|()| verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}

impl ServerCertVerifier for OneNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.called.check(end_entity, intermediates, now)?;
        match named(end_entity) {
            Some(node) if node != self.node => Err(CertificateError::NotValidForName.into()),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &PROVIDER.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &PROVIDER.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} authorities", self.called.roots.len())
    }
}
