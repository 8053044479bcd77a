use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, HOST, PROXY_AUTHORIZATION, RANGE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::proxy::ProxyUrl;
use super::sections::HostsTarget;
use super::units::UpstreamUrl;
use crate::image::Registry;

/// Headers that are ours to write: they say how the connection is used, and which bytes are asked for.
const OURS: [HeaderName; 11] = [
    HOST,
    ACCEPT,
    ACCEPT_ENCODING,
    RANGE,
    CONNECTION,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    TE,
    TRAILER,
    UPGRADE,
    PROXY_AUTHORIZATION,
];

/// `[[registry]]`
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryConfig {
    /// The registry as image names call it.
    pub name: Registry,
    /// Who may pull what is private there while it can't be asked.
    #[serde(default)]
    pub outage: Outage,
    /// Asked in this order. Empty: the registry's own address.
    #[serde(default, rename = "upstream")]
    pub upstreams: Vec<UpstreamConfig>,
}

/// `outage` of a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outage {
    /// Those alone whose credentials opened it before.
    #[default]
    Deny,
    /// All who pull on a node whose own credentials opened it before.
    Node,
}

impl RegistryConfig {
    /// One with these upstreams, and nothing else said about it.
    #[must_use]
    pub const fn new(name: Registry, upstreams: Vec<UpstreamConfig>) -> Self {
        Self { name, outage: Outage::Deny, upstreams }
    }

    /// Whether an upstream is told who we are.
    pub(super) fn has_credentials(&self) -> bool {
        self.upstreams.iter().any(|upstream| {
            upstream.credentials.is_some() || upstream.client_cert.is_some() || !upstream.headers.is_empty()
        })
    }
}

/// `[[registry.upstream]]`
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// Where it is.
    pub url: UpstreamUrl,
    /// Files of PEM certificates to trust besides the system's, here and wherever this upstream sends us. One or
    /// several in TOML. Read again when they change.
    #[serde(default, deserialize_with = "one_or_many")]
    pub ca: Vec<PathBuf>,
    /// A file with the PEM certificate that we show this upstream, and nobody else. Read again when it changes.
    #[serde(default)]
    pub client_cert: Option<PathBuf>,
    /// The file with its key. `None`: the key is in `client_cert` too.
    #[serde(default)]
    pub client_key: Option<PathBuf>,
    /// Allow plain HTTP for an `http://` URL; for an `https://` URL, take any certificate.
    #[serde(default)]
    pub insecure: bool,
    /// Sent with every request to this upstream's own host and port, and to nobody else. Values are marked as
    /// sensitive: they may be secrets.
    #[serde(default, deserialize_with = "headers")]
    pub headers: HeaderMap,
    /// A Docker `config.json` with credentials for it, used where no caller brought any.
    #[serde(default)]
    pub credentials: Option<PathBuf>,
    /// How this upstream, and whatever it sends us to, is reached. `None`: as the environment says.
    #[serde(default)]
    pub proxy: Option<ProxyChoice>,
    /// The most requests at once, bodies included. `None`: no bound.
    #[serde(default)]
    pub max_connections: Option<NonZeroUsize>,
    /// The URL's path is used as it is, without `/v2`.
    #[serde(default)]
    pub override_path: bool,
    /// Send `?ns=<registry>`, as containerd does to mirrors. Never sent to the registry's own address.
    #[serde(default = "yes")]
    pub ns: bool,
    /// Ask it what tags mean. `false`: it is asked by digest alone.
    #[serde(default = "yes")]
    pub resolve: bool,
}

/// Upstreams that stand elsewhere than in the configuration: in containerd's own files.
#[derive(Debug, Clone, PartialEq)]
pub struct Mirrors {
    /// Whose they are: a registry's, or every one's that has no entry of its own.
    pub target: HostsTarget,
    /// Asked in this order.
    pub upstreams: Vec<UpstreamConfig>,
    /// Whether they are all that is asked. Otherwise the registry's own address comes last.
    pub is_all: bool,
}

/// `proxy` of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyChoice {
    /// `"none"`: directly, whatever the environment says.
    Direct,
    /// Through this one, whatever the environment says.
    Through(ProxyUrl),
}

impl UpstreamConfig {
    /// An upstream with nothing else said about it.
    #[must_use]
    pub fn new(url: UpstreamUrl) -> Self {
        Self {
            url,
            ca: Vec::new(),
            client_cert: None,
            client_key: None,
            insecure: false,
            headers: HeaderMap::new(),
            credentials: None,
            proxy: None,
            max_connections: None,
            override_path: false,
            ns: true,
            resolve: true,
        }
    }

    /// Adds a header to those that this upstream gets; what it adds is marked as sensitive. The same name may stand
    /// several times.
    ///
    /// # Errors
    /// When name or value are none that HTTP knows, or it is a header that is ours to write. The text names the
    /// header and never shows the value.
    pub fn add_header(&mut self, name: &str, value: &str) -> Result<(), String> {
        add_header(&mut self.headers, name, value)
    }

    /// What the types can't say: a text that stands in the file where it is wrong, and why.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let at = self.url.to_string();
        if self.url.is_plain() && !self.insecure {
            let plain = format!("url = \"{at}\" is plain HTTP; write https://, or add insecure = true beside it");
            return Err((at, plain));
        }
        if let (Some(key), None) = (&self.client_key, &self.client_cert) {
            let alone = format!("client_key = \"{}\" needs client_cert beside it", key.display());
            return Err((key.display().to_string(), alone));
        }
        if let (Some(cert), true) = (&self.client_cert, self.url.is_plain()) {
            let plain = format!("client_cert = \"{}\" is of no use: {at} is plain HTTP", cert.display());
            return Err((cert.display().to_string(), plain));
        }
        let files = self.ca.iter().map(|path| ("ca", path));
        let files = files
            .chain(self.client_cert.iter().map(|path| ("client_cert", path)))
            .chain(self.client_key.iter().map(|path| ("client_key", path)))
            .chain(self.credentials.iter().map(|path| ("credentials", path)));
        for (key, path) in files {
            if !path.is_absolute() {
                let relative = format!("{key} = \"{}\" is not an absolute path", path.display());
                return Err((path.display().to_string(), relative));
            }
        }
        Ok(())
    }
}

const fn yes() -> bool {
    true
}

fn add_header(headers: &mut HeaderMap, name: &str, value: &str) -> Result<(), String> {
    let parsed: HeaderName = name.parse().map_err(|_| format!("{name:?} is no name of a header"))?;
    if OURS.contains(&parsed) {
        return Err(format!("the header {name} is written by Larder itself; leave it out"));
    }
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| format!("the value of the header {name} has characters that no header may have"))?;
    value.set_sensitive(true);
    headers.append(parsed, value);
    Ok(())
}

/// A string, or a list of them.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    struct Paths;
    impl<'de> Visitor<'de> for Paths {
        type Value = Vec<PathBuf>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a path in quotes, or a list of them")
        }
        fn visit_str<E: Error>(self, path: &str) -> Result<Self::Value, E> {
            Ok(vec![path.into()])
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut paths = Vec::new();
            while let Some(path) = list.next_element()? {
                paths.push(path);
            }
            Ok(paths)
        }
    }
    deserializer.deserialize_any(Paths)
}

/// Names with a string or a list of them. Errors show no value: it may be a secret.
fn headers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HeaderMap, D::Error> {
    const EXPECTED: &str = "a table of headers, such as { X-Team = \"builds\" }";
    struct Headers;
    impl<'de> Visitor<'de> for Headers {
        type Value = HeaderMap;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(EXPECTED)
        }
        fn visit_str<E: Error>(self, _: &str) -> Result<HeaderMap, E> {
            Err(E::custom(format_args!("expected {EXPECTED}")))
        }
        fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<HeaderMap, A::Error> {
            let mut headers = HeaderMap::new();
            while let Some((name, value)) = table.next_entry::<String, toml::Value>()? {
                let values = match value {
                    toml::Value::Array(values) => values,
                    value => vec![value],
                };
                for value in values {
                    let toml::Value::String(text) = value else {
                        return Err(Error::custom(format_args!("the header {name} needs a value in quotes")));
                    };
                    add_header(&mut headers, &name, &text).map_err(Error::custom)?;
                }
            }
            Ok(headers)
        }
    }
    deserializer.deserialize_any(Headers)
}

impl FromStr for ProxyChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::Direct);
        }
        text.parse().map(Self::Through).map_err(|why| format!("{why}; or \"none\""))
    }
}

impl<'de> Deserialize<'de> for ProxyChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<UpstreamConfig, String> {
        let config: UpstreamConfig = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        config.check().map_err(|(_, why)| why)?;
        Ok(config)
    }

    #[test]
    fn one_or_several_authorities() {
        let url = "url = \"https://m.corp\"";
        assert_eq!(read(url).unwrap(), UpstreamConfig::new("https://m.corp".parse().unwrap()));
        assert_eq!(read(&format!("{url}\nca = \"/a\"")).unwrap().ca, [PathBuf::from("/a")]);
        assert_eq!(read(&format!("{url}\nca = [\"/a\", \"/b\"]")).unwrap().ca.len(), 2);
    }

    #[test]
    fn what_is_a_secret_is_never_shown() {
        let upstream = read(
            "url = \"https://m.corp\"\nproxy = \"http://u:hush@p:3128\"\n\
             headers = { Authorization = \"Basic hush\", X-Two = [\"hush\", \"hush\"] }",
        )
        .unwrap();
        assert_eq!(upstream.headers.get_all("x-two").iter().count(), 2);
        assert!(!format!("{upstream:?}").contains("hush"), "{upstream:?}");
        for wrong in [
            "headers = \"hush\"",
            "headers = { A = \"hush\\n\" }",
            "headers = { \"A B\" = \"hush\" }",
            "headers = { Range = \"hush\" }",
            "headers = { A = { b = \"hush\" } }",
            "proxy = \"ftp://u:hush@p\"",
            "proxy = \"http://u:hush@p:x\"",
        ] {
            let error = read(&format!("url = \"https://m.corp\"\n{wrong}")).unwrap_err();
            assert!(!error.contains("hush") && !error.is_empty(), "{wrong}: {error}");
        }
    }

    #[test]
    fn what_does_not_fit_together() {
        for (text, part) in [
            ("url = \"http://m.corp\"", "insecure = true"),
            ("url = \"https://m.corp\"\nclient_key = \"/k\"", "client_cert"),
            ("url = \"http://m.corp\"\ninsecure = true\nclient_cert = \"/c\"", "plain HTTP"),
            ("url = \"https://m.corp\"\nca = \"ca.pem\"", "absolute"),
            ("url = \"https://m.corp\"\nmax_connections = 0", "nonzero"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
