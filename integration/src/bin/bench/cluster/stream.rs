//! One stream between two agents, by what TLS over TCP can do on this machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hyper_util::rt::TokioIo;
use larder_integration::{Agent, AgentConfig, Authority, FaultRegistry, Files, Folder, Image, free_port, until};
use larder_proto::peers::content_client::ContentClient;
use larder_proto::peers::read_reply::Part;
use larder_proto::peers::{Access, Key, ReadRequest};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::transport::Endpoint;
use tower::service_fn;

use crate::raw::get;
use crate::stats::Median;

const PIECE: usize = 256 << 10;

/// A blob of 512 MiB: from one agent's store to a reader that drops it; from that store to another agent's, and on to who
/// asked there; and the same number of bytes over rustls, by two tasks that do nothing else.
pub(crate) async fn stream(pairs: usize) -> Result<()> {
    let pairs = pairs.min(5);
    let (folder, registry, image) = (Folder::new()?, FaultRegistry::start().await?, Image::opaque(1, 512 << 20));
    registry.add(&image, "acme/app", "v1");
    let length = image.largest().bytes.len();
    let path = format!("/v2/acme/app/blobs/{}?ns=reg.test", image.largest().digest);
    let authority = Authority::new()?;
    let files = authority.files();
    let ports = [free_port()?, free_port()?];
    let start = async |name: &str, own: u16, other: u16| {
        let mut config = AgentConfig::without_containerd(folder.path());
        config.registry("reg.test", &[&registry.url()]);
        config.set_path("peers", "ca", &files.certificate).set_path("peers", "key", &files.key);
        config.set_text("peers", "listen", &format!("127.0.0.1:{own}"));
        config.set_text("peers", "seeds", &format!("127.0.0.1:{other}"));
        Agent::start(&folder.path().join(name), &config).await
    };
    let (holder, mut reader) =
        tokio::try_join!(start("holder", ports[0], ports[1]), start("reader", ports[1], ports[0]))?;
    get(holder.mirror_port(), &path, length).await?;
    let peer = authority.issue(&folder.path().join("peer"), "0123456789abcdef0123456789abcdef", false)?;
    let (mut pulled, mut dropped, mut raw, mut most) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for pair in 0..=pairs {
        reader.kill();
        std::fs::remove_dir_all(reader.cache().join("blobs"))?;
        reader.start_again().await?;
        for agent in [&holder, &reader] {
            until("they know each other", Duration::from_secs(20), async || {
                (agent.metrics().await.ok()?.sum("larder_peer_members", &["state=\"settled\""]) == 2.0).then_some(())
            })
            .await?;
        }
        until("the reader, which owns its digest too, knows where the blob is", Duration::from_secs(20), async || {
            (reader.metrics().await.ok()?.sum("larder_peer_directory_entries", &[]) > 0.0).then_some(())
        })
        .await?;
        registry.clear_log();
        let begun = Instant::now();
        let mut reading = std::pin::pin!(get(reader.mirror_port(), &path, length));
        loop {
            tokio::select! {
                read = &mut reading => break read?,
                () = tokio::time::sleep(Duration::from_millis(50)) => {
                    let resident = [&holder, &reader].map(|agent| agent.process().map_or(0, |it| it.resident_bytes()));
                    most = most.max(resident.into_iter().max().unwrap_or_default());
                }
            }
        }
        let rate = length as f64 / begun.elapsed().as_secs_f64();
        ensure!(registry.sent("/blobs/") == 0, "it came from upstream: {:?}", registry.requests());
        let alone = to_nobody(ports[0], &peer, &image.largest().digest, length).await?;
        let plain = over_rustls(length).await?;
        // The first pair warms up.
        if pair > 0 {
            pulled.push(rate);
            dropped.push(alone);
            raw.push(plain);
        }
    }
    println!("\none stream of {} MiB between two agents over loopback, {pairs} pairs:", length >> 20);
    println!("  rustls over TCP        {:.0} MB/s", Median::of(&raw).middle / 1e6);
    for (what, rates) in [("an agent's stream", &dropped), ("from store to store", &pulled)] {
        let ratio = Median::of_ratios(rates, &raw);
        println!("  {what:22} {:.0} MB/s: {ratio} of it", Median::of(rates).middle / 1e6);
    }
    println!("  resident memory, the larger of both agents: {:.1} MiB", most as f64 / f64::from(1 << 20));
    Ok(())
}

/// Bytes a second of a blob that an agent has, to a peer that neither hashes nor keeps them.
async fn to_nobody(port: u16, peer: &Files, digest: &str, length: usize) -> Result<f64> {
    let tls = TlsConnector::from(Arc::new(peer.client()?));
    // A peer goes by the node's number in the certificate.
    let name = ServerName::try_from("larder")?;
    let connector = service_fn(move |_| {
        let (tls, name) = (tls.clone(), name.clone());
        async move {
            let stream = TcpStream::connect(("127.0.0.1", port)).await?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, stream).await?))
        }
    });
    // As agents have them.
    let endpoint = Endpoint::from_static("http://larder-peer").max_frame_size(256 << 10);
    let endpoint = endpoint.initial_stream_window_size(2 << 20).initial_connection_window_size(16 << 20);
    let mut content = ContentClient::new(endpoint.connect_with_connector(connector).await?);
    let access = Access::Anonymous.into();
    let key = Key { digest: digest.to_owned(), registry: "reg.test".to_owned(), access };
    let begun = Instant::now();
    let mut replies = content.read(ReadRequest { key: Some(key), ..Default::default() }).await?.into_inner();
    let mut received = 0;
    while received < length {
        let reply = replies.message().await?.context("the agent's stream ended early")?;
        match reply.part {
            Some(Part::Data(data)) => received += data.bytes.len(),
            Some(Part::Parting(parting)) => ensure!(received == length, "it parted: {parting:?}"),
            _ => {}
        }
    }
    Ok(received as f64 / begun.elapsed().as_secs_f64())
}

/// Bytes a second of one connection, from one task to another.
async fn over_rustls(length: usize) -> Result<f64> {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let certificate = issued.cert.der().clone();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(issued.signing_key.serialize_der()));
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone())?;
    let server = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
    let server = server.with_no_client_auth().with_single_cert(vec![certificate], key)?;
    let client = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
    let client = client.with_root_certificates(roots).with_no_client_auth();

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let sender = tokio::spawn(async move {
        let (stream, _) = listener.accept().await?;
        let mut stream = TlsAcceptor::from(Arc::new(server)).accept(stream).await?;
        let piece = vec![7; PIECE];
        for _ in 0..length / PIECE {
            stream.write_all(&piece).await?;
        }
        stream.shutdown().await
    });
    let stream = TcpStream::connect(address).await?;
    let mut stream = TlsConnector::from(Arc::new(client)).connect(ServerName::try_from("localhost")?, stream).await?;
    let (begun, mut buffer, mut received) = (Instant::now(), vec![0; PIECE], 0);
    while received < length / PIECE * PIECE {
        let read = stream.read(&mut buffer).await?;
        ensure!(read > 0, "rustls ended early");
        received += read;
    }
    let rate = received as f64 / begun.elapsed().as_secs_f64();
    sender.await.context("the sender")??;
    Ok(rate)
}

/// With the cipher that agents prefer.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(provider)
}
