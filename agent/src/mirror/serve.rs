use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use http::header::{
    AGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, IF_RANGE, LINK, LOCATION, RANGE, USER_AGENT, WARNING,
};
use http::{Method, Request as HttpRequest, Response, StatusCode, Uri};
use hyper::body::Incoming;

use super::MirrorMetrics;
use super::caller::Caller;
use super::listen::Scheme;
use super::range::{Part, RangeAsked};
use super::reply::{self, Body};
use super::request::Request;
use crate::containerd::canary::Canary;
use crate::image::{Digest, MediaType, Reference, Tag};
use crate::pull::{Kind, Passed, Place, Pull, Resolved, Wanted};
use crate::upstream::Grant;

/// Blobs up to this size are answered on TLS at once, in bytes: to encrypt them costs less than to redirect.
const SMALL: u64 = 1 << 20;

/// Answers what arrives at the mirror's port.
pub struct Mirror {
    pull: Pull,
    canary: Arc<Canary>,
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
    grant: Grant,
    range: RangeAsked,
    if_range: Option<&'a str>,
}

impl Mirror {
    /// A mirror over `pull` that is known as `own`. Requests for images, the canary's left out, are counted in
    /// `requests`.
    #[must_use]
    pub fn new(pull: Pull, canary: Arc<Canary>, own: SocketAddr, requests: Arc<AtomicU64>) -> Self {
        Self { pull, canary, metrics: MirrorMetrics::default(), requests, own }
    }

    /// What is counted here.
    #[must_use]
    pub fn metrics(&self) -> &MirrorMetrics {
        &self.metrics
    }

    pub(super) async fn answer(
        &self,
        request: &HttpRequest<Incoming>,
        scheme: Scheme,
        local: SocketAddr,
    ) -> Response<Body> {
        let began = Instant::now();
        let header = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let asked = Asked {
            head: request.method() == Method::HEAD,
            scheme,
            local,
            uri: request.uri(),
            caller: Caller::from_user_agent(header(USER_AGENT).unwrap_or_default()),
            grant: Grant::Anonymous,
            range: RangeAsked::parse(header(RANGE)),
            if_range: header(IF_RANGE),
        };
        let (kind, mut response) = match Request::parse(request.method(), request.uri(), self.own) {
            Ok(request) => {
                if request.place().is_some_and(|place| !is_canary(place)) {
                    self.requests.fetch_add(1, Ordering::Relaxed);
                }
                (request.label(), self.reply(&request, &asked).await)
            }
            Err(refused) => ("refused", reply::refused(&refused)),
        };
        if asked.head {
            *response.body_mut() = reply::whole("");
        }
        let status = response.status();
        self.metrics.answered(kind, status.as_u16(), began.elapsed());
        tracing::debug!(method = %request.method(), uri = %request.uri(), status = status.as_u16(), ?scheme, "answered");
        response
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
        let resolved = match self.pull.resolve(place, &asked.grant, tag).await {
            Ok(resolved) => resolved,
            Err(e) => return reply::failed(&e, Kind::Manifest, asked.caller),
        };
        let mut response = if asked.head {
            let Resolved { digest, media_type, size, .. } = &resolved;
            reply::content(StatusCode::OK, digest, media_type.as_str(), Some(*size), reply::whole(""))
        } else {
            self.blob(place, &resolved.digest, Kind::Manifest, asked).await
        };
        if let Some(age) = resolved.stale_for {
            let headers = response.headers_mut();
            headers.insert(WARNING, HeaderValue::from_static("110 larder \"Response is Stale\""));
            headers.insert(AGE, age.as_secs().into());
        }
        response
    }

    async fn blob(&self, place: &Place, digest: &Digest, kind: Kind, asked: &Asked<'_>) -> Response<Body> {
        let whole =
            kind == Kind::Manifest || asked.head || asked.if_range.is_some_and(|tag| tag != format!("\"{digest}\""));
        let range = if whole { RangeAsked::Whole } else { asked.range };
        let wanted = Wanted { place: place.clone(), grant: asked.grant.clone(), digest: *digest, kind };
        let found = match self.pull.fetch(&wanted, range.start()).await {
            Ok(found) => found,
            Err(e) => return reply::failed(&e, kind, asked.caller),
        };
        if kind == Kind::Blob
            && found.can_be_asked_for_again(SMALL)
            && let Some(redirect) = asked.to_plain()
        {
            return redirect;
        }
        let media_type = found.media_type.clone();
        let part = found.size.map_or(Part::Whole, |size| range.of(size));
        match (part, found.size) {
            (Part::Some(part), Some(size)) => {
                let length = part.end - part.start;
                let content_range = format!("bytes {}-{}/{size}", part.start, part.end - 1);
                let reader = if range.has_end() { found.read_part(part) } else { found.read_from(part.start) };
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
        match self.pull.stat(place, &asked.grant, digest).await {
            Ok(size) => reply::content(StatusCode::OK, digest, MediaType::OCTET_STREAM, Some(size), reply::whole("")),
            Err(e) => reply::failed(&e, Kind::Blob, asked.caller),
        }
    }

    async fn pass(&self, place: &Place, suffix: &str, asked: &Asked<'_>) -> Response<Body> {
        match self.pull.pass(place, &asked.grant, suffix).await {
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
            Err(e) => reply::failed(&e, Kind::Manifest, asked.caller),
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
            None => {
                let code = oci_spec::distribution::ErrorCode::ManifestUnknown;
                reply::error(StatusCode::NOT_FOUND, code, "the canary has one image and nothing else")
            }
        }
    }
}

impl Asked<'_> {
    /// Bulk goes over plain HTTP: TLS costs, and to its own node a digest needs no secrecy. containerd follows, and takes
    /// up a body that was cut through the first URL again. By then its transfer is under way.
    fn to_plain(&self) -> Option<Response<Body>> {
        if self.scheme == Scheme::Plain {
            return None;
        }
        let target = self.uri.path_and_query()?;
        let location = HeaderValue::from_str(&format!("http://{}{target}", self.local)).ok()?;
        let mut response = Response::new(reply::whole(""));
        *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
        response.headers_mut().insert(LOCATION, location);
        Some(response)
    }
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
