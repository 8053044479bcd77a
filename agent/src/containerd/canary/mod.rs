//! The proof that containerd comes to us.
//!
//! What containerd is configured to do can't be read everywhere, so the agent asks it to pull an image that nobody but
//! the mirror can serve: `larder.invalid/canary`, under a tag that was made up a moment before. The request arrives at
//! the mirror or it doesn't. The registry's name is one that no DNS may ever resolve, so a containerd that doesn't
//! come to us asks nobody else.

mod image;
mod metrics;
mod verdict;
mod watch;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prometheus_client::registry::Registry;
use tokio::sync::watch as channel;
use tonic::Code;

pub use verdict::{Report, Verdict};

use self::image::CanaryImage;
use self::metrics::Metrics;
use super::client::{Client, ClientError};
use crate::image::{MediaType, Reference, Tag};

/// What containerd 1.x says while its plugins are starting; it has no gRPC code of its own.
const STARTING: &str = "server is not initialized yet";

/// The canary: the image, the requests that arrived for it, and what they proved.
#[derive(Debug)]
pub struct Canary {
    image: CanaryImage,
    /// The tag under way, and whether a request for it has arrived.
    expected: Mutex<Option<(Tag, bool)>>,
    /// One proof at a time.
    proving: tokio::sync::Mutex<()>,
    report: channel::Sender<Option<Report>>,
    metrics: Metrics,
}

impl Canary {
    /// The registry that the mirror answers for itself.
    pub const REGISTRY: &str = "larder.invalid";
    /// The one repository there.
    pub const REPOSITORY: &str = "canary";

    /// For a node of this machine's architecture: containerd takes no other.
    #[must_use]
    pub fn new() -> Self {
        Self {
            image: CanaryImage::for_this_machine(),
            expected: Mutex::new(None),
            proving: tokio::sync::Mutex::new(()),
            report: channel::Sender::new(None),
            metrics: Metrics::default(),
        }
    }

    /// Enters `larder_canary_…` into the registry of metrics.
    pub fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// What the mirror answers for the canary's repository: the manifest for any tag, and every blob by its digest.
    /// `None`: nothing of that name.
    #[must_use]
    pub fn content(&self, reference: &Reference) -> Option<(MediaType, Bytes)> {
        self.image.content(reference)
    }

    /// To be called by the mirror when a request for a tag of the canary comes in, before it is answered.
    pub fn arrived(&self, tag: &Tag) {
        if let Some((expected, arrived)) = &mut *self.expected() {
            // A tag that isn't the one just made up proves nothing: anyone may ask for it.
            *arrived |= expected == tag;
        }
    }

    /// The newest report, and every one to come. `None` before the first proof.
    #[must_use]
    pub fn reports(&self) -> channel::Receiver<Option<Report>> {
        self.report.subscribe()
    }

    /// Has containerd pull the canary, sees whether it comes to the mirror, and removes the image again. What an
    /// earlier run left behind is removed too. The pull may take as long as `deadline`; 5 s more pass at most for each
    /// call around it. Who calls while a proof is under way waits for it and runs another.
    pub async fn prove(&self, client: &Client, deadline: Duration) -> Report {
        let _one_at_a_time = self.proving.lock().await;
        let started = Instant::now();
        remove_leftovers(client).await;
        let tag = random_tag();
        let name = format!("{}/{}:{tag}", Self::REGISTRY, Self::REPOSITORY);
        let expectation = Expectation::new(self, tag);
        let pull = client.pull(&name, None, deadline).await;
        let arrived = expectation.end();
        if pull.is_ok()
            && let Err(error) = client.remove_image(&name).await
        {
            tracing::warn!(image = name, %error, "the canary's image stays until the next proof");
        }
        let verdict = judge(client, arrived, pull.map(drop)).await;
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let report = Report { verdict, at, took: started.elapsed() };
        self.metrics.ran(&report);
        self.report.send_replace(Some(report.clone()));
        report
    }

    fn expected(&self) -> MutexGuard<'_, Option<(Tag, bool)>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Canary {
    fn default() -> Self {
        Self::new()
    }
}

/// Waits for one tag, and waits no more once dropped.
struct Expectation<'a>(&'a Canary);

impl<'a> Expectation<'a> {
    fn new(canary: &'a Canary, tag: Tag) -> Self {
        *canary.expected() = Some((tag, false));
        Self(canary)
    }

    fn end(self) -> bool {
        self.0.expected().as_ref().is_some_and(|(_, arrived)| *arrived)
    }
}

impl Drop for Expectation<'_> {
    fn drop(&mut self) {
        *self.0.expected() = None;
    }
}

/// From what happened to what it means.
async fn judge(client: &Client, arrived: bool, pull: Result<(), ClientError>) -> Verdict {
    match (arrived, pull) {
        (true, Ok(())) => Verdict::Used,
        (true, Err(error)) => Verdict::Failing { pull_error: error.to_string() },
        (false, Ok(())) => Verdict::Unused {
            pull_error: "somebody else served larder.invalid/canary: another mirror comes before this one".to_owned(),
        },
        (false, Err(error)) if is_silent_about_us(client, &error).await => {
            Verdict::Unknown { reason: error.to_string() }
        }
        (false, Err(error)) => Verdict::Unused { pull_error: error.to_string() },
    }
}

/// Whether this failure says nothing about where containerd would have gone.
async fn is_silent_about_us(client: &Client, error: &ClientError) -> bool {
    match error {
        ClientError::NotServed { .. } | ClientError::Status { code: Code::Unavailable, .. } => true,
        ClientError::Status { message, .. } => message.contains(STARTING),
        // A containerd that answers otherwise was busy with somebody else than us.
        ClientError::Deadline { .. } => client.version().await.is_err(),
        other => other.is_unreachable(),
    }
}

/// A proof that was interrupted leaves its image; kubelet would show it to people.
async fn remove_leftovers(client: &Client) {
    // Where the list can't be had, the pull says why.
    let Ok(images) = client.list_images().await else { return };
    let prefix = format!("{}/{}", Canary::REGISTRY, Canary::REPOSITORY);
    let is_ours = |name: &String| name.strip_prefix(&prefix).is_some_and(|rest| rest.starts_with([':', '@']));
    for image in images.iter().filter(|image| image.repo_tags.iter().chain(&image.repo_digests).any(is_ours)) {
        if let Err(error) = client.remove_image(&image.id).await {
            tracing::warn!(image = image.id, %error, "an image of an earlier canary stays");
        }
    }
}

fn random_tag() -> Tag {
    let tag = format!("{:016x}", rand::random::<u64>());
    #[expect(clippy::expect_used, reason = "sixteen hexadecimal digits are a tag by its grammar")]
    tag.parse().expect("hexadecimal digits are a tag")
}

#[cfg(test)]
mod tests;
