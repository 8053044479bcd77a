use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use http::Uri;
use http::uri::{Authority, Scheme};

/// A length of time as people write it: `500ms`, `10s`, `3h`, `30d`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A number of bytes as people write it: `4MiB`, `50GB`, `1048576`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// A share of a disk, from 1 to 100.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u8);

/// Where an upstream is: `https://host[:port][/prefix]`, or `http://` for one that is said to be insecure.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct UpstreamUrl {
    scheme: Scheme,
    authority: Authority,
    /// Empty, or starts with `/` and ends without.
    prefix: String,
}

impl Span {
    /// So many seconds.
    #[must_use]
    pub const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }
}

impl Percent {
    /// `None` outside of 1 to 100.
    #[must_use]
    pub const fn new(percent: u8) -> Option<Self> {
        if percent >= 1 && percent <= 100 { Some(Self(percent)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn value(self) -> u8 {
        self.0
    }
}

impl UpstreamUrl {
    /// The origin that a registry's name stands for when nothing else is configured: HTTPS at its own name, and
    /// `registry-1.docker.io` for Docker Hub. `None` for a name that is no authority of a URL.
    #[must_use]
    pub fn origin(registry: &crate::image::Registry) -> Option<Self> {
        let host = if registry.as_str() == crate::image::Registry::DOCKER_HUB {
            "registry-1.docker.io"
        } else {
            registry.as_str()
        };
        let authority = host.parse().ok()?;
        Some(Self { scheme: Scheme::HTTPS, authority, prefix: String::new() })
    }

    /// Whether it is plain HTTP.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.scheme == Scheme::HTTP
    }

    /// Host and port.
    #[must_use]
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The URL of a path below `/v2/`, path prefix included. A configured path that ends in `/v2` has it already.
    /// `path` starts without a slash and has only characters that are legal in a URL.
    ///
    /// # Errors
    /// When scheme, authority and path make no URL: a path with illegal characters.
    pub fn v2(&self, path: &str) -> Result<Uri, http::Error> {
        let prefix = self.prefix.strip_suffix("/v2").unwrap_or(&self.prefix);
        self.at(format!("{prefix}/v2/{path}"))
    }

    /// The URL of a path below the configured one as it is, for upstreams whose API is not at `/v2`.
    ///
    /// # Errors
    /// As those of [`UpstreamUrl::v2`].
    pub fn below(&self, path: &str) -> Result<Uri, http::Error> {
        self.at(format!("{}/{path}", self.prefix))
    }

    fn at(&self, path_and_query: String) -> Result<Uri, http::Error> {
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(path_and_query)
            .build()
    }
}

impl FromStr for UpstreamUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // What has credentials in it isn't shown.
        let shown = if text.contains('@') { "this" } else { text };
        let wrong = |why: &str| format!("{shown:?} is no upstream URL: {why}; write https://host[:port][/prefix]");
        let uri: Uri = text.parse().map_err(|e| wrong(&format!("{e}")))?;
        let scheme = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS || *scheme == Scheme::HTTP => scheme.clone(),
            Some(_) => return Err(wrong("the scheme is https or http")),
            None => return Err(wrong("there is no https:// in front")),
        };
        let authority = uri.authority().cloned().ok_or_else(|| wrong("there is no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("credentials don't belong in it"));
        }
        if authority.host().is_empty() {
            return Err(wrong("there is no host"));
        }
        if uri.query().is_some() {
            return Err(wrong("it has a query"));
        }
        let prefix = uri.path().trim_end_matches('/').to_owned();
        Ok(Self { scheme, authority, prefix })
    }
}

impl fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.prefix)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "0" {
            return Ok(Self(Duration::ZERO));
        }
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|e| format!("{text:?} is no duration ({e}); write it as 500ms, 10s, 3h or 30d"))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bytesize::ByteSize(self.0).display().iec().fmt(f)
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<bytesize::ByteSize>()
            .map(|size| Self(size.0))
            .map_err(|_| format!("{text:?} is no size; write it as 4MiB, 50GB or 1048576"))
    }
}

/// Read from a string in the file; a bare number is taken where one makes sense (`Bytes`).
macro_rules! from_text {
    ($($name:ident: $expected:literal),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<$name, E> {
                        number.to_string().parse().map_err(E::custom)
                    }
                    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<$name, E> {
                        number.to_string().parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }
    )*};
}
from_text!(
    Span: "a duration in quotes, such as \"10s\"",
    Bytes: "a size, such as \"4MiB\" or a number of bytes",
    Percent: "a number from 1 to 100",
    UpstreamUrl: "a URL in quotes, such as \"https://mirror.corp/hub\""
);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().ok().and_then(Self::new).ok_or_else(|| format!("{text} is no number from 1 to 100"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let url: UpstreamUrl = "https://mirror.corp/hub/".parse().unwrap();
        assert_eq!(url.to_string(), "https://mirror.corp/hub");
        assert_eq!(url.v2("a/manifests/b").unwrap().to_string(), "https://mirror.corp/hub/v2/a/manifests/b");
        let url: UpstreamUrl = "http://127.0.0.1:5000/v2".parse().unwrap();
        assert_eq!(url.v2("").unwrap().to_string(), "http://127.0.0.1:5000/v2/");
        for bad in ["mirror.corp", "ftp://a", "https://", "https://u:p@h", "https://h/?q", "https://h/a b"] {
            assert!(bad.parse::<UpstreamUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn units_as_people_write_them() {
        assert_eq!("30d".parse::<Span>().unwrap().0, Duration::from_secs(30 * 24 * 3600));
        assert_eq!("0".parse::<Span>().unwrap().0, Duration::ZERO);
        assert_eq!("4MiB".parse::<Bytes>().unwrap().0, 4 << 20);
        assert_eq!("50GB".parse::<Bytes>().unwrap().0, 50_000_000_000);
        assert!("10".parse::<Span>().is_err());
        assert!("-1".parse::<Bytes>().is_err());
        assert!("0".parse::<Percent>().is_err());
        assert!("101".parse::<Percent>().is_err());
    }
}
