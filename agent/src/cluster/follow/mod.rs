//! One blob's reading on this node: whom to ask, what to read from whom, when to move on, and when to go alone.
//!
//! A [`Follow`] is told what comes (answers, beats, bytes, failures, time), and says what to do ([`Follow::turn`]) and what
//! to send ([`Follow::actions`]). Whatever it waits for has an end: [`Follow::next_deadline`] is known as long as bytes are
//! missing, but for those that upstream is asked for because there is nobody else.
//!
//! Repairs are made by the reader alone: from a parent that fell silent, or is clearly slower than the one beyond it, it
//! goes to the one beyond; without one, to the owner. When nothing has brought bytes nearer for [two seconds](patience), it
//! fetches a piece by itself, and asks again while it does.

mod complaint;
mod lease;
mod meter;
mod parent;
mod patience;
mod ranks;
mod reading;
mod seek;
mod tell;
mod time;
mod troubles;
mod words;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod watched;

use std::collections::VecDeque;
use std::time::Duration;

use crate::cluster::Owners;
use crate::cluster::chain::{Hop, Ticket};
use crate::cluster::directory::{Answer, Answered, State};
use crate::image::NodeId;

use complaint::Complaint;
use lease::Range;
use meter::Meter;
use patience::Patience;
use ranks::Ranks;
use reading::Reading;
use seek::{Candidate, Pending};
use troubles::Troubles;
pub use words::{Action, Opening, Sought, Turn};

/// An owner that hasn't answered for so long is asked no more; the other one is asked. Who gets no verdict for so long at
/// the end of a range goes on for itself. Over links that are full it is [longer](Follow::expect).
const OWNER_IS_LATE: Duration = Duration::from_millis(100);
/// After so many times as long without any answer, a piece is fetched from upstream.
const ANSWERS_ARE_LATE: u32 = 2;
/// When an ask is given up.
const ASK_FAILS: Duration = Duration::from_millis(1_500);
/// The first piece that is fetched without the cluster, to the end of a chunk; each further one is twice as long.
const PIECE: u64 = 4 << 20;
const CHUNK: u64 = 1 << 20;
const LONGEST_PIECE: u64 = 64 << 20;
/// How often a lease holder reports, besides at half of its range and at its end.
const REPORT_EVERY: Duration = Duration::from_millis(200);
/// Who goes alone asks again after so long, then after twice as long, and so on.
const ASK_AGAIN: Duration = Duration::from_millis(1_000);
const ASK_AGAIN_AT_MOST: Duration = Duration::from_secs(16);
/// The same for one who has tried others in vain meanwhile: each try ends what is on its way from upstream, over a link that
/// is so slow that hardly more than that comes from one try to the next.
const ASK_AGAIN_IN_VAIN_AT_MOST: Duration = Duration::from_secs(256);
/// The most upstreams remembered as broken.
const MAX_BROKEN: usize = 16;

/// One blob's reading on this node.
#[derive(Debug)]
pub struct Follow {
    me: NodeId,
    sought: Sought,
    size: Option<u64>,
    frontier: u64,
    ticket: Option<Ticket>,
    source: Source,
    ranks: Ranks,
    pending: Vec<Pending>,
    /// What the next ask says.
    to_the_tail: bool,
    slow: bool,
    /// When the last ask went out, and how many have led nowhere since bytes came.
    asked: Option<Duration>,
    fruitless: u32,
    /// How many peers have fallen silent since.
    losses: u32,
    candidates: VecDeque<Candidate>,
    troubles: Troubles,
    /// Who keeps other readings of this node waiting.
    passed_over: Vec<NodeId>,
    meter: Meter,
    patience: Patience,
    complaint: Complaint,
    /// After which an answer is late.
    late: Duration,
    /// So much more could come over this node's link.
    room: u64,
    /// Who was read from for no other reason.
    tried_for_room: Option<NodeId>,
    /// It gave this node no more than the one before: that there is room says nothing of this blob.
    room_is_refuted: bool,
    /// By how much those who read from here lag.
    readers_lag: u64,
    moved: Option<Duration>,
    stays_until: Duration,
    upstream_rests_until: Duration,
    upstream_has_failed: bool,
    ask_again: Duration,
    /// How far it was when it left off fetching for itself, to try another.
    left_own_at: Option<u64>,
    told_reading: Duration,
    /// Both owners are to be told of the end.
    told_both: bool,
    numbers: u64,
    is_answered: bool,
    broken_sources: Vec<String>,
    is_over: bool,
    actions: Vec<Action>,
}

/// Where bytes come from.
#[derive(Debug)]
enum Source {
    Nothing,
    /// From upstream, for the chain.
    Lease(Range),
    /// From upstream, for this node.
    Own {
        upto: u64,
        span: u64,
        /// When the owner is asked again; never where there is none.
        ask_at: Option<Duration>,
    },
    Peer(Box<Reading>),
}

impl Follow {
    /// Begins, by asking. `frontier`: every byte before it is here already; `owners`: of the blob's bucket.
    #[must_use]
    pub fn new(now: Duration, me: NodeId, sought: Sought, size: Option<u64>, frontier: u64, owners: Owners) -> Self {
        let mut follow = Self {
            me,
            sought,
            size,
            frontier,
            ticket: None,
            source: Source::Nothing,
            ranks: Ranks::new(owners),
            pending: Vec::new(),
            to_the_tail: false,
            slow: false,
            asked: None,
            fruitless: 0,
            losses: 0,
            candidates: VecDeque::new(),
            troubles: Troubles::default(),
            passed_over: Vec::new(),
            meter: Meter::new(now, frontier),
            patience: Patience::new(now),
            complaint: Complaint::default(),
            late: OWNER_IS_LATE,
            room: 0,
            tried_for_room: None,
            room_is_refuted: false,
            readers_lag: 0,
            moved: None,
            stays_until: Duration::ZERO,
            upstream_rests_until: Duration::ZERO,
            upstream_has_failed: false,
            ask_again: ASK_AGAIN,
            left_own_at: None,
            told_reading: now,
            told_both: false,
            numbers: 0,
            is_answered: false,
            broken_sources: Vec::new(),
            is_over: false,
            actions: Vec::new(),
        };
        follow.ask(now);
        follow
    }

    /// What to do now.
    #[must_use]
    pub fn turn(&self) -> Turn {
        if self.is_over || self.has_all() {
            return Turn::Wait;
        }
        match &self.source {
            Source::Nothing => Turn::Wait,
            Source::Lease(range) if self.frontier >= range.upto => Turn::Wait,
            Source::Lease(range) => Turn::Upstream { upto: range.upto },
            Source::Own { upto, .. } => Turn::Upstream { upto: *upto },
            Source::Peer(reading) => Turn::Peer(reading.opening),
        }
    }

    /// What is to be sent, and told to [`Serve`](crate::cluster::serve::Serve), since the last call, in order. To be called
    /// after every other call.
    pub fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Answers take longer than usual, or no longer: an owner's is late after this time, as [`Delays::late`] says.
    ///
    /// [`Delays::late`]: crate::cluster::Delays::late
    pub const fn expect(&mut self, late: Duration) {
        self.late = late;
    }

    /// Over this node's link so much more could come, in bytes a second, as [`Intake::room`] says.
    ///
    /// [`Intake::room`]: crate::cluster::Intake::room
    pub const fn link_has_room(&mut self, room: u64) {
        self.room = room;
    }

    /// Those who read from this node lag by so many bytes: the furthest of them.
    pub const fn readers_lag(&mut self, bytes: u64) {
        self.readers_lag = bytes;
    }

    /// An owner has answered.
    pub fn answered(&mut self, now: Duration, number: u64, answered: Answered) {
        let Some(at) = self.pending.iter().position(|pending| pending.number == number) else { return };
        let pending = self.pending.swap_remove(at);
        self.ranks.answers(pending.owner);
        self.is_answered |= !matches!(answered.answer, Answer::NotOwner(_));
        for source in answered.broken_sources {
            if self.broken_sources.len() < MAX_BROKEN && !self.broken_sources.contains(&source) {
                self.broken_sources.push(source);
            }
        }
        if self.is_over {
            return;
        }
        if self.has_lease_of_other(pending.owner) && !self.ranks.is_second(pending.owner) {
            self.return_to_first(now, pending.owner, &answered.answer);
            return;
        }
        if self.is_about_complaint(number) {
            self.complaint_answered(now, pending.owner, answered.answer);
            return;
        }
        if self.is_served(now) {
            // The other owner was faster. This one is to forget the place that it gave; if it is the first, it is to know of
            // the place that counts, above which its next ones have to be.
            if let Answer::Fetch { .. } | Answer::Read { .. } = answered.answer {
                let reads = matches!(self.source, Source::Peer(_)) && !self.ranks.is_second(pending.owner);
                self.tell(now, pending.owner, if reads { State::Reading } else { State::Gone });
            }
            return;
        }
        match answered.answer {
            Answer::NotOwner(Some(owner)) if pending.redirects < seek::MAX_REDIRECTS && owner != self.me => {
                self.redirected(now, &pending, owner);
            }
            Answer::NotOwner(_) => self.owner_failed(now, &pending),
            Answer::Fetch { ticket, lease, upto } => {
                self.place(ticket);
                let range = Range::new(now, pending.owner, lease, self.frontier, upto);
                let is_over = range.waits.is_some();
                self.source = Source::Lease(range);
                if is_over {
                    self.report_lease(now);
                }
            }
            Answer::Read { ticket, parents, ahead } => {
                self.place(ticket);
                if self.fruitless == 0 {
                    self.patience.stand_behind(ahead);
                }
                let is_no_use = parents.iter().all(|node| self.is_passed_over(*node));
                if self.fruitless > 0 && is_no_use && !parents.is_empty() {
                    // The owner was told, takes them for full, and would name them again.
                    self.go_alone(now);
                    return;
                }
                let insists = self.fruitless > 1;
                self.candidates =
                    parents.into_iter().map(|node| Candidate { insists, ..Candidate::of(node) }).collect();
                if !self.try_next(now) {
                    self.find_nothing(now);
                }
            }
            Answer::Alone { .. } => self.go_alone(now),
        }
    }

    /// An owner didn't answer, can't be reached, or is being left alone.
    pub fn unanswered(&mut self, now: Duration, number: u64) {
        let Some(at) = self.pending.iter().position(|pending| pending.number == number) else { return };
        let pending = self.pending.swap_remove(at);
        self.owner_failed(now, &pending);
    }

    /// The owners of the blob have changed. The new ones are told what this node does.
    pub fn owners_changed(&mut self, now: Duration, owners: Owners) {
        let before = self.ranks.owners();
        if before == owners {
            return;
        }
        self.ranks.change(owners);
        if self.is_over || before.first == owners.first {
            return;
        }
        match (&mut self.source, owners.first) {
            (Source::Lease(range), Some(first)) => {
                range.owner = first;
                self.report_lease(now);
            }
            (Source::Peer(_), Some(_)) => self.tell_reading(now),
            (Source::Own { ask_at, .. }, first) => *ask_at = first.map(|_| now),
            _ => {}
        }
    }

    /// The blob has so many bytes.
    pub const fn learnt_size(&mut self, size: u64) {
        self.size = Some(size);
    }

    /// Every byte before `frontier` is here.
    pub fn arrived(&mut self, now: Duration, frontier: u64) {
        if frontier <= self.frontier {
            return;
        }
        self.frontier = frontier;
        self.meter.arrived(now, frontier);
        self.patience.sign(now);
        self.fruitless = 0;
        self.losses = 0;
        let has_all = self.has_all();
        match &mut self.source {
            Source::Lease(range) => {
                let is_half = frontier.saturating_sub(range.from) >= range.upto.saturating_sub(range.from) / 2;
                let is_end = frontier >= range.upto;
                if has_all {
                    // What is left to say is that all of it holds.
                } else if range.has_ended {
                    self.yield_or_go_on(now);
                } else if is_end && range.waits.is_none() {
                    range.waits = Some(now);
                    self.report_lease(now);
                } else if is_half && !range.told_half {
                    range.told_half = true;
                    self.report_lease(now);
                }
            }
            Source::Own { upto, span, .. } => {
                // Nobody has helped meanwhile: on without a pause.
                if frontier.saturating_add(*span / 2) >= *upto {
                    *span = (*span * 2).min(LONGEST_PIECE);
                    // It may have leapt, over what a reader far ahead or an earlier process had fetched.
                    *upto = (*upto).max(piece_after(frontier)).saturating_add(*span);
                }
            }
            Source::Peer(reading) => {
                reading.hear(now);
                reading.fed_since.get_or_insert(now);
                self.complaint.fed(now);
            }
            Source::Nothing => {}
        }
    }

    /// All of it is here and verified.
    pub fn is_whole(&mut self, now: Duration) {
        self.end(now, State::Whole);
    }

    /// The digest broke: the upstreams that the bytes came from, as far as known, or the node whose own copy was right.
    pub fn broke(&mut self, now: Duration, sources: Vec<String>, node: Option<NodeId>) {
        self.end(now, State::Broken { sources, node });
    }

    /// The pull is given up.
    pub fn leave(&mut self, now: Duration) {
        self.end(now, State::Gone);
    }

    /// This node's place.
    #[must_use]
    pub const fn ticket(&self) -> Option<Ticket> {
        self.ticket
    }

    /// Whom this node reads from, and so on up to the root, for [`Serve::beat`](crate::cluster::serve::Serve::beat).
    #[must_use]
    pub fn path(&self) -> &[Hop] {
        match &self.source {
            Source::Peer(reading) => &reading.path,
            _ => &[],
        }
    }

    /// Bytes a second that come in.
    #[must_use]
    pub fn rate(&self, now: Duration) -> u64 {
        // Truncating: nobody needs parts of a byte.
        self.meter.rate(now) as u64
    }

    /// Whether that node was left within seconds because nothing was heard of it.
    #[must_use]
    pub fn takes_for_silent(&self, now: Duration, node: NodeId) -> bool {
        self.troubles.is_silent(now, node)
    }

    /// Whether an owner has said what it knows of the blob.
    #[must_use]
    pub const fn is_answered(&self) -> bool {
        self.is_answered
    }

    /// Upstreams that broke this digest for some node within the hour, as far as owners told.
    #[must_use]
    pub fn broken_sources(&self) -> &[String] {
        &self.broken_sources
    }

    fn has_all(&self) -> bool {
        self.size.is_some_and(|size| self.frontier >= size)
    }

    /// Is there a source that another answer shouldn't take away?
    const fn is_served(&self, _now: Duration) -> bool {
        matches!(self.source, Source::Lease(_) | Source::Peer(_))
    }

    fn place(&mut self, ticket: Ticket) {
        self.to_the_tail = false;
        self.slow = false;
        if self.ticket.replace(ticket) != Some(ticket) {
            self.actions.push(Action::Placed(ticket));
        }
    }
}

/// Where a piece ends that begins here: with a chunk, of which what is left would be fetched twice.
const fn piece_after(at: u64) -> u64 {
    at.saturating_add(PIECE) / CHUNK * CHUNK
}
