use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::time::Instant;

use super::answer::{Answer, Asked, judge};
use super::error::{ErrorKind, UpstreamError};
use super::exchange::{Call, Exchange, Part, Reply, drain};
use super::grant::Grant;
use super::keyring::{Credential, Found};
use super::own::{MOST_TRIED, Own};
use super::places::Load;
use super::record::State;
use super::token::{Tokens, Way};
use crate::config::{UpstreamConfig, UpstreamUrl};
use crate::image::{Access, Digest, MediaType, Reference, Registry, Repository};

/// One URL that serves a registry's content.
///
/// Every request ends within `header_timeout` with the head of an answer or an error, tokens and redirects included. Where
/// the configuration has `max_connections`, it begins when it has its place among them.
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
    pub(super) own: Option<Own>,
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
        let mut waited = Duration::ZERO;
        let load = if method == Method::GET && path.starts_with("blobs/") { Load::Blob } else { Load::Quick };
        let answer = async {
            let uri = self.exchange.home.v2(&format!("{repository}/{path}"));
            let uri =
                uri.map_err(|e| self.error(ErrorKind::Protocol(format!("no URL can be made of {path:?}: {e}"))))?;
            let mut call = Call {
                method: method.clone(),
                uri,
                accept: if path.starts_with("manifests/") { self.manifest_types.clone() } else { ANYTHING },
                part: asked.part,
                authorization: None,
                form: None,
                load,
                deadline: began + self.exchange.header_timeout,
                waited,
            };
            let reply = self.reply(grant, repository, &mut call).await;
            waited = call.waited;
            let (reply, access) = reply?;
            Ok(Answer { access, ..Answer::read(asked, &method, reply, &self.exchange)? })
        }
        .await;
        self.exchange.record.request(began.elapsed().saturating_sub(waited), answer.as_ref().err());
        answer.map_err(|error: UpstreamError| error.said_by_origin(self.is_origin))
    }

    /// Asks as the caller, or with one after the other of the agent's own credentials, until they aren't refused. Says
    /// too whether credentials helped.
    async fn reply(
        &self,
        grant: &Grant,
        repository: &Repository,
        call: &mut Call,
    ) -> Result<(Reply, Access), UpstreamError> {
        let mut challenge = None;
        let mut found = Found::default();
        let own = self.own.as_ref().filter(|_| grant.credentials().is_none());
        if let Some((own, host)) = own.zip(self.host.as_ref()) {
            if !own.is_challenged(repository) {
                let reply = self.exchange.follow(call).await?;
                if !is_challenge(&reply) {
                    return Ok((reply, self.access(grant, call)));
                }
                own.note_challenge(repository);
                challenge = Some(read_challenge(reply).await);
            }
            let began = Instant::now();
            found = own.find(host, repository, call.deadline, self.exchange.header_timeout).await;
            call.waited += began.elapsed();
        }
        // Who shows nothing may still show something.
        let lack = found.lack.filter(|_| *grant != Grant::None);
        let candidates = self.candidates(grant, &found.credentials, repository);
        let mut refusal = None;
        for candidate in &candidates {
            match self.ask_as(candidate, repository, call, &mut challenge).await {
                // Some registries say of what is hidden that it isn't there.
                Ok(reply) if lack.is_some() && is_absent(&reply) => {}
                Ok(reply) => {
                    if let (Some(own), None) = (own, &call.authorization) {
                        own.note_openness(repository);
                    }
                    return Ok((reply, self.access(candidate, call)));
                }
                // It didn't ask who we are: others would be told the same.
                Err(error) if error.is_refusal() && challenge.is_none() && call.authorization.is_none() => {
                    return Err(error);
                }
                Err(error) if error.is_refusal() => {
                    if candidates.len() > 1 {
                        self.tokens.forget(self.number, repository, candidate);
                    }
                    refusal = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(match lack {
            Some(lack) => self.error(ErrorKind::Credentials(lack)),
            None => refusal.unwrap_or_else(|| self.error(ErrorKind::Unauthorized)),
        })
    }

    /// Asks with a token if one was needed before, unless the challenge is known; and once more with a new one when that
    /// is what the answer wants.
    async fn ask_as(
        &self,
        grant: &Grant,
        repository: &Repository,
        call: &mut Call,
        challenge: &mut Option<HeaderMap>,
    ) -> Result<Reply, UpstreamError> {
        let mut known = None;
        if challenge.is_none() {
            if *grant != Grant::None {
                known = self.tokens.known(self.number, &self.exchange, repository, grant, call.deadline).await;
            }
            call.authorization = known.as_ref().map(|token| token.header.clone());
            let reply = self.exchange.follow(call).await?;
            if !is_challenge(&reply) {
                return self.unless_refused(reply);
            }
            *challenge = Some(read_challenge(reply).await);
        }
        let way = challenge.as_ref().and_then(|headers| Way::read(headers, repository, grant));
        let way = way.ok_or_else(|| self.error(ErrorKind::Unauthorized))?;
        if *grant == Grant::None {
            return Err(UpstreamError::challenge(Arc::clone(&self.exchange.name)));
        }
        let asked = (repository, grant);
        let token = self.tokens.fetch(self.number, &self.exchange, asked, way, known.as_ref(), call.deadline).await?;
        call.authorization = Some(token.header);
        let reply = self.exchange.follow(call).await?;
        self.unless_refused(reply)
    }

    /// As whom to ask, one after the other: as the caller, where it brought credentials. Else by the agent's own: those
    /// that the configuration has for this upstream by name, then, without a caller, those that are meant for its host.
    /// By which there is a token goes first.
    fn candidates(&self, grant: &Grant, found: &[Credential], repository: &Repository) -> Vec<Grant> {
        let of_host = match (grant, &self.host) {
            (Grant::Own(own), Some(host)) => own.at(host),
            _ => &[],
        };
        let mut candidates = Vec::new();
        for own in found.iter().filter_map(Credential::credentials).chain(of_host.iter().map(Arc::clone)) {
            let own = Grant::Credentials(own);
            if candidates.len() < MOST_TRIED && !candidates.contains(&own) {
                candidates.push(own);
            }
        }
        if candidates.is_empty() {
            candidates.push(if let Grant::Own(_) = grant { Grant::Anonymous } else { grant.clone() });
        }
        if candidates.len() > 1 {
            candidates.sort_by_cached_key(|candidate| !self.tokens.has(self.number, repository, candidate));
        }
        candidates
    }

    /// How what such a request gave is recorded.
    fn access(&self, grant: &Grant, call: &Call) -> Access {
        match call.authorization {
            // Whoever the token is for, what went along with it may have opened this.
            Some(_) if !self.is_shown_a_key() => grant.access(),
            None if !self.knows_us() => Access::Anonymous,
            _ => Access::Authorized,
        }
    }

    fn unless_refused(&self, reply: Reply) -> Result<Reply, UpstreamError> {
        match judge(reply.response.status(), reply.response.headers(), reply.is_home) {
            Err(kind @ (ErrorKind::Unauthorized | ErrorKind::Denied)) => Err(self.exchange.error(&reply.uri, kind)),
            _ => Ok(reply),
        }
    }

    fn error(&self, kind: ErrorKind) -> UpstreamError {
        UpstreamError::new(Arc::clone(&self.exchange.name), kind)
    }
}

const ANYTHING: HeaderValue = HeaderValue::from_static("*/*");

/// It wants to know who asks, or another token.
fn is_challenge(reply: &Reply) -> bool {
    reply.response.status() == StatusCode::UNAUTHORIZED && reply.is_home
}

fn is_absent(reply: &Reply) -> bool {
    matches!(reply.response.status(), StatusCode::NOT_FOUND | StatusCode::GONE)
}

/// Leaves the connection to the next request.
async fn read_challenge(reply: Reply) -> HeaderMap {
    let (head, body) = reply.response.into_parts();
    drain(body).await;
    head.headers
}

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
