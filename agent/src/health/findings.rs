//! What was found of images, by whomever.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::report::{Check, Status};
use crate::cluster::checks::{Finding, Outcome};
use crate::image::ImageName;
use crate::store::{Records, Store};

/// What is known of an image that isn't in the catalog is kept for so long: it may be on its way there.
const LIMBO: SignedDuration = SignedDuration::from_hours(1);
/// Upstreams of one image.
const MOST_UPSTREAMS: usize = 16;
/// Images that aren't in the catalog.
const MOST_IN_LIMBO: usize = 1_024;

/// What each upstream said last of each image. What changes is on the disk a second later.
#[derive(Debug)]
pub(super) struct Findings {
    images: HashMap<ImageName, Vec<Check>>,
    store: Store,
}

impl Findings {
    /// What an earlier process knew.
    pub(super) async fn restore(store: Store) -> Self {
        let kept = store.records::<Vec<Check>>(Records::Checks).await;
        let images = kept.into_iter().filter_map(|(name, checks)| Some((name.parse().ok()?, checks))).collect();
        Self { images, store }
    }

    /// What is known of an image at an upstream.
    pub(super) fn of(&self, image: &ImageName, upstream: &str) -> Option<&Check> {
        self.images.get(image)?.iter().find(|check| check.upstream == upstream)
    }

    /// All that is known of an image, as it is told to others.
    pub(super) fn told(&self, image: &ImageName, now: Timestamp) -> Vec<Finding> {
        let checks = self.images.get(image).map_or(&[][..], Vec::as_slice);
        checks.iter().filter_map(|check| told(check, now)).collect()
    }

    /// What is known of an image at each of these upstreams, in their order.
    pub(super) fn checks(&self, image: &ImageName, upstreams: &[String]) -> Vec<Check> {
        let unknown = |upstream: &String| Check {
            upstream: upstream.clone(),
            status: Status::Scheduled,
            at: None,
            available_at: None,
            digest: None,
            remark: None,
        };
        upstreams
            .iter()
            .map(|upstream| self.of(image, upstream).cloned().unwrap_or_else(|| unknown(upstream)))
            .collect()
    }

    /// Something was found out. False: something newer is known.
    pub(super) async fn found(&mut self, image: &ImageName, mut check: Check) -> bool {
        let checks = self.images.entry(image.clone()).or_default();
        let has_room = checks.len() < MOST_UPSTREAMS;
        match checks.iter_mut().find(|known| known.upstream == check.upstream) {
            // What lies in the future was found before the clock went back.
            Some(known) if known.at >= check.at && known.at <= Some(Timestamp::now()) => return false,
            Some(known) => {
                check.available_at = check.available_at.max(known.available_at);
                *known = check;
            }
            None if has_room => checks.push(check),
            None => return false,
        }
        self.store.record(Records::Checks, &image.to_string(), Some(&*checks)).await;
        true
    }

    /// What another node found, in our words.
    pub(super) fn heard(finding: Finding, now: Timestamp) -> Check {
        heard(finding, now)
    }

    /// Forgets what is known of images that aren't among these any more.
    pub(super) async fn keep(&mut self, known: &BTreeSet<&ImageName>, now: Timestamp) {
        let strangers = self.images.iter().filter(|(image, _)| !known.contains(image));
        let newest = |checks: &[Check]| checks.iter().filter_map(|check| check.at).max();
        let by_age: BTreeMap<_, _> = strangers.map(|(image, checks)| ((newest(checks), image), ())).collect();
        let crowd = by_age.len().saturating_sub(MOST_IN_LIMBO);
        let gone = by_age
            .keys()
            .enumerate()
            .filter(|(n, (newest, _))| *n < crowd || newest.is_none_or(|newest| now.duration_since(newest) > LIMBO));
        let gone: Vec<ImageName> = gone.map(|(_, (_, image))| (*image).clone()).collect();
        for image in gone {
            self.images.remove(&image);
            self.store.record::<Vec<Check>>(Records::Checks, &image.to_string(), None).await;
        }
    }
}

fn told(check: &Check, now: Timestamp) -> Option<Finding> {
    let outcome = match check.status {
        Status::Scheduled => return None,
        Status::Available => Outcome::Available,
        Status::NotFound => Outcome::NotFound,
        Status::InvalidAuth => Outcome::InvalidAuth,
        Status::NoCredentials => Outcome::NoCredentials,
        Status::QuotaExceeded => Outcome::QuotaExceeded,
        Status::Unreachable => Outcome::Unreachable,
    };
    Some(Finding {
        upstream: check.upstream.clone(),
        outcome,
        age: age(now, check.at?),
        available: check.available_at.map(|at| age(now, at)),
        digest: check.digest,
        remark: check.remark.clone(),
    })
}

fn heard(finding: Finding, now: Timestamp) -> Check {
    let status = match finding.outcome {
        Outcome::Available => Status::Available,
        Outcome::NotFound => Status::NotFound,
        Outcome::InvalidAuth => Status::InvalidAuth,
        Outcome::NoCredentials => Status::NoCredentials,
        Outcome::QuotaExceeded => Status::QuotaExceeded,
        Outcome::Unreachable => Status::Unreachable,
    };
    let at = |age: Duration| now.checked_sub(age).unwrap_or(Timestamp::UNIX_EPOCH);
    Check {
        upstream: finding.upstream,
        status,
        at: Some(at(finding.age)),
        available_at: finding.available.map(at),
        digest: finding.digest,
        remark: finding.remark,
    }
}

/// How long ago; zero for what a clock that went back puts into the future.
pub(super) fn age(now: Timestamp, at: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(at)).unwrap_or_default()
}
