//! The monitor's one task: it gives the schedule time and chance, and makes a report of all that comes in.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rand::RngExt as _;
use tokio::sync::{broadcast, watch};
use tokio::task::{self, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::check::{Order, Outcome, Said, check};
use super::findings::{Findings, age};
use super::metrics::Counts;
use super::monitor::Parts;
use super::purse::Purse;
use super::report::{Check, ImageHealth, Report, Status};
use super::schedule::{Item, Schedule};
use super::verdict::{Circumstances, judge};
use crate::cluster::checks::{Standing, Watched};
use crate::config::Method;
use crate::image::{Digest, ImageName, Reference};
use crate::keep::{Catalog, Held, Known, Why};
use crate::pull::Evidence;
use crate::store::TagRecord;
use crate::upstream::Upstream;

/// What changes within it is judged, and told, together.
const SOON: Duration = Duration::from_millis(500);
/// Even where nothing seems to change, rights and times do.
const JUDGED_EVERY: Duration = Duration::from_secs(60);
/// The longest time until others are told again what is watched here, and the shortest.
const TOLD_EVERY: Duration = Duration::from_secs(300);
const TOLD_AT_MOST: Duration = Duration::from_secs(2);
/// What nobody looked at for so many intervals is looked at here, whosever it is.
const NEGLECTED: u32 = 3;

/// The machine's time passes whatever is done to the clock. It began long ago, so that there is room for what was before.
struct Clock {
    began: Instant,
}

/// How old it counts what a tag meant to who pulled it before there was an agent: whoever knows more is younger.
const LONG_PULLED: Duration = Duration::from_secs(30 * 24 * 3600);

/// How old what is known may be, at the most.
const LONG_AGO: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

pub(super) struct Work {
    parts: Parts,
    purse: Arc<Purse>,
    counts: Counts,
    report: watch::Sender<Arc<Report>>,
    clock: Clock,
    evidence: broadcast::Receiver<Evidence>,
    catalog: Arc<Catalog>,
    schedule: Schedule,
    findings: Findings,
    /// What the owners of images said last.
    standings: HashMap<ImageName, Standing>,
    /// Images whose tags are known to be known.
    noted: HashSet<(ImageName, Digest)>,
    /// Upstreams that don't know HEAD.
    by_get: HashSet<String>,
    checks: JoinSet<Outcome>,
    under_way: HashMap<task::Id, Item>,
    telling: JoinSet<Vec<(ImageName, Option<Standing>)>>,
    judge_at: Option<Instant>,
    tell_at: Option<Instant>,
}

impl Work {
    /// Works until it is dropped.
    pub(super) async fn begin(parts: Parts, purse: Purse, counts: Counts, report: watch::Sender<Arc<Report>>) {
        let evidence = parts.pull.evidence();
        let findings = Findings::restore(parts.store.clone()).await;
        let work = Self {
            purse: Arc::new(purse),
            counts,
            report,
            clock: Clock { began: Instant::now() },
            evidence,
            catalog: Arc::default(),
            schedule: Schedule::default(),
            findings,
            standings: HashMap::new(),
            noted: HashSet::new(),
            by_get: HashSet::new(),
            checks: JoinSet::new(),
            under_way: HashMap::new(),
            telling: JoinSet::new(),
            judge_at: None,
            tell_at: None,
            parts,
        };
        work.run().await;
    }

    async fn run(mut self) {
        self.parts.catalog.mark_changed();
        loop {
            self.begin_checks();
            self.begin_telling();
            let due = self.due();
            tokio::select! {
                changed = self.parts.catalog.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.catalog_changed().await;
                }
                evidence = self.evidence.recv() => match evidence {
                    Ok(evidence) => self.was_pulled(evidence).await,
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                Some(checked) = self.checks.join_next_with_id() => {
                    // One that panicked has found nothing.
                    let (id, outcome) = checked.unwrap_or_else(|error| (error.id(), Outcome::Nothing));
                    if let Some(item) = self.under_way.remove(&id) {
                        self.checked(&item, outcome).await;
                    }
                }
                Some(told) = self.telling.join_next() => self.was_told(told.unwrap_or_default()).await,
                () = at(due) => {}
                () = at(self.tell_at), if self.telling.is_empty() => {}
                () = at(self.judge_at) => self.judge().await,
            }
        }
    }

    /// When a check may be due.
    fn due(&self) -> Option<Instant> {
        let due = self.schedule.next_deadline()?;
        // What is due, and was passed over just now, waits a moment.
        Some(Instant::now() + due.saturating_sub(self.clock.now()).max(Duration::from_millis(10)))
    }

    fn begin_checks(&mut self) {
        let now = self.clock.now();
        let upstreams = &self.parts.upstreams;
        let find = |item: &Item| {
            let chain = upstreams.of(&item.image.registry);
            chain.iter().find(|upstream| url(upstream) == item.upstream).cloned()
        };
        let is_spared = |item: &Item| find(item).is_some_and(|upstream| upstream.is_near_its_limit());
        while let Some(item) = self.schedule.next(now, is_spared) {
            let Some(upstream) = find(&item) else {
                // Its registry has other upstreams now: the catalog's next change finds them.
                self.schedule.found(&mut rand::rng(), &item, now, true);
                self.schedule.ended(&item);
                continue;
            };
            let budget = self.parts.config.budget(&item.image.registry);
            let method = if self.by_get.contains(&item.upstream) { Method::Get } else { budget.method };
            let order = Order { item: item.clone(), upstream, budget, method };
            let (upstreams, purse) = (Arc::clone(upstreams), Arc::clone(&self.purse));
            let begun = self.checks.spawn(async move { check(&order, &upstreams, &purse).await });
            self.under_way.insert(begun.id(), item);
        }
    }

    async fn checked(&mut self, item: &Item, outcome: Outcome) {
        let (now, registry) = (self.clock.now(), &item.image.registry);
        self.schedule.ended(item);
        match outcome {
            Outcome::Said(said, took) => {
                let Said { status, digest, remark } = said;
                self.counts.checked(registry, status, took);
                tracing::debug!(image = %item.image, upstream = item.upstream, status = status.as_str(), ?remark, "checked");
                let (at, upstream) = (Some(Timestamp::now()), item.upstream.clone());
                let available_at = at.filter(|_| status == Status::Available);
                // Whatever the clock says.
                self.schedule.found(&mut rand::rng(), item, now, is_settled(status));
                self.found(&item.image, Check { upstream, status, at, available_at, digest, remark }).await;
                self.tell_soon();
            }
            Outcome::HeadUnknown => {
                if self.by_get.insert(item.upstream.clone()) {
                    tracing::info!(upstream = item.upstream, "it knows no HEAD: its images are checked by GET");
                }
            }
            Outcome::NoLeave(wait) => {
                let wait = wait.max(Duration::from_secs(1)).mul_f64(rand::rng().random_range(1.0..1.1));
                self.schedule.rest(registry, now + wait);
            }
            Outcome::Nothing => self.schedule.rest(registry, now + Duration::from_secs(10)),
        }
    }

    /// Somebody pulled it through this node.
    async fn was_pulled(&mut self, evidence: Evidence) {
        let Evidence { place, reference, digest, upstream, at } = evidence;
        let image = ImageName { registry: place.registry, repository: place.repository, reference };
        let (status, at) = (Status::Available, Some(at));
        let check = Check { upstream, status, at, available_at: at, digest: Some(digest), remark: None };
        if self.found(&image, check).await {
            self.tell_soon();
        }
    }

    /// Something was found of an image. False: something newer is known.
    async fn found(&mut self, image: &ImageName, check: Check) -> bool {
        let item = Item { image: image.clone(), upstream: check.upstream.clone() };
        let (at, status, digest) = (check.at, check.status, check.digest);
        if !self.findings.found(image, check).await {
            return false;
        }
        if let Some(at) = at {
            self.schedule.found(&mut rand::rng(), &item, self.clock.at(at), is_settled(status));
        }
        if status == Status::Available {
            self.tag_holds(image, digest.as_ref()).await;
        }
        self.judge_soon();
        true
    }

    /// An upstream says that a tag still means what is here: that is what it was last said to mean, for a pull that gets no
    /// other answer. What it means elsewhere, and isn't here, would be no help to that pull.
    async fn tag_holds(&self, image: &ImageName, digest: Option<&Digest>) {
        let Reference::Tag(tag) = &image.reference else { return };
        let known = self.catalog.images.iter().find(|known| known.name == *image && Some(&known.target) == digest);
        let target = known.and_then(|known| known.parts.iter().find(|part| part.digest == known.target));
        if let Some(part) = target.filter(|part| part.held != Held::Missing) {
            let record = TagRecord::new(part.digest, part.media_type.clone(), part.size, Duration::ZERO);
            self.parts.store.record_tag(&image.registry, &image.repository, tag, record).await;
        }
    }

    /// What was pulled before this node had an agent: its tags mean what runs, as long as nobody says something else. Without
    /// that, a pull that gets no answer wouldn't know what it is after.
    async fn note_tags(&mut self) {
        for image in &self.catalog.images {
            let Reference::Tag(tag) = &image.name.reference else { continue };
            let target = image.parts.iter().find(|part| part.digest == image.target && part.held != Held::Missing);
            let Some(part) = target.filter(|_| self.noted.insert((image.name.clone(), image.target))) else { continue };
            let (registry, repository, store) = (&image.name.registry, &image.name.repository, &self.parts.store);
            if store.tag(registry, repository, tag).await.is_none() {
                let record = TagRecord::new(part.digest, part.media_type.clone(), part.size, LONG_PULLED);
                store.record_tag(registry, repository, tag, record).await;
            }
        }
        let known: HashSet<_> = self.catalog.images.iter().map(|image| (image.name.clone(), image.target)).collect();
        self.noted.retain(|noted| known.contains(noted));
    }

    async fn catalog_changed(&mut self) {
        let catalog = self.parts.catalog.borrow_and_update().clone();
        self.catalog = catalog;
        if self.catalog.is_complete {
            let known: BTreeSet<&ImageName> = self.catalog.images.iter().map(|image| &image.name).collect();
            self.standings.retain(|image, _| known.contains(image));
            self.findings.keep(&known, Timestamp::now()).await;
        }
        self.note_tags().await;
        self.set_schedule();
        self.judge_soon();
        self.tell_soon();
    }

    /// Images whose state is to be known here.
    fn watched(&self) -> impl Iterator<Item = &Arc<Known>> {
        let (ttl, now) = (self.parts.config.unused_ttl.0, Timestamp::now());
        let is_ignored = |image: &Known| self.parts.ignored.iter().any(|pattern| pattern.matches(&image.name));
        self.catalog.images.iter().filter(move |image| {
            let is_wanted = match image.why {
                Why::InUse | Why::Kept(_) | Why::Prefetched(_) => true,
                Why::Unused(_) => age(now, image.last_used) < ttl,
                // Who runs it watches it.
                Why::Copy => false,
            };
            is_wanted && !is_ignored(image)
        })
    }

    fn upstreams_of(&self, image: &ImageName) -> Vec<String> {
        self.parts.upstreams.of(&image.registry).iter().map(|upstream| url(upstream)).collect()
    }

    fn set_schedule(&mut self) {
        let now = Timestamp::now();
        let mut items = Vec::new();
        for image in self.watched() {
            for upstream in self.upstreams_of(&image.name) {
                let last = self.findings.of(&image.name, &upstream).and_then(|check| check.at);
                if self.is_ours(&image.name, last, now) {
                    items.push((Item { image: image.name.clone(), upstream }, last.map(|at| self.clock.at(at))));
                }
            }
        }
        let config = &self.parts.config;
        self.schedule.set(self.clock.now(), &mut rand::rng(), items, |registry| config.budget(registry));
    }

    /// Whether this node is to look at an image at an upstream: all of them where it is by itself; else those that fall to
    /// it, and those that who was to look at doesn't.
    fn is_ours(&self, image: &ImageName, last: Option<Timestamp>, now: Timestamp) -> bool {
        if self.parts.peers.is_none() {
            return true;
        }
        let Some(standing) = self.standings.get(image) else { return false };
        let interval = self.parts.config.budget(&image.registry).interval;
        standing.is_yours
            || match last {
                Some(last) => age(now, last) > interval * NEGLECTED,
                // An upstream of this node alone: what others found of theirs would have come with it long ago.
                None => standing.findings.iter().any(|finding| finding.age > interval),
            }
    }

    /// Tells the owners of images what is known of them here, if it is time.
    fn begin_telling(&mut self) {
        let is_time = self.tell_at.is_some_and(|at| at <= Instant::now());
        let Some(peers) = self.parts.peers.clone().filter(|_| is_time && self.telling.is_empty()) else { return };
        let interval = self.parts.config.interval.0;
        let pause = if interval.is_zero() { TOLD_EVERY } else { (interval / 4).clamp(TOLD_AT_MOST, TOLD_EVERY) };
        self.tell_at = Some(Instant::now() + pause.mul_f64(rand::rng().random_range(0.8..1.2)));
        let now = Timestamp::now();
        let checked: HashSet<&ImageName> = self.watched().map(|image| &image.name).collect();
        let is_checked = |image: &ImageName| {
            checked.contains(image) && !self.parts.config.budget(&image.registry).interval.is_zero()
        };
        let told: Vec<Watched> = self
            .catalog
            .images
            .iter()
            .map(|image| Watched {
                image: image.name.clone(),
                target: image.target,
                is_whole: image.is_whole(),
                is_checked: is_checked(&image.name),
                findings: self.findings.told(&image.name, now),
            })
            .collect();
        self.telling.spawn(async move {
            let names: Vec<ImageName> = told.iter().map(|watched| watched.image.clone()).collect();
            names.into_iter().zip(peers.watch(told).await).collect()
        });
    }

    async fn was_told(&mut self, told: Vec<(ImageName, Option<Standing>)>) {
        let now = Timestamp::now();
        for (image, standing) in told {
            // Whose owner doesn't answer stays as it was.
            let Some(standing) = standing else { continue };
            for finding in standing.findings.iter().cloned() {
                let check = Findings::heard(finding, now);
                self.found(&image, check).await;
            }
            self.standings.insert(image, standing);
        }
        self.set_schedule();
        self.judge_soon();
    }

    async fn judge(&mut self) {
        self.judge_at = Some(Instant::now() + JUDGED_EVERY);
        let watched: Vec<Arc<Known>> = self.watched().cloned().collect();
        let mut images = Vec::with_capacity(watched.len());
        for known in watched {
            let upstreams = self.upstreams_of(&known.name);
            let checks = self.findings.checks(&known.name, &upstreams);
            let here = u32::from(known.is_whole());
            let copies = self.standings.get(&known.name).map_or(here, |standing| standing.copies.max(here));
            let blobs: Vec<Digest> = known.parts.iter().map(|part| part.digest).collect();
            let is_permitted = copies > 0 && self.parts.pull.would_give(&known.name, &known.target, &blobs).await;
            let verdict = judge(&known, Circumstances { checks: &checks, copies, is_permitted });
            images.push(Arc::new(ImageHealth { name: known.name.clone(), target: known.target, checks, verdict }));
        }
        self.report.send_if_modified(|report| {
            let is_news = report.images != images;
            if is_news {
                *report = Arc::new(Report { images });
            }
            is_news
        });
    }

    fn judge_soon(&mut self) {
        let soon = Instant::now() + SOON;
        self.judge_at = Some(self.judge_at.map_or(soon, |at| at.min(soon)));
    }

    fn tell_soon(&mut self) {
        if self.parts.peers.is_some() {
            let soon = Instant::now() + SOON.mul_f64(rand::rng().random_range(1.0..2.0));
            self.tell_at = Some(self.tell_at.map_or(soon, |at| at.min(soon)));
        }
    }
}

impl Clock {
    fn now(&self) -> Duration {
        LONG_AGO + self.began.elapsed()
    }

    /// A moment of the past that is known by the clock, on the machine's scale.
    fn at(&self, moment: Timestamp) -> Duration {
        self.now().saturating_sub(age(Timestamp::now(), moment))
    }
}

/// Whether it needs no second look soon.
const fn is_settled(status: Status) -> bool {
    !matches!(status, Status::Unreachable | Status::QuotaExceeded)
}

fn url(upstream: &Upstream) -> String {
    upstream.url().to_string()
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}
