//! Who is let in, and as which node.

use std::sync::Arc;

use bytes::Bytes;
use http::{Extensions, HeaderMap, HeaderValue, Request};
use http_body_util::{BodyExt as _, Full};
use larder_proto::peers::directory_client::DirectoryClient;
use larder_proto::peers::health_client::HealthClient;
use larder_proto::peers::{AskRequest, HealthRequest, ReadRequest};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::ServiceExt as _;

use super::node::{Node, World, content};
use crate::cluster::chain::Key;
use crate::image::{Access, NodeId};
use crate::peers::frames::framed;
use crate::peers::messages::{self, ReadAsk};
use crate::peers::{NODE_HEADER, Trace};
use crate::sharing::{Callers, Sharing};
use crate::wire::tests::leaf;
use crate::wire::{Caller, Channels, ClusterCa, Identity, Purpose, WireMetrics};

const ONE: NodeId = NodeId::new([1; 16]);
const OTHER: NodeId = NodeId::new([2; 16]);

impl World {
    /// With a certificate of the cluster's authority that names no node.
    fn nameless(&self) -> Arc<Identity> {
        let path = |name| self.path().join(name);
        let text = |name| std::fs::read_to_string(path(name)).unwrap();
        let (certificate, key) = leaf(&ClusterCa::from_pem(text("ca.pem"), text("ca.key")).unwrap(), |_| {});
        let mut config = self.config();
        config.key = None;
        for (file, name, text) in [
            (&mut config.cert, "nameless.pem", certificate),
            (&mut config.cert_key, "nameless.key", key),
            (&mut config.secret, "secret", "s".repeat(32)),
        ] {
            std::fs::write(path(name), text).unwrap();
            *file = Some(path(name));
        }
        Identity::open(&config, &path("nameless")).unwrap()
    }
}

fn refusals(node: &Node, reason: &str) -> u64 {
    let (mut registry, mut text) = (Registry::default(), String::new());
    node.peers.metrics().register(&mut registry);
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let name = format!("larder_peer_refusals_total{{reason=\"{reason}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_named_by_no_certificate_gets_nothing() {
    let world = World::new(2);
    let node = &world.nodes[0];
    let digest = node.shelf.put(&content(6, 1000));
    let channels = Channels::new(world.nameless(), WireMetrics::default());
    let channel = channels.to(node.node, node.member().addr, Purpose::Small);
    // What it says of itself doesn't count.
    let said = || world.nodes[1].node.to_string();
    let introduced = |mut request: tonic::Request<()>| {
        request.metadata_mut().insert(NODE_HEADER, said().parse().unwrap());
        Ok::<_, Status>(request)
    };
    let mut health = HealthClient::with_interceptor(channel.clone(), introduced);
    assert_eq!(health.check(HealthRequest {}).await.unwrap_err().code(), Code::PermissionDenied);
    let mut directory = DirectoryClient::with_interceptor(channel.clone(), introduced);
    assert_eq!(directory.ask(AskRequest::default()).await.unwrap_err().code(), Code::PermissionDenied);
    let ask = ReadAsk {
        key: Key { digest, registry: "docker.io".parse().unwrap(), access: Access::Anonymous },
        from: 0,
        end: None,
        ticket: None,
        insists: false,
        instead_of: None,
        aside: false,
        trace: Trace::new(),
    };
    let message: ReadRequest = messages::read_request(&ask);
    let request = Request::post("http://peer/larder.peers.v1.Content/Read")
        .header(NODE_HEADER, said())
        .body(Body::new(Full::new(framed(&message))))
        .unwrap();
    let response = channel.oneshot(request).await.unwrap();
    assert_eq!(Status::from_header_map(response.headers()).unwrap().code(), Code::PermissionDenied);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), Bytes::new());
    assert_eq!(refusals(node, "nameless"), 3);
}

#[tokio::test]
async fn a_certificate_counts_for_more_than_words() {
    let world = World::new(1);
    let node = &world.nodes[0];
    let known = |callers, certificate: Option<Option<NodeId>>, said: &[u8]| {
        let (mut extensions, mut headers) = (Extensions::new(), HeaderMap::new());
        if let Some(node) = certificate {
            extensions.insert(Caller { node, address: ([127, 0, 0, 1], 1).into() });
        }
        if !said.is_empty() {
            headers.insert(NODE_HEADER, HeaderValue::from_bytes(said).unwrap());
        }
        let sharing = Sharing::new(node.peers.clone(), node.shelf.clone(), callers, CancellationToken::new());
        sharing.caller(&extensions, &headers)
    };
    let other = OTHER.to_string();
    for callers in [Callers::Named, Callers::Trusted] {
        assert_eq!(known(callers, Some(Some(ONE)), other.as_bytes()), Some(ONE));
        assert_eq!(known(callers, Some(None), b""), None);
        assert_eq!(known(callers, Some(None), b"\xff"), None);
        assert_eq!(known(callers, None, other.as_bytes()), None, "it came by no connection of a member");
    }
    assert_eq!(known(Callers::Named, Some(None), other.as_bytes()), None);
    assert_eq!(known(Callers::Trusted, Some(None), other.as_bytes()), Some(OTHER));
}
