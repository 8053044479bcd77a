//! The calls that kubelet makes for images.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;
use tower::service_fn;

/// CRI at a socket, connected anew for each call: containerd comes and goes.
#[derive(Debug)]
pub(super) struct Cri {
    socket: PathBuf,
}

impl Cri {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// The runtime's version.
    pub(super) async fn version(&self) -> Result<String> {
        let request = VersionRequest { version: "v1".to_owned() };
        let reply: VersionResponse = self.call("/runtime.v1.RuntimeService/Version", request).await?;
        Ok(reply.runtime_version)
    }

    /// Pulls; returns the image's id.
    pub(super) async fn pull(&self, image: &str, account: Option<(&str, &str)>) -> Result<String> {
        let auth = account.map(|(user, password)| AuthConfig { username: user.into(), password: password.into() });
        let request = PullImageRequest { image: Some(ImageSpec::named(image)), auth };
        let reply: PullImageResponse = self.call("/runtime.v1.ImageService/PullImage", request).await?;
        Ok(reply.image_ref)
    }

    /// Tags and digests of every image.
    pub(super) async fn images(&self) -> Result<Vec<String>> {
        let reply: ListImagesResponse = self.call("/runtime.v1.ImageService/ListImages", ListImagesRequest {}).await?;
        Ok(reply.images.into_iter().flat_map(|image| image.repo_tags.into_iter().chain(image.repo_digests)).collect())
    }

    async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = Grpc::new(self.connect().await?);
        grpc.ready().await?;
        let path = PathAndQuery::from_static(method);
        let reply = grpc.unary(tonic::Request::new(request), path, ProstCodec::<Q, A>::default()).await;
        Ok(reply.map_err(|status| anyhow!("{}", status.message()))?.into_inner())
    }

    async fn connect(&self) -> Result<Channel> {
        let socket = self.socket.clone();
        let connector = service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://containerd");
        endpoint.connect_with_connector(connector).await.context("connecting to containerd")
    }
}

// The fields of `runtime.v1` that are used here.

#[derive(Clone, PartialEq, Message)]
struct VersionRequest {
    #[prost(string, tag = "1")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct VersionResponse {
    #[prost(string, tag = "3")]
    runtime_version: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
    #[prost(btree_map = "string, string", tag = "2")]
    annotations: BTreeMap<String, String>,
}

impl ImageSpec {
    fn named(image: &str) -> Self {
        Self { image: image.to_owned(), annotations: BTreeMap::new() }
    }
}

#[derive(Clone, PartialEq, Message)]
struct AuthConfig {
    #[prost(string, tag = "1")]
    username: String,
    #[prost(string, tag = "2")]
    password: String,
}

#[derive(Clone, PartialEq, Message)]
struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
    #[prost(message, optional, tag = "2")]
    auth: Option<AuthConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct PullImageResponse {
    #[prost(string, tag = "1")]
    image_ref: String,
}

#[derive(Clone, PartialEq, Message)]
struct ListImagesRequest {}

#[derive(Clone, PartialEq, Message)]
struct ListImagesResponse {
    #[prost(message, repeated, tag = "1")]
    images: Vec<CriImage>,
}

#[derive(Clone, PartialEq, Message)]
struct CriImage {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, repeated, tag = "2")]
    repo_tags: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    repo_digests: Vec<String>,
}
