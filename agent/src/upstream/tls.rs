use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::chains::SetupError;
use crate::image::Registry;

/// Whom we believe: the system's certificate authorities, and those that an upstream's `ca` adds.
#[derive(Debug, Clone)]
pub(super) struct Trust {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl Trust {
    /// The system's authorities. Those that can't be read are left out, and said in the log.
    pub(super) fn system() -> Self {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "some of the system's certificate authorities can't be read");
        }
        let mut roots = RootCertStore::empty();
        let (taken, _) = roots.add_parsable_certificates(found.certs);
        if taken == 0 {
            tracing::warn!(
                "no certificate authority on this system; registries need `ca` in their [[registry.upstream]]"
            );
        }
        Self { roots: Arc::new(roots), provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()) }
    }

    /// These, and the authorities in a PEM file.
    pub(super) fn with(&self, ca: &Path, registry: &Registry) -> Result<Self, SetupError> {
        let unreadable = |source| SetupError::CaUnreadable { registry: registry.clone(), path: ca.to_owned(), source };
        let invalid =
            |reason: String| SetupError::CaInvalid { registry: registry.clone(), path: ca.to_owned(), reason };
        let pem = std::fs::read(ca).map_err(unreadable)?;
        let mut roots = RootCertStore::clone(&self.roots);
        let mut taken = 0;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|e| invalid(e.to_string()))?;
            roots.add(certificate).map_err(|e| invalid(e.to_string()))?;
            taken += 1;
        }
        if taken == 0 {
            return Err(invalid("it has no certificate (BEGIN CERTIFICATE)".to_owned()));
        }
        Ok(Self { roots: Arc::new(roots), provider: Arc::clone(&self.provider) })
    }

    /// TLS that believes these authorities.
    pub(super) fn config(&self) -> Result<ClientConfig, SetupError> {
        Ok(ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth())
    }

    /// TLS that believes anybody, for an upstream that the configuration calls insecure.
    pub(super) fn blind(&self) -> Result<ClientConfig, SetupError> {
        Ok(ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(Arc::clone(&self.provider))))
            .with_no_client_auth())
    }
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
