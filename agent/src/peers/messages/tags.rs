use std::time::Duration;

use larder_proto::peers as proto;
use larder_proto::peers::tag_reply::Reply;

use super::words::{
    Malformed, access, access_of, bytes_of, credential, credential_of, digest, registry, some_node, trace,
};
use crate::cluster::chain::Lease;
use crate::cluster::directory::{TagAnswer, TagAsk, TagKey, TagMeaning};
use crate::image::MediaType;
use crate::peers::Trace;

/// Beyond this an age says no more than "old".
const OLDEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

fn key_of(key: &TagKey) -> Option<proto::TagKey> {
    Some(proto::TagKey {
        registry: key.registry.to_string(),
        repository: key.repository.to_string(),
        tag: key.tag.to_string(),
        credential: credential_of(&key.credential),
    })
}

fn key(key: Option<proto::TagKey>) -> Result<TagKey, Malformed> {
    let key = key.ok_or(Malformed("no key"))?;
    Ok(TagKey {
        registry: registry(&key.registry)?,
        repository: key.repository.parse().map_err(|_| Malformed("a repository"))?,
        tag: key.tag.parse().map_err(|_| Malformed("a tag"))?,
        credential: credential(&key.credential)?,
    })
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// A question on its way out.
#[must_use]
pub fn tag_ask_of(ask: &TagAsk, pull: &Trace) -> proto::TagRequest {
    proto::TagRequest {
        key: key_of(&ask.key),
        max_age: milliseconds(ask.max_age),
        owner_failed: ask.owner_failed,
        trace: pull.to_string(),
        waited: ask.waited.map(milliseconds),
    }
}

/// A question that came, and the pull that it is for.
///
/// # Errors
/// When it makes no sense.
pub fn tag_ask(request: proto::TagRequest) -> Result<(TagAsk, Trace), Malformed> {
    let proto::TagRequest { key: of, max_age, owner_failed, trace: pull, waited } = request;
    let max_age = Duration::from_millis(max_age).min(OLDEST);
    let waited = waited.map(|waited| Duration::from_millis(waited).min(OLDEST));
    Ok((TagAsk { key: key(of)?, max_age, waited, owner_failed }, trace(&pull)))
}

fn meaning_of(meaning: &TagMeaning) -> proto::TagAnswer {
    proto::TagAnswer {
        digest: meaning.digest.to_string(),
        media_type: meaning.media_type.to_string(),
        size: meaning.size,
        age: milliseconds(meaning.age),
        access: access_of(meaning.access),
    }
}

fn meaning(answer: &proto::TagAnswer) -> Result<TagMeaning, Malformed> {
    Ok(TagMeaning {
        digest: digest(&answer.digest)?,
        media_type: MediaType::new(&answer.media_type).ok_or(Malformed("a media type"))?,
        size: answer.size,
        age: Duration::from_millis(answer.age).min(OLDEST),
        access: access(answer.access),
    })
}

/// An answer on its way out.
#[must_use]
pub fn tag_answer_of(answer: &TagAnswer) -> proto::TagReply {
    let reply = match answer {
        TagAnswer::Lease(Lease(lease)) => Reply::Lease(*lease),
        TagAnswer::Meaning(meaning) => Reply::Answer(meaning_of(meaning)),
        TagAnswer::Known(meaning) => Reply::Known(meaning_of(meaning)),
        TagAnswer::StillAsked => Reply::StillAsked(proto::StillAsked {}),
        TagAnswer::NotOwner(owner) => {
            Reply::NotOwner(proto::NotOwner { owner: owner.map(bytes_of).unwrap_or_default() })
        }
        TagAnswer::Alone => Reply::Alone(proto::Alone { absent: false }),
    };
    proto::TagReply { reply: Some(reply) }
}

/// An answer that came. One that we don't know is no help.
///
/// # Errors
/// When it makes no sense.
pub fn tag_answer(reply: proto::TagReply) -> Result<TagAnswer, Malformed> {
    Ok(match reply.reply {
        Some(Reply::Lease(lease)) => TagAnswer::Lease(Lease(lease)),
        Some(Reply::Answer(answer)) => TagAnswer::Meaning(meaning(&answer)?),
        Some(Reply::Known(answer)) => TagAnswer::Known(meaning(&answer)?),
        Some(Reply::StillAsked(_)) => TagAnswer::StillAsked,
        Some(Reply::NotOwner(not)) => TagAnswer::NotOwner(some_node(&not.owner)?),
        Some(Reply::Alone(_)) | None => TagAnswer::Alone,
    })
}

/// What upstream said, on its way to the owner that gave the lease; without one, from the first owner to the second.
#[must_use]
pub fn tag_report_of(key: &TagKey, lease: Option<Lease>, meaning: Option<&TagMeaning>) -> proto::TagReport {
    let lease = lease.map(|Lease(lease)| lease);
    proto::TagReport { key: key_of(key), lease, answer: meaning.map(meaning_of) }
}

/// What came of it.
///
/// # Errors
/// When it makes no sense.
pub fn tag_report(report: proto::TagReport) -> Result<(TagKey, Option<Lease>, Option<TagMeaning>), Malformed> {
    let meaning = report.answer.as_ref().map(meaning).transpose()?;
    Ok((key(report.key)?, report.lease.map(Lease), meaning))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::chain::Credential;
    use crate::image::{Access, Digest, NodeId};

    #[test]
    fn there_and_back() {
        let key = TagKey {
            registry: "docker.io".parse().unwrap(),
            repository: "library/nginx".parse().unwrap(),
            tag: "latest".parse().unwrap(),
            credential: Credential::None,
        };
        let meaning = TagMeaning {
            digest: Digest::of(b"x"),
            media_type: MediaType::octet_stream(),
            size: 3,
            age: Duration::from_millis(77),
            access: Access::Anonymous,
        };
        let pull = Trace::new();
        for waited in [None, Some(Duration::ZERO), Some(Duration::from_secs(2))] {
            let ask = TagAsk { key: key.clone(), max_age: Duration::from_secs(1), waited, owner_failed: true };
            assert_eq!(tag_ask(tag_ask_of(&ask, &pull)), Ok((ask, pull.clone())));
        }
        for answer in [
            TagAnswer::Lease(Lease(0)),
            TagAnswer::Meaning(meaning.clone()),
            TagAnswer::Known(meaning.clone()),
            TagAnswer::StillAsked,
            TagAnswer::NotOwner(Some(NodeId::new([1; 16]))),
            TagAnswer::NotOwner(None),
            TagAnswer::Alone,
        ] {
            assert_eq!(tag_answer(tag_answer_of(&answer)), Ok(answer));
        }
        for (lease, meaning) in [(Some(Lease(4)), Some(meaning.clone())), (None, Some(meaning)), (Some(Lease(0)), None)]
        {
            let report = tag_report_of(&key, lease, meaning.as_ref());
            assert_eq!(tag_report(report), Ok((key.clone(), lease, meaning)));
        }
        assert!(tag_report(proto::TagReport::default()).is_err());
    }
}
