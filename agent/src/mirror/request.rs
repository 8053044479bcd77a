//! What is asked for, parsed strictly.
//!
//! Names, tags and digests need no percent-encoding, so a path that has any is refused: nothing can be smuggled past
//! the checks in another spelling. What parses names one registry and one repository, and nothing outside of them.

use std::net::SocketAddr;

use http::{Method, Uri};

use crate::image::{Digest, Reference, Registry, Repository};
use crate::pull::Place;

/// The longest path and query that is looked at, in bytes.
const MAX_TARGET: usize = 4096;

/// One request of the pull workflow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    /// `/v2/`
    Base,
    /// `/v2/<repository>/manifests/<reference>`
    Manifest(Place, Reference),
    /// `/v2/<repository>/blobs/<digest>`
    Blob(Place, Digest),
    /// `/v2/<repository>/tags/list`, `/v2/<repository>/referrers/<digest>`: the part behind the repository, with its
    /// query.
    Pass(Place, String),
}

/// Why a request is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("only GET and HEAD are answered: this is a mirror to pull from")]
    Method,
    #[error("no such path: this is a mirror for the pull side of the distribution specification, below /v2/")]
    Path,
    #[error("{0}")]
    Name(String),
    #[error("{0}")]
    Digest(String),
}

impl Request {
    /// Parses what arrives at a mirror that listens on `own`.
    pub(super) fn parse(method: &Method, uri: &Uri, own: SocketAddr) -> Result<Self, Refused> {
        if method != Method::GET && method != Method::HEAD {
            return Err(Refused::Method);
        }
        let (path, query) = (uri.path(), uri.query().unwrap_or_default());
        if path.len() + query.len() > MAX_TARGET {
            return Err(Refused::Name("the request is longer than any name".to_owned()));
        }
        let rest = match path {
            "/v2" | "/v2/" => return Ok(Self::Base),
            _ => path.strip_prefix("/v2/").ok_or(Refused::Path)?,
        };
        if rest.contains('%') {
            return Err(Refused::Name("names, tags and digests have no encoded characters".to_owned()));
        }
        let parameters: Vec<(String, String)> =
            form_urlencoded::parse(query.as_bytes()).map(|(k, v)| (k.into_owned(), v.into_owned())).collect();

        let (front, last) = rest.rsplit_once('/').ok_or(Refused::Path)?;
        let (name, kind) = front.rsplit_once('/').ok_or(Refused::Path)?;
        let place = || place(name, &parameters, own);
        match kind {
            "manifests" => {
                let reference = last.parse().map_err(|e| {
                    let wrong = format!("{last:?} is no tag and no digest: {e}");
                    if last.contains(':') { Refused::Digest(wrong) } else { Refused::Name(wrong) }
                })?;
                Ok(Self::Manifest(place()?, reference))
            }
            "blobs" => Ok(Self::Blob(place()?, digest(last)?)),
            "tags" if last == "list" => Ok(Self::Pass(place()?, with_query("tags/list", &parameters, &["n", "last"]))),
            "referrers" => {
                let suffix = format!("referrers/{}", digest(last)?);
                Ok(Self::Pass(place()?, with_query(&suffix, &parameters, &["artifactType"])))
            }
            _ => Err(Refused::Path),
        }
    }

    /// Where it asks; `None` for what names no repository.
    pub(super) const fn place(&self) -> Option<&Place> {
        match self {
            Self::Base => None,
            Self::Manifest(place, _) | Self::Blob(place, _) | Self::Pass(place, _) => Some(place),
        }
    }

    /// A word for logs and metrics.
    pub(super) const fn label(&self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Manifest(_, Reference::Tag(_)) => "tag",
            Self::Manifest(_, Reference::Digest(_)) => "manifest",
            Self::Blob(..) => "blob",
            Self::Pass(..) => "pass",
        }
    }
}

fn digest(text: &str) -> Result<Digest, Refused> {
    text.parse().map_err(|e| Refused::Digest(format!("{text:?} is no digest: {e}")))
}

/// The registry is what `ns` says. Without it, or where it is our own address (an image name that names us, through a
/// `_default` entry), the path says it; and a path that doesn't is Docker Hub's, as Docker's `registry-mirrors` ask.
fn place(name: &str, parameters: &[(String, String)], own: SocketAddr) -> Result<Place, Refused> {
    let mut namespaces = parameters.iter().filter(|(key, _)| key == "ns").map(|(_, value)| value);
    let ns = namespaces.next();
    if namespaces.any(|other| Some(other) != ns) {
        return Err(Refused::Name("the request names more than one registry".to_owned()));
    }
    let ns: Option<Registry> = match ns {
        Some(ns) => Some(ns.parse().map_err(|e| Refused::Name(format!("ns={ns:?}: {e}")))?),
        None => None,
    };
    let (registry, path) = match ns.filter(|ns| !ns.is_at(own)) {
        Some(registry) => (registry, name),
        None => match name.split_once('/') {
            Some((first, rest)) if Registry::is_host(first) => {
                (first.parse().map_err(|e| Refused::Name(format!("{first:?}: {e}")))?, rest)
            }
            _ => (Registry::docker_hub(), name),
        },
    };
    if registry.is_at(own) {
        return Err(Refused::Name("the mirror's own address is no registry".to_owned()));
    }
    let repository: Repository = path.parse().map_err(|e| Refused::Name(format!("{path:?}: {e}")))?;
    let at_hub = registry.as_str() == Registry::DOCKER_HUB;
    Ok(Place { registry, repository: if at_hub { repository.at_docker_hub() } else { repository } })
}

/// The parameters that the specification knows, encoded anew.
fn with_query(path: &str, parameters: &[(String, String)], known: &[&str]) -> String {
    let passed = parameters.iter().filter(|(key, _)| known.contains(&key.as_str()));
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(passed).finish();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(target: &str) -> Result<Request, Refused> {
        let own = SocketAddr::from(([127, 0, 0, 1], 7439));
        Request::parse(&Method::GET, &target.parse().unwrap(), own)
    }

    fn place_of(target: &str) -> String {
        match parse(target) {
            Ok(Request::Manifest(place, reference)) => format!("{place} {reference}"),
            Ok(Request::Blob(place, _)) => format!("{place} blob"),
            Ok(Request::Pass(place, suffix)) => format!("{place} {suffix}"),
            other => panic!("{target}: {other:?}"),
        }
    }

    #[test]
    fn all_forms() {
        assert_eq!(parse("/v2/"), Ok(Request::Base));
        assert_eq!(parse("/v2"), Ok(Request::Base));
        for (target, is) in [
            ("/v2/library/nginx/manifests/latest?ns=docker.io".to_owned(), "docker.io/library/nginx latest"),
            ("/v2/a/b/manifests/v1?ns=reg.corp%3A5000".to_owned(), "reg.corp:5000/a/b v1"),
            (format!("/v2/a/blobs/sha256:{HEX}?ns=ghcr.io"), "ghcr.io/a blob"),
            // The path form.
            ("/v2/ghcr.io/acme/app/manifests/v1".to_owned(), "ghcr.io/acme/app v1"),
            ("/v2/docker.io/nginx/manifests/v1".to_owned(), "docker.io/library/nginx v1"),
            ("/v2/localhost/app/manifests/v1".to_owned(), "localhost/app v1"),
            // With our own address as ns.
            ("/v2/ghcr.io/acme/app/manifests/v1?ns=localhost:7439".to_owned(), "ghcr.io/acme/app v1"),
            ("/v2/ghcr.io/acme/app/manifests/v1?ns=127.0.0.1:7439".to_owned(), "ghcr.io/acme/app v1"),
            ("/v2/ghcr.io/acme/app/manifests/v1?ns=[::1]:7439".to_owned(), "ghcr.io/acme/app v1"),
            // Docker's registry-mirrors.
            ("/v2/library/nginx/manifests/v1".to_owned(), "docker.io/library/nginx v1"),
            // Repositories with the words of the grammar in them.
            ("/v2/a/manifests/b/blobs/manifests/v1?ns=x.y".to_owned(), "x.y/a/manifests/b/blobs v1"),
            ("/v2/a/tags/list?ns=x.y&n=5&evil=1&last=b%2Fc".to_owned(), "x.y/a tags/list?n=5&last=b%2Fc"),
            ("/v2/a/tags/list?ns=x.y".to_owned(), "x.y/a tags/list"),
        ] {
            assert_eq!(place_of(&target), is);
        }
        assert!(
            place_of(&format!("/v2/a/referrers/sha256:{HEX}?ns=x.y&artifactType=a/b")).ends_with("?artifactType=a%2Fb")
        );
    }

    #[test]
    fn refuses_everything_else() {
        let own = SocketAddr::from(([127, 0, 0, 1], 7439));
        assert_eq!(Request::parse(&Method::POST, &"/v2/".parse().unwrap(), own), Err(Refused::Method));
        for target in ["/", "/v1/", "/v2/a", "/v2/a/b", "/v2/a/uploads/x", "/metrics", "/v2/_catalog", "/v2/token"] {
            assert_eq!(parse(target), Err(Refused::Path), "{target}");
        }
        let long = format!("/v2/{}/manifests/v1?ns=x.y", "a/".repeat(3000));
        for target in [
            "/v2/../a/manifests/v1?ns=x.y",
            "/v2/a/../../b/manifests/v1?ns=x.y",
            "/v2/a%2fb/manifests/v1?ns=x.y",
            "/v2/a/manifests/%2e%2e?ns=x.y",
            "/v2//manifests/v1?ns=x.y",
            "/v2/A/manifests/v1?ns=x.y",
            "/v2/a/manifests/v1?ns=",
            "/v2/a/manifests/v1?ns=a/b",
            "/v2/a/manifests/v1?ns=x.y%00",
            "/v2/a/manifests/v1?ns=u:p%40x.y",
            "/v2/a/manifests/v1?ns=x.y&ns=z.y",
            "/v2/localhost:7439/a/manifests/v1",
            "/v2/127.0.0.1:7439/x.y/a/manifests/v1?ns=localhost:7439",
            &long,
        ] {
            assert!(matches!(parse(target), Err(Refused::Name(_))), "{target}: {:?}", parse(target));
        }
        for target in ["/v2/a/blobs/latest?ns=x.y", "/v2/a/blobs/sha256:00?ns=x.y", "/v2/a/manifests/sha256:0?ns=x.y"] {
            assert!(matches!(parse(target), Err(Refused::Digest(_))), "{target}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_stays_within_its_registry(path in "(/v2/)?[a-zA-Z0-9./:_%-]{0,60}", ns in "[a-z0-9.:/%@\\[\\]-]{0,20}") {
            let Ok(uri) = format!("{path}?ns={ns}").parse::<Uri>() else { return Ok(()) };
            let own = SocketAddr::from(([127, 0, 0, 1], 7439));
            if let Ok(Request::Manifest(place, _) | Request::Blob(place, _) | Request::Pass(place, _)) = Request::parse(&Method::GET, &uri, own) {
                let url = format!("https://{}/v2/{}/manifests/x", place.registry, place.repository);
                let url: Uri = url.parse().unwrap();
                prop_assert_eq!(url.authority().unwrap().as_str(), place.registry.as_str());
                prop_assert!(!url.path().contains(".."));
            }
        }
    }
}
