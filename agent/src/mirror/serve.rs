use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::header::{
    AGE, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, IF_RANGE, LINK, LOCATION, RANGE,
    USER_AGENT, WARNING, WWW_AUTHENTICATE,
};
use http::{HeaderMap, Method, Request as HttpRequest, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use oci_spec::distribution::ErrorCode;
use zeroize::Zeroizing;

use super::MirrorMetrics;
use super::bequest::Bequest;
use super::caller::Caller;
use super::listen::Scheme;
use super::passes::{Pass, Passes};
use super::range::{Part, RangeAsked};
use super::reply::{self, Body};
use super::request::Request;
use super::token;
use crate::containerd::canary::Canary;
use crate::image::{Digest, MediaType, Reference, Tag};
use crate::pull::{Kind, Passed, Place, Pull, PullError, Wanted};
use crate::upstream::{Credentials, Grant};

/// To send the form that asks for a token.
const FORM_TIMEOUT: Duration = Duration::from_secs(5);
/// The query parameter with the signature of a redirect.
const SIGNATURE: &str = "larder-signature";

/// Blobs up to this size are answered on TLS at once, in bytes: to encrypt them costs less than to redirect.
const SMALL: u64 = 1 << 20;

/// Answers what arrives at the mirror's port.
pub struct Mirror {
    pull: Pull,
    canary: Arc<Canary>,
    passes: Passes,
    metrics: MirrorMetrics,
    requests: Arc<AtomicU64>,
    /// As configured: a registry that is named so is ourselves.
    own: SocketAddr,
}

/// One request's circumstances.
struct Asked<'a> {
    head: bool,
    scheme: Scheme,
    local: SocketAddr,
    uri: &'a Uri,
    caller: Caller,
    shown: Shown,
    range: RangeAsked,
    if_range: Option<&'a str>,
}

/// What a caller has shown of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Shown {
    Nothing,
    /// A token that isn't ours, or holds no longer.
    Unknown,
    Pass(Pass),
    /// It follows our redirect from TLS to plain HTTP, and had shown this before.
    Followed(Option<Pass>),
}

impl Mirror {
    /// A mirror over `pull` that is known as `own`. Requests for images, the canary's left out, are counted in
    /// `requests`.
    #[must_use]
    pub fn new(pull: Pull, canary: Arc<Canary>, own: SocketAddr, requests: Arc<AtomicU64>) -> Self {
        Self { pull, canary, passes: Passes::default(), metrics: MirrorMetrics::default(), requests, own }
    }

    /// Goes on where another process has ended, by its [`Self::bequest`]: tokens and redirects that it gave hold here.
    /// Nothing, or that of another version, changes nothing.
    #[must_use]
    pub fn inheriting(self, bequest: &[u8]) -> Self {
        match Bequest::parse(bequest) {
            Ok(bequest) => Self { passes: Passes::inherit(bequest), ..self },
            Err(()) => self,
        }
    }

    /// What the process that takes over has to know, secrets among it.
    #[must_use]
    pub fn bequest(&self) -> Zeroizing<Vec<u8>> {
        self.passes.bequest().text()
    }

    /// What is counted here.
    #[must_use]
    pub fn metrics(&self) -> &MirrorMetrics {
        &self.metrics
    }

    pub(super) async fn answer(
        &self,
        request: HttpRequest<Incoming>,
        scheme: Scheme,
        local: SocketAddr,
    ) -> Response<Body> {
        let began = Instant::now();
        let (head, body) = request.into_parts();
        let header = |name| text(&head.headers, name);
        let is_head = head.method == Method::HEAD;
        let (kind, mut response) = if head.uri.path() == token::PATH {
            ("token", self.token(&head, body).await)
        } else {
            match Request::parse(&head.method, &head.uri, self.own) {
                Ok(request) => {
                    if request.place().is_some_and(|place| !is_canary(place)) {
                        self.requests.fetch_add(1, Ordering::Relaxed);
                    }
                    let asked = Asked {
                        head: is_head,
                        scheme,
                        local,
                        uri: &head.uri,
                        caller: Caller::from_user_agent(header(USER_AGENT).unwrap_or_default()),
                        shown: self.shown(&request, &head.uri, header(AUTHORIZATION)),
                        range: RangeAsked::parse(header(RANGE)),
                        if_range: header(IF_RANGE),
                    };
                    (request.label(), self.reply(&request, &asked).await)
                }
                Err(refused) => ("refused", reply::refused(&refused)),
            }
        };
        if is_head {
            *response.body_mut() = reply::whole("");
        }
        let status = response.status();
        self.metrics.answered(kind, status.as_u16(), began.elapsed());
        // Without its query, which may have a signature in it.
        tracing::debug!(method = %head.method, path = head.uri.path(), status = status.as_u16(), ?scheme, "answered");
        response
    }

    /// Answers at the token endpoint.
    async fn token(&self, head: &http::request::Parts, body: Incoming) -> Response<Body> {
        let form = match head.method {
            Method::POST => {
                let collected = Limited::new(body, token::MAX_FORM).collect();
                match tokio::time::timeout(FORM_TIMEOUT, collected).await {
                    Ok(Ok(form)) => form.to_bytes(),
                    _ => return token::refused(&token::Refused::Grant),
                }
            }
            _ => bytes::Bytes::new(),
        };
        let query = head.uri.query().unwrap_or_default();
        match token::Asked::parse(&head.method, query, text(&head.headers, AUTHORIZATION), &form) {
            Ok(token::Asked { place, grant }) => token::reply(&self.passes, &self.passes.issue(&place, grant)),
            Err(refused) => token::refused(&refused),
        }
    }

    fn shown(&self, request: &Request, uri: &Uri, authorization: Option<&str>) -> Shown {
        let Some(place) = request.place() else { return Shown::Nothing };
        let query = uri.query().unwrap_or_default();
        if let Request::Blob(_, digest) = request
            && let Some((_, signature)) = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == SIGNATURE)
            && let Some(pass) = self.passes.follow(&signature, place, digest)
        {
            return Shown::Followed(pass);
        }
        let Some(authorization) = authorization else { return Shown::Nothing };
        let pass = if let Some(token) = token::after_scheme(authorization, "bearer") {
            self.passes.admit(token, place)
        } else {
            let credentials = token::after_scheme(authorization, "basic").and_then(Credentials::basic);
            credentials.map(|credentials| self.passes.issue(place, Grant::Credentials(Arc::new(credentials))))
        };
        pass.map_or(Shown::Unknown, Shown::Pass)
    }

    async fn reply(&self, request: &Request, asked: &Asked<'_>) -> Response<Body> {
        match request {
            Request::Base => base(),
            Request::Manifest(place, reference) if is_canary(place) => self.canary_reply(place, reference),
            Request::Blob(place, digest) if is_canary(place) => self.canary_reply(place, &Reference::Digest(*digest)),
            Request::Manifest(place, Reference::Tag(tag)) => self.tag(place, tag, asked).await,
            Request::Manifest(place, Reference::Digest(digest)) => {
                self.blob(place, digest, Kind::Manifest, asked).await
            }
            Request::Blob(place, digest) => {
                if asked.head {
                    return self.head_blob(place, digest, asked).await;
                }
                self.blob(place, digest, Kind::Blob, asked).await
            }
            Request::Pass(place, suffix) => self.pass(place, suffix, asked).await,
        }
    }

    async fn tag(&self, place: &Place, tag: &Tag, asked: &Asked<'_>) -> Response<Body> {
        let answer = match asked.head {
            true => self.pull.resolve(place, asked.grant(), tag).await.map(|resolved| (resolved, None)),
            false => self.pull.fetch_tag(place, asked.grant(), tag).await.map(|(of, found)| (of, Some(found))),
        };
        let (resolved, found) = match answer {
            Ok(answer) => answer,
            Err(e) => return asked.failed(&e, place, Kind::Manifest),
        };
        let (media_type, size) = match &found {
            Some(found) => (found.media_type.clone(), found.size),
            None => (resolved.media_type.clone(), Some(resolved.size)),
        };
        let body = found.map_or_else(|| reply::whole(""), |found| reply::streamed(found.read()));
        let mut response = reply::content(StatusCode::OK, &resolved.digest, media_type.as_str(), size, body);
        if let Some(age) = resolved.stale_for {
            let warning = match resolved.deleted {
                true => "299 larder \"Deleted at the origin\"",
                false => "110 larder \"Response is Stale\"",
            };
            let headers = response.headers_mut();
            headers.insert(WARNING, HeaderValue::from_static(warning));
            headers.insert(AGE, age.as_secs().into());
        }
        response
    }

    async fn blob(&self, place: &Place, digest: &Digest, kind: Kind, asked: &Asked<'_>) -> Response<Body> {
        let whole =
            kind == Kind::Manifest || asked.head || asked.if_range.is_some_and(|tag| tag != format!("\"{digest}\""));
        let range = if whole { RangeAsked::Whole } else { asked.range };
        let wanted = Wanted { place: place.clone(), grant: asked.grant().clone(), digest: *digest, kind };
        let found = match range.closed() {
            Some(part) => self.pull.fetch_part(&wanted, part).await,
            None => self.pull.fetch(&wanted, range.start()).await,
        };
        let found = match found {
            Ok(found) => found,
            Err(e) => return asked.failed(&e, place, kind),
        };
        if range == RangeAsked::From(0) {
            // Who reads in one go says no range: the pieces that follow begin where others end.
            self.pull.begins_anew(digest);
        }
        if kind == Kind::Blob
            && found.can_be_asked_for_again(SMALL)
            && let Some(redirect) = asked.to_plain(&self.passes, place, digest)
        {
            return redirect;
        }
        let media_type = found.media_type.clone();
        let part = found.size.map_or(Part::Whole, |size| range.of(size));
        match (part, found.size) {
            (Part::Some(part), Some(size)) => {
                let length = part.end - part.start;
                let content_range = format!("bytes {}-{}/{size}", part.start, part.end - 1);
                let reader = if range.closed().is_some() { found.read_part(part) } else { found.read_from(part.start) };
                let body = reply::streamed(reader);
                let mut response =
                    reply::content(StatusCode::PARTIAL_CONTENT, digest, media_type.as_str(), Some(length), body);
                if let Ok(content_range) = HeaderValue::from_str(&content_range) {
                    response.headers_mut().insert(CONTENT_RANGE, content_range);
                }
                response
            }
            (Part::Unsatisfiable, Some(size)) => reply::unsatisfiable(size),
            (_, size) => {
                let body = if asked.head { reply::whole("") } else { reply::streamed(found.read()) };
                reply::content(StatusCode::OK, digest, media_type.as_str(), size, body)
            }
        }
    }

    /// Asks nobody to deliver the blob: whether it could be had is answered by what is here, or by upstream's HEAD.
    async fn head_blob(&self, place: &Place, digest: &Digest, asked: &Asked<'_>) -> Response<Body> {
        match self.pull.stat(place, asked.grant(), digest).await {
            Ok(size) => reply::content(StatusCode::OK, digest, MediaType::OCTET_STREAM, Some(size), reply::whole("")),
            Err(e) => asked.failed(&e, place, Kind::Blob),
        }
    }

    async fn pass(&self, place: &Place, suffix: &str, asked: &Asked<'_>) -> Response<Body> {
        match self.pull.pass(place, asked.grant(), suffix).await {
            Ok(Passed { media_type, link, body }) => {
                let mut response = Response::new(reply::whole(body.clone()));
                let headers = response.headers_mut();
                headers.insert(CONTENT_LENGTH, (body.len() as u64).into());
                if let Ok(media_type) = HeaderValue::from_str(media_type.as_str()) {
                    headers.insert(CONTENT_TYPE, media_type);
                }
                if let Some(link) = link.as_ref().and_then(|link| here(link, asked.uri)) {
                    headers.insert(LINK, link);
                }
                response
            }
            Err(e) => asked.failed(&e, place, Kind::Manifest),
        }
    }

    /// The canary's image is made of this program alone; that it is asked for at all is what it is for.
    fn canary_reply(&self, place: &Place, reference: &Reference) -> Response<Body> {
        if let Reference::Tag(tag) = reference {
            self.canary.arrived(tag);
        }
        let content =
            (place.repository.as_str() == Canary::REPOSITORY).then(|| self.canary.content(reference)).flatten();
        match content {
            Some((media_type, content)) => {
                let digest = Digest::of(&content);
                let length = Some(content.len() as u64);
                reply::content(StatusCode::OK, &digest, media_type.as_str(), length, reply::whole(content))
            }
            None => reply::error(
                StatusCode::NOT_FOUND,
                ErrorCode::ManifestUnknown,
                "the canary has one image and nothing else",
            ),
        }
    }
}

impl Asked<'_> {
    /// As whom upstreams are asked for it.
    fn grant(&self) -> &Grant {
        match &self.shown {
            Shown::Pass(pass) | Shown::Followed(Some(pass)) => &pass.grant,
            Shown::Nothing | Shown::Unknown | Shown::Followed(None) => &Grant::None,
        }
    }

    /// What went wrong, or what is still to be shown.
    fn failed(&self, error: &PullError, place: &Place, kind: Kind) -> Response<Body> {
        let wrong = match error {
            // A token that isn't known, or no longer.
            PullError::Unauthenticated(_) => (self.shown == Shown::Unknown).then_some("invalid_token"),
            // From 2.0 on, containerd lets our "not found" stand before whatever its own upstream says.
            PullError::Denied(_) if self.caller == Caller::Other && matches!(self.shown, Shown::Pass(_)) => {
                Some("insufficient_scope")
            }
            _ => return reply::failed(error, kind, self.caller),
        };
        // Who came by TLS brings its secrets there.
        let scheme = match (self.scheme, &self.shown) {
            (Scheme::Tls, _) | (_, Shown::Followed(_)) => "https",
            (Scheme::Plain, _) => "http",
        };
        let base = format!("{scheme}://{}", self.local);
        let code = if matches!(error, PullError::Denied(_)) { ErrorCode::Denied } else { ErrorCode::Unauthorized };
        let mut response = reply::error(StatusCode::UNAUTHORIZED, code, &error.to_string());
        if let Some(challenge) = token::challenge(&base, place, wrong) {
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }

    /// Bulk goes over plain HTTP: TLS costs, and to its own node a digest needs no secrecy. containerd follows, and takes
    /// up a body that was cut through the first URL again. By then its transfer is under way. What was shown here holds
    /// there by a signature: 1.6 sends no token along.
    fn to_plain(&self, passes: &Passes, place: &Place, digest: &Digest) -> Option<Response<Body>> {
        if self.scheme == Scheme::Plain {
            return None;
        }
        let pass = match &self.shown {
            Shown::Pass(pass) => Some(pass),
            _ => None,
        };
        let signature = passes.sign(pass, place, digest);
        let (path, query) = (self.uri.path(), self.uri.query());
        let query = query.map_or_else(String::new, |query| format!("{query}&"));
        let location = format!("http://{}{path}?{query}{SIGNATURE}={signature}", self.local);
        let location = HeaderValue::from_str(&location).ok()?;
        let mut response = Response::new(reply::whole(""));
        *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
        response.headers_mut().insert(LOCATION, location);
        Some(response)
    }
}

fn text(headers: &HeaderMap, name: http::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn is_canary(place: &Place) -> bool {
    place.registry.as_str() == Canary::REGISTRY
}

/// An upstream's link to the next page, as a link to the same list here: its path there may have a prefix, and its
/// registry is known here by `ns`.
fn here(link: &HeaderValue, asked: &Uri) -> Option<HeaderValue> {
    let (target, parameters) = link.to_str().ok()?.trim().strip_prefix('<')?.split_once('>')?;
    let next = target.split_once('?').map_or("", |(_, query)| query);
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (key, value) in form_urlencoded::parse(next.as_bytes()).filter(|(key, _)| key != "ns") {
        query.append_pair(&key, &value);
    }
    for (key, value) in
        form_urlencoded::parse(asked.query().unwrap_or_default().as_bytes()).filter(|(key, _)| key == "ns")
    {
        query.append_pair(&key, &value);
    }
    HeaderValue::from_str(&format!("<{}?{}>{parameters}", asked.path(), query.finish())).ok()
}

fn base() -> Response<Body> {
    let mut response = Response::new(reply::whole("{}"));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_here() {
        let link = HeaderValue::from_static("</hub/v2/a/b/tags/list?last=x%2Fy&n=2>; rel=\"next\"");
        let asked: Uri = "/v2/a/b/tags/list?n=2&ns=reg.corp%3A5000".parse().unwrap();
        let link = here(&link, &asked).unwrap();
        assert_eq!(link, "</v2/a/b/tags/list?last=x%2Fy&n=2&ns=reg.corp%3A5000>; rel=\"next\"");
        assert_eq!(here(&HeaderValue::from_static("nonsense"), &asked), None);
    }
}
