//! What peers read from this node.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::gather::Gather;
use super::reader::GRACE;
use super::transfer::{Arriving, Failure, Following, State};
use super::{Inner, Pull, Wanted};
use crate::containerd::client::ContentReader;
use crate::image::{Access, Digest, MediaType, Registry};
use crate::peers::{Head, Parted};
use crate::store::{Blob, BlobReader, Provenance};

/// How long a peer waits for a transfer to have its first answer, or to be whole where it is small.
const BEGINS_WITHIN: Duration = Duration::from_secs(1);
/// How long a peer that has had all of it waits for the digest.
const PROVEN_WITHIN: Duration = Duration::from_secs(1);
/// How long the store is asked, while a peer waits for us.
const FOUND_WITHIN: Duration = Duration::from_secs(5);
/// What is sent at a time at the most of a growing file, in bytes.
const MOST: u64 = 256 << 10;

/// A blob on its way to a peer: out of the store, out of containerd, or along a transfer under way, whose bytes go out
/// while they come.
///
/// Unlike a [`Reader`](super::Reader) it holds back no end, since who reads it has a digest to check. But of what came
/// from a source that broke a digest before, nothing goes out before it is proven.
pub struct Shared {
    pull: Arc<Inner>,
    digest: Digest,
    head: Head,
    /// The next byte to go out.
    at: u64,
    end: u64,
    source: Source,
    gather: Gather,
}

/// Where the bytes are at the moment.
enum Source {
    Store(BlobReader),
    Memory(Bytes),
    Containerd(Box<ContentReader>),
    Transfer(Box<Following>, watch::Receiver<()>),
}

/// Why a peer gets nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotShared {
    /// Neither here nor on its way; or not for that registry, or not for who may be anybody.
    #[error("not here, or not for this registry")]
    Absent,
    /// It is being asked for, and nobody has answered yet.
    #[error("on its way, and not begun yet")]
    NotYet,
    /// The disk, or containerd, doesn't say in time whether it is here.
    #[error("it isn't known in time whether it is here")]
    Unanswered,
}

/// Why a peer gets no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// It ended short here too, or stands still.
    #[error("the rest isn't here")]
    Short,
    /// All its bytes came, and don't have the digest. They came from these upstreams.
    #[error("the bytes don't have this digest")]
    Broken(Vec<String>),
    /// A chunk on disk can't be read, or isn't what it was.
    #[error("what is stored can't be read")]
    Unreadable,
}

impl Pull {
    /// A blob for a peer whose own transfer is for `registry` and runs as `access`: the bytes from `from` on, to `end` or
    /// to the blob's. What is on its way is shared only with those who want it for the same registry as the same.
    ///
    /// Waits at most a second for a transfer that has only just begun, and some for the disk.
    ///
    /// # Errors
    /// When it isn't here, or not for such a peer.
    pub async fn share(
        &self,
        digest: &Digest,
        registry: &Registry,
        access: Access,
        from: u64,
        end: Option<u64>,
    ) -> Result<Shared, NotShared> {
        let pull = &self.0;
        let shared = |head, lies: Lies| Shared::new(pull, digest, head, (from, end), lies);
        let stored = |blob: Blob| {
            let (registry, access) = given_by(&blob.provenance(), registry, access)?;
            pull.store.used(digest);
            let media_type = blob.media_type().cloned().unwrap_or_else(MediaType::octet_stream);
            let head = Head { size: blob.size(), media_type, registry, access, whole: true, sources: Vec::new() };
            Some(shared(head, Lies::Stored(blob)))
        };
        let held = || async {
            // One that has to be hashed first is, for whoever comes next.
            timeout(FOUND_WITHIN, pull.store.blob(digest)).await.map_err(|_| NotShared::Unanswered)
        };
        if let Some(shared) = held().await?.and_then(stored) {
            return Ok(shared);
        }
        let suits = |wanted: &Wanted| wanted.place.registry == *registry && pull.access_of(wanted) == access;
        let Some(following) = pull.transfers.join(digest, |transfer| suits(&transfer.wanted)) else {
            // It may have been on its way when the store was asked, and have come there since.
            if let Some(shared) = held().await?.and_then(stored) {
                return Ok(shared);
            }
            let lent = pull.lent(digest, registry, access).await?;
            let reader = lent.read(from, end.unwrap_or(u64::MAX).min(lent.head.size)).await?;
            return Ok(shared(lent.head, Lies::Lent(Box::new(reader))));
        };
        let state = timeout(BEGINS_WITHIN, begun(&following)).await.map_err(|_| NotShared::NotYet)?;
        let head = |size, media_type, whole| {
            let (registry, sources) = (registry.clone(), following.received.sources());
            Head { size, media_type, registry, access, whole, sources }
        };
        match state {
            State::Whole(blob) => stored(blob).ok_or(NotShared::Absent),
            State::Arriving(Arriving { ingest, media_type, verified, .. }) => {
                let head = head(ingest.size(), media_type, verified);
                Ok(shared(head, Lies::OnItsWay(following)))
            }
            State::InMemory(bytes, media_type) => {
                let head = head(bytes.len() as u64, media_type, true);
                Ok(shared(head, Lies::InMemory(bytes)))
            }
            State::Asking | State::Unstored(_) | State::Detached(_) | State::Failed(_) => Err(NotShared::Absent),
        }
    }
}

/// Which of the deliveries of a blob opens it to a peer whose transfer is for `registry` and runs as `access`.
pub(super) fn given_by(provenance: &Provenance, registry: &Registry, access: Access) -> Option<(Registry, Access)> {
    let own = provenance.iter().find(|(from, _)| *from == registry);
    let is_public = |(_, access): &(&Registry, Access)| *access == Access::Anonymous;
    let public = own.filter(is_public).or_else(|| provenance.iter().find(is_public));
    let given = public.or_else(|| own.filter(|_| access == Access::Authorized));
    given.map(|(registry, access)| (registry.clone(), access))
}

/// Waits for a transfer's first answer.
async fn begun(following: &Following) -> State {
    let mut changes = following.changes();
    loop {
        match following.state() {
            State::Asking => {}
            state => return state,
        }
        // The transfer, and with it the sender, lives as long as `following`.
        let _ = changes.changed().await;
    }
}

/// Where a blob was found for a peer.
enum Lies {
    Stored(Blob),
    InMemory(Bytes),
    Lent(Box<ContentReader>),
    OnItsWay(Following),
}

impl Shared {
    fn new(pull: &Arc<Inner>, digest: &Digest, head: Head, (from, end): (u64, Option<u64>), lies: Lies) -> Self {
        let end = end.unwrap_or(head.size).min(head.size);
        let at = from.min(end);
        let source = match lies {
            Lies::Stored(blob) => Source::Store(blob.reader(at..end)),
            // Both are within it.
            Lies::InMemory(bytes) => Source::Memory(bytes.slice(at as usize..end as usize)),
            Lies::Lent(reader) => Source::Containerd(reader),
            Lies::OnItsWay(following) => {
                let changes = following.changes();
                Source::Transfer(Box::new(following), changes)
            }
        };
        Self { pull: Arc::clone(pull), digest: *digest, head, at, end, source, gather: Gather::default() }
    }

    /// What is said before the bytes.
    #[must_use]
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// Every byte of the blob before this one is here, and may go out.
    #[must_use]
    pub fn frontier(&self) -> u64 {
        match &self.source {
            Source::Store(_) | Source::Memory(_) | Source::Containerd(_) => self.head.size,
            Source::Transfer(following, _) => match following.state() {
                State::Whole(_) | State::InMemory(..) => self.head.size,
                State::Arriving(arriving) if !arriving.is_withheld() => following.wants.frontier(),
                // Where it stands, for who looks whether another is further ahead.
                _ => self.at,
            },
        }
    }

    /// The next byte to go out.
    #[must_use]
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// Whoever reads it needs no more than is here by now: it goes out at once, however little it is.
    pub const fn hurry(&mut self) {
        self.gather.hurry();
    }

    /// The next bytes, at most 1 MiB: as soon as 64 KiB are here, or what there is has waited for 100 ms, but the first and
    /// the last at once; `None` when all that was asked for has been given. Cancelling it loses nothing.
    ///
    /// # Errors
    /// Nothing more comes, and what was given is not all.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Ended> {
        loop {
            if self.at >= self.end {
                return Ok(None);
            }
            let step = match &mut self.source {
                Source::Memory(bytes) => Step::Bytes(std::mem::take(bytes)),
                Source::Store(reader) => match reader.next().await {
                    Ok(Some(bytes)) => Step::Bytes(bytes),
                    Ok(None) => return Err(Ended::Short),
                    Err(error) => {
                        tracing::warn!(digest = %self.digest, %error, "a stored blob can't be read for a peer");
                        if error.is_damage() {
                            self.pull.store.set_aside(reader).await;
                        }
                        return Err(Ended::Unreadable);
                    }
                },
                Source::Containerd(reader) => match reader.next().await {
                    Ok(Some(bytes)) => Step::Bytes(bytes),
                    Ok(None) => return Err(Ended::Short),
                    Err(error) => {
                        tracing::debug!(digest = %self.digest, %error, "containerd gives no more of a blob");
                        return Err(Ended::Short);
                    }
                },
                Source::Transfer(following, changes) => {
                    changes.mark_unchanged();
                    follow(&self.pull, following, self.at..self.end, &mut self.gather).await?
                }
            };
            match step {
                Step::Bytes(bytes) => {
                    self.gather.went();
                    self.at += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                Step::Stored(blob) => self.source = Source::Store(blob.reader(self.at..self.end)),
                Step::Held(bytes) => self.source = Source::Memory(bytes.slice(self.at as usize..self.end as usize)),
                Step::Wait(until) => self.wait(until).await?,
            }
        }
    }

    /// Until the transfer has moved, or what there is has been waited for long enough.
    async fn wait(&mut self, until: Option<Instant>) -> Result<(), Ended> {
        let Source::Transfer(_, changes) = &mut self.source else { return Ok(()) };
        let patience = self.pull.options.patience() + GRACE;
        match until {
            Some(until) => {
                Gather::more(until, changes).await;
                Ok(())
            }
            None => timeout(patience, changes.changed()).await.map(|_| ()).map_err(|_| Ended::Short),
        }
    }

    /// What is known of the whole, once [`Self::next`] has given `None`: waits at most a second for the digest, where all
    /// of it is here.
    pub async fn parted(&mut self) -> Parted {
        let Source::Transfer(following, changes) = &mut self.source else { return Parted::Held };
        let proven = async {
            loop {
                changes.mark_unchanged();
                match following.state() {
                    State::Whole(_) | State::InMemory(..) => return Parted::Held,
                    State::Arriving(arriving) if arriving.verified => return Parted::Held,
                    State::Arriving(arriving) if arriving.ingest.first_gap(0).is_none() => {}
                    State::Failed(Failure::WrongBytes) => return Parted::Broken(following.received.sources()),
                    _ => return Parted::Unknown,
                }
                if changes.changed().await.is_err() {
                    return Parted::Unknown;
                }
            }
        };
        timeout(PROVEN_WITHIN, proven).await.unwrap_or(Parted::Unknown)
    }
}

enum Step {
    Bytes(Bytes),
    /// The transfer has ended in the store.
    Stored(Blob),
    /// Or in memory.
    Held(Bytes),
    /// For more; if there is a little, until then.
    Wait(Option<Instant>),
}

/// The next step along a transfer.
async fn follow(
    pull: &Inner,
    following: &Following,
    Range { start: at, end }: Range<u64>,
    gather: &mut Gather,
) -> Result<Step, Ended> {
    let arriving = match following.state() {
        State::Asking => return Ok(Step::Wait(None)),
        State::Arriving(arriving) => arriving,
        State::Whole(blob) => return Ok(Step::Stored(blob)),
        State::InMemory(bytes, _) if bytes.len() as u64 >= end => return Ok(Step::Held(bytes)),
        State::Failed(Failure::WrongBytes) => return Err(Ended::Broken(following.received.sources())),
        State::InMemory(..) | State::Unstored(_) | State::Detached(_) | State::Failed(_) => return Err(Ended::Short),
    };
    let available = if arriving.is_withheld() { at } else { arriving.ingest.available(at).min(end) };
    if available == at {
        return Ok(Step::Wait(None));
    }
    if available < end
        && let Some(until) = gather.until(Instant::now(), available - at)
    {
        return Ok(Step::Wait(Some(until)));
    }
    let length = (available - at).min(MOST) as usize;
    match pull.store.read_arrived(&arriving.ingest, at, length).await {
        Ok(bytes) => Ok(Step::Bytes(bytes)),
        Err(error) => {
            tracing::warn!(digest = %following.wanted.digest, %error, "what arrived can't be read back for a peer");
            Err(Ended::Unreadable)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_gets_what_its_own_caller_could_have() {
        let provenance = |deliveries: &[(&str, Access)]| {
            let all: Vec<(Registry, Access)> =
                deliveries.iter().map(|(registry, access)| (registry.parse().unwrap(), *access)).collect();
            let written = postcard::to_allocvec(&all).unwrap();
            postcard::from_bytes::<Provenance>(&written).unwrap()
        };
        let (ours, other): (Registry, Registry) = ("ours.test".parse().unwrap(), "other.test".parse().unwrap());
        let (open, closed) = (Access::Anonymous, Access::Authorized);
        let give = |deliveries: &[(&str, Access)], access| given_by(&provenance(deliveries), &ours, access);
        assert_eq!(give(&[], closed), None, "of which nothing is known, nobody gets anything");
        assert_eq!(give(&[("other.test", closed)], closed), None);
        assert_eq!(give(&[("ours.test", closed)], open), None, "who may be anybody gets only what anybody may have");
        assert_eq!(give(&[("ours.test", closed)], closed), Some((ours.clone(), closed)));
        assert_eq!(give(&[("ours.test", closed), ("other.test", open)], closed), Some((other.clone(), open)));
        assert_eq!(give(&[("other.test", open), ("ours.test", open)], open), Some((ours.clone(), open)));
        assert_eq!(give(&[("other.test", open)], open), Some((other, open)));
    }
}
