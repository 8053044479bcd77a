use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::error::RunError;
use super::pattern::{Image, Pattern};
use super::program::{Output, Program, Runner};
use super::providers::{self, Provider, duration};
use super::shared::Shared;
use super::watched::Watched;
use super::{Credential, Lack, Match, Matches, Patience};

/// kubelet's credential provider plugins, as kubelet's configuration has them at present.
#[derive(Debug)]
pub(super) struct Plugins {
    config: Watched<Vec<Provider>>,
    /// Where the programs are.
    folder: PathBuf,
    runner: Runner,
    present: Mutex<Vec<Arc<Plugin>>>,
}

/// One plugin, and the answers of it that still hold.
#[derive(Debug)]
struct Plugin {
    provider: Provider,
    program: Program,
    shared: Shared<Response>,
    /// The narrowest for which it has answered so far. `None`: it hasn't.
    narrowest: Mutex<Option<Scope>>,
}

/// For which images an answer holds. In this order, the first is the narrowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
enum Scope {
    Image,
    Registry,
    Global,
}

/// A plugin's answer to a question about `image`.
#[derive(Debug)]
struct Response {
    image: Image,
    scope: Scope,
    auth: Vec<(Pattern, Credential)>,
}

impl Plugins {
    pub(super) fn new(config: PathBuf, folder: PathBuf, look: Duration, runner: Runner) -> Self {
        let config = Watched::file_or_folder(config, look, providers::parse);
        Self { config, folder, runner, present: Mutex::default() }
    }

    /// What the plugins have for an image. All are asked that are for it, in the order of the configuration; who fails
    /// has nothing.
    pub(super) async fn find(&self, image: &Image, patience: Option<Patience>) -> Matches {
        let Some(providers) = self.config.current().await else { return Matches::default() };
        let plugins = self.present(&providers);
        let asked = plugins.iter().filter(|plugin| plugin.is_for(image)).map(|plugin| plugin.find(image, patience));
        join_all(asked).await.into_iter().collect()
    }

    /// Those that the configuration has now. Who was in it before, just so, goes on with what it has answered.
    fn present(&self, providers: &[Provider]) -> Vec<Arc<Plugin>> {
        // Replaced as a whole: never half.
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        if !present.iter().map(|plugin| &plugin.provider).eq(providers) {
            let next = providers.iter().map(|provider| {
                let known = present.iter().find(|plugin| plugin.provider == *provider);
                let new = || Arc::new(Plugin::new(provider.clone(), &self.folder, self.runner.clone()));
                known.map_or_else(new, Arc::clone)
            });
            *present = next.collect();
        }
        present.clone()
    }
}

impl Plugin {
    fn new(provider: Provider, folder: &Path, runner: Runner) -> Self {
        let program =
            Program { path: folder.join(&provider.name), args: provider.args.clone(), env: provider.env.clone() };
        Self { provider, program, shared: Shared::new(runner), narrowest: Mutex::default() }
    }

    fn is_for(&self, image: &Image) -> bool {
        self.provider.images.iter().any(|pattern| pattern.matches(image))
    }

    async fn find(&self, image: &Image, patience: Option<Patience>) -> Matches {
        let response = match self.ask(image, patience).await {
            Ok(response) => response,
            Err(lack) => return Matches { found: Vec::new(), lack: Some(lack) },
        };
        let matching = response.auth.iter().filter(|(pattern, _)| pattern.matches(image));
        let found =
            matching.map(|(pattern, credential)| Match { rank: pattern.rank(), credential: credential.clone() });
        Matches { found: found.collect(), lack: None }
    }

    /// The answer that covers an image. Only an answer says for how many images it holds: until there is one, questions
    /// about one registry share a run, and who got an answer that isn't theirs asks once more, by then for the image
    /// alone.
    async fn ask(&self, image: &Image, patience: Option<Patience>) -> Result<Arc<Response>, Lack> {
        loop {
            let narrowest = *self.narrowest.lock().unwrap_or_else(PoisonError::into_inner);
            let key = match narrowest {
                Some(Scope::Image) => image.name(),
                Some(Scope::Registry) | None => image.registry(),
                Some(Scope::Global) => "",
            };
            let run = |runner: Runner| {
                let (program, provider, image) = (self.program.clone(), self.provider.clone(), image.clone());
                async move {
                    let output = runner.run(&program, question(&provider, &image).as_bytes()).await?;
                    read(&program, &provider, &image, &output)
                }
            };
            // What went wrong has been logged.
            let name = &self.provider.name;
            let response = self.shared.get(name, key, patience, run).await.map_err(|error| Lack::new(name, &error))?;
            let mut narrowest = self.narrowest.lock().unwrap_or_else(PoisonError::into_inner);
            *narrowest = Some(narrowest.map_or(response.scope, |known| known.min(response.scope)));
            // It ends: an answer that doesn't cover the image has made the scope narrower than the key was, and the
            // narrowest key is the image's own.
            if response.covers(image) {
                return Ok(response);
            }
        }
    }
}

impl Response {
    fn covers(&self, image: &Image) -> bool {
        match self.scope {
            Scope::Image => self.image.name() == image.name(),
            Scope::Registry => self.image.registry() == image.registry(),
            Scope::Global => true,
        }
    }
}

fn question(provider: &Provider, image: &Image) -> String {
    let question = serde_json::json!({
        "apiVersion": provider.api,
        "kind": "CredentialProviderRequest",
        "image": image.name(),
    });
    question.to_string()
}

/// The answer, and how long it holds.
fn read(
    program: &Program,
    provider: &Provider,
    image: &Image,
    output: &Output,
) -> Result<(Response, Duration), RunError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        api_version: String,
        kind: String,
        cache_key_type: Scope,
        cache_duration: Option<String>,
        auth: Option<BTreeMap<String, Auth>>,
    }
    #[derive(Deserialize)]
    struct Auth {
        #[serde(default)]
        username: String,
        #[serde(default)]
        password: Zeroizing<String>,
    }
    if !output.status.success() {
        let said = output.said.clone();
        return Err(RunError::Failed { program: program.path.clone(), status: output.status, said });
    }
    let wrong = |reason: String| RunError::Answer { program: program.path.clone(), reason };
    let answer: Answer = serde_json::from_slice(&output.answer).map_err(|_| {
        wrong("it should be a CredentialProviderResponse whose cacheKeyType is Image, Registry or Global".to_owned())
    })?;
    if answer.kind != "CredentialProviderResponse" || answer.api_version != provider.api {
        return Err(wrong(format!("it should be a CredentialProviderResponse of {}", provider.api)));
    }
    let hold = answer.cache_duration.as_deref().map_or(Some(provider.hold), duration);
    let hold = hold.ok_or_else(|| wrong("its cacheDuration is no duration such as \"12h\"".to_owned()))?;
    let mut auth = Vec::new();
    for (key, Auth { username: user, password }) in answer.auth.into_iter().flatten() {
        match Pattern::of_key(&key) {
            Some(pattern) => auth.push((pattern, Credential::Password { user, password })),
            None => tracing::warn!(program = %program.path.display(), key, "a key of its answer has no host: left out"),
        }
    }
    Ok((Response { image: image.clone(), scope: answer.cache_key_type, auth }, hold))
}
