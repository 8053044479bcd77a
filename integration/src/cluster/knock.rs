//! Somebody at an agent's port for peers: whoever shows this certificate, or none.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, StatusCode};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

use super::Files;
use crate::Host;

const ANSWER: Duration = Duration::from_secs(5);

/// Asks whether the agent there serves. An error: it was refused, or nothing came.
pub(super) async fn knock(from: &Host, to: SocketAddr, files: Option<&Files>) -> Result<StatusCode> {
    tokio::time::timeout(ANSWER, ask(from, to, files)).await.context("no answer")?
}

async fn ask(from: &Host, to: SocketAddr, files: Option<&Files>) -> Result<StatusCode> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = match files {
        Some(files) => builder.with_client_auth_cert(
            CertificateDer::pem_file_iter(&files.certificate)?.collect::<Result<_, _>>()?,
            PrivateKeyDer::from_pem_file(&files.key)?,
        )?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = from.namespace().inside(TcpSocket::new_v4)?.connect(to).await?;
    let stream = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("larder")?, stream).await?;
    let (mut requests, connection) = h2::client::handshake(stream).await?;
    let driven = tokio::spawn(connection);
    let request = Request::post(format!("https://{to}/larder.peers.v1.Health/Check"));
    let request = request.header("content-type", "application/grpc").header("te", "trailers").body(())?;
    let (reply, mut body) = requests.send_request(request, false)?;
    // An empty message: not compressed, no bytes.
    body.send_data(Bytes::from_static(&[0; 5]), true)?;
    let reply = reply.await;
    driven.abort();
    Ok(reply?.status())
}

/// Believes whoever answers.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
