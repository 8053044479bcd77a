//! The calls that kubelet makes for images.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use hyper_util::rt::TokioIo;
use larder_proto::cri::image_service_client::ImageServiceClient;
use larder_proto::cri::runtime_service_client::RuntimeServiceClient;
use larder_proto::cri::{
    AuthConfig, ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, ListImagesRequest, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, PullImageRequest, RunPodSandboxRequest, StartContainerRequest, VersionRequest,
};
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::fault::base64;

/// Credentials, in each of the forms that CRI has for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// A name and a password.
    Password(String, String),
    /// The same, joined and encoded.
    Encoded(String, String),
    /// An identity token.
    Identity(String),
}

impl Login {
    /// A name and a password.
    pub fn password(user: &str, password: &str) -> Self {
        Self::Password(user.to_owned(), password.to_owned())
    }

    fn auth_config(&self) -> AuthConfig {
        match self.clone() {
            Self::Password(username, password) => AuthConfig { username, password, ..AuthConfig::default() },
            Self::Encoded(user, password) => {
                AuthConfig { auth: base64(format!("{user}:{password}").as_bytes()), ..AuthConfig::default() }
            }
            Self::Identity(identity_token) => AuthConfig { identity_token, ..AuthConfig::default() },
        }
    }
}

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
        let mut runtime = RuntimeServiceClient::new(self.connect().await?);
        let request = VersionRequest { version: "v1".to_owned() };
        Ok(runtime.version(request).await.map_err(|status| said(&status))?.into_inner().runtime_version)
    }

    /// Pulls; returns the image's id.
    pub(super) async fn pull(&self, image: &str, login: Option<&Login>) -> Result<String> {
        let auth = login.map(Login::auth_config);
        let image = Some(ImageSpec { image: image.to_owned(), ..ImageSpec::default() });
        let mut images = ImageServiceClient::new(self.connect().await?);
        Ok(images
            .pull_image(PullImageRequest { image, auth })
            .await
            .map_err(|status| said(&status))?
            .into_inner()
            .image_ref)
    }

    /// Tags and digests of every image.
    pub(super) async fn images(&self) -> Result<Vec<String>> {
        let mut images = ImageServiceClient::new(self.connect().await?);
        let reply =
            images.list_images(ListImagesRequest::default()).await.map_err(|status| said(&status))?.into_inner();
        Ok(reply.images.into_iter().flat_map(|image| image.repo_tags.into_iter().chain(image.repo_digests)).collect())
    }

    /// Runs a Pod of one container, called `main`; returns the ids of its sandbox and its container.
    pub(super) async fn run_pod(&self, namespace: &str, pod: &str, image: &str) -> Result<(String, String)> {
        let mut runtime = RuntimeServiceClient::new(self.connect().await?);
        let text = str::to_owned;
        let mut labels = HashMap::from([
            (text("io.kubernetes.pod.namespace"), text(namespace)),
            (text("io.kubernetes.pod.name"), text(pod)),
        ]);
        let network = NamespaceOption { network: NamespaceMode::Node.into() };
        let context =
            LinuxSandboxSecurityContext { namespace_options: Some(network), ..LinuxSandboxSecurityContext::default() };
        let metadata = PodSandboxMetadata { name: text(pod), uid: text(pod), namespace: text(namespace) };
        let config = PodSandboxConfig {
            metadata: Some(metadata),
            labels: labels.clone(),
            linux: Some(LinuxPodSandboxConfig { security_context: Some(context) }),
            ..PodSandboxConfig::default()
        };
        let request = RunPodSandboxRequest { config: Some(config.clone()) };
        let sandbox = runtime.run_pod_sandbox(request).await.map_err(|status| said(&status))?.into_inner();

        labels.insert(text("io.kubernetes.container.name"), text("main"));
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.pod_sandbox_id.clone(),
            config: Some(ContainerConfig {
                metadata: Some(ContainerMetadata { name: text("main") }),
                image: Some(ImageSpec { image: text(image), ..ImageSpec::default() }),
                labels,
                ..ContainerConfig::default()
            }),
            sandbox_config: Some(config),
        };
        let container = runtime.create_container(request).await.map_err(|status| said(&status))?.into_inner();
        let request = StartContainerRequest { container_id: container.container_id.clone() };
        runtime.start_container(request).await.map_err(|status| said(&status))?;
        Ok((sandbox.pod_sandbox_id, container.container_id))
    }

    /// The runtime, for calls of others.
    pub(super) async fn runtime(&self) -> Result<RuntimeServiceClient<Channel>> {
        Ok(RuntimeServiceClient::new(self.connect().await?))
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

/// containerd's own message, as kubelet shows it.
pub(super) fn said(status: &Status) -> anyhow::Error {
    anyhow!("{}", status.message())
}
