use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::owner::held;
use crate::cluster::Ring;
use crate::cluster::checks::{Allowance, Answer, Kept, Ledger};
use crate::config;
use crate::image::Registry;
use crate::store::{Records, Store};

/// When to ask again after the disk didn't take what was granted.
const DISK_AGAIN: Duration = Duration::from_secs(10);
/// When to ask again about a registry that isn't to be checked at all.
const OFF: Duration = Duration::from_secs(3600);

/// The checks that this node grants out of registries' budgets: a [`Ledger`], with a disk under it. What is granted is on
/// the disk before anybody hears of it, so that no end of this process lets a budget be used twice. A cheap clone.
#[derive(Debug, Clone)]
pub struct Grants(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ledger: Mutex<Ledger>,
    restored: OnceCell<()>,
    /// Held while a book is written, so that an older state never takes a younger one's place.
    writing: tokio::sync::Mutex<()>,
    store: Store,
    budgets: config::Health,
    clock: Clock,
}

/// Time since 1970 as it was when the process began, and from then on as it passes: whatever is done to the clock.
#[derive(Debug)]
struct Clock {
    began_at: Duration,
    began: Instant,
}

impl Clock {
    fn now(&self) -> Duration {
        self.began_at + self.began.elapsed()
    }
}

impl Grants {
    /// Those of a node by itself.
    #[must_use]
    pub fn alone(store: Store, budgets: config::Health) -> Self {
        Self::with(Ledger::alone(), store, budgets)
    }

    /// Those of a node of a cluster, that owns what the ring says: nothing, before it has joined.
    #[must_use]
    pub fn shared(store: Store, budgets: config::Health) -> Self {
        Self::with(Ledger::new(), store, budgets)
    }

    fn with(ledger: Ledger, store: Store, budgets: config::Health) -> Self {
        let began_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(Arc::new(Inner {
            ledger: Mutex::new(ledger),
            restored: OnceCell::new(),
            writing: tokio::sync::Mutex::default(),
            store,
            budgets,
            clock: Clock { began_at, began: Instant::now() },
        }))
    }

    /// This node can't join its cluster for now, and owns everything: as after a partition, it grants checks of its own once
    /// it has been so for longer than what others may have granted counts.
    pub fn stand_alone(&self) {
        self.ledger().owns(self.0.clock.now(), |_| true);
    }

    /// Asks for `wanted` checks of a registry. What is granted may begin within [`Allowance::life`] of the call.
    pub async fn ask(&self, registry: &Registry, wanted: u32) -> Answer {
        let Some(allowance) = self.allowance(registry) else { return Answer::Later(OFF) };
        self.restore().await;
        let answer = self.ledger().ask(self.0.clock.now(), registry, &allowance, wanted);
        match answer {
            Answer::Granted(_) if !self.keep(registry).await => {
                tracing::warn!(%registry, "images aren't checked: the store doesn't take what was granted");
                Answer::Later(DISK_AGAIN)
            }
            answer => answer,
        }
    }

    /// How many checks of a registry count now, and how many may; `None` where this node doesn't own its budget.
    #[must_use]
    pub fn used(&self, registry: &Registry) -> Option<(usize, u32)> {
        let allowance = self.allowance(registry)?;
        let used = self.ledger().used(self.0.clock.now(), registry, &allowance)?;
        Some((used, allowance.most))
    }

    /// What a registry's budget allows; `None`: no checks.
    #[must_use]
    pub fn allowance(&self, registry: &Registry) -> Option<Allowance> {
        Allowance::of(&self.0.budgets.budget(registry))
    }

    /// Who owns what from now on.
    pub(super) fn ring_changed(&self, ring: &Ring) {
        let me = Some(ring.me());
        self.ledger().owns(self.0.clock.now(), |bucket| ring.owners(bucket).first == me);
    }

    /// Writes down that what is known is known still, for the next process.
    pub(super) async fn renew(&self) {
        self.restore().await;
        let registries = self.ledger().sure(self.0.clock.now());
        for registry in registries {
            self.write(&registry).await;
        }
    }

    /// For the new owner of a registry: how long ago each check was granted.
    pub(super) async fn hand_over(&self, registry: &Registry) -> Option<Vec<Duration>> {
        let allowance = self.allowance(registry)?;
        self.restore().await;
        let ages = self.ledger().hand_over(self.0.clock.now(), registry, &allowance)?;
        // A later process of this node must not think that it is the owner's book still.
        self.keep(registry).await.then_some(ages)
    }

    /// The owner before gave its book.
    pub(super) async fn take_over(&self, registry: &Registry, ages: &[Duration]) {
        self.restore().await;
        self.ledger().take_over(self.0.clock.now(), registry, ages);
    }

    async fn restore(&self) {
        let restored = self.0.restored.get_or_init(|| async {
            let kept = self.0.store.records::<Kept>(Records::Budgets).await;
            let now = self.0.clock.now();
            let mut ledger = self.ledger();
            for (registry, kept) in kept {
                if let Ok(registry) = registry.parse() {
                    ledger.restore(now, registry, &kept);
                }
            }
        });
        restored.await;
    }

    async fn keep(&self, registry: &Registry) -> bool {
        self.write(registry).await && self.0.store.settled().await
    }

    async fn write(&self, registry: &Registry) -> bool {
        let _writing = self.0.writing.lock().await;
        let kept = self.ledger().kept(registry);
        self.0.store.record(Records::Budgets, registry.as_str(), Some(&kept)).await
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        held(&self.0.ledger)
    }
}
