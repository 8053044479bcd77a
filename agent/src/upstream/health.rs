use http::header::USER_AGENT;
use tokio::time::Instant;

use super::breaker::Rank;
use super::grant::Grant;
use super::one::Upstream;
use super::places::Places;

/// The most ranges of one blob at once, where no `max_connections` says how many.
const RANGES_AT_ONCE: usize = 8;

/// What others need to know of an upstream before they ask it.
impl Upstream {
    /// Whether it is the registry's own address, not a mirror of it.
    #[must_use]
    pub const fn is_origin(&self) -> bool {
        self.is_origin
    }

    /// Whether it is asked in its turn: its breaker is closed, and it doesn't rest.
    #[must_use]
    pub fn is_available(&self) -> bool {
        self.rank() == Rank::Well
    }

    /// Whether it said "too many requests", and is asked when nobody else is left.
    #[must_use]
    pub fn rests(&self) -> bool {
        self.rank() == Rank::Resting
    }

    /// Whether work that nobody waits for may ask it: it is available, and not near its limit.
    #[must_use]
    pub fn allows_background(&self) -> bool {
        self.is_available() && !self.is_near_its_limit()
    }

    /// Whether it said "too many requests", or within the hour that no more than a fifth of its quota is left.
    #[must_use]
    pub fn is_near_its_limit(&self) -> bool {
        self.exchange.record.is_near_its_limit(Instant::now())
    }

    /// The most connections for parallel ranges of one blob.
    #[must_use]
    pub fn ranges_at_once(&self) -> usize {
        self.exchange.places.as_ref().map_or(RANGES_AT_ONCE, Places::most_for_blobs)
    }

    /// How many connections a blob that has `open` of them may have now: no more than are free among its
    /// `max_connections`, and one where somebody waits for any.
    #[must_use]
    pub fn ranges_now(&self, open: usize) -> usize {
        match &self.exchange.places {
            None => usize::MAX,
            Some(places) if places.are_waited_for() => 1,
            Some(places) => (open + places.free_for_blobs()).max(1),
        }
    }

    /// Whether a blob that is asked for now would have a connection at once.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.exchange.places.as_ref().is_none_or(|places| places.free_for_blobs() > 0)
    }

    /// Whether somebody waits for one of its `max_connections`. Who reads a blob gives way after a while then, if another
    /// request can go on where that one ends: nobody else would ever get one.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        self.exchange.places.as_ref().is_some_and(Places::are_waited_for)
    }

    /// Whether it may give to us what it gives to nobody who shows nothing: by credentials, a certificate or a header
    /// that the configuration has for it.
    #[must_use]
    pub fn knows_us(&self) -> bool {
        self.own.is_some() || self.is_shown_a_key()
    }

    /// Whether every request shows it what may be a key, with a token or without.
    pub(super) fn is_shown_a_key(&self) -> bool {
        let has_certificate = self.config.as_ref().is_some_and(|config| config.client_cert.is_some());
        // Any header may be a key: registries know many.
        let has_header = self.exchange.headers.keys().any(|name| *name != USER_AGENT);
        has_certificate || has_header
    }

    /// Whether who asks it with this grant may be known to it by credentials.
    #[must_use]
    pub fn is_shown_credentials(&self, grant: &Grant) -> bool {
        match grant {
            Grant::Credentials(_) => true,
            Grant::Own(own) => self.own.is_some() || self.host.as_ref().is_some_and(|host| !own.at(host).is_empty()),
            Grant::None | Grant::Anonymous => self.own.is_some(),
        }
    }

    /// Whether a request since then may be slow for what isn't its fault: it has waited for one of its
    /// `max_connections`, or for credentials.
    pub(super) fn is_held_up(&self, since: Instant) -> bool {
        self.exchange.places.as_ref().is_some_and(|places| places.were_waited_for(since))
            || self.own.as_ref().is_some_and(|own| own.was_waited_for(since))
    }

    /// Whether it may be asked what a tag means.
    pub(super) fn knows_tags(&self) -> bool {
        self.config.as_ref().is_none_or(|config| config.resolve)
    }

    /// Whether it is the registry's own address with nothing said about it.
    pub(super) fn is_bare_origin(&self) -> bool {
        self.is_origin && self.exchange.named.is_none()
    }

    pub(super) fn rank(&self) -> Rank {
        self.exchange.record.rank()
    }
}
