//! Credentials of the agent's own, for what it asks of registries without a caller: Docker config files, the credential
//! helpers that these name, and kubelet's credential provider plugins with kubelet's own configuration.
//!
//! A [`Keyring`] answers which credentials may open an image. Files are read anew when they change; programs are run
//! when something is asked that no held answer covers, once for all who ask, and are killed when they take too long or
//! the agent ends. One source that fails keeps no other from answering: what went wrong is logged and counted, and
//! never holds a secret.

mod credential;
mod docker;
mod error;
mod helper;
mod lack;
mod metrics;
mod pattern;
mod plugin;
mod program;
mod providers;
mod shared;
mod watched;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

pub use credential::Credential;
pub use lack::Lack;

use self::docker::DockerConfig;
use self::helper::Helpers;
use self::metrics::Metrics;
use self::pattern::{Image, Rank};
use self::plugin::Plugins;
use self::program::Runner;
use self::watched::Watched;
use super::tasks::Tasks;
use crate::config::Credentials;
use crate::image::{Registry, Repository};

/// The agent's own credentials. A cheap clone.
#[derive(Debug, Clone)]
pub struct Keyring(Arc<Sources>);

#[derive(Debug)]
struct Sources {
    docker: Vec<Watched<DockerConfig>>,
    helpers: Arc<Helpers>,
    plugins: Option<Plugins>,
    runner: Runner,
}

/// What was found for an image.
#[derive(Debug, Default)]
pub struct Found {
    /// Best match first. Empty: there are none, as far as could be found out.
    pub credentials: Vec<Credential>,
    /// Why there may be more.
    pub lack: Option<Lack>,
}

/// How often, how long, how many: all that is about time, so that tests needn't wait.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Files are looked at again after this time.
    look: Duration,
    /// A program that hasn't answered by then is killed; kubelet's own figure.
    patience: Duration,
    /// How long a credential helper's answer is used again: helpers don't say how long it holds.
    helper_hold: Duration,
    /// A program that failed isn't asked the same again before this time is over.
    rest: Duration,
}

impl Pace {
    const USUAL: Self = Self {
        look: Duration::from_secs(1),
        patience: Duration::from_secs(60),
        helper_hold: Duration::from_secs(30),
        rest: Duration::from_secs(10),
    };
}

/// How long somebody waits for programs.
#[derive(Debug, Clone, Copy)]
struct Patience {
    until: Instant,
    /// One that has run for so long already isn't waited for: who came first has waited, and one wait is enough.
    of_run: Duration,
}

/// A credential, and how closely its entry describes the image.
#[derive(Debug)]
struct Match {
    rank: Rank,
    credential: Credential,
}

/// What a source has for an image.
#[derive(Debug, Default)]
struct Matches {
    found: Vec<Match>,
    lack: Option<Lack>,
}

impl Keyring {
    /// Makes it ready to be asked. Opens no file and starts nothing.
    #[must_use]
    pub fn new(config: &Credentials) -> Self {
        Self::with_pace(config, Pace::USUAL)
    }

    fn with_pace(config: &Credentials, pace: Pace) -> Self {
        let runner = Runner::new(pace, Tasks::new(), Metrics::default());
        let docker =
            config.docker_config.iter().map(|path| Watched::file(path.clone(), pace.look, DockerConfig::parse));
        let plugins = config.kubelet_config.as_ref().map(|path| {
            let beside = || path.parent().unwrap_or(path).to_owned();
            let programs = config.kubelet_bin_dir.clone().unwrap_or_else(beside);
            Plugins::new(path.clone(), programs, pace.look, runner.clone())
        });
        Self(Arc::new(Sources {
            docker: docker.collect(),
            helpers: Arc::new(Helpers::new(config.helpers_dir.clone(), pace.helper_hold, runner.clone())),
            plugins,
            runner,
        }))
    }

    /// One of a Docker config file alone. The helpers are the same: they run among this one's programs, are counted and
    /// ended with them, and asked once for what both want to know.
    #[must_use]
    pub fn of_file(&self, path: &Path) -> Self {
        let Sources { helpers, runner, .. } = &*self.0;
        let file = Watched::file(path.to_owned(), runner.pace.look, DockerConfig::parse);
        let (helpers, runner) = (Arc::clone(helpers), runner.clone());
        Self(Arc::new(Sources { docker: vec![file], helpers, plugins: None, runner }))
    }

    /// The credentials that may open `repository` of `registry`, best match first: longer paths before shorter ones,
    /// names before wildcards, then in the order of the configuration, Docker's files before kubelet's plugins.
    ///
    /// `registry` is whom they are shown to, and nobody else. For a mirror of a registry ask with the mirror's own host:
    /// kubelet's and Docker's files say of each host which credentials are meant for it.
    ///
    /// At once where files and held answers suffice. Where programs must be asked, all are at the same time, and each
    /// is given at most a minute, besides the wait for a place among the few that may run. Who can't wait may drop the
    /// future: the programs go on, and the next call finds their answers.
    pub async fn find(&self, registry: &Registry, repository: &Repository) -> Found {
        self.find_by(registry, repository, None).await
    }

    /// The same for who waits until then at most, and at most so long for any run of a program, whoever began it.
    pub async fn find_until(
        &self,
        registry: &Registry,
        repository: &Repository,
        until: Instant,
        of_run: Duration,
    ) -> Found {
        self.find_by(registry, repository, Some(Patience { until, of_run })).await
    }

    async fn find_by(&self, registry: &Registry, repository: &Repository, patience: Option<Patience>) -> Found {
        let image = Image::new(registry, repository);
        let of_docker = self.0.docker.iter().map(|file| async {
            match file.current().await {
                Some(config) => config.find(&image, &self.0.helpers, patience).await,
                None => Matches::default(),
            }
        });
        let of_plugins = async {
            match &self.0.plugins {
                Some(plugins) => plugins.find(&image, patience).await,
                None => Matches::default(),
            }
        };
        let (of_docker, of_plugins) = tokio::join!(join_all(of_docker), of_plugins);
        let Matches { found: mut matches, lack } = of_docker.into_iter().chain([of_plugins]).collect();
        matches.sort_by_key(|found| Reverse(found.rank));
        let mut credentials = Vec::with_capacity(matches.len());
        for Match { credential, .. } in matches {
            if !credentials.contains(&credential) {
                credentials.push(credential);
            }
        }
        Found { credentials, lack }
    }

    /// Whether the configuration names no source at all, so that [`find`](Self::find) never finds any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.docker.is_empty() && self.0.plugins.is_none()
    }

    /// Enters the metrics, whose names start with `larder_credential`.
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        self.0.runner.metrics.register(registry);
    }

    /// Kills the programs that still run and waits for that, those of [`of_file`](Self::of_file) too. From here on, only
    /// what files hold is found.
    pub async fn close(&self) {
        self.0.runner.tasks.close().await;
    }
}

impl FromIterator<Self> for Matches {
    fn from_iter<I: IntoIterator<Item = Self>>(sources: I) -> Self {
        sources.into_iter().fold(Self::default(), |mut all, Self { found, lack }| {
            all.found.extend(found);
            Self { lack: all.lack.or(lack), ..all }
        })
    }
}
