//! Who is a member of the cluster.
//!
//! The protocol is SWIM, by `foca`: each member probes another one every second, and what is found out travels along
//! with the probes and in gossip. This folder puts it into a machine without IO ([`Members`]) and adds what a cluster
//! of agents needs besides:
//!
//! - *Knocking.* A seed is an address; who lives there is asked first (`packet.rs`).
//! - *The roll* (`roll.rs`). Members hold against each other what they know. It tells a newcomer a thousand members
//!   within a second, where gossip takes a minute, and mends what gossip missed.
//! - *Settling* (`known.rs`). Who has been a member for 5 s may own buckets. A newcomer learns from the roll who has.
//! - *Doubts* (`doubt.rs`). A node that doesn't answer others' requests is probed at once.
//! - *Twins* (`twin.rs`). Two that claim the same node, from a disk that was cloned, are found out, and the one that
//!   started first yields.
//! - *Lives* (`life.rs`). A node that moves, or was taken for dead, goes on in a later life; one that leaves says so in its
//!   last.
//! - *Search* (`search.rs`). When to ask the seeds again.

mod agenda;
mod doubt;
mod identity;
mod known;
mod life;
mod packet;
mod roll;
mod search;
#[cfg(test)]
mod tests;
mod tuning;
mod twin;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use foca::{Foca, NoCustomBroadcast, OwnedNotification, PostcardCodec};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng as _};

use crate::image::NodeId;

use agenda::{Agenda, Task};
use doubt::Doubt;
use known::{Known, Renamed};
use packet::{Packet, SWIM_OVERHEAD};
use roll::Roll;
use twin::Standing;

pub use identity::{Identity, Run};
pub use known::Member;
pub use search::Search;

/// For how long a member has to be up before it may own buckets.
const SETTLE_AFTER: Duration = Duration::from_secs(5);
/// Who is taken for dead again and again comes back no more often than this.
const BETWEEN_RENEWALS: Duration = Duration::from_secs(1);
/// Below this a packet could not hold two identities and one update.
const SMALLEST_PACKET: usize = 512;

type Swim = Foca<Identity, PostcardCodec, SmallRng, NoCustomBroadcast>;

/// What a machine wants done, or has found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send these bytes there, sealed.
    Send {
        /// Where to.
        to: SocketAddr,
        /// At most as many bytes as the machine was told.
        packet: Vec<u8>,
    },
    /// It has joined, or has come back.
    Up(Member),
    /// It has died, as far as anybody knows.
    Down(Member),
    /// It has said good-bye.
    Left(Member),
    /// It has been started anew, while it was thought to be up.
    Restarted(Member),
    /// It goes on at another address.
    Moved(Member),
    /// This node was taken for dead, and has said that it isn't.
    Renewed,
    /// Somebody else claims to be this node: a disk has been cloned. Told at most once in ten minutes.
    Twin {
        /// Where it is.
        addr: SocketAddr,
        /// It started later, so this node is no member for as long as the other is there.
        yielded: bool,
    },
}

/// What isn't a packet of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPacket {
    /// It doesn't decode.
    #[error("not a packet of a member, or one of a later version")]
    Unreadable,
}

/// One node's part in the membership.
///
/// Time is given as what has passed since some moment, the same for all calls, and never goes back. After each call
/// take all [`Self::effect`]s, and call [`Self::pass`] when [`Self::due`] says.
pub struct Members {
    me: Identity,
    /// The largest packet to be sent, in bytes.
    packet: NonZeroUsize,
    swim: Swim,
    rng: SmallRng,
    known: Known,
    agenda: Agenda,
    effects: VecDeque<Effect>,
    roll: Roll,
    doubts: BTreeMap<NodeId, Doubt>,
    standing: Standing,
    settled: bool,
    /// When this node last came back.
    renewed: Option<Duration>,
    /// When a twin was last told of.
    twin_told: Option<Duration>,
    /// Whose packet is being looked at: who says that this node is dead is told first that it isn't.
    sender: Option<Identity>,
    /// The number of members, rounded, that SWIM's figures are for.
    tuned_for: usize,
}

impl Members {
    /// A member that knows nobody. Packets to send have at most `packet` bytes, which are at least 512.
    #[must_use]
    pub fn new(me: Identity, packet: NonZeroUsize, now: Duration, rng: &mut impl Rng) -> Self {
        let packet = packet.max(const { NonZeroUsize::new(SMALLEST_PACKET).unwrap() });
        let mut rng = SmallRng::from_rng(rng);
        let swim = swim(&me, packet, &mut rng);
        let mut agenda = Agenda::default();
        agenda.add(now + SETTLE_AFTER, Task::SettleMe);
        Self {
            me,
            packet,
            swim,
            rng,
            known: Known::default(),
            agenda,
            effects: VecDeque::new(),
            roll: Roll::default(),
            doubts: BTreeMap::new(),
            standing: Standing::Member,
            settled: false,
            renewed: None,
            twin_told: None,
            sender: None,
            tuned_for: 1,
        }
    }

    /// This node as it introduces itself now.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.me
    }

    /// All that are up, this node among them.
    pub fn members(&self) -> impl Iterator<Item = Member> {
        let me = Member {
            node: self.me.node(),
            addr: self.me.socket(),
            zone: self.me.zone(),
            start: self.me.run().start,
            settled: self.settled,
        };
        std::iter::once(me).chain(self.known.members())
    }

    /// How many others are up.
    #[must_use]
    pub const fn others(&self) -> usize {
        self.known.count()
    }

    /// A number that grows with every change of what [`Self::members`] gives.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.known.generation()
    }

    /// The next thing to do, in order; `None` when all has been taken.
    pub fn effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call [`Self::pass`] at the latest.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.agenda.next()
    }

    /// Time has passed: does what is due.
    pub fn pass(&mut self, now: Duration) {
        while let Some(task) = self.agenda.pop(now) {
            match task {
                Task::Swim(timer) => self.pass_swim(now, timer),
                Task::SettleMe => {
                    self.settled = true;
                    self.known.touch();
                }
                Task::Settle { node, start } => {
                    self.known.settle(node, start);
                }
                Task::Roll { turn } => self.call_roll(now, turn),
                Task::Doubt(node) => self.look_at_doubt(now, node),
                Task::Bury { identity, incarnation } => self.bury(now, identity, incarnation),
                Task::Renew => self.go_on_as(now, self.me.renewed()),
                Task::Twin => self.look_at_twin(now),
            }
        }
    }

    /// A packet has come. Where from is said in it.
    ///
    /// # Errors
    /// When it can't be read; it is ignored then.
    pub fn receive(&mut self, now: Duration, packet: &[u8]) -> Result<(), BadPacket> {
        let packet = postcard::from_bytes(packet).map_err(|_| BadPacket::Unreadable)?;
        if matches!(self.standing, Standing::Left) {
            return Ok(());
        }
        if let Packet::Knock(from)
        | Packet::Here(from)
        | Packet::Known(from)
        | Packet::Roll { from, .. }
        | Packet::Page(packet::Page { from, .. }) = &packet
            && from.node() == self.me.node()
        {
            if matches!(packet, Packet::Knock(_)) && from.socket() != self.me.socket() {
                self.send(from.socket(), &Packet::Here(self.me.clone()));
            }
            self.meet_self(now, from, !matches!(packet, Packet::Known(_)));
            return Ok(());
        }
        if !self.standing.takes_part() {
            return Ok(());
        }
        match packet {
            Packet::Swim(bytes) => return self.receive_swim(now, bytes),
            Packet::Knock(from) => {
                self.heard_of(from.node());
                self.send(from.socket(), &Packet::Here(self.me.clone()));
            }
            Packet::Here(from) => {
                self.heard_of(from.node());
                if !self.is_outlived(&from) && !self.known.is_up(&from) {
                    let _ = self.swim(now, |swim, out| swim.announce(from, out));
                }
            }
            // Others' lives are told by gossip.
            Packet::Known(_) => {}
            Packet::Roll { from, sums } => {
                self.heard_of(from.node());
                self.answer_roll(&from, sums);
            }
            Packet::Page(page) => {
                self.heard_of(page.from.node());
                self.read_page(now, page);
            }
        }
        Ok(())
    }

    /// Asks an address who is there, and joins its cluster.
    pub fn knock(&mut self, to: SocketAddr) {
        if self.standing.takes_part() && to != self.me.socket() {
            self.send(to, &Packet::Knock(self.me.clone()));
        }
    }

    fn pass_swim(&mut self, now: Duration, timer: foca::Timer<Identity>) {
        match &timer {
            foca::Timer::RemoveDown(identity) => self.known.forget(identity),
            // SWIM would let stand who has contradicted, and tell it that it is dead all the same.
            foca::Timer::ChangeSuspectToDown { member_id, incarnation, .. }
                if self.state_of(member_id) != Some((foca::State::Suspect, *incarnation)) =>
            {
                return;
            }
            _ => {}
        }
        // What fails here is a probe that was cut short because this process was: it begins another.
        let _ = self.swim(now, |swim, out| swim.handle_timer(timer, out));
    }

    fn receive_swim(&mut self, now: Duration, bytes: &[u8]) -> Result<(), BadPacket> {
        let (header, updates) = packet::peek(bytes).ok_or(BadPacket::Unreadable)?;
        if header.src.node() == self.me.node() {
            self.meet_self(now, &header.src, true);
            return Ok(());
        }
        if self.is_outlived(&header.src) {
            return Ok(());
        }
        // SWIM would declare it dead in our name, it us in its own, and so on.
        let later =
            updates.iter().map(foca::Member::id).find(|id| id.node() == self.me.node() && id.outlives(&self.me));
        if let Some(later) = later {
            self.meet_self(now, later, false);
            return Ok(());
        }
        self.heard_of(header.src.node());
        self.sender = Some(header.src);
        let result = self.swim(now, |swim, out| swim.handle_data(bytes, out));
        self.sender = None;
        result.map_err(|_| BadPacket::Unreadable)
    }

    /// Is that life of a node over? Then it is told so: perhaps it is a twin, or its clock was set back.
    fn is_outlived(&mut self, identity: &Identity) -> bool {
        let node = identity.node();
        let known = self.known.identity(node).or_else(|| {
            // One that was dead when it was first heard of is known to SWIM alone.
            self.swim.iter_membership_state().map(foca::Member::id).find(|id| id.node() == node)
        });
        let Some(known) = known.filter(|known| known.outlives(identity)) else { return false };
        // Of the same process it was merely late.
        if known.run().start != identity.run().start || known.socket() != identity.socket() {
            let packet = Packet::Known(known.clone());
            self.send(identity.socket(), &packet);
        }
        true
    }

    /// Lets SWIM do something, and takes in what came of it.
    fn swim<T>(
        &mut self,
        now: Duration,
        act: impl FnOnce(&mut Swim, &mut Outbox<'_>) -> Result<T, foca::Error>,
    ) -> Result<T, foca::Error> {
        let mut outbox = Outbox { now, agenda: &mut self.agenda, effects: &mut self.effects, notes: Vec::new() };
        let result = act(&mut self.swim, &mut outbox);
        for note in outbox.notes {
            self.note(now, &note);
        }
        result
    }

    fn note(&mut self, now: Duration, note: &OwnedNotification<Identity>) {
        match note {
            OwnedNotification::MemberUp(identity) => {
                let Some(member) = self.known.rise(identity) else { return };
                self.settle_later(now, &member);
                self.effects.push_back(Effect::Up(member));
                if self.known.count() == 1 {
                    self.begin_roll(now);
                }
                self.roll_soon(now);
            }
            OwnedNotification::MemberDown(identity) => {
                let Some(member) = self.known.fall(identity) else { return };
                let has_left = identity.has_left();
                self.effects.push_back(if has_left { Effect::Left(member) } else { Effect::Down(member) });
                self.roll_soon(now);
            }
            OwnedNotification::Rename(_, identity) => {
                let effect = match self.known.rename(identity) {
                    None => return,
                    Some(Renamed::Moved(member)) => Effect::Moved(member),
                    Some(Renamed::Restarted(member)) => {
                        self.settle_later(now, &member);
                        Effect::Restarted(member)
                    }
                };
                self.effects.push_back(effect);
            }
            OwnedNotification::Defunct if self.standing.takes_part() => {
                match self.renewed.map(|last| last + BETWEEN_RENEWALS).filter(|next| *next > now) {
                    Some(next) => self.agenda.add(next, Task::Renew),
                    None => self.go_on_as(now, self.me.renewed()),
                }
            }
            _ => {}
        }
        self.tune();
    }

    fn settle_later(&mut self, now: Duration, member: &Member) {
        self.agenda.add(now + SETTLE_AFTER, Task::Settle { node: member.node, start: member.start });
    }

    /// Fits SWIM's figures to the number of members.
    fn tune(&mut self) {
        let members = (self.known.count() + 1).next_power_of_two();
        if members != self.tuned_for {
            self.tuned_for = members;
            // Only figures that may change do.
            let _ = self.swim.set_config(tuning::config(members, swim_packet(self.packet)));
        }
    }

    fn send(&mut self, to: SocketAddr, packet: &Packet<'_>) {
        self.effects.push_back(Effect::Send { to, packet: packet.encode() });
    }
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Members").field("me", &self.me).field("others", &self.known.count()).finish_non_exhaustive()
    }
}

fn swim(me: &Identity, packet: NonZeroUsize, rng: &mut SmallRng) -> Swim {
    Foca::new(me.clone(), tuning::config(1, swim_packet(packet)), SmallRng::from_rng(rng), PostcardCodec)
}

/// How large SWIM's part of a packet may be.
const fn swim_packet(packet: NonZeroUsize) -> NonZeroUsize {
    match NonZeroUsize::new(packet.get().saturating_sub(SWIM_OVERHEAD)) {
        Some(size) => size,
        None => NonZeroUsize::MIN,
    }
}

/// Where SWIM leaves what it wants done.
struct Outbox<'a> {
    now: Duration,
    agenda: &'a mut Agenda,
    effects: &'a mut VecDeque<Effect>,
    notes: Vec<OwnedNotification<Identity>>,
}

impl foca::Runtime<Identity> for Outbox<'_> {
    fn notify(&mut self, notification: foca::Notification<'_, Identity>) {
        self.notes.push(notification.to_owned());
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.effects.push_back(Effect::Send { to: to.socket(), packet: Packet::Swim(data).encode() });
    }

    fn submit_after(&mut self, timer: foca::Timer<Identity>, after: Duration) {
        self.agenda.add(self.now + after, Task::Swim(timer));
    }
}
