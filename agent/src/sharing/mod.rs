//! gRPC for peers: the other end of what `peers` asks and reads of them.
//!
//! `Content` is written and read by hand, so that blobs aren't copied on their way out; `Directory`, `Tags`, `Rights`,
//! `Copies`, `Checks`, `Images` and `Health` are what generated code makes of them. Who calls is known from its
//! certificate; where somebody else issues those, and they name no node, from what it says itself. Otherwise who isn't
//! named by its certificate gets nothing.

mod checks;
mod content;
mod copies;
mod directory;
mod health;
mod images;
mod pieces;
mod rights;
mod source;
mod tags;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{Extensions, HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use larder_proto::peers::ReadRequest;
use larder_proto::peers::checks_server::ChecksServer;
use larder_proto::peers::copies_server::CopiesServer;
use larder_proto::peers::directory_server::DirectoryServer;
use larder_proto::peers::health_server::HealthServer;
use larder_proto::peers::images_server::ImagesServer;
use larder_proto::peers::rights_server::RightsServer;
use larder_proto::peers::tags_server::TagsServer;
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tower_service::Service;

pub use images::Told;
pub use source::{Reading, Source};

use crate::image::NodeId;
use crate::peers::{NODE_HEADER, Peers, messages};
use crate::wire::Caller;

/// The longest request to read, in bytes.
const MOST_REQUEST: usize = 16 << 10;
/// How long one may take to come.
const REQUEST_WITHIN: std::time::Duration = std::time::Duration::from_secs(2);

/// How callers are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// By their certificates alone: nodes issue their own, which name them.
    Named,
    /// By what they say, where a certificate that somebody else issued names no node.
    Trusted,
}

/// What peers are served by. A cheap clone.
#[derive(Clone)]
pub struct Sharing<S: Source> {
    peers: Peers,
    source: S,
    callers: Callers,
    /// Streams under way part from their readers with it, so that these go on elsewhere at once.
    stop: CancellationToken,
    directory: DirectoryServer<directory::Door>,
    tags: TagsServer<tags::Door>,
    rights: RightsServer<rights::Door<S>>,
    copies: CopiesServer<copies::Door>,
    health: HealthServer<health::Door>,
    checks: ChecksServer<checks::Door>,
    images: ImagesServer<images::Door>,
}

impl<S: Source> Sharing<S> {
    /// Gives peers what `source` has, as far as `peers` admits them.
    #[must_use]
    pub fn new(peers: Peers, source: S, callers: Callers, stop: CancellationToken) -> Self {
        let directory = DirectoryServer::new(directory::Door::new(peers.directory()));
        let tags = TagsServer::new(tags::Door::new(peers.directory()));
        let rights = RightsServer::new(rights::Door::new(peers.directory(), source.clone()));
        let copies = CopiesServer::new(copies::Door::new(peers.directory()));
        let health = HealthServer::new(health::Door::new(peers.clone()));
        let checks = ChecksServer::new(checks::Door::new(peers.directory()));
        let images = ImagesServer::new(images::Door::new(None));
        Self { peers, source, callers, stop, directory, tags, rights, copies, health, checks, images }
    }

    /// Tells peers which images run here; without it, they are told that this node doesn't say.
    #[must_use]
    pub fn telling(mut self, told: Told) -> Self {
        self.images = ImagesServer::new(images::Door::new(Some(told)));
        self
    }

    async fn answer(mut self, mut request: Request<Incoming>) -> Response<Body> {
        let Some(node) = self.caller(request.extensions(), request.headers()) else {
            self.peers.metrics().refused("nameless");
            return Status::permission_denied("the certificate names no node").into_http();
        };
        request.extensions_mut().insert(Node(node));
        let path = request.uri().path().to_owned();
        let answered = match path.strip_prefix("/larder.peers.v1.").and_then(|call| call.split_once('/')) {
            Some(("Content", "Read")) => return self.read(node, request).await.unwrap_or_else(Status::into_http),
            Some(("Directory", _)) => self.directory.call(request).await,
            Some(("Tags", _)) => self.tags.call(request).await,
            Some(("Rights", _)) => self.rights.call(request).await,
            Some(("Copies", _)) => self.copies.call(request).await,
            Some(("Health", _)) => self.health.call(request).await,
            Some(("Checks", _)) => self.checks.call(request).await,
            Some(("Images", _)) => self.images.call(request).await,
            _ => return Status::unimplemented("there is no such service in this version").into_http(),
        };
        answered.unwrap_or_else(|never| match never {})
    }

    /// Which node calls.
    fn caller(&self, extensions: &Extensions, headers: &HeaderMap) -> Option<NodeId> {
        let said = || headers.get(NODE_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        match (extensions.get::<Caller>()?.node, self.callers) {
            (Some(node), _) => Some(node),
            (None, Callers::Trusted) => said(),
            (None, Callers::Named) => None,
        }
    }

    async fn read(self, reader: NodeId, request: Request<Incoming>) -> Result<Response<Body>, Status> {
        if request.method() != Method::POST {
            return Err(Status::unimplemented("gRPC is POST"));
        }
        let body = Limited::new(request.into_body(), MOST_REQUEST).collect();
        let body = tokio::time::timeout(REQUEST_WITHIN, body).await;
        let body = body.map_err(|_| Status::deadline_exceeded("the request doesn't come"))?;
        let body = body.map_err(|e| Status::invalid_argument(e.to_string()))?.to_bytes();
        // One message, as gRPC frames it, uncompressed.
        let message = body.strip_prefix(&[0]).and_then(|rest| rest.get(4..));
        let message = message.ok_or_else(|| Status::invalid_argument("no message"))?;
        let request = ReadRequest::decode(message).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let ask = messages::read_ask(request)?;
        Ok(content::read(self.peers, self.source, reader, ask, self.stop))
    }
}

impl<S: Source> Service<Request<Incoming>> for Sharing<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let sharing = self.clone();
        Box::pin(async move { Ok(sharing.answer(request).await) })
    }
}

/// Which node a request comes from: in its extensions.
#[derive(Clone, Copy)]
struct Node(NodeId);

fn caller_of<T>(request: &tonic::Request<T>) -> Result<NodeId, Status> {
    let node = request.extensions().get::<Node>();
    node.map(|Node(node)| *node).ok_or_else(|| Status::permission_denied("no node calls"))
}
