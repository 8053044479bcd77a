use std::time::Duration;

use larder_proto::peers as proto;

use super::words::{Malformed, digest, registry};
use crate::cluster::rights::{Kept, Opener, Right};
use crate::peers::BlobOf;

/// What a registry said, on its way out.
#[must_use]
pub fn right_told_of(opener: &Opener, right: Right) -> proto::RightTold {
    proto::RightTold { opener: opener.0.to_vec(), right: word_of(right).into() }
}

/// What a registry said.
///
/// # Errors
/// When it makes no sense.
pub fn right_told(told: &proto::RightTold) -> Result<(Opener, Right), Malformed> {
    let right = word(told.right).ok_or(Malformed("a right"))?;
    Ok((opener(&told.opener)?, right))
}

/// A question on its way out.
#[must_use]
pub fn right_request_of(opener: &Opener) -> proto::RightRequest {
    proto::RightRequest { opener: opener.0.to_vec() }
}

/// A question.
///
/// # Errors
/// When it makes no sense.
pub fn right_request(request: &proto::RightRequest) -> Result<Opener, Malformed> {
    opener(&request.opener)
}

/// An answer on its way out.
#[must_use]
pub fn right_kept_of(kept: Option<Kept>) -> proto::RightReply {
    kept.map(|kept| proto::RightReply { right: word_of(kept.right).into(), age: kept.age.as_secs() })
        .unwrap_or_default()
}

/// An answer. What we don't know opens nothing.
#[must_use]
pub fn right_kept(reply: &proto::RightReply) -> Option<Kept> {
    word(reply.right).map(|right| Kept { right, age: Duration::from_secs(reply.age) })
}

/// What is asked about, on its way out.
#[must_use]
pub fn knows_of(of: &BlobOf) -> proto::KnowsRequest {
    let BlobOf { registry, repository, digest } = of;
    proto::KnowsRequest {
        registry: registry.to_string(),
        repository: repository.to_string(),
        digest: digest.to_string(),
    }
}

/// What is asked about.
///
/// # Errors
/// When it makes no sense.
pub fn knows(request: &proto::KnowsRequest) -> Result<BlobOf, Malformed> {
    let repository = request.repository.parse().map_err(|_| Malformed("a repository"))?;
    Ok(BlobOf { registry: registry(&request.registry)?, repository, digest: digest(&request.digest)? })
}

fn opener(bytes: &[u8]) -> Result<Opener, Malformed> {
    bytes.try_into().map(Opener).map_err(|_| Malformed("a hash of credentials"))
}

fn word(value: i32) -> Option<Right> {
    match proto::Right::try_from(value) {
        Ok(proto::Right::Opened) => Some(Right::Opened),
        Ok(proto::Right::Refused) => Some(Right::Refused),
        Ok(proto::Right::Unspecified) | Err(_) => None,
    }
}

const fn word_of(right: Right) -> proto::Right {
    match right {
        Right::Opened => proto::Right::Opened,
        Right::Refused => proto::Right::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Digest;

    #[test]
    fn there_and_back() {
        let opener = Opener([7; 32]);
        for right in [Right::Opened, Right::Refused] {
            assert_eq!(right_told(&right_told_of(&opener, right)), Ok((opener, right)));
            let kept = Some(Kept { right, age: Duration::from_secs(5) });
            assert_eq!(right_kept(&right_kept_of(kept)), kept);
        }
        assert_eq!(right_kept(&right_kept_of(None)), None);
        assert_eq!(right_request(&right_request_of(&opener)), Ok(opener));
        let (registry, repository) = ("docker.io".parse().unwrap(), "library/nginx".parse().unwrap());
        let of = BlobOf { registry, repository, digest: Digest::of(b"x") };
        assert_eq!(knows(&knows_of(&of)), Ok(of));
    }

    #[test]
    fn what_is_malformed_is_refused_and_what_is_newer_opens_nothing() {
        let told = |opener: &[u8], right| right_told(&proto::RightTold { opener: opener.to_vec(), right });
        assert!(told(&[1; 32], 1).is_ok());
        assert!(told(&[1; 31], 1).is_err() && told(&[1; 32], 0).is_err() && told(&[1; 32], 99).is_err());
        assert_eq!(right_kept(&proto::RightReply { right: 99, age: 0 }), None);
        assert!(knows(&proto::KnowsRequest::default()).is_err());
    }
}
