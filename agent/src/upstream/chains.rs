use std::collections::HashMap;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderValue;

use super::address;
use super::connect::{Clients, HttpClient, Reach, Refused};
use super::exchange::Exchange;
use super::metrics::Metrics;
use super::one::{Upstream, manifest_types};
use super::record::Record;
use super::tasks::Tasks;
use super::tls::Trust;
use super::token::Tokens;
use crate::config::{Config, Mirror, UpstreamConfig, UpstreamUrl};
use crate::image::Registry;

/// Registries that are not configured and remembered nevertheless: anyone on the node can name any.
const MAX_ON_DEMAND: usize = 256;

/// The upstreams of a registry, in the order of the configuration. A cheap clone.
#[derive(Debug, Clone)]
pub struct Chain(Arc<[Arc<Upstream>]>);

/// Every registry that this node talks to.
#[derive(Debug)]
pub struct Upstreams {
    configured: HashMap<Registry, Chain>,
    on_demand: Mutex<OnDemand>,
    maker: Maker,
    tasks: Tasks,
}

/// Why the upstreams of the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The file that `ca` names can't be read.
    #[error("the `ca` {} of an upstream of {registry} can't be read", path.display())]
    CaUnreadable {
        /// Whose upstream names it.
        registry: Registry,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file that `ca` names holds no certificates in PEM.
    #[error("the `ca` {} of an upstream of {registry} is no file of PEM certificates: {reason}", path.display())]
    CaInvalid {
        /// Whose upstream names it.
        registry: Registry,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// TLS can't be set up at all.
    #[error("TLS to upstreams can't be set up")]
    Tls {
        /// Why not.
        #[from]
        source: rustls::Error,
    },
}

impl Upstreams {
    /// Sets up what the configuration names. Reads the system's certificate authorities and the files that `ca`
    /// names; contacts nobody.
    ///
    /// # Errors
    /// When a `ca` file can't be used.
    pub fn new(config: &Config) -> Result<Self, SetupError> {
        Self::guarded_by(address::refused, config)
    }

    pub(super) fn guarded_by(refused: Refused, config: &Config) -> Result<Self, SetupError> {
        let tasks = Tasks::default();
        let maker = Maker::new(refused, &config.mirror, &tasks)?;
        let mut configured = HashMap::new();
        for entry in &config.registries {
            let chain: Chain = if entry.upstreams.is_empty() {
                let origin = UpstreamUrl::origin(&entry.name).map(|url| maker.origin(url, true));
                origin.into_iter().collect()
            } else {
                let named = entry.upstreams.iter().map(|upstream| maker.named(&entry.name, upstream));
                named.collect::<Result<_, _>>()?
            };
            configured.insert(entry.name.clone(), chain);
        }
        Ok(Self { configured, on_demand: Mutex::default(), maker, tasks })
    }

    /// The upstreams of a registry, in the order in which they are to be asked: those of the configuration, or its own
    /// address. Empty for a name that no URL can be made of.
    #[must_use]
    pub fn of(&self, registry: &Registry) -> Chain {
        if let Some(chain) = self.configured.get(registry) {
            return chain.clone();
        }
        let mut on_demand = self.on_demand.lock().unwrap_or_else(PoisonError::into_inner);
        on_demand.find(registry, || UpstreamUrl::origin(registry).map(|url| self.maker.origin(url, false)))
    }

    /// All registries that are configured, or were asked for lately, with their upstreams; by name.
    #[must_use]
    pub fn all(&self) -> Vec<(Registry, Chain)> {
        let on_demand = self.on_demand.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = on_demand.chains.iter().map(|(registry, (chain, _))| (registry, chain));
        let all = self.configured.iter().chain(lately);
        let mut all: Vec<_> = all.map(|(registry, chain)| (registry.clone(), chain.clone())).collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    /// What is counted about them.
    #[must_use]
    pub const fn metrics(&self) -> &Metrics {
        &self.maker.metrics
    }

    /// Ends every connection and task of this room. Requests under way fail, and so does every later one.
    pub async fn close(&self) {
        self.tasks.close().await;
    }

    #[cfg(test)]
    pub(super) fn running(&self) -> usize {
        self.tasks.running()
    }
}

impl Chain {
    /// The upstreams in the order in which they are to be asked.
    #[must_use]
    pub fn in_order(&self) -> Vec<Arc<Upstream>> {
        self.0.to_vec()
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
    fn find(&mut self, registry: &Registry, make: impl FnOnce() -> Option<Arc<Upstream>>) -> Chain {
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
        let chain: Chain = make().into_iter().collect();
        self.chains.insert(registry.clone(), (chain.clone(), self.clock));
        chain
    }
}

/// Makes upstreams, and has what they share.
#[derive(Debug)]
struct Maker {
    trust: Trust,
    clients: Clients,
    /// For whatever no configuration names.
    stranger: HttpClient,
    refused: Refused,
    tokens: Arc<Tokens>,
    metrics: Metrics,
    deadlines: Mirror,
    manifest_types: HeaderValue,
    numbers: AtomicU64,
}

impl Maker {
    fn new(refused: Refused, deadlines: &Mirror, tasks: &Tasks) -> Result<Self, SetupError> {
        let trust = Trust::system();
        let clients = Clients::new(deadlines.connect_timeout.0, tasks.clone());
        Ok(Self {
            stranger: clients.client(Reach::Guarded(refused), trust.config()?),
            trust,
            clients,
            refused,
            tokens: Arc::new(Tokens::new(tasks.clone())),
            metrics: Metrics::new(),
            deadlines: deadlines.clone(),
            manifest_types: manifest_types(),
            numbers: AtomicU64::new(0),
        })
    }

    /// An upstream that the configuration names. Its `ca` is believed wherever it sends us; `insecure` stays with it.
    fn named(&self, registry: &Registry, config: &UpstreamConfig) -> Result<Arc<Upstream>, SetupError> {
        let (trust, guarded) = match config.ca.first() {
            Some(ca) => {
                let trust = self.trust.with(ca, registry)?;
                let guarded = self.clients.client(Reach::Guarded(self.refused), trust.config()?);
                (trust, guarded)
            }
            None => (self.trust.clone(), self.stranger.clone()),
        };
        let tls = if config.insecure && !config.url.is_plain() { trust.blind()? } else { trust.config()? };
        let named = self.clients.client(Reach::Named, tls);
        Ok(self.upstream(config.url.clone(), Some(named), guarded, true))
    }

    /// A registry's own address, which is known from an image's name only.
    fn origin(&self, url: UpstreamUrl, is_configured: bool) -> Arc<Upstream> {
        self.upstream(url, None, self.stranger.clone(), is_configured)
    }

    fn upstream(
        &self,
        url: UpstreamUrl,
        named: Option<HttpClient>,
        guarded: HttpClient,
        is_configured: bool,
    ) -> Arc<Upstream> {
        let name: Arc<str> = url.authority().as_str().into();
        let record = Record::new(self.metrics.of(&name, is_configured));
        let exchange = Exchange {
            name,
            home: url.clone(),
            named,
            guarded,
            header_timeout: self.deadlines.header_timeout.0,
            stall_timeout: self.deadlines.stall_timeout.0,
            record,
        };
        Arc::new(Upstream {
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            url,
            exchange: Arc::new(exchange),
            tokens: Arc::clone(&self.tokens),
            manifest_types: self.manifest_types.clone(),
        })
    }
}
