use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use larder_proto::cri::image_service_client::ImageServiceClient;
use larder_proto::cri::runtime_service_client::RuntimeServiceClient;
use larder_proto::cri::{
    AuthConfig, Container, Image, ImageSpec, ImageStatusRequest, ListContainersRequest, ListImagesRequest,
    PullImageRequest, RemoveImageRequest, RuntimeCondition, StatusRequest,
};

use super::{Client, ClientError, DEADLINE, MAX_MESSAGE};
use crate::image::Digest;

/// Credentials for one pull, as a Pod's pull secret gives them.
#[derive(Clone, PartialEq, Eq)]
pub struct Auth {
    /// The user.
    pub username: String,
    /// The password or token.
    pub password: String,
}

/// How the runtime says that it is.
#[derive(Debug, Clone, PartialEq)]
pub struct CriStatus {
    /// Conditions that don't hold, as `type: reason: message`.
    pub unmet: Vec<String>,
    /// The runtime plugin's configuration; what is in it depends on the version.
    pub config: Option<serde_json::Value>,
}

impl CriStatus {
    /// The `config_path` in effect, where containerd tells: up to 1.7, not from 2.0 on. `Some("")` means unset.
    #[must_use]
    pub fn config_path(&self) -> Option<&str> {
        self.config.as_ref()?.pointer("/registry/configPath")?.as_str()
    }
}

impl Client {
    /// Whether the runtime is ready, and how it is configured.
    ///
    /// # Errors
    /// No answer within 5 s, or a refusal; [`ClientError::NotServed`] where the plugin isn't loaded.
    pub async fn cri_status(&self) -> Result<CriStatus, ClientError> {
        let mut client = RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let answer = self.call("CRI Status", DEADLINE, client.status(StatusRequest { verbose: true })).await?;
        let conditions = answer.status.map(|status| status.conditions).unwrap_or_default();
        let say = |c: &RuntimeCondition| format!("{}: {}: {}", c.r#type, c.reason, c.message);
        let unmet = conditions.iter().filter(|condition| !condition.status).map(say).collect();
        let config = answer.info.get("config").and_then(|json| serde_json::from_str(json).ok());
        Ok(CriStatus { unmet, config })
    }

    /// Pulls an image as kubelet does. Returns its ID. Dropping the future cancels the pull.
    ///
    /// # Errors
    /// What containerd says, or no answer within `deadline`.
    pub async fn pull(&self, image: &str, auth: Option<Auth>, deadline: Duration) -> Result<String, ClientError> {
        let auth = auth.map(|Auth { username, password }| AuthConfig { username, password, ..AuthConfig::default() });
        let request = PullImageRequest { image: Some(spec(image)), auth };
        let answer = self.call("CRI PullImage", deadline, self.images().pull_image(request)).await?;
        Ok(answer.image_ref)
    }

    /// What containerd holds under this name, digest or ID; `None` where nothing.
    ///
    /// # Errors
    /// No answer within 5 s, or a refusal.
    pub async fn image_status(&self, image: &str) -> Result<Option<Image>, ClientError> {
        let request = ImageStatusRequest { image: Some(spec(image)), verbose: false };
        Ok(self.call("CRI ImageStatus", DEADLINE, self.images().image_status(request)).await?.image)
    }

    /// The images that the runtime holds.
    ///
    /// # Errors
    /// No answer within 5 s, or a refusal.
    pub async fn list_images(&self) -> Result<Vec<Image>, ClientError> {
        let request = ListImagesRequest { filter: None };
        Ok(self.call("CRI ListImages", DEADLINE, self.images().list_images(request)).await?.images)
    }

    /// The containers that the runtime knows, by id, each with the id of the image that it was made from: the digest of the
    /// image's config, whatever became of the image's names since.
    ///
    /// # Errors
    /// No answer within 5 s, or a refusal; [`ClientError::NotServed`] where the plugin isn't loaded.
    pub async fn cri_containers(&self) -> Result<HashMap<String, Digest>, ClientError> {
        let mut client = RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let request = ListContainersRequest {};
        let answer = self.call("CRI ListContainers", DEADLINE, client.list_containers(request)).await?;
        let image = |one: &Container| one.image_id.parse().or_else(|_| one.image_ref.parse()).ok();
        let known = |one: Container| image(&one).map(|image| (one.id, image));
        Ok(answer.containers.into_iter().filter_map(known).collect())
    }

    /// Removes an image with all its names. That there is none is no error.
    ///
    /// # Errors
    /// No answer within 5 s, or a refusal.
    pub async fn remove_image(&self, image: &str) -> Result<(), ClientError> {
        let request = RemoveImageRequest { image: Some(spec(image)) };
        self.call("CRI RemoveImage", DEADLINE, self.images().remove_image(request)).await.map(drop)
    }

    fn images(&self) -> ImageServiceClient<tonic::transport::Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), ..ImageSpec::default() }
}

impl fmt::Debug for Auth {
    /// Without the password: this may end in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("username", &self.username).finish_non_exhaustive()
    }
}
