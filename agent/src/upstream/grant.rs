use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use zeroize::Zeroizing;

use crate::image::{Access, Registry};

/// The most bytes of a user's name, a password or an identity token: some tokens are long.
pub const MAX_SECRET: usize = 32 << 10;

/// As whom an upstream is asked: what the caller, for whom it is, has shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Grant {
    /// The caller has shown nothing, and nothing is spent for it: an upstream's challenge comes back as
    /// [`ErrorKind::Unauthorized`](super::ErrorKind::Unauthorized).
    None,
    /// Whatever anybody gets: an anonymous token where the upstream wants one.
    #[default]
    Anonymous,
    /// The caller's own credentials, never an anonymous token in their place. What doesn't challenge isn't told them.
    Credentials(Arc<Credentials>),
    /// The agent's own, where no caller stands behind it: to each upstream those that are meant for its host, to others
    /// nothing but [`Anonymous`](Self::Anonymous).
    Own(Arc<OwnCredentials>),
}

/// The agent's own credentials for the upstreams of a registry: by the host that they are meant for, which for a
/// registry's own address is the registry, best first. At least one.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct OwnCredentials(BTreeMap<Registry, Vec<Arc<Credentials>>>);

/// What somebody signs in with, in memory alone: overwritten when dropped, and never shown.
///
/// Equal when both are the same secret, told by a hash under a key of this process: so they can be a map's key.
pub struct Credentials {
    secret: Secret,
    id: [u8; 32],
}

pub(super) enum Secret {
    Password {
        username: String,
        password: Zeroizing<String>,
    },
    /// What an earlier sign-in gave, to be exchanged for tokens.
    Identity(Zeroizing<String>),
}

impl Grant {
    /// How what arrives with its help is recorded: on the safe side, as authorized wherever credentials were at hand.
    #[must_use]
    pub const fn access(&self) -> Access {
        match self {
            Self::None | Self::Anonymous => Access::Anonymous,
            Self::Credentials(_) | Self::Own(_) => Access::Authorized,
        }
    }

    /// What tells its credentials from all others as long as this process runs; never the secret itself.
    #[must_use]
    pub fn id(&self) -> Option<[u8; 32]> {
        match self {
            Self::None | Self::Anonymous => None,
            Self::Credentials(credentials) => Some(credentials.id),
            Self::Own(own) => Some(own.hashed_by(id_of)),
        }
    }

    /// Lets `hash` see what tells its credentials from all others, if it has any, for a keyed hash that outlives them.
    pub fn hashed_by<T>(&self, hash: impl FnOnce([&[u8]; 3]) -> T) -> Option<T> {
        match self {
            Self::None | Self::Anonymous => None,
            Self::Credentials(credentials) => Some(credentials.hashed_by(hash)),
            Self::Own(own) => Some(own.hashed_by(hash)),
        }
    }

    /// The caller's credentials, if it has any: those that are for whomever it is asked of.
    pub(super) const fn credentials(&self) -> Option<&Arc<Credentials>> {
        match self {
            Self::Credentials(credentials) => Some(credentials),
            Self::None | Self::Anonymous | Self::Own(_) => None,
        }
    }
}

impl OwnCredentials {
    /// `None` without any.
    pub(super) fn new(of: impl IntoIterator<Item = (Registry, Vec<Arc<Credentials>>)>) -> Option<Self> {
        let of: BTreeMap<_, _> = of.into_iter().filter(|(_, credentials)| !credentials.is_empty()).collect();
        (!of.is_empty()).then_some(Self(of))
    }

    /// Those that are meant for a host, best first.
    pub(super) fn at(&self, host: &Registry) -> &[Arc<Credentials>] {
        self.0.get(host).map_or(&[], Vec::as_slice)
    }

    /// As for [`Grant::hashed_by`]. Where only one secret can have opened what they opened, it is that secret's hash,
    /// whoever shows it.
    fn hashed_by<T>(&self, hash: impl FnOnce([&[u8]; 3]) -> T) -> T {
        let mut secrets = self.0.values().flatten();
        if let Some(first) = secrets.next()
            && secrets.all(|other| other == first)
        {
            return first.hashed_by(hash);
        }
        let each = self.0.iter().flat_map(|(host, all)| all.iter().map(move |credentials| (host, credentials)));
        let parts = each.flat_map(|(host, credentials)| {
            std::iter::once(host.as_str().as_bytes()).chain(credentials.secret.parts())
        });
        let parts: Vec<&[u8]> = parts.collect();
        // Of its final size at once: what grows leaves copies of secrets behind.
        let length = parts.iter().map(|part| size_of::<u64>() + part.len()).sum();
        let mut all = Zeroizing::new(Vec::with_capacity(length));
        for part in parts {
            all.extend_from_slice(&(part.len() as u64).to_le_bytes());
            all.extend_from_slice(part);
        }
        hash([b"own", b"", &all])
    }
}

impl Credentials {
    /// A user's name and password. `None` for what no header can carry: empty or too long, or a name with a colon.
    #[must_use]
    pub fn password(username: &str, password: &str) -> Option<Self> {
        let sound = is_sound(username) && is_sound(password) && !username.contains(':');
        let secret = || Secret::Password { username: username.to_owned(), password: password.to_owned().into() };
        sound.then(|| Self::new(secret()))
    }

    /// An identity token, as `docker login` keeps for some registries. `None` for an empty or too long one.
    #[must_use]
    pub fn identity_token(token: &str) -> Option<Self> {
        is_sound(token).then(|| Self::new(Secret::Identity(token.to_owned().into())))
    }

    /// What a `Basic` Authorization header carries. `None` for what is malformed.
    #[must_use]
    pub fn basic(encoded: &str) -> Option<Self> {
        if encoded.len() > 3 * MAX_SECRET {
            return None;
        }
        let decoded = Zeroizing::new(STANDARD.decode(encoded.trim()).ok()?);
        let (username, password) = str::from_utf8(&decoded).ok()?.split_once(':')?;
        // Docker's way to hand on an identity token where only a name and a password fit.
        if username.is_empty() || username == "<token>" {
            return Self::identity_token(password);
        }
        Self::password(username, password)
    }

    fn new(secret: Secret) -> Self {
        let id = id_of(secret.parts());
        Self { secret, id }
    }

    /// Lets `hash` see what tells these credentials from all others, for a keyed hash that outlives them.
    pub fn hashed_by<T>(&self, hash: impl FnOnce([&[u8]; 3]) -> T) -> T {
        hash(self.secret.parts())
    }

    /// The secret itself, for another process of this agent: the user's name where it is a password, and the password or
    /// the identity token.
    #[must_use]
    pub fn exposed(&self) -> (Option<&str>, &str) {
        match &self.secret {
            Secret::Password { username, password } => (Some(username), password),
            Secret::Identity(token) => (None, token),
        }
    }

    pub(super) const fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The value of a Basic Authorization header. An identity token is no password.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        let Secret::Password { username, password } = &self.secret else { return None };
        let pair = Zeroizing::new(format!("{username}:{}", password.as_str()));
        let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
        let mut header = HeaderValue::from_str(&text).ok()?;
        header.set_sensitive(true);
        Some(header)
    }
}

impl Secret {
    fn parts(&self) -> [&[u8]; 3] {
        match self {
            Self::Password { username, password } => [b"password", username.as_bytes(), password.as_bytes()],
            Self::Identity(token) => [b"identity", b"", token.as_bytes()],
        }
    }
}

/// A hash under a key of this process.
fn id_of(parts: [&[u8]; 3]) -> [u8; 32] {
    static KEY: LazyLock<hmac::Key> = LazyLock::new(|| hmac::Key::new(hmac::HMAC_SHA256, &rand::random::<[u8; 32]>()));
    let mut context = hmac::Context::with_key(&KEY);
    for part in parts {
        // With its length, so that no two secrets run together to the same bytes.
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    let mut id = [0; 32];
    id.iter_mut().zip(context.sign().as_ref()).for_each(|(to, from)| *to = *from);
    id
}

fn is_sound(text: &str) -> bool {
    (1..=MAX_SECRET).contains(&text.len())
}

impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Credentials {}

impl Hash for Credentials {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_when_the_secret_is() {
        let credentials = |name: &str, password: &str| Credentials::password(name, password).unwrap();
        assert_eq!(credentials("a", "bc"), credentials("a", "bc"));
        assert_ne!(credentials("a", "bc"), credentials("ab", "c"));
        assert_ne!(credentials("a", "bc"), Credentials::identity_token("bc").unwrap());
        assert_eq!(Credentials::identity_token("t"), Credentials::basic(&STANDARD.encode("<token>:t")));
        assert_eq!(Credentials::basic(&STANDARD.encode("u:p:q")), Credentials::password("u", "p:q"));
    }

    #[test]
    fn what_is_meant_for_several_hosts_is_told_from_what_is_meant_for_one() {
        let secret = |name: &str| Arc::new(Credentials::password(name, "x").unwrap());
        let own = |of: &[(&str, &str)]| {
            let of = of.iter().map(|(host, name)| (host.parse().unwrap(), name.split(' ').map(secret).collect()));
            Grant::Own(Arc::new(OwnCredentials::new(of).unwrap()))
        };
        let alice = Grant::Credentials(secret("alice"));
        assert_eq!(own(&[("r.test", "alice")]).id(), alice.id(), "nobody else can have opened anything");
        assert_eq!(own(&[("m.test", "alice"), ("r.test", "alice")]).id(), alice.id());
        let both = own(&[("m.test", "bob"), ("r.test", "alice")]);
        assert_ne!(both.id(), alice.id(), "bob may have");
        assert_ne!(both.id(), own(&[("m.test", "alice"), ("r.test", "bob")]).id());
        assert_eq!(both.id(), own(&[("r.test", "alice"), ("m.test", "bob")]).id());
        let either = own(&[("r.test", "alice bob")]);
        assert!(either.id() != alice.id() && either.id() != both.id(), "either may have");
        assert_eq!(own(&[("r.test", "alice alice")]).id(), alice.id());
        let seen = |grant: &Grant| grant.hashed_by(|parts| parts.map(<[u8]>::to_vec));
        assert_eq!(seen(&own(&[("r.test", "alice")])), seen(&alice));
        assert_ne!(seen(&both), seen(&alice));
        assert!(OwnCredentials::new([]).is_none() && seen(&Grant::Anonymous).is_none());
    }

    #[test]
    fn never_shown() {
        let grant = Grant::Credentials(Arc::new(Credentials::password("alice", "hunter2").unwrap()));
        let shown = format!("{grant:?} {:?}", grant.credentials().unwrap().header());
        assert!(!shown.contains("hunter2") && !shown.contains("alice") && !shown.contains("aHVudGVy"), "{shown}");
    }

    #[test]
    fn what_no_header_can_carry() {
        assert!(Credentials::password("", "x").is_none() && Credentials::password("x", "").is_none());
        assert!(Credentials::password("a:b", "x").is_none());
        assert!(Credentials::password("a", &"x".repeat(MAX_SECRET + 1)).is_none());
        for bad in ["", "!!", &STANDARD.encode("nocolon"), &STANDARD.encode([0xff, b':', b'x'])] {
            assert!(Credentials::basic(bad).is_none(), "{bad}");
        }
        assert!(Credentials::password("a", "b\nc").unwrap().header().is_some(), "base64 hides what is odd");
    }
}
