use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::answer::{Answer, Asked};
use super::error::{ErrorKind, UpstreamError};
use super::exchange::{Call, Exchange, Part, Reply, drain};
use super::grant::Grant;
use super::keyring::{Credential, Keyring};
use super::record::State;
use super::token::{Tokens, Way};
use crate::config::{UpstreamConfig, UpstreamUrl};
use crate::image::{Access, Digest, MediaType, Reference, Registry, Repository};

/// One URL that serves a registry's content.
///
/// Every request ends within `header_timeout` with the head of an answer or an error, tokens and redirects included.
/// Errors are [`UpstreamError`]s: [`UpstreamError::is_answer`] tells a registry's no from no answer.
#[derive(Debug)]
pub struct Upstream {
    pub(super) number: u64,
    pub(super) url: UpstreamUrl,
    pub(super) exchange: Arc<Exchange>,
    pub(super) tokens: Arc<Tokens>,
    pub(super) manifest_types: HeaderValue,
    /// What the configuration says of it, if it names it.
    pub(super) config: Option<Arc<UpstreamConfig>>,
    pub(super) is_origin: bool,
    /// Whose credentials are meant for it: the registry's, at its own address; a mirror's own host's elsewhere. `None`
    /// where the host can't be a registry's name.
    pub(super) host: Option<Registry>,
    /// The agent's own credentials for it, for callers that bring none.
    pub(super) own: Option<Keyring>,
}

impl Upstream {
    /// Host and port: what errors and logs call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.exchange.name
    }

    /// Where it is.
    #[must_use]
    pub const fn url(&self) -> &UpstreamUrl {
        &self.url
    }

    /// How things last went.
    #[must_use]
    pub fn state(&self) -> State {
        self.exchange.record.state()
    }

    /// The error of an answer that is wrong in a way that only its reader can tell.
    #[must_use]
    pub fn wrong_answer(&self, what: impl Into<String>) -> UpstreamError {
        UpstreamError::new(Arc::clone(&self.exchange.name), ErrorKind::Protocol(what.into()))
    }

    /// Asks what a reference means, without the manifest itself.
    ///
    /// # Errors
    /// Any [`ErrorKind`] but those of bodies. Some registries know no HEAD (405) or leave the digest out: then
    /// [`Upstream::manifest`] tells.
    pub async fn head_manifest(
        &self,
        grant: &Grant,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Answer, UpstreamError> {
        self.ask(grant, Method::HEAD, repository, &format!("manifests/{reference}"), asked_by(reference)).await
    }

    /// Asks for a manifest.
    ///
    /// # Errors
    /// Any [`ErrorKind`] but those of bodies.
    pub async fn manifest(
        &self,
        grant: &Grant,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Answer, UpstreamError> {
        self.ask(grant, Method::GET, repository, &format!("manifests/{reference}"), asked_by(reference)).await
    }

    /// Asks whether a blob is there, and how large it is.
    ///
    /// # Errors
    /// Any [`ErrorKind`] but those of bodies.
    pub async fn head_blob(
        &self,
        grant: &Grant,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Answer, UpstreamError> {
        let asked = Asked { digest: Some(digest), part: Part::WHOLE };
        self.ask(grant, Method::HEAD, repository, &format!("blobs/{digest}"), asked).await
    }

    /// Asks for a blob, or a part of it. [`Answer::offset`] tells where the body really starts.
    ///
    /// # Errors
    /// Any [`ErrorKind`] but those of bodies; [`ErrorKind::Protocol`] for an answer whose range is not what was asked
    /// for.
    pub async fn blob(
        &self,
        grant: &Grant,
        repository: &Repository,
        digest: &Digest,
        part: Part,
    ) -> Result<Answer, UpstreamError> {
        let asked = Asked { digest: Some(digest), part };
        self.ask(grant, Method::GET, repository, &format!("blobs/{digest}"), asked).await
    }

    /// Passes on a request for a list: `tags/list` or `referrers/<digest>`, with its query.
    ///
    /// # Errors
    /// [`ErrorKind::Forbidden`] for anything else, and any kind but those of bodies.
    pub async fn pass(
        &self,
        grant: &Grant,
        repository: &Repository,
        path_and_query: &str,
    ) -> Result<Answer, UpstreamError> {
        if !is_list(path_and_query) {
            return Err(self.error(ErrorKind::Forbidden("a path that is neither tags/list nor referrers".to_owned())));
        }
        self.ask(grant, Method::GET, repository, path_and_query, Asked { digest: None, part: Part::WHOLE }).await
    }

    async fn ask(
        &self,
        grant: &Grant,
        method: Method,
        repository: &Repository,
        path: &str,
        asked: Asked<'_>,
    ) -> Result<Answer, UpstreamError> {
        let began = Instant::now();
        let answer = match self.reply(grant, &method, repository, path, asked.part, began).await {
            Ok((reply, access)) => {
                Answer::read(asked, &method, reply, &self.exchange).map(|answer| Answer { access, ..answer })
            }
            Err(error) => Err(error),
        };
        self.exchange.record.request(began.elapsed(), answer.as_ref().err());
        answer.map_err(|error| error.said_by_origin(self.is_origin))
    }

    /// Asks, with a token if one was needed before; and once more with a new one when that is what the answer wants.
    /// Says too whether credentials helped.
    async fn reply(
        &self,
        grant: &Grant,
        method: &Method,
        repository: &Repository,
        path: &str,
        part: Part,
        began: Instant,
    ) -> Result<(Reply, Access), UpstreamError> {
        let deadline = began + self.exchange.header_timeout;
        let uri = self.exchange.home.v2(&format!("{repository}/{path}"));
        let uri = uri.map_err(|e| self.error(ErrorKind::Protocol(format!("no URL can be made of {path:?}: {e}"))))?;
        let own = self.own_grant(grant, repository, deadline).await;
        let grant = own.as_ref().unwrap_or(grant);
        let known = match grant {
            Grant::None => None,
            _ => self.tokens.known(self.number, &self.exchange, repository, grant, deadline).await,
        };
        let mut call = Call {
            method: method.clone(),
            uri,
            accept: if path.starts_with("manifests/") { self.manifest_types.clone() } else { ANYTHING },
            part,
            authorization: known.as_ref().map(|token| token.header.clone()),
            form: None,
            deadline,
        };
        let access = |call: &Call| match call.authorization {
            Some(_) => grant.access(),
            None if self.knows_us() => Access::Authorized,
            None => Access::Anonymous,
        };
        let reply = self.exchange.follow(&call).await?;
        if reply.response.status() != StatusCode::UNAUTHORIZED || !reply.is_home {
            return Ok((reply, access(&call)));
        }
        let Some(way) = Way::read(reply.response.headers(), repository, grant) else {
            return Ok((reply, access(&call)));
        };
        drain(reply.response.into_body()).await;
        if *grant == Grant::None {
            return Err(UpstreamError::challenge(Arc::clone(&self.exchange.name)));
        }
        let asked = (repository, grant);
        let token = self.tokens.fetch(self.number, &self.exchange, asked, way, known.as_ref(), deadline).await?;
        call.authorization = Some(token.header);
        let reply = self.exchange.follow(&call).await?;
        Ok((reply, access(&call)))
    }

    /// The agent's own credentials, where the caller brought none: those that the configuration has for this upstream
    /// by name, else those that are meant for its host.
    async fn own_grant(&self, grant: &Grant, repository: &Repository, deadline: Instant) -> Option<Grant> {
        if grant.credentials().is_some() {
            return None;
        }
        if let Some((keyring, host)) = self.own.as_ref().zip(self.host.as_ref())
            && let Ok(found) = timeout_at(deadline, keyring.find(host, repository)).await
            && let Some(credentials) = found.iter().find_map(Credential::credentials)
        {
            return Some(Grant::Credentials(credentials));
        }
        let Grant::Own(own) = grant else { return None };
        let meant = self.host.as_ref().and_then(|host| own.at(host)).cloned();
        Some(meant.map_or(Grant::Anonymous, Grant::Credentials))
    }

    fn error(&self, kind: ErrorKind) -> UpstreamError {
        UpstreamError::new(Arc::clone(&self.exchange.name), kind)
    }
}

const ANYTHING: HeaderValue = HeaderValue::from_static("*/*");

/// The Accept header of requests for manifests.
pub(super) fn manifest_types() -> HeaderValue {
    let types = format!("{}, */*", MediaType::MANIFESTS.join(", "));
    HeaderValue::from_str(&types).unwrap_or(ANYTHING)
}

const fn asked_by(reference: &Reference) -> Asked<'_> {
    let digest = match reference {
        Reference::Digest(digest) => Some(digest),
        Reference::Tag(_) => None,
    };
    Asked { digest, part: Part::WHOLE }
}

fn is_list(path_and_query: &str) -> bool {
    let path = path_and_query.split('?').next().unwrap_or_default();
    path == "tags/list" || path.strip_prefix("referrers/").is_some_and(|digest| digest.parse::<Digest>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lists_are_passed_on() {
        let digest = Digest::of(b"");
        for good in ["tags/list", "tags/list?n=5&last=a", &format!("referrers/{digest}?artifactType=x")] {
            assert!(is_list(good), "{good}");
        }
        for bad in ["", "tags/list/", "tags/../blobs/x", "referrers/x", "referrers/", &format!("blobs/{digest}")] {
            assert!(!is_list(bad), "{bad}");
        }
    }
}
