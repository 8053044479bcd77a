//! The names that containerd has for images.

use std::sync::Arc;
use std::time::SystemTime;

use containerd_client::services::v1::ListImagesRequest;
use containerd_client::services::v1::images_client::ImagesClient;

use super::{Client, ClientError, DEADLINE, MAX_MESSAGE, within};
use crate::image::{Digest, ImageName, MediaType};

/// The label of images that the runtime never collects, from 1.6.24 and 1.7.3 on.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");

/// One name, and what it means. An image that was pulled for kubelet has several: with its tag, with its digest, and its
/// id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    /// containerd's namespace.
    pub namespace: Arc<str>,
    /// As it stands there: a name, an id, which is written as the digest of a config, or what else somebody thought of.
    pub text: String,
    /// The name, where it is one.
    pub name: Option<ImageName>,
    /// The index or manifest that it means.
    pub target: Digest,
    /// That one's media type.
    pub media_type: MediaType,
    /// The runtime never collects it.
    pub is_pinned: bool,
    /// When it came to mean this, or was confirmed.
    pub updated: Option<SystemTime>,
}

impl Client {
    /// The names of all images in the configured namespaces.
    ///
    /// # Errors
    /// No answer within 5 s, or a refusal.
    pub async fn image_records(&self) -> Result<Vec<ImageRecord>, ClientError> {
        let mut client = ImagesClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let mut all = Vec::new();
        for (namespace, shown) in self.namespaces() {
            let request = within(namespace, ListImagesRequest { filters: Vec::new() });
            let answer = self.call("Images.List", DEADLINE, client.list(request)).await?;
            all.extend(answer.images.into_iter().filter_map(|image| ImageRecord::read(image, &shown)));
        }
        Ok(all)
    }
}

impl ImageRecord {
    /// `None` for what means nothing that has a digest of a kind that we know.
    fn read(image: containerd_client::services::v1::Image, namespace: &Arc<str>) -> Option<Self> {
        let target = image.target?;
        let is_pinned = image.labels.get(PINNED.0).is_some_and(|value| value == PINNED.1);
        Some(Self {
            namespace: Arc::clone(namespace),
            name: image.name.parse().ok(),
            text: image.name,
            target: target.digest.parse().ok()?,
            media_type: MediaType::new(&target.media_type).unwrap_or_else(MediaType::octet_stream),
            is_pinned,
            updated: image.updated_at.and_then(|time| time.try_into().ok()),
        })
    }
}
