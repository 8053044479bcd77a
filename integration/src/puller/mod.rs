//! A client that asks the mirror as containerd does, and shows what containerd hides: heads, times, bytes.

mod fetch;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::Value;

pub use fetch::Fetched;

use crate::fault::base64;
use crate::{Agent, Http, Login, Reply};
use fetch::fetch;

/// A pull that takes longer hangs.
const PULL: Duration = Duration::from_secs(100);

/// Asks for the content of one registry, by plain HTTP. A challenge is answered as containerd answers it.
#[derive(Debug)]
pub struct Puller {
    http: Http,
    mirror: String,
    registry: String,
    login: Option<Login>,
    // By repository.
    tokens: Mutex<HashMap<String, String>>,
}

impl Puller {
    /// Asks this agent for the registry's content, with credentials or without.
    pub fn new(agent: &Agent, registry: &str, login: Option<Login>) -> Self {
        Self {
            http: agent.http().clone(),
            mirror: agent.mirror(),
            registry: registry.to_owned(),
            login,
            tokens: Mutex::default(),
        }
    }

    /// GET `manifests/…` or `blobs/…` of a repository.
    pub async fn get(&self, repository: &str, what: &str) -> Result<Reply> {
        self.send(Method::GET, repository, what, None).await
    }

    /// The same for a range: `bytes=5-9`.
    pub async fn get_range(&self, repository: &str, what: &str, range: &str) -> Result<Reply> {
        self.send(Method::GET, repository, what, Some(range)).await
    }

    /// HEAD.
    pub async fn head(&self, repository: &str, what: &str) -> Result<Reply> {
        self.send(Method::HEAD, repository, what, None).await
    }

    /// Pulls an image by tag or digest: the same requests in the same order as containerd, all held against digests.
    pub async fn fetch(&self, repository: &str, reference: &str) -> Result<Fetched> {
        let pull = tokio::time::timeout(PULL, fetch(self, repository, reference));
        pull.await.with_context(|| format!("no pull within {PULL:?}"))?
    }

    async fn send(&self, method: Method, repository: &str, what: &str, range: Option<&str>) -> Result<Reply> {
        let reply = self.send_once(method.clone(), repository, what, range).await?;
        if reply.status != StatusCode::UNAUTHORIZED {
            return Ok(reply);
        }
        let Some(token) = self.token(repository, reply.header("www-authenticate")).await? else { return Ok(reply) };
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(repository.to_owned(), token);
        self.send_once(method, repository, what, range).await
    }

    async fn send_once(&self, method: Method, repository: &str, what: &str, range: Option<&str>) -> Result<Reply> {
        let url = format!("{}/v2/{repository}/{what}?ns={}", self.mirror, self.registry);
        let token = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(repository).cloned();
        let bearer = token.map(|token| format!("Bearer {token}"));
        let authorization = bearer.iter().map(|bearer| ("authorization", bearer.as_str()));
        let headers: Vec<_> = authorization.chain(range.map(|range| ("range", range))).collect();
        self.http.send(method, &url, &headers, Bytes::new()).await
    }

    /// A token from where the challenge says; `None` where none is given.
    async fn token(&self, repository: &str, challenge: &str) -> Result<Option<String>> {
        let parameter = |name: &str| {
            let start = challenge.find(&format!("{name}=\""))? + name.len() + 2;
            challenge[start..].split('"').next()
        };
        ensure!(challenge.starts_with("Bearer "), "the mirror challenges by {challenge:?}");
        let realm = parameter("realm").with_context(|| format!("a challenge without realm: {challenge:?}"))?;
        let form = self.form(repository, [("service", parameter("service")), ("scope", parameter("scope"))]);
        let reply = match &self.login {
            None => self.ask_for_token(realm, &form, &[]).await?,
            Some(Login::Password(..) | Login::Identity(_)) => self.post_for_token(realm, form).await?,
            Some(Login::Encoded(user, password)) => {
                let header = format!("Basic {}", base64(format!("{user}:{password}").as_bytes()));
                self.ask_for_token(realm, &form, &[("authorization", &header)]).await?
            }
        };
        let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let token = body["token"].as_str().or_else(|| body["access_token"].as_str());
        Ok(token.filter(|_| reply.status.is_success()).map(str::to_owned))
    }

    /// What is asked of a token server: what the challenge says, and who asks, where that goes the same way.
    fn form(&self, repository: &str, challenged: [(&str, Option<&str>); 2]) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("scope", &format!("repository:{repository}:pull"));
        form.extend_pairs(challenged.into_iter().filter_map(|(name, value)| Some((name, value?))));
        match &self.login {
            Some(Login::Password(user, password)) => {
                form.extend_pairs([("grant_type", "password"), ("username", user), ("password", password)]);
            }
            Some(Login::Identity(token)) => {
                form.extend_pairs([("grant_type", "refresh_token"), ("refresh_token", token)]);
            }
            None | Some(Login::Encoded(..)) => {}
        }
        form.finish()
    }

    async fn ask_for_token(&self, realm: &str, query: &str, headers: &[(&str, &str)]) -> Result<Reply> {
        let joint = if realm.contains('?') { '&' } else { '?' };
        self.http.send(Method::GET, &format!("{realm}{joint}{query}"), headers, Bytes::new()).await
    }

    async fn post_for_token(&self, realm: &str, form: String) -> Result<Reply> {
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        self.http.send(Method::POST, realm, &headers, form.into()).await
    }
}
