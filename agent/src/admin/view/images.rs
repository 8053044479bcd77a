//! The images that are known here, and how they are: `larder images`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::health::{Check, ImageHealth, Report, Status, Verdict};
use crate::image::{Digest, ImageName, ImagePattern};
use crate::keep::{self, Catalog, Known};

/// `GET /v1/images`, and `GET /v1/images/cluster`
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Images {
    /// Whether containerd has said what it holds; until then, what is here is as it was remembered. Of a cluster: on
    /// every node that answered.
    pub complete: bool,
    /// Who was asked; absent for the images of this node alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
    /// Ordered by name.
    pub images: Vec<Image>,
}

/// How much of the cluster the answer is about.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cluster {
    /// Members that are up, this node among them.
    pub nodes: usize,
    /// How many of them didn't say what they run.
    pub unanswered: usize,
    /// Who, and why; the first twenty.
    pub silent: Vec<Silent>,
    /// Images that nodes left out, since there were too many.
    pub left_out: u64,
}

/// A node that didn't say what it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silent {
    /// Its number.
    pub node: String,
    /// Why not.
    pub why: String,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Its name in full.
    pub name: ImageName,
    /// The index or manifest that it means.
    pub digest: Digest,
    /// The best that any upstream said when it was last checked; absent for an image that isn't watched.
    pub status: Option<Status>,
    /// What would happen if the registry died now; absent until it is judged.
    pub verdict: Option<Verdict>,
    /// Who uses it on this node, running containers first.
    pub used_by: Vec<User>,
    /// Of a cluster: the nodes on which something uses it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// Why it is kept; absent for one that isn't.
    pub kept: Option<Kept>,
    /// When something on this node last used it.
    pub last_used: Option<Timestamp>,
    /// When it goes, if nothing uses it until then; absent for one that doesn't go by itself.
    pub expires: Option<Timestamp>,
    /// Bytes of its manifests, configs and layers for the platforms in use, as far as they are known.
    pub size_bytes: u64,
    /// Bytes of them that aren't here.
    pub missing_bytes: u64,
    /// Whether all of it is here.
    pub whole: bool,
    /// When an upstream last had it.
    pub last_seen_upstream: Option<Timestamp>,
    /// What each upstream said last, in the order in which they are asked.
    pub upstreams: Vec<Check>,
}

/// Who uses an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// `namespace/pod/container` where the runtime says so, else the container's id.
    pub name: String,
    /// It has stopped.
    pub stopped: bool,
}

/// Why an image is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Kept {
    /// Containers on this node use it, or the runtime pins it.
    InUse,
    /// A pattern under `cache.keep` holds for it.
    Pattern {
        /// That one.
        pattern: String,
    },
    /// Somebody asked for it with `larder prefetch`.
    Prefetched,
    /// Another node runs it, and `cache.copies` wants it here too.
    Copy,
    /// It was in use until lately.
    Unused,
}

/// What there is to worry about, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Concern {
    /// No upstream has it, and the cluster hasn't either.
    Lost,
    /// It couldn't be pulled if its registry died now.
    Unprotected,
    /// It is protected, and its upstreams don't give it any more.
    Withdrawn,
    /// Its tag now means something else than what runs.
    Drifted,
    /// Nobody has judged it yet.
    Unknown,
    /// Nothing. Of an image that is neither in use nor under `cache.keep`, never anything.
    None,
}

impl Images {
    /// The images of this node, as they are kept and as they were judged.
    #[must_use]
    pub fn of(catalog: &Catalog, report: &Report) -> Self {
        let mut judged: BTreeMap<(&ImageName, &Digest), &Arc<ImageHealth>> =
            report.images.iter().map(|health| ((&health.name, &health.target), health)).collect();
        let kept = catalog.images.iter().map(|known| {
            let health = judged.remove(&(&known.name, &known.target));
            Image::of(known, health.map(AsRef::as_ref))
        });
        let mut images: Vec<Image> = kept.collect();
        // What is watched and no longer kept: dropped for its space, or used by digest alone.
        images.extend(judged.values().map(|health| Image::watched(health)));
        images.sort_by(|a, b| (&a.name, &a.digest).cmp(&(&b.name, &b.digest)));
        Self { complete: catalog.is_complete, cluster: None, images }
    }

    /// Worst first, and those in use before others.
    pub fn sort_by_concern(&mut self) {
        self.images.sort_by_key(|image| (image.concern(), Reverse(image.is_in_use())));
    }
}

impl Image {
    fn of(known: &Known, health: Option<&ImageHealth>) -> Self {
        let user = |user: &keep::User| User { name: user.name.clone(), stopped: user.is_stopped };
        Self {
            kept: Some(Kept::of(&known.why)),
            used_by: known.used_by.iter().map(user).collect(),
            last_used: Some(known.last_used),
            expires: known.expires(),
            size_bytes: known.size(),
            missing_bytes: known.missing(),
            whole: known.is_whole(),
            ..Self::judged(&known.name, &known.target, health)
        }
    }

    fn watched(health: &ImageHealth) -> Self {
        Self::judged(&health.name, &health.target, Some(health))
    }

    fn judged(name: &ImageName, digest: &Digest, health: Option<&ImageHealth>) -> Self {
        let upstreams = health.map_or_else(Vec::new, |health| health.checks.clone());
        Self {
            name: name.clone(),
            digest: *digest,
            status: health.map(ImageHealth::status),
            verdict: health.map(|health| health.verdict),
            used_by: Vec::new(),
            nodes: Vec::new(),
            kept: None,
            last_used: None,
            expires: None,
            size_bytes: 0,
            missing_bytes: 0,
            whole: false,
            last_seen_upstream: upstreams.iter().filter_map(|check| check.available_at).max(),
            upstreams,
        }
    }

    /// Whether something uses it, here or, of a cluster, anywhere.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.kept == Some(Kept::InUse) || !self.nodes.is_empty()
    }

    /// What there is to worry about.
    #[must_use]
    pub fn concern(&self) -> Concern {
        if !self.is_in_use() && !matches!(self.kept, Some(Kept::Pattern { .. })) {
            return Concern::None;
        }
        let Some(verdict) = self.verdict else { return Concern::Unknown };
        match self.status {
            _ if verdict.lost => Concern::Lost,
            _ if !verdict.protected => Concern::Unprotected,
            Some(Status::NotFound | Status::InvalidAuth) => Concern::Withdrawn,
            _ if verdict.drifted => Concern::Drifted,
            _ => Concern::None,
        }
    }
}

impl Kept {
    fn of(why: &keep::Why) -> Self {
        let pattern = |pattern: &ImagePattern| Self::Pattern { pattern: pattern.to_string() };
        match why {
            keep::Why::InUse => Self::InUse,
            keep::Why::Kept(kept) => pattern(kept),
            keep::Why::Prefetched(_) => Self::Prefetched,
            keep::Why::Copy => Self::Copy,
            keep::Why::Unused(_) => Self::Unused,
        }
    }

    /// In a word or two, for tables.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::InUse => "in use".to_owned(),
            Self::Pattern { pattern } => format!("keep {pattern}"),
            Self::Prefetched => "prefetched".to_owned(),
            Self::Copy => "copy".to_owned(),
            Self::Unused => "unused".to_owned(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::image::MediaType;
    use crate::keep::{Held, Part, Why};

    pub(crate) fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// An image of one blob of 3 MiB, which is here.
    pub(crate) fn known(name: &str, why: Why) -> Known {
        let digest = Digest::of(name.as_bytes());
        let used_by = match why {
            Why::InUse => vec![keep::User { is_stopped: false, name: "default/web-0/nginx".to_owned() }],
            _ => Vec::new(),
        };
        let media_type: MediaType = MediaType::octet_stream();
        Known {
            name: name.parse().unwrap(),
            target: digest,
            why,
            used_by,
            last_used: at("2026-01-01T00:00:00Z"),
            parts: vec![Part { digest, size: 3 << 20, media_type, held: Held::Own }],
            is_listed: true,
        }
    }

    pub(crate) fn health(known: &Known, status: Status, verdict: Verdict) -> ImageHealth {
        let check = Check {
            upstream: "https://registry.example".to_owned(),
            status,
            at: Some(at("2026-01-01T10:00:00Z")),
            available_at: Some(at("2026-01-01T09:00:00Z")),
            digest: Some(known.target),
            remark: None,
        };
        ImageHealth { name: known.name.clone(), target: known.target, checks: vec![check], verdict }
    }

    #[test]
    fn what_is_kept_and_what_is_watched_are_joined_by_name_and_digest() {
        let both = known("reg.test/both:v1", Why::InUse);
        let kept = known("reg.test/kept:v1", Why::Unused(at("2026-02-01T00:00:00Z")));
        let watched = known("reg.test/watched:v1", Why::InUse);
        let safe = Verdict { protected: true, copies: 2, ..Verdict::default() };
        let mut other = health(&kept, Status::Available, safe);
        other.target = Digest::of(b"another");
        let report = Report {
            images: vec![
                Arc::new(health(&both, Status::Available, safe)),
                Arc::new(other),
                Arc::new(health(&watched, Status::NotFound, Verdict { lost: true, ..Verdict::default() })),
            ],
        };
        let catalog = Catalog { images: vec![Arc::new(both), Arc::new(kept)], is_complete: true };
        let images = Images::of(&catalog, &report).images;
        let rows: Vec<_> = images
            .iter()
            .map(|image| (image.name.to_string(), image.status, image.kept.clone(), image.size_bytes))
            .collect();
        assert_eq!(rows.len(), 4);
        assert!(rows.contains(&("reg.test/both:v1".into(), Some(Status::Available), Some(Kept::InUse), 3 << 20)));
        assert!(rows.contains(&("reg.test/kept:v1".into(), None, Some(Kept::Unused), 3 << 20)));
        assert!(rows.contains(&("reg.test/kept:v1".into(), Some(Status::Available), None, 0)), "of another digest");
        assert!(rows.contains(&("reg.test/watched:v1".into(), Some(Status::NotFound), None, 0)));
    }

    #[test]
    fn the_worst_comes_first() {
        let mut images = Images::default();
        for (name, why, status, verdict) in [
            ("a/fine", Why::InUse, Status::Available, Verdict { protected: true, ..Verdict::default() }),
            (
                "b/drifted",
                Why::InUse,
                Status::Available,
                Verdict { protected: true, drifted: true, ..Verdict::default() },
            ),
            ("c/gone", Why::InUse, Status::NotFound, Verdict { protected: true, ..Verdict::default() }),
            ("d/bare", Why::InUse, Status::Available, Verdict::default()),
            ("e/lost", Why::InUse, Status::NotFound, Verdict { lost: true, ..Verdict::default() }),
            ("f/lost-and-unused", Why::Copy, Status::NotFound, Verdict { lost: true, ..Verdict::default() }),
        ] {
            let known = known(name, why);
            images.images.push(Image::of(&known, Some(&health(&known, status, verdict))));
        }
        images.sort_by_concern();
        let order: Vec<_> = images.images.iter().map(|image| image.name.repository.to_string()).collect();
        assert_eq!(order, ["e/lost", "d/bare", "c/gone", "b/drifted", "a/fine", "f/lost-and-unused"]);
    }

    /// Programs read this: a key that is renamed or goes breaks them.
    #[test]
    fn the_json_is_as_it_is_documented() {
        let known = known("docker.io/library/nginx:1.29", Why::InUse);
        let verdict = Verdict { protected: true, copies: 2, ..Verdict::default() };
        let report = Report { images: vec![Arc::new(health(&known, Status::Available, verdict))] };
        let digest = known.target;
        let catalog = Catalog { images: vec![Arc::new(known)], is_complete: true };
        let images = Images::of(&catalog, &report);
        let expected = serde_json::json!({
            "complete": true,
            "images": [{
                "name": "docker.io/library/nginx:1.29",
                "digest": digest,
                "status": "Available",
                "verdict": {"protected": true, "copies": 2, "drifted": false, "lost": false},
                "used_by": [{"name": "default/web-0/nginx", "stopped": false}],
                "kept": {"why": "in_use"},
                "last_used": "2026-01-01T00:00:00Z",
                "expires": null,
                "size_bytes": 3 << 20,
                "missing_bytes": 0,
                "whole": true,
                "last_seen_upstream": "2026-01-01T09:00:00Z",
                "upstreams": [{
                    "upstream": "https://registry.example",
                    "status": "Available",
                    "at": "2026-01-01T10:00:00Z",
                    "available_at": "2026-01-01T09:00:00Z",
                    "digest": digest,
                    "remark": null,
                }],
            }],
        });
        assert_eq!(serde_json::to_value(&images).unwrap(), expected);
        assert_eq!(serde_json::from_value::<Images>(expected).unwrap(), images);
    }
}
