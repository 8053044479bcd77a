//! The images of the whole cluster: what this node says of its own, and what it makes of what the others say.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use jiff::Timestamp;
use larder_proto::peers::{ImageCheck, ImageSeen, ImagesReply};

use super::view::images::{Cluster, Image, Images, Silent};
use crate::health::{Check, ImageHealth, Status, Verdict};
use crate::image::{Digest, ImageName, NodeId};
use crate::peers::Heard;

/// The most images that a node tells of: more than fit on one.
const MOST_IMAGES: usize = 1_000;
/// The most checks of one image that it tells of.
const MOST_CHECKS: usize = 8;
/// The most nodes that are named, of those that said nothing; they are counted all the same.
const MOST_NAMED: usize = 20;

/// What this node tells others: the images that something uses here.
#[must_use]
pub fn told(own: &Images) -> ImagesReply {
    let used = || own.images.iter().filter(|image| image.is_in_use());
    ImagesReply {
        images: used().take(MOST_IMAGES).map(told_of).collect(),
        left_out: u32::try_from(used().count().saturating_sub(MOST_IMAGES)).unwrap_or(u32::MAX),
        complete: own.complete,
    }
}

fn told_of(image: &Image) -> ImageSeen {
    let verdict = image.verdict.unwrap_or_default();
    ImageSeen {
        name: image.name.to_string(),
        digest: image.digest.to_string(),
        size: image.size_bytes,
        missing: image.missing_bytes,
        whole: image.whole,
        judged: image.verdict.is_some(),
        protected: verdict.protected,
        copies: verdict.copies,
        drifted: verdict.drifted,
        lost: verdict.lost,
        checks: image.upstreams.iter().take(MOST_CHECKS).map(told_of_check).collect(),
    }
}

fn told_of_check(check: &Check) -> ImageCheck {
    ImageCheck {
        upstream: check.upstream.clone(),
        status: check.status.as_str().to_owned(),
        at: check.at.map_or(0, Timestamp::as_second),
        available_at: check.available_at.map_or(0, Timestamp::as_second),
        digest: check.digest.map_or_else(String::new, |digest| digest.to_string()),
    }
}

/// What runs anywhere: this node's own images and those that the others told of, each once.
#[must_use]
pub(super) fn merged(node: NodeId, own: &Images, heard: Heard) -> Images {
    let mut cluster = Cluster {
        nodes: 1 + heard.replies.len() + heard.silent.len(),
        unanswered: heard.silent.len(),
        ..Cluster::default()
    };
    let mut all = BTreeMap::new();
    let mut complete = own.complete;
    for image in own.images.iter().filter(|image| image.is_in_use()) {
        let image = Image { used_by: Vec::new(), kept: None, last_used: None, expires: None, ..image.clone() };
        add(&mut all, node, image);
    }
    for (node, reply) in heard.replies {
        complete &= reply.complete;
        cluster.left_out += u64::from(reply.left_out);
        // What another version, or a node gone wrong, says and can't be is no reason to show nothing.
        for image in reply.images.into_iter().take(MOST_IMAGES).filter_map(heard_of) {
            add(&mut all, node, image);
        }
    }
    let silent = heard.silent.into_iter().take(MOST_NAMED);
    cluster.silent = silent.map(|(node, why)| Silent { node: node.to_string(), why }).collect();
    Images { complete, cluster: Some(cluster), images: all.into_values().collect() }
}

fn heard_of(seen: ImageSeen) -> Option<Image> {
    let verdict = Verdict { protected: seen.protected, copies: seen.copies, drifted: seen.drifted, lost: seen.lost };
    let upstreams: Vec<Check> = seen.checks.into_iter().take(MOST_CHECKS).filter_map(heard_of_check).collect();
    Some(Image {
        name: seen.name.parse().ok()?,
        digest: seen.digest.parse().ok()?,
        status: None,
        verdict: seen.judged.then_some(verdict),
        used_by: Vec::new(),
        nodes: Vec::new(),
        kept: None,
        last_used: None,
        expires: None,
        size_bytes: seen.size,
        missing_bytes: seen.missing,
        whole: seen.whole,
        last_seen_upstream: None,
        upstreams,
    })
}

fn heard_of_check(check: ImageCheck) -> Option<Check> {
    let time = |seconds: i64| if seconds == 0 { None } else { Timestamp::from_second(seconds).ok() };
    Some(Check {
        status: Status::ALL.into_iter().find(|status| status.as_str() == check.status)?,
        at: time(check.at),
        available_at: time(check.available_at),
        digest: check.digest.parse().ok(),
        remark: None,
        upstream: check.upstream,
    })
}

/// One more node that runs it. Of verdicts the worse holds, of what upstreams said the newer.
fn add(all: &mut BTreeMap<(ImageName, Digest), Image>, node: NodeId, image: Image) {
    let entry = match all.entry((image.name.clone(), image.digest)) {
        Entry::Vacant(entry) => entry.insert(image),
        Entry::Occupied(entry) => {
            let known = entry.into_mut();
            known.verdict = match (known.verdict, image.verdict) {
                (Some(a), Some(b)) => Some(Verdict {
                    protected: a.protected && b.protected,
                    copies: a.copies.max(b.copies),
                    drifted: a.drifted || b.drifted,
                    lost: a.lost || b.lost,
                }),
                (a, b) => a.or(b),
            };
            known.size_bytes = known.size_bytes.max(image.size_bytes);
            known.missing_bytes = known.missing_bytes.max(image.missing_bytes);
            known.whole &= image.whole;
            for check in image.upstreams {
                match known.upstreams.iter_mut().find(|known| known.upstream == check.upstream) {
                    Some(known) if known.at >= check.at => {}
                    Some(known) => *known = check,
                    None => known.upstreams.push(check),
                }
            }
            known
        }
    };
    entry.nodes.push(node.to_string());
    entry.last_seen_upstream = entry.upstreams.iter().filter_map(|check| check.available_at).max();
    entry.status = status(entry);
}

/// What the checks come to. Without any, the image isn't watched.
fn status(image: &Image) -> Option<Status> {
    let checks = image.upstreams.clone();
    let (name, target, verdict) = (image.name.clone(), image.digest, image.verdict.unwrap_or_default());
    if checks.is_empty() { None } else { Some(ImageHealth { name, target, checks, verdict }.status()) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::admin::view::images::tests::{at, health, known};
    use crate::health::Report;
    use crate::keep::{Catalog, Why};

    fn node(n: u8) -> NodeId {
        format!("{n:032x}").parse().unwrap()
    }

    fn images(status: Status, verdict: Verdict) -> Images {
        let used = known("reg.test/used:v1", Why::InUse);
        let unused = known("reg.test/unused:v1", Why::Unused(at("2026-02-01T00:00:00Z")));
        let report = Report { images: vec![Arc::new(health(&used, status, verdict))] };
        Images::of(&Catalog { images: vec![Arc::new(used), Arc::new(unused)], is_complete: true }, &report)
    }

    #[test]
    fn what_one_node_tells_another_takes_over_whole() {
        let own = images(Status::Available, Verdict { protected: true, copies: 3, drifted: true, lost: false });
        let reply = told(&own);
        assert_eq!((reply.images.len(), reply.left_out, reply.complete), (1, 0, true), "what nothing uses isn't told");
        let heard = Heard { replies: vec![(node(2), reply)], silent: Vec::new() };
        let merged = merged(node(1), &Images { complete: true, ..Images::default() }, heard);
        let (got, told) = (&merged.images[0], own.images.iter().find(|image| image.is_in_use()).unwrap());
        assert_eq!(
            (&got.name, &got.digest, got.status, got.verdict),
            (&told.name, &told.digest, told.status, told.verdict)
        );
        assert_eq!((got.size_bytes, got.last_seen_upstream), (told.size_bytes, told.last_seen_upstream));
        assert_eq!(got.upstreams, told.upstreams);
        assert_eq!(got.nodes, [node(2).to_string()]);
    }

    #[test]
    fn the_worse_verdict_and_the_newer_check_hold() {
        let own = images(Status::Available, Verdict { protected: true, copies: 1, ..Verdict::default() });
        let mut other = images(Status::NotFound, Verdict { copies: 2, drifted: true, ..Verdict::default() });
        for image in &mut other.images {
            image.upstreams.iter_mut().for_each(|check| check.at = Some(at("2026-01-01T11:00:00Z")));
        }
        let heard =
            Heard { replies: vec![(node(2), told(&other))], silent: vec![(node(3), "no answer in time".to_owned())] };
        let merged = merged(node(1), &own, heard);
        assert_eq!(merged.images.len(), 1);
        let image = &merged.images[0];
        assert_eq!(image.verdict, Some(Verdict { protected: false, copies: 2, drifted: true, lost: false }));
        assert_eq!((image.status, image.nodes.len()), (Some(Status::NotFound), 2));
        assert!(image.used_by.is_empty(), "who uses it is each node's own affair");
        let cluster = merged.cluster.unwrap();
        assert_eq!((cluster.nodes, cluster.silent.len()), (3, 1));
    }

    #[test]
    fn what_makes_no_sense_is_left_out() {
        let mut reply = told(&images(Status::Available, Verdict::default()));
        let mut senseless = reply.images[0].clone();
        senseless.name = "../etc".to_owned();
        reply.images.push(senseless);
        reply.images[0].checks[0].status = "Splendid".to_owned();
        let heard = Heard { replies: vec![(node(2), reply)], silent: Vec::new() };
        let merged = merged(node(1), &Images::default(), heard);
        assert_eq!(merged.images.len(), 1);
        assert_eq!((merged.images[0].status, merged.images[0].upstreams.len()), (None, 0));
        assert!(!merged.complete);
    }
}
