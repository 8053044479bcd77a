//! Whose bytes an arriving blob has, and who is to blame when they are wrong.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::Inner;
use super::source::Source;
use crate::image::{Access, Digest, NodeId, Registry};
use crate::peers::{Head, Parted};
use crate::upstream::Upstream;

/// Those whose bytes one arriving blob has.
pub(super) struct Suspects {
    pull: Arc<Inner>,
    digest: Digest,
    from: Vec<Contributor>,
    /// Whether an earlier transfer's bytes are in it too: anyone's, and they may have reached a caller.
    has_leftover: bool,
    must_be_alone: bool,
    began: Instant,
}

enum Contributor {
    Upstream(Arc<Upstream>),
    Peer(PeerPart),
}

/// What a peer gave, as it says.
#[derive(Debug)]
struct PeerPart {
    node: NodeId,
    registry: Registry,
    access: Access,
    /// The upstreams that it had it from.
    sources: Vec<String>,
    parted: Parted,
}

/// Who sent the wrong bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Culprit {
    /// An upstream, by its name: here, or at the peers that they came by.
    Upstream(String),
    /// This upstream, which gave some of them, and broke the same digest for other nodes.
    Likely(String),
    /// A peer, whose own copy is right.
    Peer(NodeId),
    /// One of several; it is found out by taking it from one alone.
    Unclear,
}

impl Suspects {
    pub(super) fn new(pull: Arc<Inner>, digest: Digest) -> Self {
        let must_be_alone = pull.blame.needs_one_source(&digest);
        Self { pull, digest, from: Vec::new(), has_leftover: false, must_be_alone, began: Instant::now() }
    }

    /// Whether all of it has to come from one upstream, so that it shows whose bytes are wrong.
    pub(super) const fn must_be_alone(&self) -> bool {
        self.must_be_alone
    }

    /// Others have found out who it was: it may come from several again.
    pub(super) const fn are_explained(&mut self) {
        self.must_be_alone = false;
    }

    /// Whether a source's bytes may be added.
    pub(super) fn admits(&self, source: &Source) -> bool {
        !self.must_be_alone || self.from.iter().all(|known| known.is(source))
    }

    /// An upstream's bytes are added.
    pub(super) fn take_from(&mut self, source: &Arc<Upstream>) {
        if !self.from.iter().any(|known| known.is(&Source::Upstream(Arc::clone(source)))) {
            self.from.push(Contributor::Upstream(Arc::clone(source)));
        }
    }

    /// A peer's bytes are added.
    pub(super) fn take_from_peer(&mut self, node: NodeId, head: &Head) {
        let Head { registry, access, sources, .. } = head.clone();
        let part = PeerPart { node, registry, access, sources, parted: Parted::Unknown };
        let known = self.from.iter_mut().find_map(|known| known.peer_mut().filter(|known| known.node == node));
        match known {
            // It may have had more from others since.
            Some(known) => {
                known.sources.extend(part.sources);
                known.sources.sort_unstable();
                known.sources.dedup();
                known.parted = Parted::Unknown;
                if part.access == Access::Authorized {
                    known.access = part.access;
                }
            }
            None => self.from.push(Contributor::Peer(part)),
        }
    }

    /// Whether the whole has to be verified before any of it goes out. What others say of a source is heeded for half of the
    /// time in which a reply has to begin: so their word can't keep anybody from a large blob.
    pub(super) fn must_be_verified(&self) -> bool {
        let blame = &self.pull.blame;
        let heeds_others = self.began.elapsed() < self.pull.options.reply_deadline / 2;
        let suspect = |name: &str| blame.is_suspect(name) || (heeds_others && blame.is_said_to_break(name));
        self.must_be_alone
            || self.from.iter().any(|known| match known {
                Contributor::Upstream(upstream) => suspect(upstream.name()),
                Contributor::Peer(part) => part.sources.iter().any(|name| suspect(name)),
            })
    }

    /// Whether bytes of the upstream of this name are in it, which didn't come by others.
    pub(super) fn took_from(&self, name: &str) -> bool {
        self.from.iter().any(|known| matches!(known, Contributor::Upstream(upstream) if upstream.name() == name))
    }

    /// What an earlier transfer left is taken up.
    pub(super) const fn take_leftover(&mut self) {
        self.has_leftover = true;
    }

    pub(super) const fn has_leftover(&self) -> bool {
        self.has_leftover
    }

    /// All of it was thrown away.
    pub(super) fn forget(&mut self) {
        self.from.clear();
        self.has_leftover = false;
    }

    /// What a peer said of the whole at the end.
    pub(super) fn parted(&mut self, node: NodeId, parted: &Parted) {
        let parts = self.from.iter_mut().filter_map(Contributor::peer_mut);
        parts.filter(|part| part.node == node).for_each(|part| part.parted = parted.clone());
    }

    /// The digest doesn't hold: who is to blame, which is remembered of upstreams.
    pub(super) fn have_broken_it(&self) -> Culprit {
        let blame = &self.pull.blame;
        let culprit = if self.has_leftover { Culprit::Unclear } else { culprit(&self.from) };
        match culprit {
            Culprit::Upstream(name) => {
                // When peers alone say so, and not for the first time, their word is worth little: upstream is asked.
                if self.from.iter().all(|known| known.peer().is_some()) && !blame.believes_others(self.digest) {
                    blame.is_unclear(self.digest);
                }
                blame.broke(&name, self.digest);
                Culprit::Upstream(name)
            }
            Culprit::Unclear => match self.broke_it_before().filter(|_| blame.believes_others(self.digest)) {
                Some(name) => Culprit::Likely(name.to_owned()),
                None => {
                    blame.is_unclear(self.digest);
                    Culprit::Unclear
                }
            },
            known => known,
        }
    }

    /// An upstream that is known to have broken this digest, and whose bytes are among these.
    fn broke_it_before(&self) -> Option<&str> {
        let mut names = self.from.iter().flat_map(Contributor::upstreams);
        names.find(|name| self.pull.blame.has_broken(name, &self.digest))
    }

    /// How the blob is recorded: as what came from upstream, as that. What came from peers alone is what they say, and
    /// never more than any of them says.
    pub(super) fn delivery(&self, own: (&Registry, Access)) -> (Registry, Access) {
        if self.has_leftover { owned(own) } else { delivery(&self.from, own) }
    }
}

impl Contributor {
    fn is(&self, source: &Source) -> bool {
        match (self, source) {
            (Self::Upstream(one), Source::Upstream(other)) => Arc::ptr_eq(one, other),
            (Self::Peer(part), Source::Peer(peer)) => part.node == peer.node(),
            _ => false,
        }
    }

    /// The upstreams that its bytes came from, as far as is known.
    fn upstreams(&self) -> impl Iterator<Item = &str> {
        let (own, peers) = match self {
            Self::Upstream(upstream) => (Some(upstream.name()), &[][..]),
            Self::Peer(part) => (None, part.sources.as_slice()),
        };
        own.into_iter().chain(peers.iter().map(String::as_str))
    }

    const fn peer(&self) -> Option<&PeerPart> {
        match self {
            Self::Peer(part) => Some(part),
            Self::Upstream(_) => None,
        }
    }

    const fn peer_mut(&mut self) -> Option<&mut PeerPart> {
        match self {
            Self::Peer(part) => Some(part),
            Self::Upstream(_) => None,
        }
    }
}

fn culprit(from: &[Contributor]) -> Culprit {
    if let [Contributor::Peer(PeerPart { node, parted: Parted::Held, .. })] = from {
        return Culprit::Peer(*node);
    }
    let mut names = BTreeSet::new();
    for contributor in from {
        match contributor {
            Contributor::Upstream(upstream) => drop(names.insert(upstream.name())),
            Contributor::Peer(PeerPart { parted: Parted::Broken(sources), .. }) => {
                names.extend(sources.iter().map(String::as_str));
            }
            // It was right there, or nobody knows: then it may be this one's, or another's.
            Contributor::Peer(_) => return Culprit::Unclear,
        }
    }
    match (names.pop_first(), names.is_empty()) {
        (Some(one), true) => Culprit::Upstream(one.to_owned()),
        _ => Culprit::Unclear,
    }
}

fn delivery(from: &[Contributor], own: (&Registry, Access)) -> (Registry, Access) {
    let peers: Option<Vec<&PeerPart>> = from.iter().map(Contributor::peer).collect();
    let is_closed = |part: &&PeerPart| part.access == Access::Authorized;
    match peers.as_deref() {
        Some(peers) if peers.iter().any(is_closed) => (own.0.clone(), Access::Authorized),
        Some([first, ..]) => (first.registry.clone(), Access::Anonymous),
        Some([]) | None => owned(own),
    }
}

fn owned((registry, access): (&Registry, Access)) -> (Registry, Access) {
    (registry.clone(), access)
}

impl fmt::Display for Suspects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, known) in self.from.iter().enumerate() {
            if n > 0 {
                f.write_str(", ")?;
            }
            match known {
                Contributor::Upstream(upstream) => f.write_str(upstream.name())?,
                Contributor::Peer(part) => write!(f, "peer {}", part.node)?,
            }
        }
        match (self.has_leftover, self.from.is_empty()) {
            (true, true) => f.write_str("an earlier transfer"),
            (true, false) => f.write_str(", an earlier transfer"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(name: &str) -> Registry {
        name.parse().unwrap()
    }

    fn peer(number: u8, access: Access, parted: Parted) -> Contributor {
        let sources = vec!["mirror:443".to_owned()];
        let registry = registry(&format!("r{number}.test"));
        Contributor::Peer(PeerPart { node: NodeId::new([number; 16]), registry, access, sources, parted })
    }

    fn broken(sources: &[&str]) -> Parted {
        Parted::Broken(sources.iter().map(|&source| source.to_owned()).collect())
    }

    #[test]
    fn who_is_to_blame_is_told_by_what_peers_know() {
        let peer = |number, parted| peer(number, Access::Anonymous, parted);
        let upstream = |name: &str| Culprit::Upstream(name.to_owned());
        assert_eq!(culprit(&[peer(1, Parted::Held)]), Culprit::Peer(NodeId::new([1; 16])));
        assert_eq!(culprit(&[peer(1, broken(&["a"]))]), upstream("a"));
        assert_eq!(culprit(&[peer(1, broken(&["a"])), peer(2, broken(&["a"]))]), upstream("a"));
        assert_eq!(culprit(&[peer(1, broken(&["a", "b"]))]), Culprit::Unclear);
        assert_eq!(culprit(&[peer(1, broken(&["a"])), peer(2, broken(&["b"]))]), Culprit::Unclear);
        assert_eq!(culprit(&[peer(1, broken(&["a"])), peer(2, Parted::Held)]), Culprit::Unclear);
        assert_eq!(culprit(&[peer(1, Parted::Unknown)]), Culprit::Unclear);
        assert_eq!(culprit(&[peer(1, broken(&[]))]), Culprit::Unclear);
    }

    #[test]
    fn what_peers_gave_is_recorded_as_no_more_than_they_say() {
        let ours = registry("ours.test");
        let (open, closed) = (Access::Anonymous, Access::Authorized);
        let recorded = |from: &[Contributor], access| delivery(from, (&ours, access));
        let peer = |number, access| peer(number, access, Parted::Unknown);
        assert_eq!(recorded(&[peer(1, open)], closed), (registry("r1.test"), open));
        assert_eq!(recorded(&[peer(1, open)], open), (registry("r1.test"), open));
        assert_eq!(recorded(&[peer(1, closed)], closed), (ours.clone(), closed));
        assert_eq!(recorded(&[peer(1, open), peer(2, closed)], closed), (ours.clone(), closed));
        assert_eq!(recorded(&[], closed), (ours.clone(), closed));
    }
}
