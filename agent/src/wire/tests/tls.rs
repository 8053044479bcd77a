use rustls::{ClientConfig, RootCertStore};
use time::Duration as Days;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;

#[tokio::test]
async fn members_know_each_other() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    assert_ne!(a.identity.node(), b.identity.node());
    assert_eq!(a.ask(&b).await.unwrap(), a.identity.node().to_string());
    assert_eq!(b.ask(&a).await.unwrap(), b.identity.node().to_string());
    let bulk = a.channels.to(b.identity.node(), b.address, Purpose::Bulk);
    assert_eq!(ask(bulk).await.unwrap(), a.identity.node().to_string());
    assert_eq!(Identity::open(&cluster.config(), &cluster.path("a")).unwrap().node(), a.identity.node());
}

#[tokio::test]
async fn certificates_of_others_need_no_name_of_ours() {
    let cluster = Cluster::new();
    let (a, b) = (Node::start(cluster.given("a", |_| {})), Node::start(cluster.given("b", |_| {})));
    assert_eq!(a.ask(&b).await.unwrap(), "nobody");
    // One that names a node is that node.
    let node = NodeId::new([7; 16]);
    let named = cluster.given("c", |params| {
        params.subject_alt_names.push(SanType::URI(format!("larder://node/{node}").try_into().unwrap()));
    });
    assert_eq!(named.node(), node);
    assert_eq!(Node::start(named).ask(&b).await.unwrap(), node.to_string());
}

#[tokio::test]
async fn who_shows_no_certificate_gets_nothing() {
    let cluster = Cluster::new();
    let node = cluster.node("a");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(cluster.ca().certificates().as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(node.address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    // In TLS 1.3 a client believes to be done before the server has seen its certificate.
    if let Ok(mut stream) = connector.connect("larder-peer".try_into().unwrap(), stream).await {
        let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        let mut reply = Vec::new();
        assert!(stream.read_to_end(&mut reply).await.is_err() && reply.is_empty());
    }
    node.refused(Reason::NoCertificate, 1).await;
}

#[tokio::test]
async fn another_clusters_nodes_get_nothing() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let node = ours.node("a");
    // It would talk to us, so that it is us who refuse.
    let both = format!("{}{}", theirs.ca().certificates(), ours.ca().certificates());
    replace(&theirs.path("ca.pem"), &both);
    let outsider = theirs.node("x");
    assert!(outsider.ask(&node).await.is_err());
    node.refused(Reason::Authority, 1).await;
    // And we don't talk to it.
    assert!(node.ask(&outsider).await.is_err());
    node.refused(Reason::Authority, 2).await;
    outsider.refused(Reason::Alert, 1).await;
}

#[tokio::test]
async fn certificates_have_their_time_and_use() {
    let cluster = Cluster::new();
    let node = cluster.node("a");
    let now = OffsetDateTime::now_utc();
    let expired = Node::start(cluster.given("expired", |params| {
        (params.not_before, params.not_after) = (now - Days::days(2), now - Days::days(1));
    }));
    assert!(expired.ask(&node).await.is_err());
    node.refused(Reason::Expired, 1).await;
    assert!(node.ask(&expired).await.is_err());
    node.refused(Reason::Expired, 2).await;

    let early = Node::start(cluster.given("early", |params| params.not_before = now + Days::minutes(5)));
    assert!(early.ask(&node).await.is_err());
    node.refused(Reason::Expired, 3).await;

    let server = Node::start(cluster.given("server", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    }));
    assert!(server.ask(&node).await.is_err());
    node.refused(Reason::Usage, 1).await;
    let client = Node::start(cluster.given("client", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    }));
    assert!(node.ask(&client).await.is_err());
    node.refused(Reason::Usage, 2).await;
}

/// An authority that signs others' certificates too, as that of a SPIFFE trust domain does.
#[tokio::test]
async fn where_ids_are_named_others_of_the_authority_get_nothing() {
    let cluster = Cluster::new();
    let with_id = |name: &str, id: &str, allowed: &[&str]| {
        let (certificate, key) = leaf(&cluster.ca(), |params| {
            params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        });
        replace(&cluster.path(&format!("{name}.pem")), &certificate);
        replace(&cluster.path(&format!("{name}.key")), &key);
        let mut config = cluster.config_given(name);
        config.allowed_ids = allowed.iter().map(|id| id.parse().unwrap()).collect();
        Node::start(Identity::open(&config, &cluster.path(name)).unwrap())
    };
    let allowed = ["spiffe://corp/ns/larder/"];
    let a = with_id("a", "spiffe://corp/ns/larder/sa/a", &allowed);
    let b = with_id("b", "spiffe://corp/ns/larder/sa/b", &allowed);
    assert_eq!(a.ask(&b).await.unwrap(), "nobody");
    // It would talk to anybody, so that it is us who refuse.
    let other = with_id("other", "spiffe://corp/ns/shop/sa/web", &[]);
    assert!(other.ask(&a).await.is_err());
    a.refused(Reason::Id, 1).await;
    assert!(a.ask(&other).await.is_err());
    a.refused(Reason::Id, 2).await;
    let unnamed = with_id("unnamed", "https://corp/ns/larder/", &[]);
    assert!(unnamed.ask(&b).await.is_err());
    b.refused(Reason::Id, 1).await;
}

/// A node that was broken into can be this node, and no other.
#[tokio::test]
async fn a_members_certificate_makes_no_others() {
    let cluster = Cluster::new();
    let node = cluster.node("a");
    let (own, own_key) = leaf(&cluster.ca(), |_| {});
    let (made, made_key) = signed(&own, &own_key, |_| {});
    replace(&cluster.path("made.pem"), &format!("{made}{own}"));
    replace(&cluster.path("made.key"), &made_key);
    let made = Identity::open(&cluster.config_given("made"), &cluster.path("made")).unwrap();
    assert!(Node::start(made).ask(&node).await.is_err());
    node.refused(Reason::Authority, 1).await;
}

#[tokio::test]
async fn older_versions_of_tls_are_refused() {
    let cluster = Cluster::new();
    let node = cluster.node("a");
    let (certificate, key) = leaf(&cluster.ca(), |_| {});
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(cluster.ca().certificates().as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let stream = TcpStream::connect(node.address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    assert!(connector.connect("larder-peer".try_into().unwrap(), stream).await.is_err());
    node.refused(Reason::Handshake, 1).await;
}

#[tokio::test]
async fn who_dials_a_node_wants_that_node() {
    let cluster = Cluster::new();
    let (a, b, c) = (cluster.node("a"), cluster.node("b"), cluster.node("c"));
    // As when an address has gone to another node.
    assert!(ask(a.channels.to(b.identity.node(), c.address, Purpose::Small)).await.is_err());
    a.refused(Reason::Node, 1).await;
    assert!(ask(a.channels.to(b.identity.node(), b.address, Purpose::Small)).await.is_ok());
}

#[tokio::test]
async fn what_is_no_tls_is_refused_and_silence_ends() {
    let cluster = Cluster::new();
    let node = cluster.node("a");
    let mut plain = TcpStream::connect(node.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let silent = TcpStream::connect(node.address).await.unwrap();
    node.refused(Reason::Plain, 1).await;
    node.refused(Reason::Silent, 1).await;
    drop(silent);
}

#[tokio::test]
async fn nobody_there_fails_within_the_deadline() {
    let cluster = Cluster::new();
    let node = cluster.node("a");
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // A port that takes connections and says nothing.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for address in [gone, mute.local_addr().unwrap()] {
        let began = std::time::Instant::now();
        assert!(ask(node.channels.to(NodeId::new([1; 16]), address, Purpose::Small)).await.is_err());
        assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_node_that_comes_back_is_reached_again() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node("a"), cluster.identity("b"));
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let channel = || a.channels.to(b.node(), address, Purpose::Small);
    assert!(ask(channel()).await.is_err());
    let listener = PeerListener::bind(address).unwrap();
    let service = tower::service_fn(|_: Request<Incoming>| async {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"back"))))
    });
    let stop = CancellationToken::new();
    tokio::spawn(listener.serve(service, b.clone(), WireMetrics::default(), stop.clone()));
    assert_eq!(ask(channel()).await.unwrap(), "back");
    stop.cancel();
}
