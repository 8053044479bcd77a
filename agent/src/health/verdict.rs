use super::report::{Check, Status, Verdict};
use crate::image::{Digest, Reference};
use crate::keep::Known;

/// What an image is judged by, besides itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Circumstances<'a> {
    pub(super) checks: &'a [Check],
    /// How many nodes have all of it, this one included.
    pub(super) copies: u32,
    /// Its next pull would be given it, if no registry answered.
    pub(super) is_permitted: bool,
}

pub(super) fn judge(image: &Known, known: Circumstances<'_>) -> Verdict {
    let Circumstances { checks, copies, is_permitted } = known;
    let is_held = copies > 0;
    let is_gone = !checks.is_empty() && checks.iter().all(|check| check.status == Status::NotFound);
    Verdict {
        protected: is_held && is_permitted,
        copies,
        drifted: meant(image, checks).is_some_and(|digest| !is_the_same(image, &digest)),
        lost: is_gone && !is_held,
    }
}

/// What a pull of the name would get now: the word of the first upstream that has it.
fn meant(image: &Known, checks: &[Check]) -> Option<Digest> {
    if matches!(image.name.reference, Reference::Digest(_)) {
        return None;
    }
    checks.iter().find(|check| check.status == Status::Available)?.digest
}

/// Some registries name the platform's manifest where others name the index that lists it.
fn is_the_same(image: &Known, digest: &Digest) -> bool {
    image.target == *digest || image.parts.iter().any(|part| part.digest == *digest)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::image::MediaType;
    use crate::keep::{Held, Part, Why};

    fn image(name: &str) -> Known {
        let part = |content: &[u8]| Part {
            digest: Digest::of(content),
            size: 1,
            media_type: MediaType::octet_stream(),
            held: Held::Own,
        };
        Known {
            name: name.parse().unwrap(),
            target: Digest::of(b"index"),
            why: Why::InUse,
            used_by: Vec::new(),
            last_used: Timestamp::UNIX_EPOCH,
            parts: vec![part(b"index"), part(b"manifest")],
            is_listed: true,
        }
    }

    fn check(status: Status, digest: Option<&[u8]>) -> Check {
        Check {
            upstream: "https://reg.test".to_owned(),
            status,
            at: Some(Timestamp::UNIX_EPOCH),
            available_at: None,
            digest: digest.map(Digest::of),
            remark: None,
        }
    }

    fn of(name: &str, checks: &[Check], copies: u32, is_permitted: bool) -> Verdict {
        judge(&image(name), Circumstances { checks, copies, is_permitted })
    }

    #[test]
    fn protected_is_what_is_held_and_permitted() {
        assert!(of("a.b/c", &[], 1, true).protected);
        assert!(!of("a.b/c", &[], 0, true).protected && !of("a.b/c", &[], 3, false).protected);
    }

    #[test]
    fn drifted_is_a_tag_that_means_something_else() {
        let drifted = |name: &str, checks: &[Check]| of(name, checks, 1, true).drifted;
        assert!(drifted("a.b/c:v1", &[check(Status::Available, Some(b"other"))]));
        assert!(!drifted("a.b/c:v1", &[check(Status::Available, Some(b"index"))]));
        assert!(!drifted("a.b/c:v1", &[check(Status::Available, Some(b"manifest"))]), "its own manifest");
        assert!(!drifted("a.b/c:v1", &[check(Status::Available, None), check(Status::Scheduled, None)]));
        let name = format!("a.b/c@{}", Digest::of(b"index"));
        assert!(!drifted(&name, &[check(Status::Available, Some(b"other"))]));
        // What the next pull would get is what the first says that has it.
        let first = [check(Status::NotFound, None), check(Status::Available, Some(b"index"))];
        let both = [first[0].clone(), first[1].clone(), check(Status::Available, Some(b"other"))];
        assert!(!drifted("a.b/c:v1", &both));
    }

    #[test]
    fn lost_is_what_no_upstream_has_and_nobody_here() {
        let gone = check(Status::NotFound, None);
        assert!(of("a.b/c", &[gone.clone(), gone.clone()], 0, true).lost);
        assert!(!of("a.b/c", std::slice::from_ref(&gone), 1, false).lost, "it is held");
        for other in Status::ALL.into_iter().filter(|status| *status != Status::NotFound) {
            assert!(!of("a.b/c", &[gone.clone(), check(other, None)], 0, true).lost, "{other:?}");
        }
        assert!(!of("a.b/c", &[], 0, true).lost);
    }
}
