//! Whom every connection believes: the certificate authorities of the host, or, where none can be read, Mozilla's, which
//! are built in.
//!
//! An agent in a Pod sees those folders of the host that are mounted, at their own places or below `/host`, and the
//! files there are links into each other as often as not. `places` says where distributions keep them, `links` follows
//! a path within what is mounted, `reading` makes certificates of files; [`Trust`] reads them again when they change.

mod links;
mod places;
mod reading;

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use tokio::time::Instant;

use self::places::Search;
use self::reading::Read;
use super::metrics::Metrics;

/// New connections look whether the host's files have changed, at most this often.
const CHECKS_APART: Duration = Duration::from_secs(10);

/// Where the certificate authorities come from that everybody is believed by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthoritySource {
    /// From these files and folders of the host.
    Host(Vec<PathBuf>),
    /// From this binary: the host has none that can be read.
    Bundled,
}

/// The certificate authorities that an agent here believes, as they are now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorities {
    /// Where they come from.
    pub source: AuthoritySource,
    /// How many there are.
    pub count: usize,
    /// What is there, or named by a variable, and can't be read. At most a handful.
    pub unreadable: Vec<Unreadable>,
    /// Whether `SSL_CERT_FILE` or `SSL_CERT_DIR` says where to look.
    pub is_by_variable: bool,
}

/// A file or folder of authorities that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Where it is.
    pub path: PathBuf,
    /// Why not.
    pub reason: String,
    /// Where it leads to, if it is a link to what isn't there: in a Pod, to what isn't mounted.
    pub leads_to: Option<PathBuf>,
}

/// The authorities in use, read again when they change. A cheap clone.
#[derive(Debug, Clone)]
pub(super) struct Trust(Arc<Shared>);

struct Shared {
    searches: Vec<Search>,
    provider: Arc<CryptoProvider>,
    roots: ArcSwap<RootCertStore>,
    /// How often the roots were replaced: what was made of older ones is made again.
    generation: AtomicU64,
    /// When it was looked at the files last. Apart from `seen`, which is held while they are read: who asks whether it is
    /// time mustn't wait for a disk.
    checked: Mutex<Instant>,
    seen: Mutex<Seen>,
    hasher: RandomState,
    metrics: Metrics,
}

struct Seen {
    /// What is different when a file is.
    stamp: u64,
    /// What was told last: a change of it is worth a line in the log.
    told: Authorities,
}

impl Authorities {
    /// Looks at this process's environment and files as the agent does when it starts. Blocking.
    #[must_use]
    pub fn look() -> Self {
        describe(&reading::read(&places::searches(|name| std::env::var_os(name))))
    }
}

impl fmt::Display for AuthoritySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(places) => {
                for (at, place) in places.iter().enumerate() {
                    write!(f, "{}{}", if at == 0 { "" } else { ", " }, place.display())?;
                }
                Ok(())
            }
            Self::Bundled => f.write_str("built in"),
        }
    }
}

impl Trust {
    /// Reads the host's. Which are used goes to the log.
    pub(super) fn system(metrics: &Metrics) -> Self {
        Self::of(places::searches(|name| std::env::var_os(name)), metrics)
    }

    fn of(searches: Vec<Search>, metrics: &Metrics) -> Self {
        let hasher = RandomState::new();
        // Looked at before they are read: what changes in between is read again.
        let stamp = hasher.hash_one(reading::stamps(&searches));
        let read = reading::read(&searches);
        let told = describe(&read);
        tell(&told);
        metrics.authorities(matches!(told.source, AuthoritySource::Host(_)), told.count);
        Self(Arc::new(Shared {
            searches,
            provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
            roots: ArcSwap::from_pointee(believed(read)),
            generation: AtomicU64::new(0),
            checked: Mutex::new(Instant::now()),
            seen: Mutex::new(Seen { stamp, told }),
            hasher,
            metrics: metrics.clone(),
        }))
    }

    /// How connections are secured.
    pub(super) fn provider(&self) -> &Arc<CryptoProvider> {
        &self.0.provider
    }

    /// Who is believed now.
    pub(super) fn roots(&self) -> Arc<RootCertStore> {
        self.0.roots.load_full()
    }

    /// Rises when the authorities change.
    pub(super) fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Whether it is time to look at the files again: true once for each time.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let mut checked = self.0.checked.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = now.saturating_duration_since(*checked) >= CHECKS_APART;
        if is_due {
            *checked = now;
        }
        is_due
    }

    /// Reads the files again if they have changed. Blocking. Where all of the host's are gone, the last that were read
    /// stay: somebody is replacing them, and what a company has added to them is not given up for a moment's sake.
    pub(super) fn refresh(&self) {
        let shared = &*self.0;
        let stamp = shared.hasher.hash_one(reading::stamps(&shared.searches));
        // Nobody else reads meanwhile; who waits is about to make a connection that needs them.
        let mut seen = shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.stamp == stamp {
            return;
        }
        seen.stamp = stamp;
        let read = reading::read(&shared.searches);
        let now = describe(&read);
        if now.source == AuthoritySource::Bundled && seen.told.source != AuthoritySource::Bundled {
            tracing::warn!("the host's certificate authorities can't be read any more; the last that were still hold");
            return;
        }
        shared.roots.store(Arc::new(believed(read)));
        shared.generation.fetch_add(1, Ordering::AcqRel);
        shared.metrics.authorities(matches!(now.source, AuthoritySource::Host(_)), now.count);
        if seen.told != now {
            tell(&now);
            seen.told = now;
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("searches", &self.searches).finish_non_exhaustive()
    }
}

fn describe(read: &Read) -> Authorities {
    let is_by_variable = read.is_by_variable;
    let unreadable = read.unreadable.clone();
    match read.roots.len() {
        0 => Authorities {
            source: AuthoritySource::Bundled,
            count: webpki_roots::TLS_SERVER_ROOTS.len(),
            unreadable,
            is_by_variable,
        },
        count => Authorities { source: AuthoritySource::Host(read.places.clone()), count, unreadable, is_by_variable },
    }
}

fn tell(authorities: &Authorities) {
    for Unreadable { path, reason, .. } in &authorities.unreadable {
        tracing::warn!(path = %path.display(), reason, "certificate authorities that can't be read");
    }
    match &authorities.source {
        AuthoritySource::Host(_) => {
            tracing::info!(from = %authorities.source, count = authorities.count, "the host's certificate authorities are used");
        }
        AuthoritySource::Bundled => tracing::warn!(
            count = authorities.count,
            "no certificate authority of the host can be read: Mozilla's, which are built in, are used; a registry with \
             another one needs its folder mounted, or `ca` in its [[registry.upstream]]"
        ),
    }
}

fn believed(read: Read) -> RootCertStore {
    if read.roots.is_empty() { webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect() } else { read.roots }
}

#[cfg(test)]
mod tests;
