//! The loop: one event after the other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::cluster::chain::{Credential, Key};
use crate::cluster::follow::{Action, Follow, Sought};
use crate::cluster::serve::Serve;
use crate::cluster::{Delays, Intake, Ring};
use crate::image::{Access, Digest, NodeId, Registry, Zone};

use super::events::{Event, Queue, Spot};
use super::links::{Link, Stream, seconds};
use super::node::{Blob, Life, Node};
use super::plan::{Cluster, Fault, Outcome, Pull, When};

/// What is waited after everybody is done, before all has to be quiet.
const GRACE: Duration = Duration::from_secs(6);
const QUIET: Duration = Duration::from_secs(1);
/// How often readers are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The receiving direction of a node's link.
#[derive(Debug)]
pub(super) struct Down {
    pub(super) rate: f64,
    pub(super) free: Duration,
}

pub(super) struct World {
    pub(super) cluster: Cluster,
    pub(super) now: Duration,
    pub(super) rng: SmallRng,
    pub(super) queue: Queue,
    pub(super) nodes: Vec<Node>,
    pub(super) by_id: HashMap<NodeId, usize>,
    /// Of each node, and after them upstream's.
    pub(super) links: Vec<Link>,
    pub(super) downs: Vec<Down>,
    pub(super) streams: Vec<Stream>,
    pub(super) upstream_answers: bool,
    pub(super) upstream_bytes: u64,
    pub(super) upstream_requests: u64,
    pub(super) crossed: u64,
    pub(super) messages: u64,
    pub(super) message_bytes: u64,
    pub(super) asks: u64,
    pub(super) opened_streams: u64,
    pub(super) messages_at_rest: u64,
    pub(super) rests_since: Option<Duration>,
    /// When what one node said to another last arrives: what it says after that arrives after it.
    pub(super) said: HashMap<(usize, usize), Duration>,
    /// Which node sees which, where each learns it by itself.
    pub(super) sees: Vec<Vec<bool>>,
    /// When all that has changed so far is noticed.
    pub(super) changes_until: Duration,
    /// Bytes that came under a lease when another had them who fetched under one of the same owner.
    pub(super) twice: u64,
    /// What upstream has to send.
    pub(super) needed: u64,
    /// When a reader last heard from a node that it has nothing of a blob.
    pub(super) absences: HashMap<(Spot, usize), Duration>,
    pub(super) cut_off: Duration,
    pub(super) waited: Duration,
    pub(super) failures: u32,
    pub(super) is_graph_new: bool,
    pub(super) wrong: Vec<String>,
    /// Faults that wait for the first node to come so far.
    waiting: Vec<(f64, usize)>,
    pub(super) left: usize,
}

/// Runs a cluster until everybody who can has everything, and a little longer.
#[must_use]
pub(super) fn run(cluster: &Cluster) -> Outcome {
    let mut world = World::new(cluster);
    let mut ends = cluster.at_most;
    let mut done_at = None;
    let (mut looked, mut to_look) = (Duration::ZERO, Duration::ZERO);
    while let Some((at, event)) = world.queue.pop() {
        if at > ends {
            break;
        }
        world.now = at;
        world.happens(event);
        if cluster.checked {
            world.watch();
            if at >= to_look {
                world.watch_readers(at - looked);
                (looked, to_look) = (at, at + LOOK_EVERY);
            }
        }
        if done_at.is_none() && world.left == 0 {
            done_at = Some(at);
        }
        if let Some(done) = done_at {
            let rests_since = Some(done.max(world.changes_until) + GRACE);
            if world.rests_since != rests_since {
                world.rests_since = rests_since;
                world.messages_at_rest = 0;
                ends = done.max(world.changes_until) + GRACE + QUIET;
            }
        }
    }
    world.outcome(done_at)
}

impl World {
    fn new(cluster: &Cluster) -> Self {
        let mut rng = SmallRng::seed_from_u64(cluster.seed);
        let nobody = NodeId::new([0; 16]);
        let ring = Arc::new(Ring::empty(nobody));
        let nodes: Vec<Node> = (0..cluster.nodes)
            .map(|number| {
                let id = NodeId::new(rng.random::<u128>().to_be_bytes());
                Node {
                    id,
                    zone: zone(number % cluster.zones.max(1)),
                    life: Life::Up,
                    is_healthy: true,
                    was_without_owner: false,
                    part: 0,
                    ring: ring.clone(),
                    directory: None,
                    owner_tick: None,
                    delays: Delays::default(),
                    intake: Intake::default(),
                    lateness: Duration::ZERO,
                    upstream_part: None,
                    pulls: cluster.blobs.iter().map(|_| None).collect(),
                    next: 0,
                    under_way: 0,
                    began: None,
                    done: None,
                    longest_gap: Duration::ZERO,
                }
            })
            .collect();
        let link = |rate| Link { rate, is_busy: false, ready: std::collections::VecDeque::new() };
        let rates = std::iter::repeat_n(cluster.link, cluster.nodes).chain([cluster.upstream_link]);
        let mut world = Self {
            cluster: cluster.clone(),
            now: Duration::ZERO,
            rng,
            queue: Queue::default(),
            by_id: nodes.iter().enumerate().map(|(number, node)| (node.id, number)).collect(),
            links: rates.map(link).collect(),
            downs: nodes.iter().map(|_| Down { rate: cluster.link, free: Duration::ZERO }).collect(),
            nodes,
            streams: Vec::new(),
            upstream_answers: true,
            upstream_bytes: 0,
            upstream_requests: 0,
            crossed: 0,
            messages: 0,
            message_bytes: 0,
            asks: 0,
            opened_streams: 0,
            messages_at_rest: 0,
            rests_since: None,
            said: HashMap::new(),
            sees: Vec::new(),
            changes_until: Duration::ZERO,
            twice: 0,
            needed: cluster.blobs.iter().sum(),
            absences: HashMap::new(),
            cut_off: Duration::ZERO,
            waited: Duration::ZERO,
            failures: 0,
            is_graph_new: false,
            wrong: Vec::new(),
            waiting: Vec::new(),
            left: cluster.nodes,
        };
        for (_, fault) in &cluster.faults {
            if let Fault::Comes(node) = fault {
                world.nodes[*node].life = Life::Away;
            }
        }
        world.notice();
        for node in 0..world.nodes.len() {
            if node < cluster.whole {
                world.is_whole_from_start(node);
            } else {
                let at = cluster.begin_within.mul_f64(world.rng.random());
                world.queue.push(at, Event::Begin { node });
            }
        }
        for (fault, (when, _)) in cluster.faults.iter().enumerate() {
            match when {
                When::At(at) => world.queue.push(*at, Event::Fault { fault }),
                When::First(part) => world.waiting.push((*part, fault)),
            }
        }
        world
    }

    pub(super) fn key(blob: usize) -> Key {
        let registry = Registry::docker_hub();
        Key { digest: Digest::of(&blob.to_be_bytes()), registry, access: Access::Anonymous }
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Begin { node } => self.begin(node),
            Event::Tick(spot) => self.tick(spot),
            Event::TickServe(spot) => self.tick_serve(spot),
            Event::TickOwner { node } => self.tick_owner(node),
            Event::Asked { owner, from, number, ask, call } => self.asked(owner, from, number, &ask, call),
            Event::Called { node, call, has_answered } => self.nodes[node].delays.ended(self.now, call, has_answered),
            Event::Answered { to, number, answered } => self.answered(to, number, answered),
            Event::Reported { owner, from, report, call } => self.reported_to(owner, from, &report, call),
            Event::Judged { to, owner, lease, verdict } => self.judged(to, owner, lease, verdict),
            Event::Requested { stream, reader } => self.requested(stream, &reader),
            Event::Opened { stream } => self.opened(stream),
            Event::BeatDue { stream } => self.beat_due(stream),
            Event::Beat { stream, beat } => self.beat(stream, *beat),
            Event::Parted { stream, parting } => self.parted(stream, &parting),
            Event::Broke { stream } => self.broke(stream),
            Event::Closed { stream } => self.closed(stream),
            Event::LinkFree { link: usize::MAX } => self.send(self.upstream()),
            Event::LinkFree { link } => {
                self.links[link].is_busy = false;
                self.send(link);
            }
            Event::Piece { stream, bytes } => self.piece(stream, bytes),
            Event::Fault { fault } => self.goes_wrong(self.cluster.faults[fault].1),
            Event::Noticed => self.notice(),
            Event::Sees { node, other } => self.looks(node, other),
            Event::ToAnnounce { from, owner } => self.announces_now(from, owner),
            Event::Announced { from, owner } => self.announced(from, owner),
            Event::Again { node } => self.begin(node),
        }
    }

    /// A node begins to pull, or goes on.
    fn begin(&mut self, node: usize) {
        let now = self.now;
        if !self.nodes[node].is_up() {
            return;
        }
        self.nodes[node].began.get_or_insert(now);
        while self.nodes[node].under_way < self.cluster.at_once && self.nodes[node].next < self.cluster.blobs.len() {
            let spot = Spot { node, blob: self.nodes[node].next };
            self.nodes[node].next += 1;
            if self.nodes[node].pulls[spot.blob].as_ref().is_some_and(|blob| blob.is_whole) {
                continue;
            }
            self.nodes[node].under_way += 1;
            let key = Self::key(spot.blob);
            let this = &mut self.nodes[node];
            let owners = this.ring.owners_of(&key.digest);
            let sought = Sought { key, credential: Credential::None, zone: this.zone.clone() };
            let size = Some(self.cluster.blobs[spot.blob]);
            let follow = Follow::new(now, this.id, sought, size, 0, owners);
            let serve = Serve::new(this.id);
            let mut blob = Blob::new(now, Some(follow), serve);
            blob.serve.arrived(0, size);
            this.pulls[spot.blob] = Some(blob);
            self.settle(spot);
        }
    }

    fn is_whole_from_start(&mut self, node: usize) {
        self.left -= 1;
        for blob in 0..self.cluster.blobs.len() {
            let size = self.cluster.blobs[blob];
            let this = &mut self.nodes[node];
            this.began = Some(Duration::ZERO);
            this.done = Some(Duration::ZERO);
            let mut pull = Blob::new(Duration::ZERO, None, Serve::new(this.id));
            pull.frontier = size;
            pull.is_whole = true;
            pull.serve.arrived(size, Some(size));
            pull.serve.is_whole();
            this.pulls[blob] = Some(pull);
            let key = Self::key(blob);
            let report = crate::cluster::directory::Report {
                key: key.clone(),
                ticket: None,
                lease: None,
                credential: Credential::None,
                size: Some(size),
                frontier: size,
                rate: 0,
                lag: 0,
                parent: None,
                zone: this.zone.clone(),
                state: crate::cluster::directory::State::Whole,
            };
            let first = this.ring.owners_of(&key.digest).first;
            self.announces(Spot { node, blob });
            if let Some(owner) = first {
                self.send_report(Spot { node, blob }, owner, Box::new(report));
            }
        }
    }

    /// Tells a reading something, and does what it wants then.
    pub(super) fn with_follow(&mut self, spot: Spot, tell: impl FnOnce(&mut Follow)) {
        if !self.nodes[spot.node].is_up() {
            return;
        }
        let node = &mut self.nodes[spot.node];
        let (late, room) = (node.delays.late(self.now), node.intake.room(self.now));
        let Some(blob) = &mut self.nodes[spot.node].pulls[spot.blob] else { return };
        let Some(follow) = &mut blob.follow else { return };
        follow.expect(late);
        follow.link_has_room(room);
        follow.readers_lag(blob.serve.lag());
        tell(follow);
        self.settle(spot);
    }

    fn settle(&mut self, spot: Spot) {
        let Some(blob) = &mut self.nodes[spot.node].pulls[spot.blob] else { return };
        let Some(follow) = &mut blob.follow else { return };
        let actions = follow.actions();
        let speaks_to_serve = actions.iter().any(|action| matches!(action, Action::Placed(_) | Action::Yields));
        for action in actions {
            tracing::trace!("{:?} {spot:?} {}", self.now, Self::brief(&action));
            match action {
                Action::Ask { number, owner, ask } => self.send_ask(spot, owner, number, ask),
                Action::Report { owner, report } => self.send_report(spot, owner, report),
                Action::Placed(ticket) => {
                    if let Some(blob) = &mut self.nodes[spot.node].pulls[spot.blob] {
                        blob.serve.placed(ticket);
                    }
                }
                Action::Yields => {
                    if let Some(blob) = &mut self.nodes[spot.node].pulls[spot.blob] {
                        blob.serve.yields();
                    }
                }
                // Each blob is by itself here.
                Action::KeptWaiting(_) => {}
            }
        }
        if speaks_to_serve {
            self.is_graph_new = true;
            self.settle_serve(spot);
        }
        self.obey(spot);
        let Some(blob) = &mut self.nodes[spot.node].pulls[spot.blob] else { return };
        let deadline = blob.follow.as_ref().and_then(Follow::next_deadline);
        if let Some(at) = deadline.map(|at| at.max(self.now))
            && blob.tick.is_none_or(|before| at < before)
        {
            blob.tick = Some(at);
            self.queue.push(at, Event::Tick(spot));
        }
    }

    fn brief(action: &Action) -> String {
        match action {
            Action::Ask { owner, ask, .. } => format!(
                "ask {owner:?} f={} t={:?} tail={} slow={} tr={:?}",
                ask.frontier, ask.ticket, ask.to_the_tail, ask.slow, ask.troubles
            ),
            Action::Report { owner, report } => format!(
                "report {owner:?} f={} l={:?} p={:?} {:?}",
                report.frontier, report.lease, report.parent, report.state
            ),
            other => format!("{other:?}"),
        }
    }

    pub(super) fn settle_serve(&mut self, spot: Spot) {
        let Some(blob) = &mut self.nodes[spot.node].pulls[spot.blob] else { return };
        for (stream, parting) in blob.serve.partings() {
            self.part(stream as usize, parting);
        }
        let Some(blob) = &mut self.nodes[spot.node].pulls[spot.blob] else { return };
        if let Some(at) = blob.serve.next_deadline()
            && blob.serve_tick.is_none_or(|before| at < before)
        {
            blob.serve_tick = Some(at);
            self.queue.push(at, Event::TickServe(spot));
        }
    }

    fn tick(&mut self, spot: Spot) {
        let now = self.now;
        let Some(blob) = &mut self.nodes[spot.node].pulls[spot.blob] else { return };
        if blob.tick.take_if(|at| *at <= now).is_some() {
            self.with_follow(spot, |follow| {
                if follow.next_deadline().is_some_and(|at| at <= now) {
                    follow.tick(now);
                }
            });
        }
    }

    fn tick_serve(&mut self, spot: Spot) {
        let now = self.now;
        let Some(blob) = &mut self.nodes[spot.node].pulls[spot.blob] else { return };
        if blob.serve_tick.take_if(|at| *at <= now).is_some() {
            blob.serve.tick(now);
            self.settle_serve(spot);
        }
    }

    /// Every byte of a blob before `frontier` is at a node.
    pub(super) fn arrived(&mut self, spot: Spot, frontier: u64) {
        let (now, size) = (self.now, self.cluster.blobs[spot.blob]);
        let Some(blob) = &mut self.nodes[spot.node].pulls[spot.blob] else { return };
        if blob.is_whole || frontier <= blob.frontier {
            return;
        }
        let came = frontier - std::mem::replace(&mut blob.frontier, frontier);
        blob.failures = 0;
        let gap = now - blob.last_byte;
        blob.last_byte = now;
        blob.serve.arrived(frontier, None);
        if frontier >= size {
            blob.is_whole = true;
            blob.serve.is_whole();
            self.is_graph_new = true;
        }
        let sends = blob.sends.clone();
        self.nodes[spot.node].intake.came(now, came);
        self.nodes[spot.node].longest_gap = self.nodes[spot.node].longest_gap.max(gap);
        self.with_follow(spot, |follow| {
            follow.arrived(now, frontier);
            if frontier >= size {
                follow.is_whole(now);
            }
        });
        for stream in sends {
            self.wake(stream);
        }
        if frontier >= size {
            self.announces(spot);
            self.is_done(spot.node);
        }
        if spot.blob == 0 && !self.waiting.is_empty() {
            let reached = |part: f64| frontier as f64 >= part * size as f64;
            let due: Vec<usize> = self.waiting.iter().filter(|(part, _)| reached(*part)).map(|due| due.1).collect();
            self.waiting.retain(|(part, _)| !reached(*part));
            for fault in due {
                self.queue.push(now, Event::Fault { fault });
            }
        }
    }

    /// A node has one blob more.
    fn is_done(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        this.under_way = this.under_way.saturating_sub(1);
        if this.pulls.iter().all(|pull| pull.as_ref().is_some_and(|blob| blob.is_whole)) {
            if this.done.replace(self.now).is_none() {
                self.left -= 1;
            }
        } else {
            self.begin(node);
        }
    }

    fn outcome(mut self, done: Option<Duration>) -> Outcome {
        let total: u64 = self.cluster.blobs.iter().sum();
        if done.is_none() {
            let missing: Vec<String> = (0..self.nodes.len())
                .filter(|node| self.nodes[*node].is_up() && self.nodes[*node].done.is_none())
                .map(|node| {
                    let pulls = self.nodes[node].pulls.iter().flatten().filter(|blob| !blob.is_whole);
                    format!("{node}: {:?}", pulls.map(|blob| (blob.frontier, &blob.follow)).collect::<Vec<_>>())
                })
                .take(3)
                .collect();
            self.complain(&format!("not everybody is done: {}", missing.join("; ")));
        }
        if self.messages_at_rest > 0 && self.cluster.checked {
            self.complain(&format!("{} messages when all is done", self.messages_at_rest));
        }
        if self.cluster.checked {
            self.watch_costs();
        }
        let took = done.unwrap_or(self.now);
        let pull = |node: &Node| Pull {
            began: node.began.unwrap_or_default(),
            done: node.done,
            is_healthy: node.is_healthy,
            longest_gap: node.longest_gap,
        };
        let link = self.cluster.link.min(self.cluster.upstream_link);
        Outcome {
            pulls: self.nodes.iter().map(pull).collect(),
            copies: self.upstream_bytes as f64 / total as f64,
            upstream_requests: self.upstream_requests,
            ideal: seconds(total, link),
            messages: self.messages,
            message_bytes: self.message_bytes,
            asks: self.asks,
            streams: self.opened_streams,
            crossed: self.crossed,
            needed: self.needed as f64 / total as f64,
            cut_off: self.cut_off,
            waited: self.waited,
            failures: self.failures,
            took,
            wrong: self.wrong,
        }
    }
}

fn zone(number: usize) -> Zone {
    // Always printable, and short.
    format!("zone-{number}").parse().unwrap_or_default()
}
