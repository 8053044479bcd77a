//! The request for a token, as a challenge and the token specification have it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use tokio::time::{Instant, timeout_at};

use super::Token;
use crate::image::Repository;
use crate::upstream::answer::judge;
use crate::upstream::body::{Body, Extent};
use crate::upstream::challenge::Challenge;
use crate::upstream::error::{ErrorKind, UpstreamError};
use crate::upstream::exchange::{Call, Exchange, Part};
use crate::upstream::grant::{Credentials, Secret};
use crate::upstream::places::Load;
use crate::upstream::redirect;

const MAX_REPLY: usize = 64 << 10;
const MAX_TOKEN: usize = 16 << 10;
const MAX_SCOPE: usize = 1 << 10;
/// How long a token holds when its server doesn't say, by the token specification; and the longest that is believed.
const DEFAULT_LIFE: f64 = 60.0;
const MAX_LIFE: f64 = 3600.0;
/// A token is given up this long before its end, or after three quarters of its life if that is shorter.
const MARGIN: Duration = Duration::from_secs(10);
/// As token servers know us.
const CLIENT_ID: &str = "larder";

/// What a Bearer challenge says to ask, and whom.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::upstream) struct Ask {
    realm: Uri,
    service: Option<String>,
    scopes: Vec<String>,
}

impl Ask {
    /// What the first usable Bearer challenge of an answer says. `None` where there is none: a token won't help.
    pub(super) fn read(headers: &HeaderMap, repository: &Repository) -> Option<Self> {
        let challenges = Challenge::read(headers);
        challenges.iter().filter(|challenge| challenge.scheme == "bearer").find_map(|challenge| {
            let realm = redirect::plain_url(challenge.parameter("realm")?)?;
            // Ours, as the token specification writes it, and whatever else the registry thinks is needed.
            let mut scopes = vec![format!("repository:{repository}:pull")];
            let asked = challenge.parameter("scope").filter(|scope| scope.len() <= MAX_SCOPE).unwrap_or_default();
            for scope in asked.split(' ').filter(|scope| !scope.is_empty()) {
                if !scopes.iter().any(|known| known == scope) {
                    scopes.push(scope.to_owned());
                }
            }
            Some(Self { realm, service: challenge.parameter("service").map(str::to_owned), scopes })
        })
    }

    /// Asks the token server: with credentials by POST as OAuth2 has it, or by GET where the server knows no POST.
    pub(super) async fn request(
        &self,
        exchange: &Arc<Exchange>,
        credentials: Option<&Credentials>,
    ) -> Result<Token, UpstreamError> {
        let Some(credentials) = credentials else { return self.by_get(exchange, None).await };
        let posted = self.by_post(exchange, credentials).await;
        // 405 by the letter; the others is what registries that know no POST have been seen to say.
        let knows_no_post = |e: &UpstreamError| match e.kind() {
            ErrorKind::Unauthorized | ErrorKind::NotFound => true,
            ErrorKind::Server(status) => {
                matches!(*status, StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED)
            }
            _ => false,
        };
        match (posted, credentials.header()) {
            (Err(e), Some(header)) if knows_no_post(&e) => self.by_get(exchange, Some(header)).await,
            (outcome, _) => outcome,
        }
        .map_err(refused)
    }

    async fn by_post(&self, exchange: &Arc<Exchange>, credentials: &Credentials) -> Result<Token, UpstreamError> {
        let mut call = self.call(exchange, Method::POST, self.realm.clone(), None, Some(self.form(credentials)));
        self.token(exchange, &mut call, true).await
    }

    fn form(&self, credentials: &Credentials) -> Bytes {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(self.service.iter().map(|service| ("service", service)));
        form.append_pair("client_id", CLIENT_ID).append_pair("scope", &self.scopes.join(" "));
        match credentials.secret() {
            Secret::Password { username, password } => {
                form.append_pair("grant_type", "password").append_pair("username", username);
                form.append_pair("password", password);
            }
            Secret::Identity(token) => {
                form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", token);
            }
        }
        form.finish().into()
    }

    async fn by_get(
        &self,
        exchange: &Arc<Exchange>,
        authorization: Option<HeaderValue>,
    ) -> Result<Token, UpstreamError> {
        let no_url =
            || exchange.error(&self.realm, ErrorKind::Protocol("a challenge whose realm is no URL".to_owned()));
        let uri = self.uri().ok_or_else(no_url)?;
        let is_secret = authorization.is_some();
        let mut call = self.call(exchange, Method::GET, uri, authorization, None);
        let token = self.token(exchange, &mut call, is_secret).await;
        if is_secret { token } else { token.map_err(refused) }
    }

    fn call(
        &self,
        exchange: &Exchange,
        method: Method,
        uri: Uri,
        authorization: Option<HeaderValue>,
        form: Option<Bytes>,
    ) -> Call {
        Call {
            method,
            uri,
            accept: HeaderValue::from_static("application/json"),
            part: Part::WHOLE,
            authorization,
            form,
            load: Load::Quick,
            deadline: Instant::now() + exchange.header_timeout,
            waited: Duration::ZERO,
        }
    }

    async fn token(&self, exchange: &Arc<Exchange>, call: &mut Call, is_secret: bool) -> Result<Token, UpstreamError> {
        let wrong = |what: &str| exchange.error(&self.realm, ErrorKind::Protocol(what.to_owned()));
        let asked_at = Instant::now();
        let reply = if is_secret { exchange.ask(call).await? } else { exchange.follow(call).await? };
        let (head, incoming) = reply.response.into_parts();
        judge(head.status, &head.headers, true).map_err(|kind| exchange.error(&reply.uri, kind))?;
        let body = Body::new(incoming, Arc::clone(exchange), reply.uri, 0, Extent::default());
        let body = timeout_at(call.deadline, body.whole(MAX_REPLY));
        let body =
            body.await.map_err(|_| exchange.error(&self.realm, ErrorKind::Timeout(exchange.header_timeout)))??;
        let token = TokenReply::read(&body).ok_or_else(|| wrong("a reply without a usable token"))?;
        tracing::debug!(upstream = %exchange.name, scopes = ?self.scopes, with_credentials = is_secret, "token fetched");
        Ok(Token { header: token.0, until: asked_at + token.1 })
    }

    /// The realm, with service and scopes as its query.
    fn uri(&self) -> Option<Uri> {
        let mut query = self.realm.query().map(str::to_owned).unwrap_or_default();
        let service = self.service.iter().map(|service| ("service", service));
        for (name, value) in service.chain(self.scopes.iter().map(|scope| ("scope", scope))) {
            if !query.is_empty() {
                query.push('&');
            }
            query.push_str(name);
            query.push('=');
            encode(value, &mut query);
        }
        let mut parts = self.realm.clone().into_parts();
        parts.path_and_query = Some(format!("{}?{query}", self.realm.path()).parse().ok()?);
        Uri::from_parts(parts).ok()
    }
}

/// A token server that says no, in whatever way, means that there is no token for the likes of us.
fn refused(error: UpstreamError) -> UpstreamError {
    let is_no = match error.kind() {
        ErrorKind::NotFound | ErrorKind::Denied => true,
        ErrorKind::Server(status) => status.is_client_error() && *status != StatusCode::REQUEST_TIMEOUT,
        _ => false,
    };
    if is_no { error.become_(ErrorKind::Unauthorized) } else { error }
}

/// Percent-encodes for a query.
fn encode(text: &str, query: &mut String) {
    use std::fmt::Write as _;
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            query.push(char::from(byte));
        } else {
            // Writing to a `String` never fails.
            let _ = write!(query, "%{byte:02X}");
        }
    }
}

#[derive(serde::Deserialize)]
struct TokenReply {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<f64>,
}

impl TokenReply {
    /// The header, and how long to use it.
    fn read(body: &[u8]) -> Option<(HeaderValue, Duration)> {
        let reply: Self = serde_json::from_slice(body).ok()?;
        let sound = |token: &String| (1..=MAX_TOKEN).contains(&token.len());
        let token = reply.token.filter(sound).or_else(|| reply.access_token.filter(sound))?;
        let mut header = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
        header.set_sensitive(true);
        let life = reply.expires_in.filter(|seconds| *seconds > 0.0).unwrap_or(DEFAULT_LIFE).min(MAX_LIFE);
        let life = Duration::from_secs_f64(life);
        Some((header, life - MARGIN.min(life / 4)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(challenge: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::header::WWW_AUTHENTICATE, challenge.parse().unwrap())])
    }

    fn url(challenge: &str) -> Option<String> {
        let ask = Ask::read(&headers(challenge), &"a/b".parse().unwrap())?;
        Some(ask.uri().unwrap().to_string())
    }

    #[test]
    fn what_a_challenge_says_to_ask() {
        for (challenge, expected) in [
            (
                r#"Bearer realm="https://a.io/token",service="r.io",scope="repository:a/b:pull""#,
                Some("https://a.io/token?service=r.io&scope=repository%3Aa%2Fb%3Apull"),
            ),
            (
                r#"Bearer realm="https://a.io/token/?x=1",scope="aws""#,
                Some("https://a.io/token/?x=1&scope=repository%3Aa%2Fb%3Apull&scope=aws"),
            ),
            (r#"Bearer realm="/token""#, None),
            (r#"Bearer realm="file:///etc/passwd""#, None),
            (r#"Bearer realm="https://u:p@a.io/""#, None),
            (r#"Bearer service="x""#, None),
            (r#"Basic realm="https://a.io/token""#, None),
        ] {
            assert_eq!(url(challenge).as_deref(), expected, "{challenge}");
        }
    }

    #[test]
    fn token_replies() {
        let read = |text: &str| TokenReply::read(text.as_bytes()).map(|(h, life)| (h, life.as_secs()));
        let header = HeaderValue::from_static("Bearer t");
        assert_eq!(read(r#"{"token":"t"}"#), Some((header.clone(), 50)));
        assert_eq!(read(r#"{"token":"","access_token":"t","expires_in":300}"#), Some((header.clone(), 290)));
        assert_eq!(read(r#"{"token":"t","expires_in":20}"#), Some((header.clone(), 15)));
        assert_eq!(read(r#"{"token":"t","expires_in":1e300}"#), Some((header, 3590)));
        for bad in ["", "{}", r#"{"token":7}"#, r#"{"token":"a\nb"}"#, "[]"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert!(read(&format!(r#"{{"token":"{}"}}"#, "t".repeat(MAX_TOKEN + 1))).is_none());
    }
}
