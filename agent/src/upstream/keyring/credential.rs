use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::upstream::grant::Credentials;

/// What opens a registry for the agent. Its secret is wiped from memory when it is dropped, and `Debug` doesn't show
/// it.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user's name and password.
    Password {
        /// The name; some registries want a fixed one, such as `AWS`.
        user: String,
        /// The password, or a token that is sent as one.
        password: Zeroizing<String>,
    },
    /// An OAuth2 refresh token, which the registry's token server takes in the place of a password.
    IdentityToken(Zeroizing<String>),
}

impl Credential {
    /// To ask with. `None` for what no header can carry.
    pub(in crate::upstream) fn credentials(&self) -> Option<Arc<Credentials>> {
        let credentials = match self {
            Self::Password { user, password } => Credentials::password(user, password),
            Self::IdentityToken(token) => Credentials::identity_token(token),
        };
        credentials.map(Arc::new)
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { user, .. } => f.debug_struct("Password").field("user", user).finish_non_exhaustive(),
            Self::IdentityToken(_) => f.write_str("IdentityToken(..)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let password = Credential::Password { user: "me".to_owned(), password: Zeroizing::new("hidden".to_owned()) };
        let token = Credential::IdentityToken(Zeroizing::new("hidden".to_owned()));
        let shown = format!("{password:?} {token:?}");
        assert!(shown.contains("me") && !shown.contains("hidden"), "{shown}");
    }
}
