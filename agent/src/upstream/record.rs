use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::breaker::{Breaker, Change, Failure, Rank, SILENCE};
use super::error::{ErrorKind, Unreachable, UpstreamError};
use super::metrics::{ANSWER, BODY, Meter, PROBE, SILENT, UNANSWERED};
use super::probe::Prober;
use super::quota::Quota;

/// How long an upstream rests that says "too many requests" and not for how long, and the longest that is believed.
const REST: Duration = Duration::from_secs(30);
const REST_MIN: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(3600);
/// What it said of its quota holds for so long: who asks it no more would never hear that there is more again.
const QUOTA_HOLDS: Duration = Duration::from_secs(3600);
/// An answer that takes this many times as long as they usually do is slow; within bounds.
const SLOW: u32 = 4;
const PATIENCE_MIN: Duration = Duration::from_millis(250);
/// Where nothing is known yet.
const PATIENCE: Duration = Duration::from_secs(1);

/// How things stand with an upstream.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// When it last answered, with the content or with no.
    pub last_success: Option<Timestamp>,
    /// When it last gave no answer, or broke one off.
    pub last_error: Option<LastError>,
    /// Since when its breaker is open, and why: it is asked after those that are well. `None` while it is closed.
    pub down: Option<Down>,
    /// It said "too many requests", and is asked after all others until then.
    pub rests_until: Option<Timestamp>,
    /// What it last said of the quota on us.
    pub quota: Option<Quota>,
}

/// The last thing that went wrong.
#[derive(Debug, Clone)]
pub struct LastError {
    /// When.
    pub at: Timestamp,
    /// What, for people.
    pub text: String,
    /// What, for machines: the label of the [`ErrorKind`].
    pub kind: &'static str,
}

/// An open breaker.
#[derive(Debug, Clone)]
pub struct Down {
    /// Since when.
    pub since: Timestamp,
    /// Why, for people.
    pub reason: String,
}

/// Writes down how things go with one upstream, and sees to it that one that is down is probed.
#[derive(Debug)]
pub(super) struct Record {
    name: Arc<str>,
    meter: Meter,
    seen: Mutex<Seen>,
    /// Tells the prober that the next probe comes earlier.
    woken: Arc<Notify>,
    prober: Prober,
}

#[derive(Debug)]
struct Seen {
    state: State,
    breaker: Breaker,
    /// Another host than the upstream itself, where it failed when the breaker opened.
    failed_at: Option<Arc<str>>,
    is_probed: bool,
    /// How long the head of an answer usually takes.
    usual: Option<Duration>,
    /// When it last said anything.
    heard: Option<Instant>,
    /// When it last said how much of its quota is left.
    quota_heard: Option<Instant>,
}

impl Record {
    pub(super) fn new(name: Arc<str>, meter: Meter, prober: Prober) -> Self {
        let seen = Seen {
            state: State::default(),
            breaker: Breaker::new(Instant::now()),
            failed_at: None,
            is_probed: false,
            usual: None,
            heard: None,
            quota_heard: None,
        };
        Self { name, meter, seen: Mutex::new(seen), woken: Arc::default(), prober }
    }

    pub(super) fn state(&self) -> State {
        let mut state = self.lock().state.clone();
        state.rests_until = state.rests_until.filter(|until| *until > Timestamp::now());
        state
    }

    /// A request that ended with the head of an answer, or with none.
    pub(super) fn request(&self, took: Duration, error: Option<&UpstreamError>) {
        self.meter.request(error.map_or("ok", |e| e.kind().label()));
        let now = Instant::now();
        let mut seen = self.lock();
        seen.breaker.want(now);
        let change = match error {
            Some(error) if !error.is_answer() => {
                self.note(&mut seen, error);
                if says_something(error.kind()) {
                    seen.heard = Some(now);
                }
                if let ErrorKind::RateLimited { retry_after } = error.kind() {
                    let rest = retry_after.unwrap_or(REST).clamp(REST_MIN, REST_MAX);
                    seen.breaker.rest(now + rest);
                    let until = Timestamp::now() + rest;
                    seen.state.rests_until = seen.state.rests_until.max(Some(until));
                    self.meter.rests(until);
                    tracing::warn!(upstream = %self.name, ?rest, "too many requests: it rests");
                }
                weight(error.kind()).and_then(|failure| seen.breaker.failed(failure, now))
            }
            _ => {
                self.meter.head(took.as_secs_f64());
                seen.state.last_success = Some(Timestamp::now());
                seen.heard = Some(now);
                // One in eight of what is new.
                seen.usual = Some(seen.usual.map_or(took, |usual| (usual * 7 + took) / 8));
                seen.breaker.answered()
            }
        };
        self.changed(
            seen,
            change,
            error.filter(|error| !error.is_answer()).map_or(ANSWER, |error| error.kind().label()),
            error,
        );
    }

    /// A body that broke off.
    pub(super) fn failed(&self, error: &UpstreamError) {
        let mut seen = self.lock();
        self.note(&mut seen, error);
        let change = weight(error.kind()).and_then(|failure| seen.breaker.failed(failure, Instant::now()));
        self.changed(seen, change, error.kind().label(), Some(error));
    }

    /// A body that ended well.
    pub(super) fn delivered(&self) {
        let mut seen = self.lock();
        let change = seen.breaker.delivered();
        self.changed(seen, change, BODY, None);
    }

    /// Another upstream answered while this one, asked at `began`, had not.
    pub(super) fn lost_race(&self, began: Instant) {
        let now = Instant::now();
        let silence = now.saturating_duration_since(began);
        let mut seen = self.lock();
        self.meter.lost_race();
        if seen.heard.is_some_and(|heard| heard >= began) {
            return;
        }
        tracing::debug!(upstream = %self.name, ?silence, "another upstream answered first");
        let change = seen.breaker.lost(silence, now);
        if change == Some(Change::Opened) {
            let silence = Duration::from_millis(silence.as_millis().try_into().unwrap_or(u64::MAX));
            let reason = format!("said nothing for {}", humantime::format_duration(silence));
            seen.state.down = Some(Down { since: Timestamp::now(), reason });
        }
        self.changed(seen, change, SILENT, None);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.meter.received(bytes);
    }

    pub(super) fn token(&self, error: Option<&UpstreamError>) {
        self.meter.token(error.map_or("ok", |e| e.kind().label()));
    }

    pub(super) fn quota(&self, quota: Quota) {
        self.meter.quota(quota);
        let mut seen = self.lock();
        seen.state.quota = Some(quota);
        seen.quota_heard = Some(Instant::now());
    }

    /// Whether it rests, or has said lately that little is left of its quota.
    pub(super) fn is_near_its_limit(&self, now: Instant) -> bool {
        let seen = self.lock();
        let is_short = seen.state.quota.is_some_and(|quota| !quota.is_ample());
        let is_lately = |at| now.saturating_duration_since(at) < QUOTA_HOLDS;
        seen.breaker.rank(now) == Rank::Resting || (is_short && seen.quota_heard.is_some_and(is_lately))
    }

    pub(super) fn rank(&self) -> Rank {
        self.lock().breaker.rank(Instant::now())
    }

    /// Somebody would ask it, if it were well.
    pub(super) fn want(&self) {
        let now = Instant::now();
        let mut seen = self.lock();
        if seen.breaker.want(now) {
            self.woken.notify_one();
        }
        if seen.breaker.probe_at(now).is_some() {
            self.have_probed(&mut seen);
        }
    }

    /// How long to wait for it before another upstream is asked too.
    pub(super) fn patience(&self) -> Duration {
        self.lock().usual.map_or(PATIENCE, |usual| (usual * SLOW).clamp(PATIENCE_MIN, SILENCE))
    }

    /// When to probe next, and what says that it is to be earlier. `None` ends the prober.
    pub(super) fn next_probe(&self) -> Option<(Instant, Arc<Notify>)> {
        let mut seen = self.lock();
        let at = seen.breaker.probe_at(Instant::now());
        seen.is_probed = at.is_some();
        Some((at?, Arc::clone(&self.woken)))
    }

    /// Another host than the upstream itself, where it failed.
    pub(super) fn failed_at(&self) -> Option<Arc<str>> {
        self.lock().failed_at.clone()
    }

    pub(super) fn probed(&self, alive: bool) {
        let mut seen = self.lock();
        let change = seen.breaker.probed(alive, Instant::now());
        if change == Some(Change::Opened) {
            let reason = "said nothing to a request, nor to a probe".to_owned();
            seen.state.down = Some(Down { since: Timestamp::now(), reason });
        }
        self.changed(seen, change, if alive { PROBE } else { UNANSWERED }, None);
    }

    fn note(&self, seen: &mut Seen, error: &UpstreamError) {
        let kind = error.kind().label();
        self.meter.error(kind);
        seen.state.last_error = Some(LastError { at: Timestamp::now(), text: error.to_string(), kind });
    }

    /// Says what changed and by what, and has it probed.
    fn changed(
        &self,
        mut seen: MutexGuard<'_, Seen>,
        change: Option<Change>,
        by: &'static str,
        error: Option<&UpstreamError>,
    ) {
        match change {
            None => return,
            Some(Change::Closed) => {
                let down = seen.state.down.take();
                self.meter.closed(by);
                tracing::info!(upstream = %self.name, since = down.map(|d| tracing::field::display(d.since)), "it is well again");
                return;
            }
            Some(Change::Doubted) => seen.failed_at = None,
            Some(Change::Opened) => {
                self.meter.opened(by);
                seen.failed_at = error.and_then(UpstreamError::elsewhere);
                if let Some(error) = error {
                    seen.state.down = Some(Down { since: Timestamp::now(), reason: error.to_string() });
                }
                let reason = seen.state.down.as_ref().map(|down| down.reason.as_str());
                tracing::warn!(upstream = %self.name, reason, "it is down: others are asked first until it is back");
            }
        }
        self.have_probed(&mut seen);
    }

    fn have_probed(&self, seen: &mut Seen) {
        if !std::mem::replace(&mut seen.is_probed, true) {
            self.prober.launch();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // What is behind it is whole after every statement.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.lock().state.down.is_some() {
            self.meter.gone();
        }
    }
}

/// What a failure says about the upstream; `None` for what says nothing about how it is.
fn weight(kind: &ErrorKind) -> Option<Failure> {
    match kind {
        // Closed before the head of an answer: a kept connection's end, or one of many servers behind a name.
        ErrorKind::Unreachable(Unreachable::Broken(_)) => Some(Failure::Light),
        ErrorKind::Unreachable(_) | ErrorKind::Timeout(_) => Some(Failure::Grave),
        ErrorKind::Server(status) if status.is_server_error() || status.as_u16() == 408 => Some(Failure::Light),
        ErrorKind::Stalled(_) | ErrorKind::Cut { .. } => Some(Failure::Body),
        _ => None,
    }
}

/// Whether the upstream itself spoke.
const fn says_something(kind: &ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Server(_) | ErrorKind::Protocol(_) | ErrorKind::RateLimited { .. } | ErrorKind::Credentials(_)
    )
}
