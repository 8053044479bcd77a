use std::collections::{BTreeSet, HashMap};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::join_all;

use super::address;
use super::connect::Refused;
use super::grant::{Grant, OwnCredentials};
use super::home::is_origin;
use super::keyring::{Credential, Keyring};
use super::maker::{Maker, Plan, SetupError};
use super::metrics::Metrics;
use super::one::Upstream;
use super::own::MOST_TRIED;
use super::tasks::Tasks;
use crate::config::{Config, HostsTarget, Mirrors, UpstreamConfig};
use crate::image::{Registry, Repository};

/// Registries that are not configured and remembered nevertheless: anyone on the node can name any.
const MAX_ON_DEMAND: usize = 256;

/// The upstreams of a registry, in the order of the configuration. A cheap clone.
#[derive(Debug, Clone, Default)]
pub struct Chain(Arc<[Arc<Upstream>]>);

/// Every registry that this node talks to.
#[derive(Debug)]
pub struct Upstreams {
    /// Those that the configuration lists upstreams for.
    configured: HashMap<Registry, Chain>,
    others: Mutex<Others>,
    maker: Maker,
    tasks: Tasks,
}

/// Registries that the configuration lists no upstreams for.
#[derive(Debug, Default)]
struct Others {
    /// Those that it names nevertheless, or that mirrors were adopted for.
    known: HashMap<Registry, Chain>,
    /// Those that images named.
    on_demand: OnDemand,
    adopted: HashMap<Registry, Adopted>,
    /// What was adopted for every registry without an entry of its own.
    default: Adopted,
}

#[derive(Debug, Default)]
struct Adopted {
    plans: Vec<Plan>,
    /// Whether the registry's own address isn't asked.
    is_all: bool,
}

impl Upstreams {
    /// Sets up what the configuration names. Reads the system's certificate authorities, the files that upstreams
    /// name, and the environment's proxies; contacts nobody. Called within a runtime, that is where probes run.
    ///
    /// # Errors
    /// When a file or a proxy can't be used.
    pub fn new(config: &Config) -> Result<Self, SetupError> {
        Self::guarded_by(address::refused, config)
    }

    pub(super) fn guarded_by(refused: Refused, config: &Config) -> Result<Self, SetupError> {
        let tasks = Tasks::new();
        let maker = Maker::new(refused, config, &tasks)?;
        let mut configured = HashMap::new();
        let mut others = Others::default();
        for entry in &config.registries {
            let name = &entry.name;
            if entry.upstreams.is_empty() {
                others.known.insert(name.clone(), maker.origin(name, true).into_iter().collect());
                continue;
            }
            let named = entry.upstreams.iter().map(|upstream| {
                let plan = maker.plan(name.as_str(), upstream)?;
                Ok(maker.named(name, &plan))
            });
            configured.insert(name.clone(), named.collect::<Result<_, SetupError>>()?);
        }
        Ok(Self { configured, others: Mutex::new(others), maker, tasks })
    }

    /// Takes over mirrors from elsewhere, in the place of those that were adopted before: for one registry, or for all
    /// without an entry of their own. The registry's own address stays the last that is asked, unless they are said to be
    /// all. Registries that the configuration lists upstreams for keep theirs. An upstream that can't be set up is left
    /// out, and said in the log; one that was there before, with the same settings, stays with all that it learned.
    ///
    /// Reads the files that upstreams name: call it where that may block.
    pub fn adopt(&self, found: Vec<Mirrors>) {
        let (mut adopted, mut default) = (HashMap::new(), Adopted::default());
        for Mirrors { target, upstreams, is_all } in found {
            let plans = upstreams.iter().filter_map(|upstream| self.plan(&target, upstream)).collect();
            let these = Adopted { plans, is_all };
            match target {
                HostsTarget::Default => default = these,
                HostsTarget::Registry(registry) => drop(adopted.insert(registry, these)),
            }
        }
        let mut others = self.others();
        for registry in adopted.keys().filter(|registry| !self.configured.contains_key(registry)) {
            let before = others.on_demand.chains.remove(registry).map(|(chain, _)| chain);
            others.known.entry(registry.clone()).or_insert(before.unwrap_or_default());
        }
        others.adopted = adopted;
        others.default = default;
        let Others { known, on_demand, adopted, default } = &mut *others;
        let of = |registry: &Registry| adopted.get(registry).unwrap_or(default);
        for (registry, chain) in known {
            *chain = self.chain(registry, of(registry), chain, true);
        }
        for (registry, (chain, _)) in &mut on_demand.chains {
            *chain = self.chain(registry, of(registry), chain, false);
        }
    }

    /// The upstreams of a registry: those of the configuration, or those that were adopted for it and its own address.
    /// Empty for a name that no URL can be made of.
    #[must_use]
    pub fn of(&self, registry: &Registry) -> Chain {
        if let Some(chain) = self.configured.get(registry) {
            return chain.clone();
        }
        let mut others = self.others();
        if let Some(chain) = others.known.get(registry) {
            return chain.clone();
        }
        let Others { on_demand, default, .. } = &mut *others;
        on_demand.find(registry, || self.chain(registry, default, &Chain::default(), false))
    }

    /// All registries that are configured, or were asked for lately, with their upstreams; by name.
    #[must_use]
    pub fn all(&self) -> Vec<(Registry, Chain)> {
        let others = self.others();
        let lately = others.on_demand.chains.iter().map(|(registry, (chain, _))| (registry, chain));
        let all = self.configured.iter().chain(&others.known).chain(lately);
        let mut all: Vec<_> = all.map(|(registry, chain)| (registry.clone(), chain.clone())).collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    /// As whom the agent asks the upstreams of a registry when no caller stands behind it: each by the agent's own
    /// credentials for that repository at that host. `None` where there are none for any of them.
    pub async fn own_grant(&self, registry: &Registry, repository: &Repository) -> Option<Grant> {
        self.own_grant_at(&self.of(registry), repository).await
    }

    /// The same for some upstreams of a registry, or for one.
    pub async fn own_grant_at(&self, upstreams: &[Arc<Upstream>], repository: &Repository) -> Option<Grant> {
        if self.keyring().is_empty() {
            return None;
        }
        let hosts: BTreeSet<&Registry> = upstreams.iter().filter_map(|upstream| upstream.host.as_ref()).collect();
        let found = hosts.into_iter().map(|host| async move {
            let found = self.keyring().find(host, repository).await;
            let best = found.credentials.iter().filter_map(Credential::credentials).take(MOST_TRIED);
            (host.clone(), best.collect())
        });
        let own = OwnCredentials::new(join_all(found).await)?;
        Some(Grant::Own(Arc::new(own)))
    }

    /// The agent's own credentials.
    #[must_use]
    pub const fn keyring(&self) -> &Keyring {
        &self.maker.keyring
    }

    /// What is counted about them.
    #[must_use]
    pub const fn metrics(&self) -> &Metrics {
        &self.maker.metrics
    }

    /// Ends every connection and task of this room. Requests under way fail, and so does every later one.
    pub async fn close(&self) {
        self.keyring().close().await;
        self.tasks.close().await;
    }

    fn plan(&self, target: &HostsTarget, upstream: &UpstreamConfig) -> Option<Plan> {
        let plan = self.maker.plan(target.folder(), upstream);
        plan.inspect_err(|error| {
            tracing::warn!(error = error as &dyn std::error::Error, "a mirror is left out");
        })
        .ok()
    }

    /// The planned ones, and then the registry's own address, as it is planned or as its name says, if it is asked. Those of the chain
    /// before that are the same stay.
    fn chain(&self, registry: &Registry, adopted: &Adopted, before: &Chain, is_known: bool) -> Chain {
        let (own, mirrors): (Vec<&Plan>, Vec<&Plan>) =
            adopted.plans.iter().partition(|plan| is_origin(&plan.config().url, registry));
        let make = |plan: &Plan| {
            let same = before.iter().find(|upstream| upstream.config.as_deref() == Some(plan.config()));
            same.map_or_else(|| self.maker.named(registry, plan), Arc::clone)
        };
        let bare = || {
            let same = before.iter().find(|upstream| upstream.is_bare_origin());
            same.map_or_else(|| self.maker.origin(registry, is_known), |same| Some(Arc::clone(same)))
        };
        let is_complete = adopted.is_all || !own.is_empty();
        let planned = mirrors.into_iter().chain(own).map(make);
        planned.chain(if is_complete { None } else { bare() }).collect()
    }

    fn others(&self) -> MutexGuard<'_, Others> {
        // Maps of handles: whole after every statement.
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn running(&self) -> usize {
        self.tasks.running()
    }
}

impl Deref for Chain {
    type Target = [Arc<Upstream>];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl FromIterator<Arc<Upstream>> for Chain {
    fn from_iter<I: IntoIterator<Item = Arc<Upstream>>>(upstreams: I) -> Self {
        Self(upstreams.into_iter().collect())
    }
}

#[derive(Debug, Default)]
struct OnDemand {
    chains: HashMap<Registry, (Chain, u64)>,
    clock: u64,
}

impl OnDemand {
    fn find(&mut self, registry: &Registry, make: impl FnOnce() -> Chain) -> Chain {
        self.clock += 1;
        if let Some((chain, used)) = self.chains.get_mut(registry) {
            *used = self.clock;
            return chain.clone();
        }
        if self.chains.len() >= MAX_ON_DEMAND
            && let Some(idle) = self.chains.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone())
        {
            self.chains.remove(&idle);
        }
        let chain = make();
        self.chains.insert(registry.clone(), (chain.clone(), self.clock));
        chain
    }
}
