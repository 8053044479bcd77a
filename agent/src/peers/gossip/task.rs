use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::make_rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::roster::{Page, Roster};
use super::seeds::{Found, Seeds, is_own, source_towards_any};
use super::{GossipMetrics, GossipParts};
use crate::cluster::{Effect, Identity, Member, Members, Ring, Search};
use crate::image::NodeId;
use crate::wire::Datagrams;

/// For saying good-bye.
const FAREWELL: Duration = Duration::from_millis(500);
/// A datagram that can't be sent in this time is lost, as any may be.
const SENDING: Duration = Duration::from_millis(100);
/// Between two rings: who joins rarely joins alone.
const BETWEEN_RINGS: Duration = Duration::from_millis(100);
/// Between two rosters on disk.
const BETWEEN_WRITES: Duration = Duration::from_secs(10);
/// Between attempts to find an address of one's own.
const BETWEEN_ADDRESSES: Duration = Duration::from_secs(1);
/// How many of the seeds, and of the members of old, are asked at a time.
const KNOCKS: usize = 3;
/// In a larger cluster each member's coming and going is said only to who looks closely.
const TALKATIVE: usize = 200;
const PACKET: NonZeroUsize = NonZeroUsize::new(Datagrams::MAX_PLAIN).unwrap();
/// Where any route leads: addresses for documentation, to which nothing is sent.
const ANYWHERE: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9),
];

/// What the task has besides the machine.
pub(super) struct Task {
    parts: GossipParts,
    ring: watch::Sender<Arc<Ring>>,
    doubted: mpsc::Receiver<NodeId>,
    seeds: Seeds,
    began: Instant,
}

impl Task {
    pub(super) fn new(parts: GossipParts, ring: watch::Sender<Arc<Ring>>, doubted: mpsc::Receiver<NodeId>) -> Self {
        let seeds = Seeds::new(&parts.config);
        Self { parts, ring, doubted, seeds, began: Instant::now() }
    }

    /// Takes part until told to stop.
    pub(super) async fn run(self) {
        let stop = self.parts.stop.clone();
        let Some(mut running) = stop.run_until_cancelled(self.begin()).await else { return };
        stop.run_until_cancelled(running.run()).await;
        if timeout(FAREWELL, running.leave()).await.is_err() {
            debug!("the other nodes were not all told that this one leaves");
        }
    }

    /// Finds out who and where this node is.
    async fn begin(self) -> Running {
        let dir = self.parts.dir.clone();
        let page = match spawn_blocking(move || Page::read(&dir)).await {
            Ok(Ok(page)) => page,
            Ok(Err(error)) => {
                let dir = self.parts.dir.display();
                warn!(%dir, %error, "the last known members can't be read: the seeds are asked");
                Page::default()
            }
            // Only a runtime that ends cancels it.
            Err(_) => Page::default(),
        };
        // The clock makes it grow, whatever became of the file; the file, whatever became of the clock.
        let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let start = u64::try_from(millis).unwrap_or(u64::MAX).max(page.start.saturating_add(1));
        let roster = Roster::new(page, Duration::ZERO);
        let place = self.place();
        let addr = self.own_address(place, &roster).await;
        let Self { parts, ring, doubted, seeds, began } = self;
        let mut rng: SmallRng = make_rng();
        let me = Identity::new(parts.node, addr, parts.config.zone.clone(), start);
        info!(node = %parts.node, %addr, zone = parts.config.zone.as_str(), "looking for other nodes");
        let now = began.elapsed();
        Running {
            members: Members::new(me, PACKET, now, &mut rng),
            search: Search::new(now),
            datagrams: parts.datagrams,
            metrics: parts.metrics,
            dir: parts.dir,
            rng,
            ring,
            doubted,
            seeds,
            place,
            began,
            roster,
            start,
            finding: JoinSet::new(),
            writing: JoinSet::new(),
            published: (0, None),
            write_due: now,
            seeds_fail: false,
            write_fails: false,
        }
    }

    /// How this node knows where others reach it.
    fn place(&self) -> Place {
        let bound = self.parts.datagrams.local_addr();
        let port = bound.as_ref().map_or(self.parts.config.listen.port(), SocketAddr::port);
        match (self.parts.config.advertised(), bound) {
            (Some(advertised), _) => Place::Fixed(advertised),
            (None, Ok(bound)) if !bound.ip().is_unspecified() => Place::Fixed(bound),
            (None, _) => Place::Routed { port },
        }
    }

    /// The address that others reach this node at; waits for a route if need be.
    async fn own_address(&self, place: Place, roster: &Roster) -> SocketAddr {
        let port = match place {
            Place::Fixed(addr) => return addr,
            Place::Routed { port } => port,
        };
        let mut told = false;
        loop {
            let literal: Vec<SocketAddr> = self.seeds.literal().collect();
            let named = if literal.is_empty() { self.seeds.clone().find().await.addresses } else { Vec::new() };
            let towards = literal.into_iter().chain(named).chain(roster.missing()).chain(ANYWHERE);
            if let Some(ip) = source_towards_any(towards) {
                return SocketAddr::new(ip, port);
            }
            if !std::mem::replace(&mut told, true) {
                warn!("this node has no route to anywhere: without an address it has no peers");
            }
            sleep(BETWEEN_ADDRESSES).await;
        }
    }
}

/// Where others reach this node.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// Where the configuration says.
    Fixed(SocketAddr),
    /// At the address from which its routes to others begin, as long as it has it.
    Routed { port: u16 },
}

/// The task at work.
struct Running {
    members: Members,
    search: Search,
    datagrams: Datagrams,
    metrics: GossipMetrics,
    dir: PathBuf,
    rng: SmallRng,
    ring: watch::Sender<Arc<Ring>>,
    doubted: mpsc::Receiver<NodeId>,
    seeds: Seeds,
    place: Place,
    began: Instant,
    roster: Roster,
    start: u64,
    /// The seeds' addresses, being asked for.
    finding: JoinSet<Found>,
    /// The roster, on its way to the disk.
    writing: JoinSet<io::Result<()>>,
    /// Which generation of the members the ring shows, and since when.
    published: (u64, Option<Duration>),
    write_due: Duration,
    seeds_fail: bool,
    write_fails: bool,
}

impl Running {
    async fn run(&mut self) {
        loop {
            self.publish();
            let due = self.due();
            tokio::select! {
                received = self.datagrams.recv() => match received {
                    Ok((from, packet)) => {
                        let now = self.now();
                        if let Err(error) = self.members.receive(now, &packet) {
                            debug!(%from, %error, "a datagram of a member is no use");
                        }
                    }
                    Err(error) => {
                        warn!(%error, "no datagrams can be received");
                        sleep(BETWEEN_ADDRESSES).await;
                    }
                },
                Some(node) = self.doubted.recv() => {
                    let now = self.now();
                    self.members.suspect(now, node);
                }
                Some(Ok(found)) = self.finding.join_next() => self.knock(found),
                Some(Ok(written)) = self.writing.join_next() => self.written(&written),
                () = sleep_until(self.began + due) => self.pass(),
            }
            self.take_effects().await;
        }
    }

    async fn leave(&mut self) {
        let now = self.now();
        self.members.leave(now);
        self.take_effects().await;
        while self.writing.join_next().await.is_some() {}
        self.write();
        while self.writing.join_next().await.is_some() {}
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// When something is to be done, though nothing happens.
    fn due(&self) -> Duration {
        let (generation, published) = self.published;
        let ring = (generation != self.members.generation())
            .then(|| published.map_or(Duration::ZERO, |at| at + BETWEEN_RINGS));
        let due = self.search.due().min(self.write_due);
        [self.members.due(), ring].into_iter().flatten().fold(due, Duration::min)
    }

    fn pass(&mut self) {
        let now = self.now();
        self.members.pass(now);
        if now >= self.search.due() {
            let is_lonely = self.members.others() == 0 || self.roster.missing().next().is_some();
            self.search.asked(now, is_lonely, &mut self.rng);
            if self.finding.is_empty() {
                self.finding.spawn(self.seeds.clone().find());
            }
        }
        if now >= self.write_due {
            self.write_due = now + BETWEEN_WRITES;
            self.roster.forget(now);
            self.metrics.missing(self.roster.lost());
            if self.writing.is_empty() {
                self.write();
            }
        }
    }

    /// Goes on at another address where this node hasn't the one any more that it has told the others. They answer to the
    /// old one, so it is as lonely as if it were cut off.
    fn follow_address(&mut self, found: &Found) {
        let Place::Routed { port } = self.place else { return };
        let before = self.members.identity().socket();
        if is_own(before.ip()) {
            return;
        }
        let named = found.addresses.iter().copied();
        let towards = self.seeds.literal().chain(named).chain(self.roster.missing()).chain(ANYWHERE);
        // Without a route there is none yet.
        let Some(ip) = source_towards_any(towards) else { return };
        let (now, addr) = (self.now(), SocketAddr::new(ip, port));
        self.members.move_to(now, addr);
        warn!(%before, %addr, "this node's address has changed: the others are told");
    }

    /// Asks a few of the seeds and of the members of old who is there.
    fn knock(&mut self, found: Found) {
        self.follow_address(&found);
        let failing = !found.failed.is_empty();
        if failing && !self.seeds_fail {
            for error in &found.failed {
                warn!(%error, "a seed is not found");
            }
        }
        self.seeds_fail = failing;
        let up: HashSet<SocketAddr> = self.members.members().map(|member| member.addr).collect();
        let seeds: Vec<SocketAddr> = found.addresses.into_iter().filter(|addr| !up.contains(addr)).collect();
        let missing: Vec<SocketAddr> = self.roster.missing().filter(|addr| !up.contains(addr)).collect();
        for addr in seeds.sample(&mut self.rng, KNOCKS).chain(missing.sample(&mut self.rng, KNOCKS)) {
            self.members.knock(*addr);
        }
    }

    async fn take_effects(&mut self) {
        while let Some(effect) = self.members.effect() {
            match effect {
                Effect::Send { to, packet } => match timeout(SENDING, self.datagrams.send(to, &packet)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => debug!(%to, %error, "a datagram was not sent"),
                    Err(_) => debug!(%to, "a datagram was not sent in time"),
                },
                Effect::Up(member) => {
                    self.tell("up", &member);
                    self.roster.up(&member);
                    self.metrics.yielded(false);
                }
                Effect::Down(member) => {
                    self.tell("down", &member);
                    let now = self.now();
                    self.roster.down(&member, now);
                    self.search.is_lonely(now);
                }
                Effect::Left(member) => {
                    self.tell("left", &member);
                    let now = self.now();
                    self.roster.left(&member, now);
                    self.search.is_lonely(now);
                }
                Effect::Restarted(member) => {
                    self.tell("restarted", &member);
                    self.roster.up(&member);
                }
                Effect::Moved(member) => {
                    self.tell("moved", &member);
                    self.roster.up(&member);
                }
                Effect::Renewed => {
                    self.metrics.event("renewed");
                    info!("other nodes took this one for dead; it has told them that it is not");
                }
                Effect::Twin { addr, yielded } => {
                    self.metrics.event("twin");
                    self.metrics.yielded(yielded);
                    warn!(
                        %addr,
                        yielded,
                        "another node has this one's number, from a disk that was cloned: delete `peers` in the cache's \
                         folder of one of them and start it again; until then the one that started later is a member",
                    );
                }
            }
        }
    }

    fn tell(&self, event: &'static str, member: &Member) {
        self.metrics.event(event);
        let Member { node, addr, zone, .. } = member;
        if self.members.others() < TALKATIVE {
            info!(%node, %addr, zone = zone.as_str(), "peer {event}");
        } else {
            debug!(%node, %addr, zone = zone.as_str(), "peer {event}");
        }
    }

    /// Shows the members as they are now, if they have changed and not been shown just before.
    fn publish(&mut self) {
        let (generation, now) = (self.members.generation(), self.now());
        let (shown, at) = self.published;
        if shown == generation && at.is_some() || at.is_some_and(|at| now < at + BETWEEN_RINGS) {
            return;
        }
        self.published = (generation, Some(now));
        let ring = Ring::new(self.members.identity().node(), self.members.members());
        self.metrics.ring(&ring);
        self.metrics.missing(self.roster.lost());
        self.ring.send_replace(Arc::new(ring));
    }

    /// Sends the roster to the disk, if it has changed.
    fn write(&mut self) {
        let Some(page) = self.roster.changed(self.start) else { return };
        let dir = self.dir.clone();
        self.writing.spawn_blocking(move || page.write(&dir));
    }

    fn written(&mut self, written: &io::Result<()>) {
        if let Err(error) = written
            && !self.write_fails
        {
            warn!(dir = %self.dir.display(), %error, "the known members can't be written down: after a restart the seeds are asked");
        }
        self.write_fails = written.is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::gossip::tests::{authority, parts};

    #[tokio::test]
    async fn who_is_lost_is_counted_for_an_hour_though_nobody_comes_or_goes() {
        let (authority, dir) = (authority(), tempfile::tempdir().unwrap());
        let lost = NodeId::new([7; 16]).to_string();
        let page = serde_json::json!({ "start": 1, "members": [[lost, "127.0.0.1:9"]] });
        std::fs::write(dir.path().join("members"), page.to_string()).unwrap();
        let (parts, _) = parts(authority.path(), dir.path(), &[]);
        let (metrics, node) = (parts.metrics.clone(), parts.node);
        let (_doubts, doubted) = mpsc::channel(1);
        let task = Task::new(parts, watch::channel(Arc::new(Ring::empty(node))).0, doubted);
        let mut running = task.begin().await;
        running.publish();
        assert_eq!(metrics.members("missing"), Some(1));
        running.began -= Duration::from_secs(3601);
        running.pass();
        assert_eq!(metrics.members("missing"), Some(0));
    }
}
