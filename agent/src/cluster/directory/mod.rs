//! An owner's table: who has what whole, who reads what from whom, who fetches it, and what tags mean.
//!
//! [`Directory::ask`] is the one question that a reader has. The answer gives it a place in the blob's chain, a [`Ticket`],
//! and either somebody to read from, or the lease to fetch a range from upstream. Newcomers read from the chain's end;
//! the lowest place fetches. A lease is on a range: its holder reports, and goes on when it did as well as the others of
//! late, or gives way to the next in the chain, and goes to the end itself. So a slow holder costs one range.
//!
//! The table is what its members tell, and is lost with the process: what a node that isn't known any more says under its
//! old ticket brings it back.
//!
//! [`Ticket`]: super::chain::Ticket

mod broken;
mod chain;
mod lease;
mod members;
mod place;
mod rates;
mod shelves;
mod tags;
mod words;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;

use crate::cluster::chain::{Ailment, Key, Lease};
use crate::cluster::{Member, Ring};
use crate::image::{NodeId, Zone};

pub use broken::bucket_of_upstream;
use broken::{Broken, Suspects};
use chain::{Chain, Known};
pub use place::PASSED_ON_WHOLE;
pub(crate) use place::fan_out;
use rates::Rates;
use shelves::Shelves;
use tags::Tags;
pub use words::{
    Announced, Answer, Answered, Ask, AskId, Effect, Holding, Released, Report, Shelf, State, TagAnswer, TagAsk,
    TagKey, TagMeaning, Verdict,
};

/// How often a reader tells its owner that it reads, and from whom.
pub const REPORT_READING_EVERY: Duration = Duration::from_secs(30);

/// The most chains that are known at a time.
const MAX_CHAINS: usize = 8_192;
/// How often it is looked for leases that are overdue, while there are any, and for what has expired.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// The part of the cluster's table that this node owns. All of it is in memory, bounded, and lost when the process ends.
#[derive(Debug)]
pub struct Directory {
    me: NodeId,
    run: u64,
    ring: Arc<Ring>,
    shelves: Shelves,
    chains: HashMap<Key, Chain>,
    rates: Rates,
    broken: Broken,
    suspects: Suspects,
    tags: Tags,
    /// Leases are held, or asks.
    is_busy: bool,
    /// So many leases, when it was last counted.
    leases: u32,
    looked: Duration,
    swept: Duration,
}

impl Directory {
    /// An empty one. `run`: a random number of this process.
    #[must_use]
    pub fn new(me: NodeId, ring: Arc<Ring>, run: u64) -> Self {
        Self {
            me,
            run,
            ring,
            shelves: Shelves::default(),
            chains: HashMap::new(),
            rates: Rates::default(),
            broken: Broken::default(),
            suspects: Suspects::default(),
            tags: Tags::default(),
            is_busy: false,
            leases: 0,
            looked: Duration::ZERO,
            swept: Duration::ZERO,
        }
    }

    /// `from` asks for a blob. The answer is among the effects.
    pub fn ask(&mut self, now: Duration, rng: &mut impl Rng, id: AskId, from: NodeId, ask: &Ask) -> Vec<Effect> {
        let answer = self.answer(now, rng, from, ask);
        let broken_sources = self.broken.of(now, &ask.key.digest);
        vec![Effect::Answer { to: id, answered: Answered { answer, broken_sources } }]
    }

    fn answer(&mut self, now: Duration, rng: &mut impl Rng, from: NodeId, ask: &Ask) -> Answer {
        let owners = self.ring.owners_of(&ask.key.digest);
        let is_mine = owners.first == Some(self.me) || (owners.second == Some(self.me) && ask.owner_failed);
        if !is_mine {
            return Answer::NotOwner(owners.first);
        }
        for trouble in &ask.troubles {
            match trouble.why {
                Ailment::Absent => self.shelves.is_absent(now, trouble.node, &ask.key),
                Ailment::Wrong => self.shelves.is_wrong(now, trouble.node, &ask.key.digest),
                Ailment::Slow => self.shelves.is_slow(now, trouble.node, &ask.key.digest),
                _ => {}
            }
        }
        // Who asks hasn't got it.
        self.shelves.is_absent(now, from, &ask.key);
        let leap = owners.first != Some(self.me);
        let Some(chain) = chain_of(&mut self.chains, now, &ask.key, leap) else {
            return Answer::Alone { absent: false };
        };
        let holders = self.shelves.holders(now, rng, &ask.key).into_iter();
        let holders: Vec<(NodeId, &Zone)> =
            holders.filter_map(|node| self.ring.member(node).map(|member| (node, &member.zone))).collect();
        let mut known = Known { holders: &holders, rates: &mut self.rates, at_once: self.leases };
        let answer = chain.ask(now, rng, self.run, from, ask, &mut known);
        self.is_busy |= chain.leases.any();
        if let Answer::Read { parents, .. } = &answer
            && let Some(parent) = parents.first()
        {
            self.shelves.send_to(now, *parent, &ask.key.digest);
        }
        answer
    }

    /// `from` says how far it is.
    pub fn report(&mut self, now: Duration, from: NodeId, report: &Report) -> Verdict {
        let key = &report.key;
        let owners = self.ring.owners_of(&key.digest);
        if !owners.contains(self.me) && !self.chains.contains_key(key) {
            return if report.lease.is_some() { Verdict::Ended } else { Verdict::Noted };
        }
        if let State::Broken { sources, node } = &report.state {
            self.broken.told(now, &key.digest, sources);
            if let Some(node) = node {
                self.shelves.is_wrong(now, *node, &key.digest);
            }
        }
        if report.state == State::Whole {
            self.shelves.became_whole(now, &self.ring, from, key);
        }
        let leap = owners.first != Some(self.me);
        let begins = matches!(report.state, State::Fetching | State::Reading);
        let chain = if begins { chain_of(&mut self.chains, now, key, leap) } else { self.chains.get_mut(key) };
        let Some(chain) = chain else { return Verdict::Noted };
        let verdict = match &report.state {
            State::Fetching if leap && chain.yields_to_first(now, from) => Verdict::Ended,
            State::Fetching => chain.fetching(now, self.run, from, report, &mut self.rates, self.leases),
            State::Reading => {
                chain.reading(now, self.run, from, report);
                Verdict::Noted
            }
            State::Released(why) => {
                chain.released(now, from, report, *why);
                Verdict::Noted
            }
            State::Whole | State::Gone | State::Broken { .. } => {
                chain.leaves(now, from);
                Verdict::Noted
            }
        };
        self.is_busy |= chain.leases.any();
        verdict
    }

    /// `from` says what it holds.
    pub fn announce(&mut self, now: Duration, from: NodeId, shelves: Vec<Shelf>) -> Announced {
        let mut announced = Announced::default();
        for shelf in shelves {
            let bucket = shelf.bucket;
            if !self.ring.owners(bucket).contains(self.me) {
                announced.not_owned.push(bucket);
            } else if !self.shelves.told(now, &self.ring, from, shelf) {
                announced.unknown.push(bucket);
            }
        }
        announced
    }

    /// An upstream broke a digest for some node. To be told to the owners of its [bucket](bucket_of_upstream).
    pub fn upstream_broke(&mut self, now: Duration, upstream: &str) {
        self.suspects.broke(now, upstream);
    }

    /// Whether an upstream is said to have done so within the hour.
    #[must_use]
    pub fn is_suspect(&self, now: Duration, upstream: &str) -> bool {
        self.suspects.has(now, upstream)
    }

    /// `from` asks for a tag. Answered at once, or within 1.5 seconds.
    pub fn ask_tag(&mut self, now: Duration, rng: &mut impl Rng, id: AskId, from: NodeId, ask: &TagAsk) -> Vec<Effect> {
        let owners = self.ring.owners(ask.key.bucket());
        let is_mine = owners.first == Some(self.me) || (owners.second == Some(self.me) && ask.owner_failed);
        if !is_mine {
            return vec![Effect::Tag { to: id, answer: TagAnswer::NotOwner(owners.first) }];
        }
        let effects = self.tags.ask(now, rng, id, from, ask);
        self.is_busy |= self.tags.waits();
        effects
    }

    /// What upstream said to who had the lease of a tag; no meaning: nothing that others may share. `None` when `from` was
    /// given no such lease here: its word counts for nothing.
    pub fn report_tag(
        &mut self,
        now: Duration,
        rng: &mut impl Rng,
        from: NodeId,
        (key, lease): (&TagKey, Lease),
        meaning: Option<TagMeaning>,
    ) -> Option<Vec<Effect>> {
        self.tags.told(now, rng, from, (key, lease), meaning)
    }

    /// `from` still asks upstream under its lease of a tag.
    pub fn still_asks_tag(&mut self, now: Duration, from: NodeId, key: &TagKey, lease: Lease) {
        self.tags.still_asks(now, from, key, lease);
    }

    /// The newest answer that is known of a tag, however old.
    #[must_use]
    pub fn newest_tag(&self, now: Duration, key: &TagKey) -> Option<TagMeaning> {
        self.tags.newest(now, key)
    }

    /// Whoever asked doesn't wait any more.
    pub fn forget_ask(&mut self, id: AskId) {
        self.tags.forget_ask(id);
    }

    /// Whom it takes for members.
    #[cfg(test)]
    pub fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }

    /// Members have come or gone, or owners changed. What is known of who has gone goes.
    pub fn ring_changed(&mut self, now: Duration, rng: &mut impl Rng, ring: Arc<Ring>) -> Vec<Effect> {
        let before = std::mem::replace(&mut self.ring, ring);
        let mut effects = Vec::new();
        for member in before.members() {
            let restarted = |now: &Member| now.start != member.start;
            if self.ring.member(member.node).is_none_or(restarted) {
                effects.append(&mut self.member_down(now, rng, member.node));
            }
        }
        effects
    }

    /// A member is down, or was started anew: all that is known of it goes.
    fn member_down(&mut self, now: Duration, rng: &mut impl Rng, node: NodeId) -> Vec<Effect> {
        self.shelves.forget_node(node);
        for chain in self.chains.values_mut() {
            chain.lose(now, node);
        }
        self.tags.forget_node(now, rng, node)
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration, rng: &mut impl Rng) -> Vec<Effect> {
        self.looked = now;
        self.is_busy = self.tags.waits();
        let mut leases = 0;
        for chain in self.chains.values_mut().filter(|chain| chain.leases.any()) {
            chain.tick(now);
            leases += chain.leases.len();
            self.is_busy = true;
        }
        self.leases = u32::try_from(leases).unwrap_or(u32::MAX);
        if now.saturating_sub(self.swept) >= SWEEP_EVERY {
            self.swept = now;
            let Self { shelves, ring, chains, me, .. } = self;
            shelves.sweep(now, |bucket| ring.owners(bucket).contains(*me));
            chains.retain(|_, chain| !chain.sweep(now));
            self.rates.sweep(now);
            self.broken.sweep(now);
            self.suspects.sweep(now);
            self.tags.sweep(now);
        }
        self.tags.tick(now, rng)
    }

    /// When to call [`Self::tick`] next, at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Duration {
        if self.is_busy { self.looked + LOOK_EVERY } else { self.swept + SWEEP_EVERY }
    }

    /// The leases that are held on a blob: who, from where to which byte.
    pub fn leases(&self, key: &Key) -> impl Iterator<Item = (NodeId, u64, u64)> {
        let leases = self.chains.get(key).map(|chain| chain.leases.iter());
        leases.into_iter().flatten().map(|held| (held.node, held.frontier, held.upto))
    }

    /// How many chains and holdings are known.
    #[must_use]
    pub fn len(&self) -> (usize, usize) {
        (self.chains.len(), self.shelves.len())
    }
}

/// The chain of `key`, begun if there is none. `None`: there are too many, all in use.
fn chain_of<'a>(chains: &'a mut HashMap<Key, Chain>, now: Duration, key: &Key, leap: bool) -> Option<&'a mut Chain> {
    if chains.len() >= MAX_CHAINS && !chains.contains_key(key) {
        let idle = chains.iter().filter(|(_, chain)| chain.readers.len() == 0);
        let oldest = idle.min_by_key(|(_, chain)| chain.touched).map(|(key, _)| key.clone())?;
        chains.remove(&oldest);
    }
    Some(chains.entry(key.clone()).or_insert_with(|| Chain::new(now, leap)))
}
