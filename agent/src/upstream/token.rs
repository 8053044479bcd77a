use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::answer::judge;
use super::body::{Body, Extent};
use super::challenge::Challenge;
use super::error::{ErrorKind, UpstreamError};
use super::exchange::{Call, Exchange, Part};
use super::grant::{Credentials, Grant, Secret};
use super::redirect;
use super::tasks::Tasks;
use crate::image::Repository;

/// Tokens that are kept, over all upstreams: the least recently used goes first.
const MAX_HELD: usize = 1024;
const MAX_REPLY: usize = 64 << 10;
const MAX_TOKEN: usize = 16 << 10;
const MAX_SCOPE: usize = 1 << 10;
/// How long a token holds when its server doesn't say, by the token specification; and the longest that is believed.
const DEFAULT_LIFE: f64 = 60.0;
const MAX_LIFE: f64 = 3600.0;
/// A token is given up this long before its end, or after three quarters of its life if that is shorter.
const MARGIN: Duration = Duration::from_secs(10);
/// Credentials that were not used for so long are not kept in memory.
const CREDENTIALS_FOR: Duration = Duration::from_secs(3600);
/// As token servers know us.
const CLIENT_ID: &str = "larder";

/// Tokens, each fetched once for all who wait, and the way to the next one for each repository and grant.
#[derive(Debug)]
pub(super) struct Tokens {
    held: Mutex<Shelf>,
    tasks: Tasks,
}

#[derive(Debug, Default)]
struct Shelf {
    entries: HashMap<Key, Entry>,
    clock: u64,
}

/// An upstream by its number, a repository there, and as whom. What came with credentials is nobody else's.
type Key = (u64, Repository, Grant);

#[derive(Debug)]
struct Entry {
    way: Arc<Way>,
    flight: Flight,
    used: u64,
    used_at: Instant,
}

/// A token request under way, or its outcome.
type Flight = watch::Receiver<Option<Result<Token, UpstreamError>>>;

/// A token that opens one repository for reading.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    /// The value of an Authorization header.
    pub(super) header: HeaderValue,
    until: Instant,
}

/// How a challenge is answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// With a token of the server that it names.
    Bearer(Ask),
    /// With the credentials themselves.
    Basic,
}

/// What a Bearer challenge says to ask, and whom.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ask {
    realm: Uri,
    service: Option<String>,
    scopes: Vec<String>,
}

/// How things stand with a token.
enum Standing {
    OnItsWay,
    Good(Token),
    Ended,
    Failed,
}

impl Tokens {
    pub(super) fn new(tasks: Tasks) -> Self {
        Self { held: Mutex::default(), tasks }
    }

    /// The token for a repository, where one was needed before; renewed if it has ended. `None` says to ask without.
    pub(super) async fn known(
        &self,
        upstream: u64,
        exchange: &Arc<Exchange>,
        repository: &Repository,
        grant: &Grant,
        deadline: Instant,
    ) -> Option<Token> {
        let flight = {
            let mut shelf = self.lock();
            let entry = shelf.touch(&(upstream, repository.clone(), grant.clone()))?;
            match standing(&entry.flight) {
                Standing::Good(token) => return Some(token),
                // The challenge of a request without a token leads on from here, perhaps to another server.
                Standing::Failed => return None,
                Standing::OnItsWay => {}
                Standing::Ended => entry.flight = self.launch(exchange, &entry.way, grant),
            }
            entry.flight.clone()
        };
        landed(flight, deadline).await?.ok()
    }

    /// The token that a challenge asks for. One that is `rejected` is not given again.
    pub(super) async fn fetch(
        &self,
        upstream: u64,
        exchange: &Arc<Exchange>,
        (repository, grant): (&Repository, &Grant),
        way: Way,
        rejected: Option<&Token>,
        deadline: Instant,
    ) -> Result<Token, UpstreamError> {
        if way == Way::Basic && rejected.is_some() {
            // They would be the same again; and accounts are locked for wrong passwords.
            return Err(UpstreamError::new(Arc::clone(&exchange.name), ErrorKind::Unauthorized));
        }
        let flight = {
            let key = (upstream, repository.clone(), grant.clone());
            let mut shelf = self.lock();
            let known = shelf.touch(&key).filter(|entry| *entry.way == way);
            match known.map(|entry| (standing(&entry.flight), entry.flight.clone())) {
                Some((Standing::Good(token), _)) if Some(&token) != rejected => return Ok(token),
                Some((Standing::OnItsWay, flight)) => flight,
                _ => {
                    let way = Arc::new(way);
                    let flight = self.launch(exchange, &way, grant);
                    shelf.put(key, Entry { way, flight: flight.clone(), used: 0, used_at: Instant::now() });
                    flight
                }
            }
        };
        let late = || {
            let kind = ErrorKind::Timeout(exchange.header_timeout);
            Err(UpstreamError::new(Arc::clone(&exchange.name), kind))
        };
        landed(flight, deadline).await.unwrap_or_else(late)
    }

    /// Asks for a token in a task of its own: who asked first may leave, and the others still get it.
    fn launch(&self, exchange: &Arc<Exchange>, way: &Arc<Way>, grant: &Grant) -> Flight {
        let (sender, flight) = watch::channel(None);
        let (exchange, way, grant) = (Arc::clone(exchange), Arc::clone(way), grant.clone());
        if let Way::Basic = *way {
            sender.send_replace(Some(basic(&exchange, &grant)));
            return flight;
        }
        self.tasks.spawn(async move {
            let Way::Bearer(ask) = &*way else { return };
            let outcome = ask.request(&exchange, grant.credentials().map(Arc::as_ref)).await;
            exchange.record.token(outcome.as_ref().err());
            // Nobody may wait any more.
            let _ = sender.send(Some(outcome));
        });
        flight
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        // A map of handles: whole after every statement.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn touch(&mut self, key: &Key) -> Option<&mut Entry> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.clock;
        entry.used_at = Instant::now();
        Some(entry)
    }

    fn put(&mut self, key: Key, entry: Entry) {
        self.entries.retain(|(_, _, grant), e| grant.credentials().is_none() || e.used_at.elapsed() < CREDENTIALS_FOR);
        if self.entries.len() >= MAX_HELD
            && !self.entries.contains_key(&key)
            && let Some(oldest) = self.entries.iter().min_by_key(|(_, e)| e.used).map(|(key, _)| key.clone())
        {
            self.entries.remove(&oldest);
        }
        self.entries.insert(key, Entry { used: self.clock, ..entry });
    }
}

fn standing(flight: &Flight) -> Standing {
    match &*flight.borrow() {
        Some(Ok(token)) if token.until > Instant::now() => Standing::Good(token.clone()),
        Some(Ok(_)) => Standing::Ended,
        Some(Err(_)) => Standing::Failed,
        // Its task ended without a word: shutdown.
        None if flight.has_changed().is_err() => Standing::Failed,
        None => Standing::OnItsWay,
    }
}

/// The outcome; `None` when it does not come in time, or never will.
async fn landed(mut flight: Flight, deadline: Instant) -> Option<Result<Token, UpstreamError>> {
    let outcome = timeout_at(deadline, flight.wait_for(Option::is_some)).await.ok()?.ok()?;
    outcome.clone()
}

/// The credentials themselves, as good as a token.
fn basic(exchange: &Exchange, grant: &Grant) -> Result<Token, UpstreamError> {
    let header = grant.credentials().and_then(|credentials| credentials.header());
    let none = || UpstreamError::new(Arc::clone(&exchange.name), ErrorKind::Unauthorized);
    Ok(Token { header: header.ok_or_else(none)?, until: Instant::now() + CREDENTIALS_FOR })
}

impl Way {
    /// How the challenges of an answer can be met. `None` where nothing at hand will help.
    pub(super) fn read(headers: &HeaderMap, repository: &Repository, grant: &Grant) -> Option<Self> {
        if let Some(ask) = Ask::read(headers, repository) {
            return Some(Self::Bearer(ask));
        }
        let is_basic = Challenge::read(headers).iter().any(|challenge| challenge.scheme == "basic");
        let has_password = matches!(grant.credentials().map(|c| c.secret()), Some(Secret::Password { .. }));
        (is_basic && has_password).then_some(Self::Basic)
    }
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
    async fn request(
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
        let call = self.call(exchange, Method::POST, self.realm.clone(), None, Some(self.form(credentials)));
        self.token(exchange, &call, true).await
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
        let call = self.call(exchange, Method::GET, uri, authorization, None);
        let token = self.token(exchange, &call, is_secret).await;
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
            deadline: Instant::now() + exchange.header_timeout,
        }
    }

    async fn token(&self, exchange: &Arc<Exchange>, call: &Call, is_secret: bool) -> Result<Token, UpstreamError> {
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
