//! Finding a blob: the store, a transfer under way, a new transfer.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::time::{Instant, timeout, timeout_at};

use super::ask::first_to_answer;
use super::drive::drive;
use super::error::Said;
use super::reader::Source;
use super::sources::Sources;
use super::transfer::{Failure, Following, State, Transfer, Unstored, Who};
use super::{Inner, Kind, Pace, Place, Pull, PullError, Reader, Resolved, Wanted};
use crate::image::{Access, Digest, MediaType, Tag};
use crate::store::Blob;
use crate::upstream::{ErrorKind, Grant, Part};

/// The most that is read of a stored manifest to tell its type, in bytes. containerd takes no longer one.
const MAX_MANIFEST: u64 = 4 << 20;
/// How long the store may take to find what it had a moment ago.
const LOOKED_UP_WITHIN: Duration = Duration::from_secs(1);

/// A blob that can be read. Up to `verify_first` bytes, it is whole and verified already.
pub struct Found {
    /// Bytes; unknown only where no upstream says and the disk takes nothing.
    pub size: Option<u64>,
    /// As its registry gave it.
    pub media_type: MediaType,
    pull: Arc<Inner>,
    wanted: Wanted,
    at: At,
}

/// Where it was found.
enum At {
    Store(Blob),
    Transfer(Following),
    Memory(Bytes),
    Upstream(Unstored),
}

/// What is read of a blob, and how.
#[derive(Clone, Copy)]
enum Reading<'a> {
    ToTheEnd,
    /// Up to this byte.
    Part(u64),
    /// All of it, at the pace of the background.
    InBackground(&'a Arc<Pace>),
}

impl Pull {
    /// Finds a blob, wherever it is; a transfer is begun if it must be. `start` is the first byte that will be read.
    ///
    /// # Errors
    /// When nothing has it, or no source answers within the reply deadline.
    pub async fn fetch(&self, wanted: &Wanted, start: u64) -> Result<Found, PullError> {
        self.find_by(self.deadline(), wanted, start, Reading::ToTheEnd).await
    }

    /// The same for one who said where the reading ends, too. Who reads so has means of its own to prove what it gets, and
    /// continues nothing: it isn't refused for wrong bytes that went out before.
    ///
    /// # Errors
    /// As for [`Pull::fetch`].
    pub async fn fetch_part(&self, wanted: &Wanted, range: Range<u64>) -> Result<Found, PullError> {
        self.find_by(self.deadline(), wanted, range.start, Reading::Part(range.end)).await
    }

    /// What `tag` means, and the manifest that it means: as [`Pull::resolve`] and [`Pull::fetch`], with one reply deadline
    /// for both.
    ///
    /// # Errors
    /// As for both.
    pub async fn fetch_tag(&self, place: &Place, grant: &Grant, tag: &Tag) -> Result<(Resolved, Found), PullError> {
        let deadline = self.deadline();
        let resolved = self.resolve_by(deadline, place, grant, tag).await?;
        let (place, grant, digest) = (place.clone(), grant.clone(), resolved.digest);
        let wanted = Wanted { place, grant, digest, kind: Kind::Manifest };
        match self.find_by(deadline, &wanted, 0, Reading::ToTheEnd).await {
            Err(late @ PullError::Late(_)) if resolved.stale_for.is_some() => {
                let found = self.found_before(wanted, &resolved).await.ok_or(late)?;
                Ok((resolved, found))
            }
            found => Ok((resolved, found?)),
        }
    }

    /// The manifest of a tag that is given as it last was: it is here, and this caller was found to be one who could have it
    /// before. For when the registry doesn't answer that question either.
    async fn found_before(&self, wanted: Wanted, resolved: &Resolved) -> Option<Found> {
        let pull = Arc::clone(&self.0);
        let blob = timeout(LOOKED_UP_WITHIN, pull.store.blob(&wanted.digest)).await.ok()??;
        if !blob.provenance().is_public() {
            pull.metrics.outage_permits.inc();
        }
        Some(Found {
            size: Some(blob.size()),
            media_type: resolved.media_type.clone(),
            pull,
            wanted,
            at: At::Store(blob),
        })
    }

    /// As [`Pull::fetch`], of all of it, for one who is in no hurry: its bytes come at the pace of the background, unless
    /// somebody else reads along. Upstreams that are near their limits aren't asked for it; peers are.
    ///
    /// # Errors
    /// As for [`Pull::fetch`], and when nobody is left to be asked.
    pub async fn fetch_in_background(&self, wanted: &Wanted, pace: &Arc<Pace>) -> Result<Found, PullError> {
        self.find_by(self.deadline(), wanted, 0, Reading::InBackground(pace)).await
    }

    /// A caller reads a blob from its first byte on, and more of it by requests that follow: what went out before, right
    /// or wrong, is continued by none of them. containerd has one writer for a blob, so that whoever had a wrong
    /// beginning has given up.
    pub fn begins_anew(&self, digest: &Digest) {
        self.0.blame.lifted(digest);
    }

    /// By when a reply has to begin that is asked for now.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.0.options.reply_deadline
    }

    async fn find_by(
        &self,
        deadline: Instant,
        wanted: &Wanted,
        start: u64,
        reading: Reading<'_>,
    ) -> Result<Found, PullError> {
        let found = timeout_at(deadline, self.find(wanted, start, reading)).await;
        found.unwrap_or_else(|_| Err(PullError::Late(Said::default())))
    }

    /// Takes as long as it takes.
    async fn find(&self, wanted: &Wanted, start: u64, reading: Reading<'_>) -> Result<Found, PullError> {
        let pull = &self.0;
        let Wanted { place, digest, kind, .. } = wanted;
        let kind = *kind;
        let pace = match reading {
            Reading::InBackground(pace) => Some(pace),
            Reading::ToTheEnd | Reading::Part(_) => None,
        };
        let may_continue = start > 0 && !matches!(reading, Reading::Part(_));
        if may_continue && pull.blame.continues_poison(digest, start) {
            return Err(PullError::Poisoned);
        }
        let found =
            |size, media_type, at| Found { size, media_type, pull: Arc::clone(pull), wanted: wanted.clone(), at };
        if pull.is_ignored(place) {
            pull.may_ask(place, &wanted.grant).await?;
            let unstored = pull.past_the_disk(wanted, reading.of(start)).await?;
            return Ok(found(unstored.size, unstored.media_type.clone(), At::Upstream(unstored)));
        }
        // The transfer that was joined may be another registry's.
        for _ in 0..=pull.attempts(place) {
            if let Some(blob) = pull.held(wanted).await? {
                let media_type = pull.look_into(wanted, &blob).await;
                return Ok(found(Some(blob.size()), media_type, At::Store(blob)));
            }
            pull.may_ask(place, &wanted.grant).await?;
            let following = match pull.follow(wanted, start, pace) {
                Ok(following) => following,
                Err(theirs) if theirs.wanted.place.registry == place.registry => {
                    // Of the same registry: it says in a moment whether it is this caller's too.
                    pull.confirm(wanted, false).await?;
                    theirs
                }
                Err(_) => {
                    let unstored = pull.past_the_disk(wanted, reading.of(start)).await?;
                    return Ok(found(unstored.size, unstored.media_type.clone(), At::Upstream(unstored)));
                }
            };
            let is_mine = following.wanted.place == *place && following.wanted.grant == wanted.grant;
            match ready(&following, pull.options.verify_first).await {
                State::Whole(blob) => {
                    let media_type = pull.look_into(wanted, &blob).await;
                    return Ok(found(Some(blob.size()), media_type, At::Store(blob)));
                }
                State::Arriving(a) | State::Detached(a) => {
                    return Ok(found(Some(a.ingest.size()), a.media_type, At::Transfer(following)));
                }
                State::InMemory(bytes, media_type) => {
                    if kind == Kind::Manifest {
                        pull.sizes.learn(place, digest, &bytes);
                    }
                    return Ok(found(Some(bytes.len() as u64), media_type, At::Memory(bytes)));
                }
                State::Unstored(unstored) => {
                    return Ok(found(unstored.size, unstored.media_type.clone(), At::Upstream(unstored)));
                }
                // Begun for nobody, it left alone whom who waits may ask.
                State::Failed(Failure::Nothing(PullError::Spared) | Failure::Cut(PullError::Spared))
                    if pace.is_none() => {}
                // What was said to somebody else, or elsewhere.
                State::Failed(Failure::Nothing(_) | Failure::Cut(_)) if !is_mine => {}
                State::Failed(Failure::Nothing(error) | Failure::Cut(error)) => {
                    pull.refused(place, &wanted.grant, error.said());
                    return Err(pull.or_challenge(place, &wanted.grant, error.for_grant(&wanted.grant)));
                }
                // The right end would be no help to who has a wrong beginning.
                State::Failed(Failure::WrongBytes) if may_continue => return Err(PullError::Poisoned),
                State::Failed(Failure::WrongBytes) | State::Asking => {}
            }
        }
        Err(PullError::WrongBytes)
    }
}

impl Inner {
    /// How often a blob is fetched anew within one reply when its bytes turn out wrong before any has gone out: once
    /// after they came from several, and then each of them may break the digest once.
    pub(super) fn attempts(&self, place: &Place) -> usize {
        self.upstreams.of(&place.registry).in_order().len() + 1
    }

    /// The media type of a stored blob. A manifest's content says it where the index has lost it; and how long its blobs
    /// are, which is learnt once.
    async fn look_into(&self, wanted: &Wanted, blob: &Blob) -> MediaType {
        let Wanted { place, digest, kind, .. } = wanted;
        let known = blob.media_type().cloned();
        let is_learnt = self.sizes.of(place, digest).is_some() && known.as_ref().is_some_and(MediaType::is_manifest);
        if *kind == Kind::Blob || is_learnt || blob.size() > MAX_MANIFEST {
            return known.unwrap_or_else(MediaType::octet_stream);
        }
        let mut content = Vec::new();
        let mut reader = blob.reader(0..blob.size());
        while let Ok(Some(bytes)) = reader.next().await {
            content.extend_from_slice(&bytes);
        }
        if content.len() as u64 == blob.size() {
            self.sizes.learn(place, digest, &content);
        }
        let sure = known.clone().filter(MediaType::is_manifest).or_else(|| manifest_type(&content));
        sure.or(known).unwrap_or_else(MediaType::octet_stream)
    }

    /// Follows the transfer of a blob, begun now, where this reader begins, if there is none.
    ///
    /// # Errors
    /// Somebody else's, whose bytes come to credentials: it is not this caller's to read, as long as the registry
    /// hasn't said so.
    pub(super) fn follow(
        self: &Arc<Self>,
        wanted: &Wanted,
        start: u64,
        pace: Option<&Arc<Pace>>,
    ) -> Result<Following, Following> {
        let who = if pace.is_some() { Who::Background } else { Who::Caller };
        let following = self.transfers.follow(wanted.digest, who, || {
            self.ask_about_upstreams(&wanted.place.registry);
            let trace = self.journal.trace(&wanted.place);
            let transfer = Arc::new(Transfer::new(wanted.clone(), start, pace.cloned(), trace));
            self.lanes.spawn(&self.tasks, drive(Arc::clone(self), Arc::clone(&transfer)));
            transfer
        });
        let theirs = &following.wanted;
        let is_mine = theirs.place == wanted.place && theirs.grant == wanted.grant;
        let is_public = self.access_of(theirs) == Access::Anonymous;
        if is_mine || is_public { Ok(following) } else { Err(following) }
    }

    /// Whether what is there is passed through.
    fn is_ignored(&self, place: &Place) -> bool {
        self.ignored.iter().any(|pattern| pattern.covers(&place.registry, &place.repository))
    }

    /// A source of this caller's own.
    async fn past_the_disk(self: &Arc<Self>, wanted: &Wanted, part: Part) -> Result<Unstored, PullError> {
        let mut sources = Sources::new(Arc::clone(self), wanted.clone());
        let mut answered = first_to_answer(&mut sources, wanted, part).await;
        let beyond = ErrorKind::Server(StatusCode::RANGE_NOT_SATISFIABLE);
        if answered.is_none() && part != Part::WHOLE && sources.said(&beyond) {
            // Who asks beyond the end is told where that is.
            sources.begin_round();
            answered = first_to_answer(&mut sources, wanted, Part::WHOLE).await;
        }
        let Some((_, opened)) = answered else {
            let error = sources.verdict();
            self.refused(&wanted.place, &wanted.grant, error.said());
            return Err(error.for_grant(&wanted.grant));
        };
        let (size, media_type) = (opened.size, opened.media_type.clone());
        Ok(Unstored { size, media_type, opened: Arc::new(Mutex::new(Some(opened))) })
    }
}

impl Reading<'_> {
    /// What it asks a source for that nobody else reads, when it begins at `start`.
    fn of(self, start: u64) -> Part {
        match self {
            // Somewhere at the end: the first byte is enough to be told where that is.
            _ if start == u64::MAX => Part { from: 0, to: Some(1) },
            Self::Part(end) if end > start => Part { from: start, to: Some(end) },
            _ => Part::from(start),
        }
    }
}

/// Waits until the blob can be answered for: a small one whole, a large one begun.
async fn ready(following: &Following, verify_first: u64) -> State {
    let mut changes = following.changes();
    loop {
        match following.state() {
            State::Asking => {}
            State::Arriving(a) if (a.verify_whole || a.ingest.size() <= verify_first) && !a.verified => {}
            // A reply that has begun can't be turned into another answer: not before the source has sent something.
            State::Arriving(a) if a.ingest.present() == 0 && a.ingest.size() > 0 => {}
            state => return state,
        }
        // The transfer, and with it the sender, lives as long as `following`.
        let _ = changes.changed().await;
    }
}

impl Found {
    /// Whether it is larger than `small` bytes, and where the next request for it finds it without asking upstream.
    #[must_use]
    pub fn can_be_asked_for_again(&self, small: u64) -> bool {
        matches!(self.at, At::Store(_) | At::Transfer(_)) && self.size.is_some_and(|size| size > small)
    }

    /// Reads all of it.
    #[must_use]
    pub fn read(self) -> Reader {
        let end = self.size;
        self.reader(0, end, false)
    }

    /// Reads from `start` on to the end, for one who has what comes before. `start` lies within the blob.
    #[must_use]
    pub fn read_from(self, start: u64) -> Reader {
        let end = self.size;
        self.reader(start, end, false)
    }

    /// Reads a part for its own sake, by one who can tell by other means whether it is right: unlike those of a reader to
    /// the end, its bytes don't wait until the whole blob is proven. The range lies within the blob.
    #[must_use]
    pub fn read_part(self, range: Range<u64>) -> Reader {
        let is_whole = range.start == 0 && Some(range.end) == self.size;
        self.reader(range.start, Some(range.end), !is_whole)
    }

    fn reader(self, start: u64, end: Option<u64>, is_part: bool) -> Reader {
        let source = match self.at {
            At::Store(blob) => {
                self.pull.store.used(&self.wanted.digest);
                Source::store(&blob, start, end)
            }
            At::Transfer(following) => Source::transfer(following),
            At::Memory(bytes) => {
                let end = end.map_or(bytes.len(), |end| end as usize);
                Source::Memory(bytes.slice(start as usize..end))
            }
            At::Upstream(unstored) => {
                let whole = start == 0 && end == unstored.size;
                let hashed = whole.then(|| (self.wanted.digest.hasher(), 0));
                Source::upstream(&self.pull, &self.wanted, (start, end), hashed, Some(&unstored))
            }
        };
        Reader::new(self.pull, self.wanted, (start, end), is_part, source)
    }
}

/// What a manifest says of its own type: its `mediaType`, or, since OCI makes that optional, its shape.
fn manifest_type(content: &[u8]) -> Option<MediaType> {
    let manifest: serde_json::Value = serde_json::from_slice(content).ok()?;
    if let Some(own) = manifest.get("mediaType").and_then(|own| own.as_str()) {
        return MediaType::new(own);
    }
    let of_shape = if manifest.get("manifests").is_some() {
        "application/vnd.oci.image.index.v1+json"
    } else if manifest.get("config").is_some() {
        "application/vnd.oci.image.manifest.v1+json"
    } else {
        return None;
    };
    MediaType::new(of_shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_says_its_type() {
        let type_of = |content: &str| manifest_type(content.as_bytes()).map(|m| m.to_string());
        assert_eq!(type_of(r#"{"mediaType":"a/b","config":{}}"#).as_deref(), Some("a/b"));
        assert_eq!(type_of(r#"{"config":{}}"#).as_deref(), Some("application/vnd.oci.image.manifest.v1+json"));
        assert_eq!(type_of(r#"{"manifests":[]}"#).as_deref(), Some("application/vnd.oci.image.index.v1+json"));
        assert_eq!(type_of("{}"), None);
        assert_eq!(type_of("no JSON"), None);
    }
}
