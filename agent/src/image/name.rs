use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use super::Digest;

/// The longest repository name, in bytes: the limit of the distribution specification for name and registry together.
const MAX_NAME: usize = 255;
/// The longest tag, in bytes, by the distribution specification.
const MAX_TAG: usize = 128;

/// What an image name says before its first slash, and what containerd sends as `ns`: `docker.io`, `reg.corp:5000`.
///
/// A DNS name, an IPv4 address or an IPv6 address in brackets, in lower case, with a port if one was given.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Registry(Arc<str>);

/// The path of an image within its registry: `library/nginx`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository(Arc<str>);

/// A tag: `latest`, `v1.2.3`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

/// What stands behind a repository's name: a tag, or the digest of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// A name that may mean another manifest tomorrow.
    Tag(Tag),
    /// A manifest, for good.
    Digest(Digest),
}

/// What was wrong with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Not a host name or address with an optional port.
    #[error("a registry is a host name or an address, with an optional port")]
    Registry,
    /// Not the path of a repository.
    #[error(
        "a repository is lower-case letters, digits and separators (. _ __ -) in parts divided by /, at most 255 in all"
    )]
    Repository,
    /// Not a tag.
    #[error("a tag is at most 128 letters, digits, '_', '.' and '-', and starts with none of the last two")]
    Tag,
}

impl Registry {
    /// Docker Hub, as image names call it.
    pub const DOCKER_HUB: &'static str = "docker.io";

    /// The name as text, as it stands in `ns`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Docker Hub.
    #[must_use]
    pub fn docker_hub() -> Self {
        Self(Self::DOCKER_HUB.into())
    }

    /// The host without its port, and without the brackets of an IPv6 address.
    #[must_use]
    pub fn host(&self) -> &str {
        let (host, _) = split_port(&self.0);
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Whether this names what listens at `own` on this machine: by its address, another one of loopback, or `localhost`.
    #[must_use]
    pub fn is_at(&self, own: SocketAddr) -> bool {
        let (_, port) = split_port(&self.0);
        let is_here = match self.host().parse::<IpAddr>() {
            Ok(ip) => ip.is_loopback() || ip == own.ip(),
            Err(_) => self.host() == "localhost",
        };
        is_here && port.and_then(|port| port.parse().ok()) == Some(own.port())
    }

    /// Whether an image name that starts so names a registry at all, and no path on Docker Hub: it has a dot, a port,
    /// or is `localhost` (the rule of Docker's image names).
    #[must_use]
    pub fn is_host(first: &str) -> bool {
        first.contains(['.', ':']) || first == "localhost"
    }
}

impl FromStr for Registry {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let sound = text.len() <= MAX_NAME && is_authority(text);
        let registry = if sound { text.to_ascii_lowercase() } else { return Err(InvalidName::Registry) };
        Ok(Self(match registry.as_str() {
            // The names by which Docker Hub's own API is reached mean the same registry.
            "index.docker.io" | "registry-1.docker.io" => Self::DOCKER_HUB.into(),
            other => other.into(),
        }))
    }
}

fn split_port(text: &str) -> (&str, Option<&str>) {
    match text.rfind(':') {
        Some(at) if !text[at..].contains(']') => (&text[..at], Some(&text[at + 1..])),
        _ => (text, None),
    }
}

fn is_authority(text: &str) -> bool {
    let (host, port) = split_port(text);
    let port_is_sound = port.is_none_or(|p| {
        p.len() <= 5 && p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok_and(|n| n != 0)
    });
    let host_is_sound = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            host.len() <= 253
                && host.split('.').all(|label| {
                    (1..=63).contains(&label.len())
                        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                        && !label.starts_with('-')
                        && !label.ends_with('-')
                })
        }
    };
    host_is_sound && port_is_sound
}

impl Repository {
    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The repository that this name means at Docker Hub, where a name of one part is an official image's.
    #[must_use]
    pub fn at_docker_hub(self) -> Self {
        if self.0.contains('/') { self } else { Self(format!("library/{}", self.0).into()) }
    }
}

impl FromStr for Repository {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let sound = text.len() <= MAX_NAME && text.split('/').all(is_path_component);
        if sound { Ok(Self(text.into())) } else { Err(InvalidName::Repository) }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, the grammar of the distribution specification.
fn is_path_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    if !(bytes.first().copied().is_some_and(alphanumeric) && bytes.last().copied().is_some_and(alphanumeric)) {
        return false;
    }
    bytes
        .split(|&b| alphanumeric(b))
        .all(|run| matches!(run, b"" | b"." | b"_" | b"__") || run.iter().all(|&b| b == b'-'))
}

impl Tag {
    /// The tag as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let sound = (1..=MAX_TAG).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
            && !text.starts_with(['.', '-']);
        if sound { Ok(Self(text.into())) } else { Err(InvalidName::Tag) }
    }
}

impl FromStr for Reference {
    type Err = InvalidName;

    /// A digest where there is a colon (no tag can have one), else a tag.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.contains(':') {
            text.parse().map(Self::Digest).map_err(|_| InvalidName::Tag)
        } else {
            text.parse().map(Self::Tag)
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// Text in, text out: the same for each of the three names.
macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
as_text!(Registry, Repository, Tag);

/// How a blob was come by: the one fact of its provenance that decides to whom it may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// The registry gave it to a caller without credentials: anyone could have it.
    Anonymous,
    /// It only ever arrived under somebody's authorization.
    Authorized,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn registries() {
        for good in ["docker.io", "reg.corp:5000", "localhost", "127.0.0.1:80", "[::1]:5000", "[fe80::1]", "a_b.corp"] {
            assert_eq!(good.parse::<Registry>().map(|r| r.to_string()).as_deref(), Ok(good));
        }
        assert_eq!("Index.docker.io".parse::<Registry>().unwrap().as_str(), "docker.io");
        assert_eq!("[::1]:5000".parse::<Registry>().unwrap().host(), "::1");
        assert_eq!("reg.corp:5000".parse::<Registry>().unwrap().host(), "reg.corp");
        let long = "a.".repeat(200);
        for bad in [
            "", "a b", "a/b", "..", "a..b", "-a", "a:", "a:0", "a:65536", "a:+80", "::1", "[::1", "a@b", "a%2f", "é",
            &long,
        ] {
            assert_eq!(bad.parse::<Registry>(), Err(InvalidName::Registry), "{bad}");
        }
    }

    #[test]
    fn repositories() {
        for good in ["nginx", "library/nginx", "a/b/c", "a__b", "a---b", "a.b_c-d/e0"] {
            assert!(good.parse::<Repository>().is_ok(), "{good}");
        }
        let long = "a".repeat(256);
        for bad in [
            "", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a._b", "-a", "a-", "..", "a/../b", "a%2fb", "a b",
            "a\0", &long,
        ] {
            assert_eq!(bad.parse::<Repository>(), Err(InvalidName::Repository), "{bad}");
        }
        assert_eq!("nginx".parse::<Repository>().unwrap().at_docker_hub().as_str(), "library/nginx");
    }

    #[test]
    fn references() {
        assert!(matches!("v1.0".parse(), Ok(Reference::Tag(_))));
        assert!(matches!(Digest::of(b"").to_string().parse(), Ok(Reference::Digest(_))));
        let long = "a".repeat(129);
        for bad in ["", ".a", "-a", "a/b", "a b", "sha256:00", "é", &long] {
            assert_eq!(bad.parse::<Reference>(), Err(InvalidName::Tag), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_is_safe_in_a_path(text in "\\PC{0,40}") {
            if let Ok(name) = text.parse::<Repository>() {
                prop_assert!(name.as_str().split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
            }
            if let Ok(registry) = text.parse::<Registry>() {
                prop_assert!(!registry.as_str().contains(['/', '%', '?', '#', '@', '\\']));
            }
            if let Ok(tag) = text.parse::<Tag>() {
                prop_assert!(!tag.as_str().contains(['/', '%', '?', '#']) && tag.as_str() != "..");
            }
        }

        #[test]
        fn the_grammar_of_repositories(text in "[a-z0-9]{1,3}((\\.|_|__|-{1,3})[a-z0-9]{1,3}){0,3}(/[a-z0-9]{1,3}((\\.|_|__|-{1,3})[a-z0-9]{1,3}){0,3}){0,3}") {
            prop_assert_eq!(text.parse::<Repository>().map(|r| r.to_string()), Ok(text));
        }
    }
}
