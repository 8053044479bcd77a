//! Who reads a blob from this node: who is taken, who is parted from, and what is said to them.
//!
//! A node that hasn't got all of a blob takes readers with higher tickets than its own, and no others: bytes never flow
//! in a circle. It takes one at a time (of tiny blobs several), since two would halve what each of them gets. Of two, the
//! one with the lower ticket stays, and the other one is sent on to it: so a chain sorts itself by its tickets, whoever
//! comes back to it from where.
//!
//! A reader may come in the place of another, which it found slow. Both are served for a second, and the one that takes
//! less has to go: the sender alone sees both. Who comes to a wrong finding, since it hears late, takes no more than the other.

use std::collections::BTreeMap;
use std::time::Duration;

use super::chain::{Beat, Hop, Parting, Ticket};
use super::directory::fan_out;
use crate::image::NodeId;

/// How long two readers are compared.
const CONTEST: Duration = Duration::from_millis(800);
/// Or until they have taken so much together, if one has taken much less: more than lies in buffers on the way.
const TELLING: u64 = 16 << 20;
const MUCH_LESS: f64 = 0.4;
/// Who takes less than this part of what the other takes is the slow one. When neither does, the newcomer goes back, and when
/// it comes once more, it is who was there before: that one takes enough, and passes on too little.
const CLEARLY_LESS: f64 = 0.6;
/// How many more are taken of those who know of nobody else, or of those who only want what is here.
const SQUEEZED: usize = 3;
/// Who is further behind than this doesn't come before another, which would have to wait for it.
const LEVEL: u64 = 16 << 20;

/// One who wants to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    /// Which node.
    pub node: NodeId,
    /// Its place; `None` for who reads only what is whole.
    pub ticket: Option<Ticket>,
    /// It comes in place of this one.
    pub instead_of: Option<NodeId>,
    /// It knows of nobody else.
    pub insists: bool,
    /// The byte that it begins with.
    pub from: u64,
}

/// Who reads one blob from this node. Streams are numbered by whoever serves them.
#[derive(Debug)]
pub struct Serve {
    me: NodeId,
    ticket: Option<Ticket>,
    is_whole: bool,
    frontier: u64,
    size: Option<u64>,
    streams: BTreeMap<u64, Stream>,
    contest: Option<Contest>,
    /// The two who took alike when they were compared: who was there before, and the newcomer.
    alike: Option<(NodeId, NodeId)>,
    partings: Vec<(u64, Parting)>,
}

#[derive(Debug)]
struct Stream {
    node: NodeId,
    ticket: Option<Ticket>,
    /// This node's place, as far as this reader is concerned: whom it parts from it leaves where both stood. What they tell
    /// further down comes back to this node, and would look like a circle under its new place.
    under: Option<Ticket>,
    /// The byte that is sent next.
    at: u64,
    /// It gets what is before this byte, and no more.
    bound: Option<u64>,
    /// The path that it was told of last.
    upwards: Vec<Hop>,
}

#[derive(Debug)]
struct Contest {
    before: u64,
    newcomer: u64,
    until: Duration,
    before_took: u64,
    newcomer_took: u64,
}

impl Serve {
    /// Nobody yet.
    #[must_use]
    pub const fn new(me: NodeId) -> Self {
        Self {
            me,
            ticket: None,
            is_whole: false,
            frontier: 0,
            size: None,
            streams: BTreeMap::new(),
            contest: None,
            alike: None,
            partings: Vec::new(),
        }
    }

    /// Takes a reader, or says why not. [`Self::partings`] may have something to say to others then.
    ///
    /// # Errors
    /// How to part from it.
    pub fn admit(&mut self, now: Duration, stream: u64, reader: &Reader) -> Result<(), Parting> {
        // A node reads a blob once: what it opened before, it has left.
        self.part_from(|stream| stream.node == reader.node, &Parting::Yielded);
        let is_below = self.ticket.zip(reader.ticket).is_some_and(|(mine, its)| mine < its);
        if !self.is_whole && !is_below {
            // What is here it can have all the same: there is nothing to wait for in that.
            let has_more = reader.ticket.is_some() && reader.from < self.frontier;
            let bound = self.streams.values().filter(|stream| stream.bound.is_some()).count();
            if !has_more || bound > SQUEEZED {
                return Err(Parting::NotLower);
            }
            self.take(stream, reader, Some(self.frontier));
            return Ok(());
        }
        let count = self.going_on().count();
        let room = fan_out(self.size);
        if count < room {
            self.take(stream, reader, None);
            return Ok(());
        }
        let replaced = self.going_on().find(|(_, stream)| Some(stream.node) == reader.instead_of);
        // Of those who stand behind the reader, the last one.
        let behind = self.going_on().filter(|(_, stream)| reader.ticket < stream.ticket);
        let behind = behind.max_by_key(|(_, stream)| stream.ticket);
        let is_level = |stream: &Stream| reader.from.saturating_add(LEVEL) >= stream.at;
        if let Some((before, _)) = replaced.filter(|_| self.contest.is_none()) {
            let until = now + CONTEST;
            self.contest = Some(Contest { before, newcomer: stream, until, before_took: 0, newcomer_took: 0 });
        } else if let Some((behind, _)) = behind.filter(|(_, behind)| is_level(behind)) {
            self.ended(behind);
            self.partings.push((behind, Parting::Full(vec![reader.node])));
        } else if !reader.insists || count >= room + SQUEEZED {
            let before_it = self.going_on().filter(|(_, stream)| stream.ticket < reader.ticket);
            return Err(Parting::Full(before_it.map(|(_, stream)| stream.node).collect()));
        }
        self.take(stream, reader, None);
        Ok(())
    }

    fn take(&mut self, stream: u64, reader: &Reader, bound: Option<u64>) {
        let Reader { node, ticket, from, .. } = *reader;
        // Who stands before this node and takes what is here waits for nothing of it, and is as near to upstream as it was.
        let under = if bound.is_some() { ticket } else { self.ticket };
        let taken = Stream { node, ticket, under, at: from, bound, upwards: Vec::new() };
        self.streams.insert(stream, taken);
    }

    /// So many bytes have been handed to the connection of a stream since the last call.
    pub fn sent(&mut self, stream: u64, bytes: u64) {
        let Some(taken) = self.streams.get_mut(&stream) else { return };
        taken.at += bytes;
        if let Some(contest) = &mut self.contest {
            if stream == contest.before {
                contest.before_took += bytes;
            } else if stream == contest.newcomer {
                contest.newcomer_took += bytes;
            }
            if contest.before_took + contest.newcomer_took >= TELLING {
                let (less, more) =
                    (contest.before_took.min(contest.newcomer_took), contest.before_took.max(contest.newcomer_took));
                if (less as f64) < MUCH_LESS * more as f64 {
                    self.decide();
                }
            }
        }
        self.part_from_served();
    }

    /// A stream has ended, whoever ended it.
    pub fn ended(&mut self, stream: u64) {
        self.streams.remove(&stream);
        self.contest = self.contest.take().filter(|contest| contest.before != stream && contest.newcomer != stream);
    }

    /// This node's place has changed: readers whose tickets aren't higher get what is here now, and are parted from.
    pub fn placed(&mut self, ticket: Ticket) {
        self.ticket = Some(ticket);
        self.bind(|stream| stream.ticket.is_none_or(|its| its <= ticket));
        for stream in self.streams.values_mut().filter(|stream| stream.bound.is_none()) {
            stream.under = Some(ticket);
        }
    }

    /// This node is about to take another place: its readers get what is here now, and are parted from.
    pub fn yields(&mut self) {
        self.bind(|_| true);
    }

    /// Every byte before `frontier` is here, of `size` if that is known.
    pub fn arrived(&mut self, frontier: u64, size: Option<u64>) {
        self.frontier = frontier;
        self.size = size.or(self.size);
    }

    /// It comes to this node from here on: what was whole here before isn't any more.
    pub const fn comes(&mut self) {
        self.is_whole = false;
    }

    /// All of it is here and verified.
    pub fn is_whole(&mut self) {
        self.is_whole = true;
        for stream in self.streams.values_mut() {
            stream.bound = None;
        }
    }

    /// How far a stream may go: `None` without bound.
    #[must_use]
    pub fn bound(&self, stream: u64) -> Option<u64> {
        self.streams.get(&stream)?.bound
    }

    /// Streams that are to be ended now, and how; each is said once and isn't among the readers any more.
    pub fn partings(&mut self) -> Vec<(u64, Parting)> {
        std::mem::take(&mut self.partings)
    }

    /// What to say on a stream every [`BEAT_EVERY`](super::chain::BEAT_EVERY): `rate` and `upwards` as
    /// [`Follow::rate`](super::follow::Follow::rate) and [`Follow::path`](super::follow::Follow::path) say.
    #[must_use]
    pub fn beat(&mut self, stream: u64, rate: u64, upwards: &[Hop]) -> Beat {
        let mut me = Hop { node: self.me, ticket: None, frontier: self.frontier, rate };
        let Some(stream) = self.streams.get_mut(&stream).filter(|_| !self.is_whole) else {
            me.ticket = self.ticket.filter(|_| !self.is_whole);
            return Beat { path: vec![me] };
        };
        me.ticket = stream.under;
        // Who is about to be parted from goes on where it stood, not where this node stands now.
        match stream.bound {
            Some(bound) => me.frontier = me.frontier.min(bound),
            None => stream.upwards = upwards.iter().take(Beat::MAX_PATH - 1).copied().collect(),
        }
        let path = std::iter::once(me).chain(stream.upwards.iter().copied()).collect();
        Beat { path }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        if self.contest.as_ref().is_some_and(|contest| contest.until <= now) {
            self.decide();
        }
    }

    /// The slower one of the two has to go.
    fn decide(&mut self) {
        let Some(contest) = self.contest.take() else { return };
        let node = |stream: u64| self.streams.get(&stream).map(|stream| stream.node);
        let Some(both) = node(contest.before).zip(node(contest.newcomer)) else { return };
        let (before_took, newcomer_took) = (contest.before_took as f64, contest.newcomer_took as f64);
        let (gone, how) = if newcomer_took < CLEARLY_LESS * before_took {
            (contest.newcomer, Parting::Displaced)
        } else if before_took < CLEARLY_LESS * newcomer_took || self.alike == Some(both) {
            (contest.before, Parting::Displaced)
        } else {
            self.alike = Some(both);
            (contest.newcomer, Parting::Full(vec![both.0]))
        };
        self.streams.remove(&gone);
        self.partings.push((gone, how));
    }

    /// When to call [`Self::tick`] next, at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.contest.as_ref().map(|contest| contest.until)
    }

    /// Who reads, and goes on reading.
    pub fn readers(&self) -> impl Iterator<Item = NodeId> {
        self.going_on().map(|(_, stream)| stream.node)
    }

    /// How many bytes that are here the furthest of them hasn't got yet.
    #[must_use]
    pub fn lag(&self) -> u64 {
        let furthest = self.going_on().map(|(_, stream)| stream.at).max();
        furthest.map_or(0, |at| self.frontier.saturating_sub(at))
    }

    /// The streams without a bound.
    fn going_on(&self) -> impl Iterator<Item = (u64, &Stream)> {
        let streams = self.streams.iter().map(|(number, stream)| (*number, stream));
        streams.filter(|(_, stream)| stream.bound.is_none())
    }

    fn bind(&mut self, whom: impl Fn(&Stream) -> bool) {
        if self.is_whole {
            return;
        }
        let frontier = self.frontier;
        for stream in self.streams.values_mut().filter(|stream| whom(stream)) {
            stream.bound.get_or_insert(frontier);
        }
        self.part_from_served();
    }

    fn part_from_served(&mut self) {
        self.part_from(|stream| stream.bound.is_some_and(|bound| bound <= stream.at), &Parting::Yielded);
    }

    fn part_from(&mut self, whom: impl Fn(&Stream) -> bool, how: &Parting) {
        let gone: Vec<u64> =
            self.streams.iter().filter(|(_, stream)| whom(stream)).map(|(number, _)| *number).collect();
        for stream in gone {
            self.ended(stream);
            self.partings.push((stream, how.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    fn node(number: u8) -> NodeId {
        NodeId::new([number; 16])
    }

    fn ticket(number: u64) -> Ticket {
        Ticket { number, issuer: 0 }
    }

    fn reader(number: u8) -> Reader {
        Reader { node: node(number), ticket: Some(ticket(number.into())), instead_of: None, insists: false, from: 0 }
    }

    /// At place 10, with 100 MiB of 1 GiB.
    fn serve() -> Serve {
        let mut serve = Serve::new(node(10));
        serve.placed(ticket(10));
        serve.arrived(100 << 20, Some(1 << 30));
        serve
    }

    #[test]
    fn who_stands_before_gets_what_is_here_and_no_more() {
        let mut serve = serve();
        assert_eq!(serve.admit(NOW, 1, &Reader { from: 100 << 20, ..reader(9) }), Err(Parting::NotLower));
        assert_eq!(serve.admit(NOW, 2, &Reader { from: 99 << 20, ..reader(9) }), Ok(()));
        assert_eq!(serve.bound(2), Some(100 << 20));
        // It stays as near to upstream as it was, and so do those who read from it.
        assert_eq!(serve.beat(2, 7, &[]).path[0].ticket, Some(ticket(9)));
        serve.sent(2, 1 << 20);
        assert_eq!(serve.partings(), [(2, Parting::Yielded)]);
    }

    #[test]
    fn of_two_readers_the_lower_stays_and_the_other_is_sent_on_to_it() {
        let mut serve = serve();
        assert_eq!(serve.admit(NOW, 1, &reader(20)), Ok(()));
        assert_eq!(serve.admit(NOW, 2, &reader(30)), Err(Parting::Full(vec![node(20)])));
        assert_eq!(serve.admit(NOW, 3, &reader(15)), Ok(()));
        assert_eq!(serve.partings(), [(1, Parting::Full(vec![node(15)]))]);
        assert_eq!(serve.readers().collect::<Vec<_>>(), [node(15)]);
    }

    #[test]
    fn nobody_has_to_wait_for_one_that_is_far_behind() {
        let mut serve = serve();
        assert_eq!(serve.admit(NOW, 1, &Reader { from: 90 << 20, ..reader(20) }), Ok(()));
        assert_eq!(serve.admit(NOW, 2, &reader(15)), Err(Parting::Full(Vec::new())));
        // But it isn't left without bytes either, should it know of nobody else.
        assert_eq!(serve.admit(NOW, 3, &Reader { insists: true, ..reader(15) }), Ok(()));
        assert_eq!(serve.partings(), []);
    }

    /// Compares a second reader, 30, with the first one, 20, of which it takes this part of ten.
    fn compare(serve: &mut Serve, newcomer_took: u64) -> Vec<(u64, Parting)> {
        assert_eq!(serve.admit(NOW, 2, &Reader { instead_of: Some(node(20)), ..reader(30) }), Ok(()));
        serve.sent(1, (10 - newcomer_took) << 10);
        serve.sent(2, newcomer_took << 10);
        serve.tick(NOW);
        assert_eq!(serve.partings(), []);
        serve.tick(serve.next_deadline().unwrap());
        assert_eq!(serve.next_deadline(), None);
        serve.partings()
    }

    #[test]
    fn of_two_who_are_compared_the_slower_goes() {
        for (newcomer_took, gone) in [(1, 2), (9, 1)] {
            let mut serve = serve();
            assert_eq!(serve.admit(NOW, 1, &reader(20)), Ok(()));
            assert_eq!(compare(&mut serve, newcomer_took), [(gone, Parting::Displaced)]);
        }
    }

    #[test]
    fn who_takes_as_much_as_the_other_one_goes_back_to_it_once() {
        let mut serve = serve();
        assert_eq!(serve.admit(NOW, 1, &reader(20)), Ok(()));
        assert_eq!(compare(&mut serve, 5), [(2, Parting::Full(vec![node(20)]))]);
        assert_eq!(serve.readers().collect::<Vec<_>>(), [node(20)]);
        assert_eq!(compare(&mut serve, 5), [(1, Parting::Displaced)]);
    }

    #[test]
    fn a_new_place_parts_from_all_who_stand_before_it() {
        let mut serve = serve();
        assert_eq!(serve.admit(NOW, 1, &Reader { from: 10, ..reader(20) }), Ok(()));
        let upwards = [Hop { node: node(5), ticket: Some(ticket(5)), frontier: 200 << 20, rate: 1 }];
        assert_eq!(serve.beat(1, 7, &upwards).path.len(), 2);
        serve.placed(ticket(40));
        assert_eq!(serve.bound(1), Some(100 << 20));
        // It goes on from where this node stood, not from where it stands now.
        let beyond = [Hop { node: node(39), ticket: Some(ticket(39)), frontier: 0, rate: 1 }];
        assert_eq!(serve.beat(1, 7, &beyond).path[1], upwards[0]);
        // Nor under this place, which comes after its own: told further and further, that would come back as a circle.
        let told = |serve: &mut Serve, stream| serve.beat(stream, 7, &beyond).path[0].ticket;
        assert_eq!(told(&mut serve, 1), Some(ticket(10)));
        assert_eq!(serve.admit(NOW, 2, &reader(50)), Ok(()));
        assert_eq!(serve.beat(2, 7, &beyond).path[1], beyond[0]);
        assert_eq!(told(&mut serve, 2), Some(ticket(40)));
        // Once all of it is here, nothing has to end any more.
        serve.is_whole();
        assert_eq!((serve.bound(1), serve.beat(2, 0, &beyond).path.len()), (None, 1));
    }

    #[test]
    fn what_comes_anew_is_not_whole_any_more() {
        let mut serve = serve();
        serve.is_whole();
        assert_eq!(serve.admit(NOW, 1, &Reader { from: 100 << 20, ..reader(9) }), Ok(()));
        // It was damaged, and begins again.
        serve.comes();
        serve.arrived(0, None);
        assert_eq!(serve.admit(NOW, 2, &reader(9)), Err(Parting::NotLower));
        assert_eq!(serve.beat(1, 7, &[]).path[0].frontier, 0);
    }
}
