//! Tokens: kept until they end, fetched once for all who wait, and nobody else's than who brought the credentials.

mod ask;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use self::ask::Ask;
use super::challenge::Challenge;
use super::error::{ErrorKind, UpstreamError};
use super::exchange::Exchange;
use super::grant::{Grant, Secret};
use super::tasks::Tasks;
use crate::image::Repository;

/// Tokens that are kept, over all upstreams: the least recently used goes first.
const MAX_HELD: usize = 1024;
/// Credentials that were not used for so long are not kept in memory.
const CREDENTIALS_FOR: Duration = Duration::from_secs(3600);

/// Tokens, each fetched once for all who wait, and the way to the next one for each repository and grant.
#[derive(Debug)]
pub(super) struct Tokens {
    held: Mutex<Shelf>,
    tasks: Tasks,
}

#[derive(Debug, Default)]
struct Shelf {
    entries: HashMap<Key, Entry>,
    clock: u64,
}

/// An upstream by its number, a repository there, and as whom. What came with credentials is nobody else's.
type Key = (u64, Repository, Grant);

#[derive(Debug)]
struct Entry {
    way: Arc<Way>,
    flight: Flight,
    used: u64,
    used_at: Instant,
}

/// A token request under way, or its outcome.
type Flight = watch::Receiver<Option<Result<Token, UpstreamError>>>;

/// A token that opens one repository for reading.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    /// The value of an Authorization header.
    pub(super) header: HeaderValue,
    until: Instant,
}

/// How a challenge is answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// With a token of the server that it names.
    Bearer(Ask),
    /// With the credentials themselves.
    Basic,
}

/// How things stand with a token.
enum Standing {
    OnItsWay,
    Good(Token),
    Ended,
    Failed,
}

impl Tokens {
    pub(super) fn new(tasks: Tasks) -> Self {
        Self { held: Mutex::default(), tasks }
    }

    /// The token for a repository, where one was needed before; renewed if it has ended. `None` says to ask without.
    pub(super) async fn known(
        &self,
        upstream: u64,
        exchange: &Arc<Exchange>,
        repository: &Repository,
        grant: &Grant,
        deadline: Instant,
    ) -> Option<Token> {
        let flight = {
            let mut shelf = self.lock();
            let entry = shelf.touch(&(upstream, repository.clone(), grant.clone()))?;
            match standing(&entry.flight) {
                Standing::Good(token) => return Some(token),
                // The challenge of a request without a token leads on from here, perhaps to another server.
                Standing::Failed => return None,
                Standing::OnItsWay => {}
                Standing::Ended => entry.flight = self.launch(exchange, &entry.way, grant),
            }
            entry.flight.clone()
        };
        landed(flight, deadline).await?.ok()
    }

    /// The token that a challenge asks for. One that is `rejected` is not given again.
    pub(super) async fn fetch(
        &self,
        upstream: u64,
        exchange: &Arc<Exchange>,
        (repository, grant): (&Repository, &Grant),
        way: Way,
        rejected: Option<&Token>,
        deadline: Instant,
    ) -> Result<Token, UpstreamError> {
        if way == Way::Basic && rejected.is_some() {
            // They would be the same again; and accounts are locked for wrong passwords.
            return Err(UpstreamError::new(Arc::clone(&exchange.name), ErrorKind::Unauthorized));
        }
        let flight = {
            let key = (upstream, repository.clone(), grant.clone());
            let mut shelf = self.lock();
            let known = shelf.touch(&key).filter(|entry| *entry.way == way);
            match known.map(|entry| (standing(&entry.flight), entry.flight.clone())) {
                Some((Standing::Good(token), _)) if Some(&token) != rejected => return Ok(token),
                Some((Standing::OnItsWay, flight)) => flight,
                _ => {
                    let way = Arc::new(way);
                    let flight = self.launch(exchange, &way, grant);
                    shelf.put(key, Entry { way, flight: flight.clone(), used: 0, used_at: Instant::now() });
                    flight
                }
            }
        };
        let late = || {
            let kind = ErrorKind::Timeout(exchange.header_timeout);
            Err(UpstreamError::new(Arc::clone(&exchange.name), kind))
        };
        landed(flight, deadline).await.unwrap_or_else(late)
    }

    /// Whether one is there, or on its way, or can be renewed.
    pub(super) fn has(&self, upstream: u64, repository: &Repository, grant: &Grant) -> bool {
        let key = (upstream, repository.clone(), grant.clone());
        let shelf = self.lock();
        shelf.entries.get(&key).is_some_and(|entry| !matches!(standing(&entry.flight), Standing::Failed))
    }

    /// It didn't open what it is for: it is no reason to ask by it first.
    pub(super) fn forget(&self, upstream: u64, repository: &Repository, grant: &Grant) {
        self.lock().entries.remove(&(upstream, repository.clone(), grant.clone()));
    }

    /// Asks for a token in a task of its own: who asked first may leave, and the others still get it.
    fn launch(&self, exchange: &Arc<Exchange>, way: &Arc<Way>, grant: &Grant) -> Flight {
        let (sender, flight) = watch::channel(None);
        let (exchange, way, grant) = (Arc::clone(exchange), Arc::clone(way), grant.clone());
        if let Way::Basic = *way {
            sender.send_replace(Some(basic(&exchange, &grant)));
            return flight;
        }
        self.tasks.spawn(async move {
            let Way::Bearer(ask) = &*way else { return };
            let outcome = ask.request(&exchange, grant.credentials().map(Arc::as_ref)).await;
            exchange.record.token(outcome.as_ref().err());
            // Nobody may wait any more.
            let _ = sender.send(Some(outcome));
        });
        flight
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        // A map of handles: whole after every statement.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn touch(&mut self, key: &Key) -> Option<&mut Entry> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.clock;
        entry.used_at = Instant::now();
        Some(entry)
    }

    fn put(&mut self, key: Key, entry: Entry) {
        self.entries.retain(|(_, _, grant), e| grant.credentials().is_none() || e.used_at.elapsed() < CREDENTIALS_FOR);
        if self.entries.len() >= MAX_HELD
            && !self.entries.contains_key(&key)
            && let Some(oldest) = self.entries.iter().min_by_key(|(_, e)| e.used).map(|(key, _)| key.clone())
        {
            self.entries.remove(&oldest);
        }
        self.entries.insert(key, Entry { used: self.clock, ..entry });
    }
}

fn standing(flight: &Flight) -> Standing {
    match &*flight.borrow() {
        Some(Ok(token)) if token.until > Instant::now() => Standing::Good(token.clone()),
        Some(Ok(_)) => Standing::Ended,
        Some(Err(_)) => Standing::Failed,
        // Its task ended without a word: shutdown.
        None if flight.has_changed().is_err() => Standing::Failed,
        None => Standing::OnItsWay,
    }
}

/// The outcome; `None` when it does not come in time, or never will.
async fn landed(mut flight: Flight, deadline: Instant) -> Option<Result<Token, UpstreamError>> {
    let outcome = timeout_at(deadline, flight.wait_for(Option::is_some)).await.ok()?.ok()?;
    outcome.clone()
}

/// The credentials themselves, as good as a token.
fn basic(exchange: &Exchange, grant: &Grant) -> Result<Token, UpstreamError> {
    let header = grant.credentials().and_then(|credentials| credentials.header());
    let none = || UpstreamError::new(Arc::clone(&exchange.name), ErrorKind::Unauthorized);
    Ok(Token { header: header.ok_or_else(none)?, until: Instant::now() + CREDENTIALS_FOR })
}

impl Way {
    /// How the challenges of an answer can be met. `None` where nothing at hand will help.
    pub(super) fn read(headers: &HeaderMap, repository: &Repository, grant: &Grant) -> Option<Self> {
        if let Some(ask) = Ask::read(headers, repository) {
            return Some(Self::Bearer(ask));
        }
        let is_basic = Challenge::read(headers).iter().any(|challenge| challenge.scheme == "basic");
        let has_password = matches!(grant.credentials().map(|c| c.secret()), Some(Secret::Password { .. }));
        (is_basic && has_password).then_some(Self::Basic)
    }
}
