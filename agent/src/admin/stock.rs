//! What the socket says of the cache, image by image; the command line prints it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};

use super::Agent;
use super::socket::Lines;
use crate::image::{Digest, ImageName};
use crate::keep::{self, Catalog, Held, Known, Progress, Rest, Subject, Why};

/// How often it is said how far a fetch is.
const SAY_EVERY: Duration = Duration::from_millis(250);

/// `GET /v1/cache/images`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct KeptImages {
    /// By name.
    pub images: Vec<KeptImage>,
    /// What is here of no image that is known.
    pub rest: KeptRest,
    /// Whether containerd has said what it holds; if not, this is what is remembered.
    pub is_complete: bool,
}

/// One image of the cache.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeptImage {
    /// Its name in full.
    pub image: ImageName,
    /// The index or manifest that it means here.
    pub target: Digest,
    /// Why it is kept: `in use`, `keep <pattern>`, `prefetched`, `copy`, `unused`.
    pub why: String,
    /// Who uses it.
    pub used_by: Vec<String>,
    /// When it goes, if nothing uses it until then.
    pub until: Option<Timestamp>,
    /// When it was last used.
    pub last_used: Timestamp,
    /// Bytes of all its blobs for the platforms in use.
    pub size: u64,
    /// Bytes of it that would be free if its blobs went: not what containerd has too.
    pub own: u64,
    /// Bytes of it that aren't here.
    pub missing: u64,
    /// Whether every blob of it is here.
    pub whole: bool,
}

/// What is in the cache of no image that is known.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct KeptRest {
    /// Manifests and indexes that stand for themselves.
    pub manifests: u64,
    /// All its blobs.
    pub blobs: u64,
    /// Bytes that would be free without them.
    pub bytes: u64,
}

/// One thing that goes in a collection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Goes {
    /// An image's name; else a digest.
    pub what: String,
    /// `image`, `manifest` or `blob`.
    pub kind: String,
    /// How many blobs go with it.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One line of `POST /v1/prefetch?image=…`; the last has a digest or an error.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Prefetching {
    /// Bytes that are here.
    pub present: u64,
    /// Bytes in all, as far as is known yet.
    pub total: u64,
    /// It is here, and this is what its name means.
    pub digest: Option<Digest>,
    /// It can't be had, and why.
    pub error: Option<String>,
}

impl KeptImages {
    /// The same, for people.
    #[must_use]
    pub fn of(catalog: &Catalog, rest: Rest) -> Self {
        let Rest { manifests, blobs, bytes } = rest;
        let images = catalog.images.iter().map(|known| KeptImage::of(known)).collect();
        Self { images, rest: KeptRest { manifests, blobs, bytes }, is_complete: catalog.is_complete }
    }
}

impl KeptImage {
    fn of(known: &Known) -> Self {
        let why = match &known.why {
            Why::InUse => "in use".to_owned(),
            Why::Kept(pattern) => format!("keep {pattern}"),
            Why::Prefetched(_) => "prefetched".to_owned(),
            Why::Copy => "copy".to_owned(),
            Why::Unused(_) => "unused".to_owned(),
        };
        let own = known.parts.iter().filter(|part| part.held == Held::Own).map(|part| part.size).sum();
        Self {
            image: known.name.clone(),
            target: known.target,
            why,
            used_by: known.used_by.iter().map(|user| user.name.clone()).collect(),
            until: known.expires(),
            last_used: known.last_used,
            size: known.size(),
            own,
            missing: known.missing(),
            whole: known.is_whole(),
        }
    }
}

impl From<&keep::Going> for Goes {
    fn from(going: &keep::Going) -> Self {
        let (kind, what) = match &going.subject {
            Subject::Image(name) => ("image", name.to_string()),
            Subject::Manifest(digest) => ("manifest", digest.to_string()),
            Subject::Blob(digest) => ("blob", digest.to_string()),
        };
        Self { what, kind: kind.to_owned(), blobs: going.digests.len() as u64, bytes: going.bytes }
    }
}

impl Agent {
    pub(super) async fn kept_images(&self) -> KeptImages {
        let catalog: Arc<Catalog> = self.keep.catalog().borrow().clone();
        KeptImages::of(&catalog, self.keep.rest().await)
    }

    /// Fetches an image, and says how far it is.
    pub(super) async fn prefetch(&self, name: Option<ImageName>, lines: Lines) {
        let Some(name) = name else {
            let error = Some("this is not the name of an image".to_owned());
            lines.write(&Prefetching { error, ..Prefetching::default() }).await;
            return;
        };
        let progress = Progress::default();
        let said = || {
            let (present, total) = progress.bytes();
            Prefetching { present, total, ..Prefetching::default() }
        };
        let mut fetching = std::pin::pin!(self.keep.prefetch(&name, &progress));
        let mut ticks = interval(SAY_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                fetched = &mut fetching => {
                    let last = match fetched {
                        Ok(digest) => Prefetching { digest: Some(digest), ..said() },
                        Err(error) => Prefetching { error: Some(error.to_string()), ..said() },
                    };
                    lines.write(&last).await;
                    return;
                }
                _ = ticks.tick() => if !lines.write(&said()).await { return },
            }
        }
    }
}
