//! Who may read: the two challenges of registries, and the token server of the second.

use super::plan::Plan;
use super::request::Request;
use super::{Shared, State};

/// What the registry asks for before it gives content.
#[derive(Debug, Clone)]
pub enum Challenge {
    /// A name and a password with each request.
    Basic {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token of its token server.
    Bearer {
        /// The name and the password that get one; `None`: anyone gets one.
        account: Option<(String, String)>,
        /// For how many seconds it is said to hold.
        expires_in: u64,
    },
}

/// What stands between this request and the content, if anything does.
pub(super) fn gate(shared: &Shared, state: &mut State, request: &Request) -> Option<Plan> {
    let challenge = state.challenge.clone()?;
    if request.path() == "/token" {
        return Some(token(state, &challenge, request));
    }
    let given = request.header("authorization").unwrap_or_default();
    let (opens, asks) = match &challenge {
        Challenge::Basic { user, password } => {
            (given == basic(user, password), r#"Basic realm="by the script of a test""#.to_owned())
        }
        Challenge::Bearer { .. } => {
            let repository = request.path().strip_prefix("/v2/").and_then(|path| path.rsplitn(3, '/').nth(2));
            let scope = repository.map_or_else(String::new, |name| format!(r#",scope="repository:{name}:pull""#));
            let realm = format!("{}://{}/token", shared.scheme, shared.address);
            let opens = state.tokens.iter().any(|token| given.strip_prefix("Bearer ") == Some(token));
            (opens, format!(r#"Bearer realm="{realm}",service="fault-registry"{scope}"#))
        }
    };
    if opens {
        return None;
    }
    let mut plan = Plan::error(401, "UNAUTHORIZED");
    plan.set("www-authenticate", &asks);
    Some(plan)
}

fn token(state: &mut State, challenge: &Challenge, request: &Request) -> Plan {
    let Challenge::Bearer { account, expires_in } = challenge else { return Plan::error(404, "NAME_UNKNOWN") };
    // The older way alone: clients fall back to it.
    if request.method != "GET" {
        return Plan::error(405, "UNSUPPORTED");
    }
    let admitted = account
        .as_ref()
        .is_none_or(|(user, password)| request.header("authorization") == Some(basic(user, password).as_str()));
    if !admitted {
        return Plan::error(401, "UNAUTHORIZED");
    }
    let token = format!("token-{}", state.tokens.len());
    state.tokens.push(token.clone());
    Plan::json(200, &serde_json::json!({ "token": token, "expires_in": expires_in }).to_string())
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
}

fn base64(bytes: &[u8]) -> String {
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
