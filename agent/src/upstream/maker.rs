use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderMap, HeaderValue};

use super::connect::{Clients, HttpClient, Reach, Refused};
use super::exchange::Exchange;
use super::home::{Home, is_origin};
use super::keyring::Keyring;
use super::metrics::Metrics;
use super::one::{Upstream, manifest_types};
use super::own::Own;
use super::places::Places;
use super::probe::Prober;
use super::proxy::{Environment, Proxies};
use super::record::Record;
use super::tasks::Tasks;
use super::tls::{Tls, TlsError, TlsOptions};
use super::token::Tokens;
use super::trust::Trust;
use crate::config::{Config, Mirror, ProxyChoice, UpstreamConfig, UpstreamUrl};
use crate::image::Registry;

/// Why the upstreams of the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A file of an upstream is of no use.
    #[error("an upstream of {registry}, {url}: {source}")]
    Upstream {
        /// Whose content it serves; `_default` for all that have no entry of their own.
        registry: String,
        /// Where it is.
        url: UpstreamUrl,
        /// What is wrong.
        #[source]
        source: TlsError,
    },
    /// TLS can't be set up at all.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A variable of the environment names no proxy.
    #[error("the environment variable {variable}: {reason}")]
    Proxy {
        /// The variable.
        variable: &'static str,
        /// What is wrong with it. Never its value, which may have a password.
        reason: String,
    },
}

/// Makes upstreams, and has what they share.
#[derive(Debug)]
pub(super) struct Maker {
    trust: Trust,
    clients: Clients,
    environment: Proxies,
    /// For whatever no configuration names.
    stranger: HttpClient,
    refused: Refused,
    tokens: Arc<Tokens>,
    pub(super) metrics: Metrics,
    deadlines: Mirror,
    manifest_types: HeaderValue,
    numbers: AtomicU64,
    tasks: Tasks,
    /// The agent's own credentials, for work without a caller.
    pub(super) keyring: Keyring,
    /// Those in the files of upstreams.
    keyrings: Mutex<HashMap<PathBuf, Keyring>>,
}

/// An upstream as the configuration describes it, with its files read: what remains is for which registry.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    config: Arc<UpstreamConfig>,
    named: HttpClient,
    guarded: HttpClient,
}

/// What makes an upstream what it is.
struct Made {
    home: Home,
    /// For what the configuration names, and for the rest.
    clients: (Option<HttpClient>, HttpClient),
    headers: HeaderMap,
    places: Option<Places>,
    is_origin: bool,
    host: Option<Registry>,
    /// Whether it gets a label of its own.
    is_configured: bool,
}

impl Maker {
    pub(super) fn new(refused: Refused, config: &Config, tasks: &Tasks) -> Result<Self, SetupError> {
        let (metrics, deadlines) = (Metrics::new(), &config.mirror);
        let trust = Trust::system(&metrics);
        let bare = Arc::new(Tls::new(&trust, TlsOptions { is_bare: true, ..TlsOptions::default() })?);
        let clients = Clients::new(deadlines.connect_timeout.0, tasks.clone(), bare);
        let environment = Environment::read(|name| std::env::var(name).ok());
        let environment = environment.map_err(|(variable, reason)| SetupError::Proxy { variable, reason })?;
        let environment = Proxies::Environment(Arc::new(environment));
        let tls = Arc::new(Tls::new(&trust, TlsOptions::default())?);
        Ok(Self {
            stranger: clients.client(Reach::Guarded(refused), &tls, environment.clone()),
            trust,
            clients,
            environment,
            refused,
            tokens: Arc::new(Tokens::new(tasks.clone())),
            metrics,
            deadlines: deadlines.clone(),
            manifest_types: manifest_types(),
            numbers: AtomicU64::new(0),
            tasks: tasks.clone(),
            keyring: Keyring::new(&config.credentials),
            keyrings: Mutex::default(),
        })
    }

    /// Reads the files that an upstream's configuration names. Its `ca` and `proxy` hold wherever it sends us; what
    /// else is said of it stays with it.
    pub(super) fn plan(&self, registry: &str, config: &UpstreamConfig) -> Result<Plan, SetupError> {
        let tls = |options| {
            Tls::new(&self.trust, options).map(Arc::new).map_err(|source| SetupError::Upstream {
                registry: registry.to_owned(),
                url: config.url.clone(),
                source,
            })
        };
        let proxies = match &config.proxy {
            None => self.environment.clone(),
            Some(ProxyChoice::Direct) => Proxies::Direct,
            Some(ProxyChoice::Through(proxy)) => Proxies::Always(Arc::new(proxy.clone())),
        };
        let guarded = if config.ca.is_empty() && config.proxy.is_none() {
            self.stranger.clone()
        } else {
            let trust = tls(TlsOptions { ca: config.ca.clone(), ..TlsOptions::default() })?;
            self.clients.client(Reach::Guarded(self.refused), &trust, proxies.clone())
        };
        let own = tls(TlsOptions {
            ca: config.ca.clone(),
            client: client_files(config),
            is_blind: config.insecure && !config.url.is_plain(),
            is_bare: false,
        })?;
        let named = self.clients.client(Reach::Named, &own, proxies);
        Ok(Plan { config: Arc::new(config.clone()), named, guarded })
    }

    /// An upstream that the configuration names.
    pub(super) fn named(&self, registry: &Registry, plan: &Plan) -> Arc<Upstream> {
        let config = &plan.config;
        let is_origin = is_origin(&config.url, registry);
        let home = Home {
            url: config.url.clone(),
            is_whole_path: config.override_path,
            ns: (config.ns && !is_origin).then(|| registry.clone()),
        };
        let places = config.max_connections.map(|most| Places::new(most.get()));
        let clients = (Some(plan.named.clone()), plan.guarded.clone());
        let host = if is_origin { Some(registry.clone()) } else { config.url.authority().as_str().parse().ok() };
        let headers = config.headers.clone();
        let made = Made { home, clients, headers, places, is_origin, host, is_configured: true };
        self.upstream(made, Some(Arc::clone(config)))
    }

    /// A registry's own address, which is known from an image's name only. `None` for a name that no URL can be made of.
    pub(super) fn origin(&self, registry: &Registry, is_configured: bool) -> Option<Arc<Upstream>> {
        let home = Home { url: UpstreamUrl::origin(registry)?, is_whole_path: false, ns: None };
        let clients = (None, self.stranger.clone());
        let (headers, host) = (HeaderMap::new(), Some(registry.clone()));
        let made = Made { home, clients, headers, places: None, is_origin: true, host, is_configured };
        Some(self.upstream(made, None))
    }

    /// The credentials in a Docker config file, which those who name the same file share.
    fn keyring(&self, path: &Path) -> Keyring {
        let mut keyrings = self.keyrings.lock().unwrap_or_else(PoisonError::into_inner);
        keyrings.entry(path.to_owned()).or_insert_with(|| self.keyring.of_file(path)).clone()
    }

    fn upstream(&self, made: Made, config: Option<Arc<UpstreamConfig>>) -> Arc<Upstream> {
        let Made { home, clients: (named, guarded), headers, places, is_origin, host, is_configured } = made;
        let url = home.url.clone();
        let file = config.as_ref().and_then(|config| config.credentials.as_ref());
        let own = file.map(|path| Own::new(self.keyring(path)));
        let name: Arc<str> = url.authority().as_str().into();
        let meter = self.metrics.of(&name, is_configured);
        let exchange = Arc::new_cyclic(|exchange| Exchange {
            record: Record::new(
                Arc::clone(&name),
                meter,
                Prober { exchange: exchange.clone(), tasks: self.tasks.clone() },
            ),
            name,
            home,
            headers,
            places,
            named,
            guarded,
            header_timeout: self.deadlines.header_timeout.0,
            stall_timeout: self.deadlines.stall_timeout.0,
        });
        Arc::new(Upstream {
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            url,
            exchange,
            tokens: Arc::clone(&self.tokens),
            manifest_types: self.manifest_types.clone(),
            config,
            is_origin,
            host,
            own,
        })
    }
}

fn client_files(config: &UpstreamConfig) -> Option<(PathBuf, PathBuf)> {
    let certificate = config.client_cert.as_ref()?;
    Some((certificate.clone(), config.client_key.as_ref().unwrap_or(certificate).clone()))
}

impl Plan {
    pub(super) fn config(&self) -> &UpstreamConfig {
        &self.config
    }
}
