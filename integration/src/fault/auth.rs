//! Who may read: the two challenges of registries, and the token server of the second.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::plan::Plan;
use super::request::Request;
use super::{Shared, State};

const SERVICE: &str = "fault-registry";

/// What the registry asks for before it gives content, and who may read what.
#[derive(Debug, Clone)]
pub struct Challenge {
    is_basic: bool,
    open: Vec<String>,
    accounts: Vec<Account>,
    lifetime: Duration,
    by_post: bool,
    refuses_strangers: bool,
}

#[derive(Debug, Clone)]
struct Account {
    secret: Secret,
    repositories: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Secret {
    Password(String, String),
    Identity(String),
}

/// What the token server has given out.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) text: String,
    repositories: Vec<String>,
    until: Instant,
}

impl Challenge {
    /// Tokens of its own token server, by POST and by GET, each for 300 s. Nobody may read anything yet. As at most
    /// registries, who may not read a repository gets a token all the same, which doesn't open it.
    pub fn bearer() -> Self {
        Self {
            is_basic: false,
            open: Vec::new(),
            accounts: Vec::new(),
            lifetime: Duration::from_secs(300),
            by_post: true,
            refuses_strangers: false,
        }
    }

    /// A name and a password with each request. Nobody may read anything yet.
    pub fn basic() -> Self {
        Self { is_basic: true, ..Self::bearer() }
    }

    /// Anyone may read this repository; `*`: all of them.
    pub fn open(mut self, repository: &str) -> Self {
        self.open.push(repository.to_owned());
        self
    }

    /// Who has this name and password may read this repository; `*`: all of them.
    pub fn account(self, user: &str, password: &str, repository: &str) -> Self {
        self.admit(Secret::Password(user.to_owned(), password.to_owned()), repository)
    }

    /// Who has this identity token may read this repository; `*`: all of them.
    pub fn identity(self, token: &str, repository: &str) -> Self {
        self.admit(Secret::Identity(token.to_owned()), repository)
    }

    /// Tokens hold for so long, to the second.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// The token server knows the older way alone: GET. Clients fall back to it.
    pub fn by_get_alone(mut self) -> Self {
        self.by_post = false;
        self
    }

    /// The token server refuses those for whom there is nothing in the repository, in the place of giving them a token
    /// that opens nothing.
    pub fn that_refuses_strangers(mut self) -> Self {
        self.refuses_strangers = true;
        self
    }

    fn admit(mut self, secret: Secret, repository: &str) -> Self {
        match self.accounts.iter_mut().find(|account| account.secret == secret) {
            Some(account) => account.repositories.push(repository.to_owned()),
            None => self.accounts.push(Account { secret, repositories: vec![repository.to_owned()] }),
        }
        self
    }

    fn account_of(&self, secret: &Secret) -> Option<&Account> {
        self.accounts.iter().find(|account| account.secret == *secret)
    }

    fn account_by_header(&self, authorization: &str) -> Option<&Account> {
        self.accounts.iter().find(|account| match &account.secret {
            Secret::Password(user, password) => authorization == basic(user, password),
            Secret::Identity(_) => false,
        })
    }
}

/// What stands between this request and the content, if anything does.
pub(super) fn gate(shared: &Shared, state: &mut State, request: &Request) -> Option<Plan> {
    let challenge = state.challenge.clone()?;
    if request.path() == "/token" {
        return Some(if challenge.is_basic {
            Plan::error(404, "NAME_UNKNOWN")
        } else {
            token(state, &challenge, request)
        });
    }
    let repository = request.repository().unwrap_or_default();
    if challenge.is_basic {
        gate_by_name(&challenge, repository, request)
    } else {
        let realm = format!("{}://{}/token", shared.scheme, shared.address);
        gate_by_token(&state.tokens, &realm, repository, request)
    }
}

fn gate_by_name(challenge: &Challenge, repository: &str, request: &Request) -> Option<Plan> {
    if lists(&challenge.open, repository) {
        return None;
    }
    match challenge.account_by_header(request.header("authorization").unwrap_or_default()) {
        Some(account) if repository.is_empty() || lists(&account.repositories, repository) => None,
        Some(_) => Some(Plan::error(403, "DENIED")),
        None => Some(refusal(r#"Basic realm="by the script of a test""#)),
    }
}

fn gate_by_token(tokens: &[Token], realm: &str, repository: &str, request: &Request) -> Option<Plan> {
    let given = request.header("authorization").and_then(|header| header.strip_prefix("Bearer "));
    let valid = tokens.iter().find(|token| given == Some(token.text.as_str()) && token.until > Instant::now());
    if valid.is_some_and(|token| repository.is_empty() || lists(&token.repositories, repository)) {
        return None;
    }
    let scope = if repository.is_empty() { String::new() } else { format!(r#",scope="repository:{repository}:pull""#) };
    let error = match (given, valid) {
        (None, _) => "",
        (Some(_), None) => r#",error="invalid_token""#,
        (Some(_), Some(_)) => r#",error="insufficient_scope""#,
    };
    Some(refusal(&format!(r#"Bearer realm="{realm}",service="{SERVICE}"{scope}{error}"#)))
}

fn refusal(challenge: &str) -> Plan {
    let mut plan = Plan::error(401, "UNAUTHORIZED");
    plan.set("www-authenticate", challenge);
    plan
}

fn token(state: &mut State, challenge: &Challenge, request: &Request) -> Plan {
    let parameters: Vec<(String, String)> = request.parameters().collect();
    let value = |name: &str| parameters.iter().find(|(have, _)| have == name).map(|(_, value)| value.clone());
    let account = match request.method.as_str() {
        "GET" => request.header("authorization").map(|header| challenge.account_by_header(header)),
        "POST" if challenge.by_post => match value("grant_type").as_deref() {
            Some("password") => {
                let (user, password) = (value("username").unwrap_or_default(), value("password").unwrap_or_default());
                Some(challenge.account_of(&Secret::Password(user, password)))
            }
            Some("refresh_token") => {
                Some(challenge.account_of(&Secret::Identity(value("refresh_token").unwrap_or_default())))
            }
            _ => return Plan::error(400, "UNSUPPORTED"),
        },
        _ => return Plan::error(405, "UNSUPPORTED"),
    };
    if value("service").is_some_and(|service| service != SERVICE) {
        return Plan::error(400, "UNSUPPORTED");
    }
    let account = match account {
        Some(None) => return Plan::error(401, "UNAUTHORIZED"),
        Some(Some(account)) => Some(account),
        None => None,
    };
    let asked = parameters.iter().filter(|(name, _)| name == "scope").flat_map(|(_, scope)| scope.split(' '));
    let asked = asked.filter_map(|scope| scope.strip_prefix("repository:")?.rsplit_once(':').map(|(name, _)| name));
    let may_read = |repository: &&str| {
        let of_account = account.is_some_and(|account| lists(&account.repositories, repository));
        of_account || lists(&challenge.open, repository)
    };
    let granted: Vec<String> = asked.clone().filter(may_read).map(str::to_owned).collect();
    if challenge.refuses_strangers && granted.is_empty() && asked.count() > 0 {
        return Plan::error(403, "DENIED");
    }
    let text = format!("token-{}", state.tokens.len());
    let body = json!({ "token": text, "access_token": text, "expires_in": challenge.lifetime.as_secs() }).to_string();
    state.tokens.push(Token { text, repositories: granted, until: Instant::now() + challenge.lifetime });
    Plan::json(200, &body)
}

fn lists(repositories: &[String], repository: &str) -> bool {
    repositories.iter().any(|listed| listed == "*" || listed == repository)
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
}

/// Base64 with padding.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let groups = bytes.chunks(3).flat_map(|group| {
        let bits = group.iter().fold(0, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - group.len()));
        (0..4).map(move |digit| match digit <= group.len() {
            true => char::from(ALPHABET[(bits >> (18 - 6 * digit)) as usize & 63]),
            false => '=',
        })
    });
    groups.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_encoded_as_the_rfc_has_it() {
        assert_eq!(basic("Aladdin", "open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }
}
