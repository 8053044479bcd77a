//! Somebody at an agent's port for peers: whoever shows this certificate, or none.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use http::Request;
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
/// Before each message: whether it is compressed, and its length.
const HEAD: usize = 5;

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// gRPC's own status: 0 for an answer.
    pub status: String,
    /// The first message, if one came.
    pub message: Bytes,
}

/// Calls a method with a message. An error: it was refused, or nothing came.
pub(super) async fn call(
    from: &Host,
    to: SocketAddr,
    files: Option<&Files>,
    method: &str,
    message: &[u8],
) -> Result<Answer> {
    tokio::time::timeout(ANSWER, ask(from, to, files, method, message)).await.context("no answer")?
}

async fn ask(from: &Host, to: SocketAddr, files: Option<&Files>, method: &str, message: &[u8]) -> Result<Answer> {
    let config = client(files)?;
    let stream = from.namespace().inside(TcpSocket::new_v4)?.connect(to).await?;
    let stream = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("larder")?, stream).await?;
    let (mut requests, connection) = h2::client::handshake(stream).await?;
    let driven = tokio::spawn(connection);
    let request = Request::post(format!("https://{to}/larder.peers.v1.{method}"));
    let request = request.header("content-type", "application/grpc").header("te", "trailers").body(())?;
    let (reply, mut body) = requests.send_request(request, false)?;
    // Not compressed, so long, and the message.
    let length = u32::try_from(message.len())?.to_be_bytes();
    // Who has refused already listens no more; its answer says so.
    let _ = body.send_data([&[0], &length[..], message].concat().into(), true);
    let read = async {
        let (head, mut body) = reply.await?.into_parts();
        let mut all = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            all.extend_from_slice(&data);
        }
        let trailers = body.trailers().await?.unwrap_or_default();
        let status = trailers.get("grpc-status").or_else(|| head.headers.get("grpc-status"));
        let status = status.context("no status of gRPC")?.to_str()?.to_owned();
        let message = all.freeze();
        Ok(Answer { status, message: if message.len() > HEAD { message.slice(HEAD..) } else { Bytes::new() } })
    };
    let answer = read.await;
    driven.abort();
    answer
}

impl Files {
    /// TLS as a peer that shows this certificate and believes whoever answers.
    pub fn client(&self) -> Result<ClientConfig> {
        client(Some(self))
    }
}

fn client(files: Option<&Files>) -> Result<ClientConfig> {
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
    Ok(config)
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
