//! The mirror's own token endpoint: where a caller brings what it signs in with.
//!
//! containerd sends credentials only after a challenge, to the server that the challenge names. That server is here:
//! what is brought is kept in memory behind a [`Pass`](super::passes::Pass) and used at the registry, as whoever brought
//! it; who brings nothing is asked for as anybody. A wrong password gets its pass too: what the registry says of it is
//! the answer to what is asked with it.

use std::sync::Arc;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, PRAGMA};
use http::{Method, Response, StatusCode};

use super::passes::{Pass, Passes};
use super::reply::{self, Body};
use crate::image::Registry;
use crate::pull::Place;
use crate::upstream::{Credentials, Grant, MAX_SECRET};

/// Where it is, on the mirror's port.
pub(super) const PATH: &str = "/token";
/// The longest form that is read, in bytes: a user and a secret, every byte percent-encoded.
pub(super) const MAX_FORM: usize = 7 * MAX_SECRET;
/// For how long a token is said to hold, in seconds. It holds longer for clients that don't listen.
const EXPIRES_IN: u64 = 300;

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("only GET and POST are answered here")]
    Method,
    #[error("the service has to be the registry's name, and a scope repository:<registry>/<repository>:pull")]
    Scope,
    #[error("the grant_type is password or refresh_token, with what belongs to it")]
    Grant,
}

/// What is asked for, and as whom: parsed from GET's query and Basic header, or POST's form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) place: Place,
    pub(super) grant: Grant,
}

impl Asked {
    /// `authorization` counts for GET, and `form` for POST.
    pub(super) fn parse(
        method: &Method,
        query: &str,
        authorization: Option<&str>,
        form: &[u8],
    ) -> Result<Self, Refused> {
        let (fields, grant) = match *method {
            Method::GET => {
                let grant = match authorization.and_then(|value| after_scheme(value, "basic")) {
                    Some(encoded) => credentials(Credentials::basic(encoded))?,
                    None => Grant::Anonymous,
                };
                (Fields::read(query.as_bytes()), grant)
            }
            Method::POST => {
                let fields = Fields::read(form);
                let field = |name: &'static str| fields.get(name).unwrap_or_default();
                let grant = credentials(match field("grant_type") {
                    "password" => Credentials::password(field("username"), field("password")),
                    "refresh_token" => Credentials::identity_token(field("refresh_token")),
                    _ => None,
                })?;
                (fields, grant)
            }
            _ => return Err(Refused::Method),
        };
        let place = fields.place().ok_or(Refused::Scope)?;
        Ok(Self { place, grant })
    }
}

fn credentials(parsed: Option<Credentials>) -> Result<Grant, Refused> {
    parsed.map(|credentials| Grant::Credentials(Arc::new(credentials))).ok_or(Refused::Grant)
}

/// What follows the name of an authorization's scheme, which is told without regard to case.
pub(super) fn after_scheme<'a>(value: &'a str, scheme: &str) -> Option<&'a str> {
    let (first, rest) = value.split_once(' ')?;
    first.eq_ignore_ascii_case(scheme).then(|| rest.trim())
}

/// The fields of a query or a form, in their order.
struct Fields(Vec<(String, zeroize::Zeroizing<String>)>);

impl Fields {
    fn read(text: &[u8]) -> Self {
        Self(form_urlencoded::parse(text).map(|(name, value)| (name.into_owned(), value.into_owned().into())).collect())
    }

    fn all<'a>(&'a self, name: &'static str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn get(&self, name: &'static str) -> Option<&str> {
        self.all(name).next()
    }

    /// The service is the registry. Clients add scopes of their own, which don't name it.
    fn place(&self) -> Option<Place> {
        let registry: Registry = self.get("service")?.parse().ok()?;
        let scopes = self.all("scope").flat_map(|scopes| scopes.split(' '));
        scopes.filter_map(|scope| place_of(&registry, scope)).next()
    }
}

fn place_of(registry: &Registry, scope: &str) -> Option<Place> {
    let (name, _actions) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
    let repository = name.strip_prefix(registry.as_str())?.strip_prefix('/')?.parse().ok()?;
    Some(Place { registry: registry.clone(), repository })
}

/// The challenge that leads here, and what is wrong with the token that was shown, if one was.
pub(super) fn challenge(base: &str, place: &Place, error: Option<&str>) -> Option<HeaderValue> {
    let Place { registry, repository } = place;
    let error = error.map_or(String::new(), |error| format!(r#",error="{error}""#));
    let text = format!(
        r#"Bearer realm="{base}{PATH}",service="{registry}",scope="repository:{registry}/{repository}:pull"{error}"#
    );
    HeaderValue::from_str(&text).ok()
}

/// The reply with a token, under both names that clients look for.
pub(super) fn reply(passes: &Passes, pass: &Pass) -> Response<Body> {
    let token = passes.token(pass);
    let issued_at = jiff::Timestamp::now().to_string();
    let body = serde_json::json!({
        "token": token, "access_token": token, "expires_in": EXPIRES_IN, "issued_at": issued_at, "scope": ""
    });
    let mut response = Response::new(reply::whole(body.to_string()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
    response
}

/// The reply to what is no request for a token.
pub(super) fn refused(refused: &Refused) -> Response<Body> {
    let status = if *refused == Refused::Method { StatusCode::METHOD_NOT_ALLOWED } else { StatusCode::BAD_REQUEST };
    reply::error(status, oci_spec::distribution::ErrorCode::Unsupported, &refused.to_string())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    use super::*;

    const SCOPES: &str = "service=reg.corp%3A5000&scope=repository%3Aacme%2Fapp%3Apull\
                          &scope=repository%3Areg.corp%3A5000%2Facme%2Fapp%3Apull";

    fn place() -> Place {
        Place { registry: "reg.corp:5000".parse().unwrap(), repository: "acme/app".parse().unwrap() }
    }

    fn password(username: &str, password: &str) -> Grant {
        Grant::Credentials(Arc::new(Credentials::password(username, password).unwrap()))
    }

    #[test]
    fn as_containerd_asks() {
        let anonymous = Asked::parse(&Method::GET, SCOPES, None, b"").unwrap();
        assert_eq!(anonymous, Asked { place: place(), grant: Grant::Anonymous });
        let header = format!("Basic {}", STANDARD.encode("alice:a:b"));
        let by_get = Asked::parse(&Method::GET, SCOPES, Some(&header), b"").unwrap();
        assert_eq!(by_get.grant, password("alice", "a:b"));
        let form = "client_id=containerd-client&grant_type=password&username=alice&password=a%3Ab&service=reg.corp%3A5000\
                    &scope=repository%3Aacme%2Fapp%3Apull+repository%3Areg.corp%3A5000%2Facme%2Fapp%3Apull";
        assert_eq!(Asked::parse(&Method::POST, "", None, form.as_bytes()), Ok(by_get));
        let form =
            form.replace("grant_type=password&username=alice&password=", "grant_type=refresh_token&refresh_token=");
        let identity = Asked::parse(&Method::POST, "", None, form.as_bytes()).unwrap().grant;
        assert_eq!(identity, Grant::Credentials(Arc::new(Credentials::identity_token("a:b").unwrap())));
        // containerd's way to fall back to GET with an identity token.
        let header = format!("basic {}", STANDARD.encode(":a:b"));
        assert_eq!(Asked::parse(&Method::GET, SCOPES, Some(&header), b"").unwrap().grant, identity);
    }

    #[test]
    fn what_gets_no_token() {
        let get = |query, header| Asked::parse(&Method::GET, query, header, b"").unwrap_err();
        assert_eq!(get("", None), Refused::Scope);
        assert_eq!(get("service=ghcr.io&scope=repository:acme/app:pull", None), Refused::Scope);
        assert_eq!(get("service=ghcr.io&scope=repository:ghcr.io/../x:pull", None), Refused::Scope);
        assert_eq!(get("service=a/b&scope=repository:a/b/c:pull", None), Refused::Scope);
        assert_eq!(get(SCOPES, Some("Basic !!")), Refused::Grant, "never taken for nobody");
        let post = |form: &str| Asked::parse(&Method::POST, SCOPES, None, form.as_bytes()).unwrap_err();
        assert_eq!(post(SCOPES), Refused::Grant);
        assert_eq!(post(&format!("{SCOPES}&grant_type=password&username=alice")), Refused::Grant);
        assert_eq!(post("grant_type=password&username=a&password=b"), Refused::Scope);
        assert_eq!(Asked::parse(&Method::PUT, SCOPES, None, b""), Err(Refused::Method));
    }

    #[test]
    fn a_challenge_leads_back_to_its_place() {
        let header = challenge("https://127.0.0.1:7439", &place(), None).unwrap();
        let expected = r#"Bearer realm="https://127.0.0.1:7439/token",service="reg.corp:5000",scope="repository:reg.corp:5000/acme/app:pull""#;
        assert_eq!(header, expected);
        let stale = challenge("https://127.0.0.1:7439", &place(), Some("invalid_token")).unwrap();
        assert_eq!(stale, format!(r#"{expected},error="invalid_token""#).as_str());
    }

    fn written(pairs: &[(&str, &str)]) -> String {
        form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
    }

    proptest! {
        #[test]
        fn never_panics(query in "\\PC{0,80}", header in "\\PC{0,40}", form: Vec<u8>) {
            let _ = Asked::parse(&Method::GET, &query, Some(&header), &form);
            let _ = Asked::parse(&Method::POST, &query, Some(&header), &form);
        }

        #[test]
        fn what_is_brought_arrives(username in "[^:]{1,20}", secret in "\\PC{1,40}", extra in "[a-z/:]{0,20}") {
            let scope = format!("{extra} repository:reg.corp:5000/acme/app:pull,push");
            let common = [("service", "reg.corp:5000"), ("scope", scope.as_str()), ("grant_type", "password")];
            let form = written(&[&common[..], &[("username", &username), ("password", &secret)]].concat());
            let asked = Asked::parse(&Method::POST, "", None, form.as_bytes()).unwrap();
            prop_assert_eq!(&asked.place, &place());
            prop_assert_eq!(&asked.grant, &password(&username, &secret));
        }

        #[test]
        fn a_token_names_one_repository_of_its_registry(scope in "repository:(ghcr.io)?[a-z./:]{0,20}(:pull)?") {
            let query = written(&[("service", "ghcr.io"), ("scope", &scope)]);
            if let Ok(asked) = Asked::parse(&Method::GET, &query, None, b"") {
                let name = format!("repository:{}/{}:", asked.place.registry, asked.place.repository);
                prop_assert!(scope.starts_with(&name), "{scope} gave {name}");
            }
        }
    }
}
