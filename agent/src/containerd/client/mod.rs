//! containerd's API on its Unix socket: its own services, and the runtime interface that kubelet speaks.
//!
//! One lazily made connection carries both; when containerd restarts, the next call connects again. Every call has a
//! deadline, and every error says at which socket and in which call.

mod containers;
mod content;
mod cri;
mod error;
mod events;
mod images;
mod tasks;
mod version;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::services::v1::{AbortRequest, ListNamespacesRequest, Plugin, PluginsRequest};
use hyper_util::rt::TokioIo;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

pub use containers::Container;
pub use content::{Content, ContentReader};
pub use cri::{Auth, CriStatus};
pub use error::ClientError;
pub use events::{Event, Events, Happening};
pub use images::ImageRecord;
pub use larder_proto::cri::Image;
pub use version::{Release, Version};

use crate::config;
use crate::image::Digest;

/// How long any call may take, pulls aside.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long one part of a listing, or one piece of a blob, may take.
const PART: Duration = Duration::from_secs(5);
/// The most that a list in one message may take: containerd's own bound on what it sends.
const MAX_MESSAGE: usize = 16 << 20;

/// What containerd's fetches are called: the kind of content in front of its digest.
const INGEST_KINDS: [&str; 5] = ["layer", "config", "manifest", "index", "unknown"];

/// The most namespaces in which one is looked for.
const MAX_NAMESPACES: usize = 64;

/// containerd at one socket. Clones share a connection.
#[derive(Debug, Clone)]
pub struct Client {
    socket: Arc<Path>,
    namespaces: Arc<[AsciiMetadataValue]>,
    channel: Channel,
}

/// A plugin of containerd that has to do with images, and whether it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginState {
    /// `io.containerd.grpc.v1.cri` and the like.
    pub uri: String,
    /// Why it isn't loaded.
    pub error: Option<String>,
}

impl Client {
    /// For the configured socket and namespaces. Nothing is contacted before the first call. Must be called within a
    /// tokio runtime, which the connection's task runs on until the last clone is dropped.
    ///
    /// # Errors
    /// When a namespace's name can't be sent.
    pub fn new(config: &config::Containerd) -> Result<Self, ClientError> {
        let namespaces = config
            .namespaces
            .iter()
            .map(|name| AsciiMetadataValue::try_from(name).map_err(|_| ClientError::Namespace { name: name.clone() }));
        let socket: Arc<Path> = config.socket.as_path().into();
        let path = Arc::clone(&socket);
        // The URI is only the authority that the server gets to see; the connector knows the way.
        let channel = Endpoint::from_static("http://localhost").connect_timeout(DEADLINE).connect_with_connector_lazy(
            tower::service_fn(move |_| {
                let path = Arc::clone(&path);
                async move { tokio::net::UnixStream::connect(&path).await.map(TokioIo::new) }
            }),
        );
        Ok(Self { namespaces: namespaces.collect::<Result<_, _>>()?, socket, channel })
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// containerd's own version.
    ///
    /// # Errors
    /// No answer within 5 s, or a refusal.
    pub async fn version(&self) -> Result<Release, ClientError> {
        let mut client = VersionClient::new(self.channel.clone());
        let answer = self.call("Version", DEADLINE, client.version(())).await?;
        Ok(Release::new(answer.version))
    }

    /// Throws away what containerd has begun to fetch of this blob, so that its next attempt starts clean: in all of its
    /// namespaces, since a request doesn't say in which it was made. Returns how many beginnings there were.
    ///
    /// # Errors
    /// No answer within 5 s, or a refusal; in the other namespaces it is tried all the same. That there is nothing to
    /// abort is no error.
    pub async fn abort_ingest(&self, digest: &Digest) -> Result<usize, ClientError> {
        let mut client = ContentClient::new(self.channel.clone());
        let (mut aborted, mut failed) = (0, None);
        for namespace in &self.all_namespaces().await {
            for kind in INGEST_KINDS {
                let request = within(namespace, AbortRequest { r#ref: format!("{kind}-{digest}") });
                match self.call("Content.Abort", DEADLINE, client.abort(request)).await {
                    Ok(()) => aborted += 1,
                    Err(ClientError::Status { code: Code::NotFound, .. }) => {}
                    Err(error) => failed = Some(error),
                }
            }
        }
        failed.map_or(Ok(aborted), Err)
    }

    /// Those that are configured, and whatever others there are, where containerd says.
    async fn all_namespaces(&self) -> Vec<AsciiMetadataValue> {
        let mut all = self.namespaces.to_vec();
        let mut client = NamespacesClient::new(self.channel.clone());
        let list = self.call("Namespaces.List", DEADLINE, client.list(ListNamespacesRequest::default())).await;
        let names = list.map(|list| list.namespaces).unwrap_or_default().into_iter();
        for name in names.filter_map(|namespace| AsciiMetadataValue::try_from(namespace.name).ok()) {
            if all.len() < MAX_NAMESPACES && !all.contains(&name) {
                all.push(name);
            }
        }
        all
    }

    /// The folder below which `blobs/` and `ingest/` of containerd's content store lie, as containerd sees it.
    ///
    /// # Errors
    /// No answer within 5 s, a refusal, or a containerd that doesn't tell.
    pub async fn content_root(&self) -> Result<PathBuf, ClientError> {
        let plugins = self.plugins("type==io.containerd.content.v1,id==content").await?;
        let root = plugins.into_iter().find_map(|mut plugin| plugin.exports.remove("root"));
        root.map(PathBuf::from).ok_or_else(|| ClientError::NoContentRoot { socket: self.socket.to_path_buf() })
    }

    /// The plugins that serve the runtime interface, by version one or several, and why one of them isn't loaded.
    /// Empty where they are switched off.
    ///
    /// # Errors
    /// No answer within 5 s, or a refusal.
    pub async fn cri_plugins(&self) -> Result<Vec<PluginState>, ClientError> {
        let of = |plugin: &Plugin| format!("{}.{}", plugin.r#type, plugin.id);
        let all = self.plugins("").await?;
        let ours = all.into_iter().filter(|p| p.id == "cri" || p.r#type.starts_with("io.containerd.cri."));
        Ok(ours.map(|p| PluginState { uri: of(&p), error: p.init_err.map(|e| e.message) }).collect())
    }

    /// The process that listens at the socket, where the kernel tells (not with systemd's socket activation, and not
    /// from another PID namespace).
    ///
    /// # Errors
    /// No connection within 5 s.
    pub async fn process(&self) -> Result<Option<i32>, ClientError> {
        let connect = tokio::net::UnixStream::connect(&self.socket);
        let stream = tokio::time::timeout(DEADLINE, connect)
            .await
            .map_err(|_| ClientError::Deadline { socket: self.socket.to_path_buf(), call: "connect", after: DEADLINE })?
            .map_err(|error| ClientError::from_io(&self.socket, error))?;
        let peer = stream.peer_cred().map_err(|error| ClientError::from_io(&self.socket, error))?;
        Ok(peer.pid().filter(|pid| *pid > 0))
    }

    async fn plugins(&self, filter: &str) -> Result<Vec<Plugin>, ClientError> {
        let mut client = IntrospectionClient::new(self.channel.clone());
        let filters = if filter.is_empty() { Vec::new() } else { vec![filter.to_owned()] };
        let answer = self.call("Introspection.Plugins", DEADLINE, client.plugins(PluginsRequest { filters })).await?;
        Ok(answer.plugins)
    }

    /// Runs one call under its deadline; a call that is given up on is cancelled at containerd too.
    async fn call<T>(
        &self,
        call: &'static str,
        deadline: Duration,
        work: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, ClientError> {
        match tokio::time::timeout(deadline, work).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(ClientError::from_status(&self.socket, call, &status)),
            Err(_) => Err(ClientError::Deadline { socket: self.socket.to_path_buf(), call, after: deadline }),
        }
    }

    /// The next part of a listing or a blob, under a deadline of its own.
    async fn part<T>(&self, call: &'static str, stream: &mut Streaming<T>) -> Result<Option<T>, ClientError> {
        match tokio::time::timeout(PART, stream.message()).await {
            Ok(Ok(part)) => Ok(part),
            Ok(Err(status)) => Err(ClientError::from_status(&self.socket, call, &status)),
            Err(_) => Err(ClientError::Deadline { socket: self.socket.to_path_buf(), call, after: PART }),
        }
    }

    /// The configured namespaces, as they are sent and as they are shown.
    fn namespaces(&self) -> impl Iterator<Item = (&AsciiMetadataValue, Arc<str>)> {
        // Made of text, so they are text.
        self.namespaces.iter().map(|name| (name, name.to_str().unwrap_or_default().into()))
    }
}

/// A message to one of containerd's namespaces.
fn within<T>(namespace: &AsciiMetadataValue, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", namespace.clone());
    request
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
