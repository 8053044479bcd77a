use std::fmt;
use std::str::FromStr;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// One of `peers.allowed_ids`: a URI that stands in certificates, whole (`spiffe://corp/ns/larder/sa/agent`), or what comes
/// before and a slash (`spiffe://corp/ns/larder/`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateId(String);

impl CertificateId {
    /// Whether a certificate with this URI is meant.
    #[must_use]
    pub fn matches(&self, uri: &str) -> bool {
        if self.0.ends_with('/') { uri.starts_with(&self.0) } else { uri == self.0 }
    }
}

impl FromStr for CertificateId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_uri = text.split_once("://").is_some_and(|(scheme, rest)| {
            let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
            !scheme.is_empty() && scheme.chars().all(is_name) && !rest.trim_matches('/').is_empty()
        });
        // What looks like a pattern would let in nobody.
        if is_uri && text.bytes().all(|b| b.is_ascii_graphic() && b != b'*') {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "{text:?} is no ID of certificates; write it as spiffe://corp/ns/larder/sa/agent, or spiffe://corp/ns/larder/ \
             for all below"
        ))
    }
}

impl fmt::Display for CertificateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for CertificateId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_or_all_below() {
        let id = |text: &str| text.parse::<CertificateId>().unwrap();
        let (one, below) = (id("spiffe://corp/ns/larder/sa/agent"), id("spiffe://corp/ns/larder/"));
        for (uri, is_one, is_below) in [
            ("spiffe://corp/ns/larder/sa/agent", true, true),
            ("spiffe://corp/ns/larder/sa/agent2", false, true),
            ("spiffe://corp/ns/larder-evil/sa/agent", false, false),
            ("spiffe://corp/ns/larder", false, false),
            ("spiffe://other/ns/larder/sa/agent", false, false),
            ("", false, false),
        ] {
            assert_eq!((one.matches(uri), below.matches(uri)), (is_one, is_below), "{uri}");
        }
        for wrong in ["", "larder", "spiffe://", "spiffe:///", "://corp", "spiffe://corp/ns/*", "spiffe://a b"] {
            assert!(wrong.parse::<CertificateId>().is_err(), "{wrong}");
        }
    }
}
