use std::time::Duration;

use larder_proto::peers as proto;
use larder_proto::peers::check_finding::Outcome as Said;
use larder_proto::peers::grant_reply::Answer as Reply;

use super::words::{Malformed, bytes_of, digest, registry, some_node};
use crate::cluster::checks::{Answer, Finding, Outcome, Standing, Watched};
use crate::image::{NodeId, Registry};

/// The most images in one message.
pub const MOST_WATCHED: usize = 256;
/// The most findings of one image.
const MOST_FINDINGS: usize = 16;
/// The longest URL or remark, in bytes.
const MOST_TEXT: usize = 512;
/// The most checks that are granted at a time, and ages that are handed over.
const MOST_GRANTED: u32 = 64;
const MOST_AGES: usize = 100_000;
/// Beyond this an age says no more than "old".
const OLDEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What is watched, on its way out.
#[must_use]
pub fn watch_of(watched: &[Watched]) -> proto::WatchRequest {
    let image = |watched: &Watched| proto::WatchedImage {
        image: watched.image.to_string(),
        target: watched.target.to_string(),
        whole: watched.is_whole,
        checked: watched.is_checked,
        findings: watched.findings.iter().map(finding_of).collect(),
    };
    proto::WatchRequest { images: watched.iter().map(image).collect() }
}

/// What another watches.
///
/// # Errors
/// When it makes no sense, or is too much.
pub fn watch(request: proto::WatchRequest) -> Result<Vec<Watched>, Malformed> {
    if request.images.len() > MOST_WATCHED {
        return Err(Malformed("more images than a message has"));
    }
    let watched = |image: proto::WatchedImage| {
        Ok(Watched {
            image: image.image.parse().map_err(|_| Malformed("an image"))?,
            target: digest(&image.target)?,
            is_whole: image.whole,
            is_checked: image.checked,
            findings: findings(image.findings)?,
        })
    };
    request.images.into_iter().map(watched).collect()
}

/// How images stand, on its way out; `None` for those of others.
#[must_use]
pub fn standings_of(standings: &[Option<Standing>]) -> proto::WatchReply {
    let image = |standing: &Option<Standing>| match standing {
        None => proto::ImageStanding { not_owned: true, ..Default::default() },
        Some(standing) => proto::ImageStanding {
            not_owned: false,
            yours: standing.is_yours,
            copies: standing.copies,
            findings: standing.findings.iter().map(finding_of).collect(),
        },
    };
    proto::WatchReply { images: standings.iter().map(image).collect() }
}

/// How images stand, of as many as were asked for.
///
/// # Errors
/// When it makes no sense.
pub fn standings(reply: proto::WatchReply, asked: usize) -> Result<Vec<Option<Standing>>, Malformed> {
    if reply.images.len() != asked {
        return Err(Malformed("another number of images"));
    }
    let standing = |image: proto::ImageStanding| {
        let of = |findings| Standing { is_yours: image.yours, copies: image.copies, findings };
        if image.not_owned { Ok(None) } else { findings(image.findings).map(of).map(Some) }
    };
    reply.images.into_iter().map(standing).collect()
}

/// A question on its way out.
#[must_use]
pub fn grant_ask_of(registry: &Registry, wanted: u32) -> proto::GrantRequest {
    proto::GrantRequest { registry: registry.to_string(), wanted }
}

/// A question that came.
///
/// # Errors
/// When it makes no sense.
pub fn grant_ask(request: &proto::GrantRequest) -> Result<(Registry, u32), Malformed> {
    Ok((registry(&request.registry)?, request.wanted.clamp(1, MOST_GRANTED)))
}

/// An answer on its way out. `owner`: who owns the registry's budget, where the answerer doesn't.
#[must_use]
pub fn granted_of(answer: Answer, owner: Option<NodeId>) -> proto::GrantReply {
    let reply = match answer {
        Answer::Granted(granted) => Reply::Granted(granted),
        Answer::Later(wait) => Reply::Later(milliseconds(wait)),
        Answer::Unsure(wait) => Reply::Unsure(milliseconds(wait)),
        Answer::NotOwner => Reply::NotOwner(proto::NotOwner { owner: owner.map(bytes_of).unwrap_or_default() }),
    };
    proto::GrantReply { answer: Some(reply) }
}

/// An answer that came; and who owns the budget, where the answerer doesn't. One that we don't know grants nothing.
///
/// # Errors
/// When it makes no sense.
pub fn granted(reply: &proto::GrantReply) -> Result<(Answer, Option<NodeId>), Malformed> {
    let span = |millis: u64| Duration::from_millis(millis).min(OLDEST);
    Ok(match &reply.answer {
        Some(Reply::Granted(granted @ 1..=MOST_GRANTED)) => (Answer::Granted(*granted), None),
        Some(Reply::Granted(_)) => return Err(Malformed("a number of checks")),
        Some(Reply::Later(wait)) => (Answer::Later(span(*wait)), None),
        Some(Reply::Unsure(wait)) => (Answer::Unsure(span(*wait)), None),
        Some(Reply::NotOwner(not)) => (Answer::NotOwner, some_node(&not.owner)?),
        None => (Answer::NotOwner, None),
    })
}

/// Whose book a new owner asks for.
///
/// # Errors
/// When it makes no sense.
pub fn hand_over_ask(request: &proto::HandOverRequest) -> Result<Registry, Malformed> {
    registry(&request.registry)
}

/// A book on its way to the new owner.
#[must_use]
pub fn book_of(ages: Option<&[Duration]>) -> proto::HandOverReply {
    let sure = ages.is_some();
    proto::HandOverReply { sure, ages: ages.unwrap_or_default().iter().copied().map(milliseconds).collect() }
}

/// The book that the owner before gives, if it knew all.
#[must_use]
pub fn book(reply: &proto::HandOverReply) -> Option<Vec<Duration>> {
    let is_whole = reply.sure && reply.ages.len() <= MOST_AGES;
    is_whole.then(|| reply.ages.iter().map(|age| Duration::from_millis(*age)).collect())
}

fn finding_of(finding: &Finding) -> proto::CheckFinding {
    let outcome = match finding.outcome {
        Outcome::Available => Said::Available,
        Outcome::NotFound => Said::NotFound,
        Outcome::InvalidAuth => Said::InvalidAuth,
        Outcome::NoCredentials => Said::NoCredentials,
        Outcome::QuotaExceeded => Said::QuotaExceeded,
        Outcome::Unreachable => Said::Unreachable,
    };
    proto::CheckFinding {
        upstream: finding.upstream.clone(),
        outcome: outcome.into(),
        age: milliseconds(finding.age),
        available: finding.available.map(milliseconds),
        digest: finding.digest.as_ref().map(ToString::to_string).unwrap_or_default(),
        remark: finding.remark.clone().unwrap_or_default(),
    }
}

/// Of findings, those that this version knows the outcome of.
fn findings(findings: Vec<proto::CheckFinding>) -> Result<Vec<Finding>, Malformed> {
    findings.into_iter().take(MOST_FINDINGS).filter_map(|found| finding(found).transpose()).collect()
}

fn finding(found: proto::CheckFinding) -> Result<Option<Finding>, Malformed> {
    let outcome = match found.outcome() {
        Said::Available => Outcome::Available,
        Said::NotFound => Outcome::NotFound,
        Said::InvalidAuth => Outcome::InvalidAuth,
        Said::NoCredentials => Outcome::NoCredentials,
        Said::QuotaExceeded => Outcome::QuotaExceeded,
        Said::Unreachable => Outcome::Unreachable,
        Said::Unspecified => return Ok(None),
    };
    let age = |millis: u64| Duration::from_millis(millis).min(OLDEST);
    let is_fit = |text: &str| text.len() <= MOST_TEXT && !text.chars().any(char::is_control);
    if !is_fit(&found.upstream) || found.upstream.is_empty() {
        return Err(Malformed("an upstream"));
    }
    let digest = if found.digest.is_empty() { None } else { Some(digest(&found.digest)?) };
    Ok(Some(Finding {
        outcome,
        age: age(found.age),
        available: found.available.map(age),
        digest,
        remark: Some(found.remark).filter(|remark| !remark.is_empty() && is_fit(remark)),
        upstream: found.upstream,
    }))
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Digest;

    #[test]
    fn there_and_back() {
        let finding = Finding {
            upstream: "https://mirror.test/hub".to_owned(),
            outcome: Outcome::NotFound,
            age: Duration::from_millis(7),
            available: Some(Duration::from_secs(9)),
            digest: Some(Digest::of(b"x")),
            remark: Some("gone".to_owned()),
        };
        let image = "reg.test/acme/app:v1".parse().unwrap();
        let watched = Watched {
            image,
            target: Digest::of(b"y"),
            is_whole: true,
            is_checked: true,
            findings: vec![finding.clone()],
        };
        assert_eq!(watch(watch_of(std::slice::from_ref(&watched))), Ok(vec![watched]));
        let all = [None, Some(Standing { is_yours: true, copies: 3, findings: vec![finding] })];
        assert_eq!(standings(standings_of(&all), 2), Ok(all.to_vec()));
        assert!(standings(standings_of(&all), 3).is_err());
        let node = Some(NodeId::new([3; 16]));
        for (answer, owner) in [
            (Answer::Granted(2), None),
            (Answer::Later(Duration::from_secs(1)), None),
            (Answer::Unsure(Duration::from_secs(1)), None),
            (Answer::NotOwner, node),
            (Answer::NotOwner, None),
        ] {
            assert_eq!(granted(&granted_of(answer, owner)), Ok((answer, owner)));
        }
        let ages = [Duration::from_secs(1), Duration::from_secs(2)];
        assert_eq!(book(&book_of(Some(&ages))).as_deref(), Some(&ages[..]));
        assert_eq!(book(&book_of(None)), None);
    }

    #[test]
    fn what_is_malformed_or_unknown_grants_nothing() {
        assert!(granted(&proto::GrantReply { answer: Some(Reply::Granted(0)) }).is_err());
        assert_eq!(granted(&proto::GrantReply::default()), Ok((Answer::NotOwner, None)));
        let unknown = proto::CheckFinding { upstream: "u".to_owned(), outcome: 99, ..Default::default() };
        assert_eq!(findings(vec![unknown]), Ok(Vec::new()));
        let odd = proto::CheckFinding { upstream: "a\nb".to_owned(), outcome: 1, ..Default::default() };
        assert!(findings(vec![odd]).is_err());
        let many = vec![proto::WatchedImage::default(); MOST_WATCHED + 1];
        assert!(watch(proto::WatchRequest { images: many }).is_err());
    }
}
