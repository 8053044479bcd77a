//! Many machines under one queue of events, in virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::cluster::{Effect, Identity, Member, Members, Ring, Search};
use crate::image::{NodeId, Zone};

/// What fits into a sealed datagram of 1,400 bytes.
const PACKET: NonZeroUsize = NonZeroUsize::new(1340).unwrap();
/// What a datagram costs on the link besides the packet: the seal, UDP and IP.
const OVERHEAD: u64 = 60 + 28;
const SEEDS: usize = 3;

/// A network of nodes. Node `i` has the number and the address that follow from `i`.
pub(super) struct World {
    pub(super) now: Duration,
    pub(super) rng: SmallRng,
    /// The chance that a datagram is lost.
    pub(super) loss: f64,
    /// Nodes on different sides don't reach each other.
    pub(super) sides: Vec<u8>,
    pub(super) hosts: Vec<Option<Host>>,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    queue: BinaryHeap<Reverse<Event>>,
    count: u64,
    starts: u64,
}

/// A machine at an address.
pub(super) struct Host {
    pub(super) members: Members,
    pub(super) told: Vec<Effect>,
    search: Search,
    /// When it is looked after next, as far as that is in the queue.
    wakes: Duration,
    /// How many others it has known at most.
    remembered: usize,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    at: Duration,
    number: u64,
    what: What,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Packet { to: usize, bytes: Vec<u8> },
    Wake(usize),
}

pub(super) fn node(number: usize) -> NodeId {
    // Spread like random numbers, and the same in every run.
    let mut rng = SmallRng::seed_from_u64(number as u64);
    NodeId::new(rng.random())
}

pub(super) fn addr(host: usize) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + u32::try_from(host).unwrap()), 7441))
}

fn host(addr: SocketAddr) -> usize {
    let SocketAddr::V4(addr) = addr else { panic!("{addr} is nobody's") };
    (u32::from(*addr.ip()) - 0x0a00_0000) as usize
}

impl World {
    pub(super) fn new(seed: u64, hosts: usize) -> Self {
        Self {
            now: Duration::ZERO,
            rng: SmallRng::seed_from_u64(seed),
            loss: 0.0,
            sides: vec![0; hosts],
            hosts: (0..hosts).map(|_| None).collect(),
            packets: 0,
            bytes: 0,
            queue: BinaryHeap::new(),
            count: 0,
            starts: 0,
        }
    }

    /// Starts node `number` on host `at`.
    pub(super) fn start(&mut self, at: usize, number: usize) {
        self.starts += 1;
        self.start_as(at, number, 1_790_000_000_000 + self.starts);
    }

    /// The same, with a start of one's own.
    pub(super) fn start_as(&mut self, at: usize, number: usize, start: u64) {
        let identity = Identity::new(node(number), addr(at), Zone::default(), start);
        let members = Members::new(identity, PACKET, self.now, &mut self.rng);
        let search = Search::new(self.now);
        self.hosts[at] = Some(Host { members, told: Vec::new(), search, wakes: Duration::MAX, remembered: 1 });
        self.wake_at(at, self.now);
    }

    /// Ends it without a word.
    pub(super) fn crash(&mut self, at: usize) {
        self.hosts[at] = None;
    }

    /// Ends it in order.
    pub(super) fn leave(&mut self, at: usize) {
        let now = self.now;
        self.with(at, |host| host.members.leave(now));
        self.hosts[at] = None;
    }

    /// Its address changes while it runs, and it knows.
    pub(super) fn relocate(&mut self, from: usize, to: usize) {
        let now = self.now;
        self.hosts[to] = self.hosts[from].take().map(|host| Host { wakes: Duration::MAX, ..host });
        self.with(to, |host| host.members.move_to(now, addr(to)));
    }

    /// Lets a machine do something, and what follows from it happen.
    pub(super) fn with(&mut self, at: usize, act: impl FnOnce(&mut Host)) {
        if let Some(host) = &mut self.hosts[at] {
            act(host);
            self.settle(at);
        }
    }

    /// Runs for that long.
    pub(super) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.queue.peek().is_some_and(|Reverse(event)| event.at <= until) {
            let Some(Reverse(event)) = self.queue.pop() else { return };
            self.now = event.at;
            let now = self.now;
            match event.what {
                What::Packet { to, bytes } => self.with(to, |host| host.members.receive(now, &bytes).unwrap()),
                What::Wake(at) => self.wake(at),
            }
        }
        self.now = until;
    }

    /// Runs until something holds, and says how long that took. Looks ten times a second.
    ///
    /// # Panics
    /// When it doesn't come to hold within `limit`.
    pub(super) fn run_until(&mut self, what: &str, limit: Duration, holds: impl Fn(&Self) -> bool) -> Duration {
        let from = self.now;
        while !holds(self) {
            assert!(self.now - from < limit, "not within {limit:?}: {what}");
            self.run(Duration::from_millis(100));
        }
        self.now - from
    }

    /// Does everybody that runs know everybody that runs, and nobody else?
    pub(super) fn agrees(&self) -> bool {
        let running = self.running().count();
        self.running().all(|host| host.members.others() == running - 1)
    }

    /// The same, and are all settled to everybody?
    pub(super) fn is_settled(&self) -> bool {
        self.agrees() && self.running().all(|host| host.members.members().all(|member| member.settled))
    }

    pub(super) fn running(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().flatten()
    }

    pub(super) fn ring(&self, at: usize) -> Ring {
        let members = &self.hosts[at].as_ref().unwrap().members;
        Ring::new(members.identity().node(), members.members())
    }

    pub(super) fn told(&mut self, at: usize) -> Vec<Effect> {
        std::mem::take(&mut self.hosts[at].as_mut().unwrap().told)
    }

    /// How `at` sees that node.
    pub(super) fn sees(&self, at: usize, number: usize) -> Option<Member> {
        self.hosts[at].as_ref().unwrap().members.members().find(|member| member.node == node(number))
    }

    fn wake(&mut self, at: usize) {
        let now = self.now;
        let Some(host) = &mut self.hosts[at] else { return };
        if host.wakes > now {
            // From before it was started anew, or put off.
            return;
        }
        host.wakes = Duration::MAX;
        host.members.pass(now);
        if host.search.due() <= now {
            let others = host.members.others();
            host.remembered = host.remembered.max(others);
            let is_lonely = others < host.remembered;
            host.search.asked(now, is_lonely, &mut self.rng);
            let seeds: Vec<usize> = (0..SEEDS.min(self.sides.len())).collect();
            for seed in seeds.sample(&mut self.rng, if is_lonely { SEEDS } else { 1 }) {
                host.members.knock(addr(*seed));
            }
        }
        self.settle(at);
    }

    fn settle(&mut self, at: usize) {
        let Some(host) = &mut self.hosts[at] else { return };
        let mut packets = Vec::new();
        while let Some(effect) = host.members.effect() {
            match effect {
                Effect::Send { to, packet } => packets.push((self::host(to), packet)),
                other => host.told.push(other),
            }
        }
        let due = host.members.due().map_or(host.search.due(), |due| due.min(host.search.due())).max(self.now);
        if due < host.wakes {
            self.wake_at(at, due);
        }
        for (to, bytes) in packets {
            assert!(bytes.len() <= PACKET.get(), "a packet of {} bytes", bytes.len());
            self.packets += 1;
            self.bytes += bytes.len() as u64 + OVERHEAD;
            let is_lost = self.loss > 0.0 && self.rng.random_bool(self.loss);
            if to >= self.sides.len() || self.sides[at] != self.sides[to] || is_lost {
                continue;
            }
            let delay = Duration::from_micros(self.rng.random_range(200..5000));
            self.push(self.now + delay, What::Packet { to, bytes });
        }
    }

    fn wake_at(&mut self, at: usize, due: Duration) {
        if let Some(host) = &mut self.hosts[at] {
            host.wakes = due;
        }
        self.push(due, What::Wake(at));
    }

    fn push(&mut self, at: Duration, what: What) {
        self.count += 1;
        self.queue.push(Reverse(Event { at, number: self.count, what }));
    }
}
