//! An owner's table: who has what whole, who reads what from whom, who fetches it, and what tags mean.

mod words;

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;

use crate::cluster::Ring;
use crate::image::NodeId;

pub use words::{
    Announced, Answer, Answered, Ask, AskId, Effect, Holding, Released, Report, Shelf, State, TagAnswer, TagAsk,
    TagKey, TagMeaning, Verdict,
};

/// The part of the cluster's table that this node owns. All of it is in memory, bounded, and lost when the process ends.
#[derive(Debug)]
pub struct Directory {}

impl Directory {
    /// An empty one. `run`: a random number of this process.
    #[must_use]
    pub fn new(_ring: Arc<Ring>, _run: u64) -> Self {
        Self {}
    }

    /// `from` asks for a blob. Answered at once or later; at the latest when [`Self::next_deadline`] has passed.
    pub fn ask(&mut self, _now: Duration, _rng: &mut impl Rng, _id: AskId, _from: NodeId, _ask: Ask) -> Vec<Effect> {
        Vec::new()
    }

    /// `from` says how far it is.
    pub fn report(
        &mut self,
        _now: Duration,
        _rng: &mut impl Rng,
        _from: NodeId,
        _report: &Report,
    ) -> (Verdict, Vec<Effect>) {
        (Verdict { upto: None }, Vec::new())
    }

    /// `from` says what it holds.
    pub fn announce(&mut self, _now: Duration, _from: NodeId, _shelves: Vec<Shelf>) -> Announced {
        Announced::default()
    }

    /// `from` asks for a tag. Answered at once, or within a second.
    pub fn ask_tag(
        &mut self,
        _now: Duration,
        _rng: &mut impl Rng,
        _id: AskId,
        _from: NodeId,
        _ask: TagAsk,
    ) -> Vec<Effect> {
        Vec::new()
    }

    /// What upstream said to who had the lease of a tag; `None`: nothing that others may share.
    pub fn report_tag(
        &mut self,
        _now: Duration,
        _rng: &mut impl Rng,
        _key: &TagKey,
        _lease: Lease,
        _meaning: Option<TagMeaning>,
    ) -> Vec<Effect> {
        Vec::new()
    }

    /// The newest answer that is known of a tag.
    #[must_use]
    pub fn newest_tag(&self, _now: Duration, _key: &TagKey) -> Option<TagMeaning> {
        None
    }

    /// Whoever asked doesn't wait any more.
    pub fn forget_ask(&mut self, _id: AskId) {}

    /// A member is down: all that is known of it goes.
    pub fn member_down(&mut self, _now: Duration, _rng: &mut impl Rng, _node: NodeId) -> Vec<Effect> {
        Vec::new()
    }

    /// Members have come or gone, or owners changed.
    pub fn ring_changed(&mut self, _now: Duration, _ring: Arc<Ring>) -> Vec<Effect> {
        Vec::new()
    }

    /// Time has passed.
    pub fn tick(&mut self, _now: Duration, _rng: &mut impl Rng) -> Vec<Effect> {
        Vec::new()
    }

    /// When to call [`Self::tick`] next, at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        None
    }
}

use crate::cluster::chain::Lease;
