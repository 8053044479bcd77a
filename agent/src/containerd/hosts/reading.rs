//! A `hosts.toml` as containerd reads it, in the versions from 1.6 to 2.x.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml_edit::{Document, Item, Key, Table};

/// What containerd finds in a file.
#[derive(Debug)]
pub(super) struct Reading {
    /// The hosts, in the order of the file.
    pub(super) hosts: Vec<Host>,
    /// All keys but `host`: `server`, and the fields that hold for it.
    pub(super) root: toml::Table,
    /// Whether each host has a `[host."…"]` header of its own. Only then do all versions see the same order: 1.x sorts
    /// by line and takes an inline table's for 0, 2.x doesn't see inline tables and dotted keys.
    pub(super) ordinary: bool,
}

/// One host.
#[derive(Debug, Clone)]
pub(super) struct Host {
    /// As it stands in the file, scheme or not.
    pub(super) url: String,
    /// Its table.
    pub(super) fields: toml::Value,
}

/// The fields of a host; a value of another type makes containerd drop the file.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Fields {
    /// Empty: all.
    #[serde(default)]
    capabilities: Vec<String>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    #[serde(default)]
    pub(super) skip_verify: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
    #[serde(default)]
    pub(super) override_path: bool,
    /// Read for its type alone: how long to wait is our own affair.
    #[serde(rename = "dial_timeout")]
    _dial_timeout: Option<String>,
}

#[derive(Deserialize)]
struct Root {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<String, Fields>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a text or a list of texts")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a file name, or a list of file names or of pairs of them")]
enum Client {
    One(String),
    Many(Vec<Certificate>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Certificate {
    One(String),
    Pair([String; 2]),
}

impl Fields {
    /// Whether the host is asked for this, by containerd's name for it.
    pub(super) fn can(&self, capability: &str) -> bool {
        self.capabilities.is_empty() || self.capabilities.iter().any(|one| one.eq_ignore_ascii_case(capability))
    }

    /// The files of CAs, as they are named.
    pub(super) fn authorities(&self) -> &[String] {
        self.ca.as_ref().map_or(&[], OneOrMany::as_slice)
    }

    /// The files of client certificates, each with its key's, as they are named. One name: both are in that file.
    pub(super) fn clients(&self) -> Vec<(&str, &str)> {
        fn pair(certificate: &Certificate) -> (&str, &str) {
            match certificate {
                Certificate::One(both) => (both, both),
                Certificate::Pair([certificate, key]) => (certificate, key),
            }
        }
        match &self.client {
            None => vec![],
            Some(Client::One(both)) => vec![(both, both)],
            Some(Client::Many(all)) => all.iter().map(pair).collect(),
        }
    }

    /// Whether the host is asked in any other way than one of which nothing is said.
    pub(super) fn has_settings(&self) -> bool {
        let names_files = self.ca.is_some() || self.client.is_some();
        names_files || self.skip_verify || self.override_path || !self.header.is_empty()
    }

    /// With these certificate files and nothing else.
    pub(super) fn with_certificates(authorities: Vec<String>, clients: Vec<[String; 2]>) -> Self {
        let client = clients.into_iter().map(Certificate::Pair).collect::<Vec<_>>();
        Self {
            ca: (!authorities.is_empty()).then_some(OneOrMany::Many(authorities)),
            client: (!client.is_empty()).then_some(Client::Many(client)),
            ..Self::default()
        }
    }

    /// The headers that go with each request, a name once for each of its values.
    pub(super) fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.header
            .iter()
            .flat_map(|(name, values)| values.as_slice().iter().map(|value| (name.as_str(), value.as_str())))
    }
}

impl OneOrMany {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(all) => all,
        }
    }
}

impl Host {
    /// Its table by its fields.
    ///
    /// # Errors
    /// None for a host of a [`Reading`]: the types were looked at.
    pub(super) fn fields(&self) -> Result<Fields, String> {
        Fields::deserialize(self.fields.clone()).map_err(|e| one_line(&e.to_string()))
    }
}

impl Reading {
    /// Reads a file's text.
    ///
    /// # Errors
    /// What makes containerd drop the file, in one line.
    pub(super) fn of(text: &str) -> Result<Self, String> {
        let document = Document::parse(text).map_err(|e| one_line(&e.to_string()))?;
        let shape: Root = toml::from_str(text).map_err(|e| one_line(&e.to_string()))?;
        let upstream: Fields = toml::from_str(text).map_err(|e| one_line(&e.to_string()))?;
        for (url, fields) in shape.host.iter().map(|(u, f)| (u.as_str(), f)).chain([("server", &upstream)]) {
            for capability in &fields.capabilities {
                if !["pull", "resolve", "push", "referrers"].contains(&capability.to_ascii_lowercase().as_str()) {
                    return Err(format!("{url} has the unknown capability {capability:?}"));
                }
            }
        }
        for url in shape.host.keys().map(String::as_str).chain(shape.server.as_deref()) {
            if !is_url(url) {
                return Err(format!("{url:?} is no URL"));
            }
        }
        let mut root: toml::Table = toml::from_str(text).map_err(|e| one_line(&e.to_string()))?;
        let mut values = match root.remove("host") {
            Some(toml::Value::Table(values)) => values,
            _ => toml::Table::new(),
        };
        let mut places: Vec<(usize, &str)> = Vec::new();
        let mut ordinary = true;
        if let Some(entries) = document.get("host").and_then(Item::as_table_like) {
            for (url, item) in entries.iter() {
                let header = item.as_table().and_then(header);
                ordinary &= header.is_some();
                let key = || entries.key(url).and_then(Key::span).map_or(0, |span| span.start);
                places.push((header.unwrap_or_else(key), url));
            }
        }
        // The parser moves a host to the end when a later header adds to it.
        places.sort_unstable();
        let hosts = places
            .into_iter()
            .filter_map(|(_, url)| Some(Host { url: url.to_owned(), fields: values.remove(url)? }))
            .collect();
        Ok(Self { hosts, root, ordinary })
    }

    /// The fields that hold for the server, and where none is named, for the registry's own address.
    ///
    /// # Errors
    /// As [`Host::fields`].
    pub(super) fn root_fields(&self) -> Result<Fields, String> {
        Fields::deserialize(toml::Value::Table(self.root.clone())).map_err(|e| one_line(&e.to_string()))
    }

    /// Whether the file says nothing at all.
    pub(super) fn is_blank(&self) -> bool {
        self.hosts.is_empty() && self.root.is_empty()
    }

    /// Whether a host has the capability that containerd knows from 2.2 on only.
    pub(super) fn has_referrers(&self) -> bool {
        let tables = self.hosts.iter().filter_map(|h| h.fields.as_table()).chain([&self.root]);
        tables
            .filter_map(|t| t.get("capabilities")?.as_array())
            .flatten()
            .any(|c| c.as_str().is_some_and(|c| c.eq_ignore_ascii_case("referrers")))
    }

    /// The upstream that comes last, unless it is containerd's default for the registry.
    pub(super) fn server(&self) -> Option<&str> {
        self.root.get("server").and_then(toml::Value::as_str).filter(|server| !server.is_empty())
    }
}

/// Where the first header of a table or of one below it begins. `None`: it has only dotted keys.
pub(super) fn header(table: &Table) -> Option<usize> {
    if table.is_dotted() {
        return None;
    }
    let own = if table.is_implicit() { None } else { table.span().map(|span| span.start) };
    let below = table.iter().filter_map(|(_, item)| item.as_table()).filter_map(header);
    own.into_iter().chain(below).min()
}

/// Whether two URLs name the same registry API at the same address; the scheme may differ, the mirror speaks both.
pub(super) fn same_place(a: &str, b: &str) -> bool {
    fn place(url: &str) -> String {
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest).trim_end_matches('/');
        rest.strip_suffix("/v2").unwrap_or(rest).trim_end_matches('/').to_ascii_lowercase()
    }
    place(a) == place(b)
}

/// What Go's URL parser surely refuses; it makes containerd drop the file.
fn is_url(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let host = authority.rsplit_once('@').map_or(authority, |(_credentials, host)| host);
    let port = host.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.contains(']'));
    !url.chars().any(char::is_control)
        && !authority.contains([' ', '"', '<', '>', '^', '`', '{', '|', '}', '\\'])
        && port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()))
}

fn one_line(text: &str) -> String {
    // The parser's message has the line drawn below it; the first and the last of its lines say it all.
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    let first = lines.next().unwrap_or_default().to_owned();
    match lines.next_back() {
        Some(last) if first.starts_with("TOML parse error") => format!("{first}: {last}"),
        _ => first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(text: &str) -> (Vec<String>, bool) {
        let reading = Reading::of(text).unwrap();
        (reading.hosts.into_iter().map(|h| h.url).collect(), reading.ordinary)
    }

    #[test]
    fn hosts_stand_in_the_order_of_the_file() {
        assert_eq!(
            urls("server='s'\n[host.b]\n[host.a]\n[host.b.header]\nx='y'"),
            (vec!["b".into(), "a".into()], true)
        );
        assert_eq!(urls("[host.b.header]\nx='y'\n[host.a]\n[host.b]"), (vec!["b".into(), "a".into()], true));
        assert_eq!(urls("[host]\n[host.b]\nheader.x = 'y'"), (vec!["b".into()], true));
        assert_eq!(urls("host.z.ca='x'\nhost.a.ca='y'\nhost.z.header.x='y'").0, ["z", "a"]);
        assert_eq!(urls("host = {z = {}, a = {}}").0, ["z", "a"]);
        assert_eq!(urls("# nothing\n"), (vec![], true));
    }

    #[test]
    fn what_versions_order_differently_is_known() {
        for text in [
            "[host]\nb = {}",
            "host = {b = {}}",
            "host.b.capabilities = []",
            "[host]\nb.ca = 'x'",
            "[host]\nb = {}\n[host.a]",
        ] {
            assert!(!urls(text).1, "{text}");
        }
    }

    #[test]
    fn what_containerd_drops_is_an_error() {
        for text in [
            "server = 1",
            "[host",
            "[[host]]",
            "host = 'x'",
            "[host]\na = 1",
            "[[host.a]]",
            "[host.a]\ncapabilities = ['fly']",
            "[host.a]\ncapabilities = 'pull'",
            "[host.a]\nca = 1",
            "[host.a]\nclient = [['a']]",
            "[host.a]\nskip_verify = 'yes'",
            "[host.a.header]\nx = 1",
            "[host.'a b']",
            "[host.'http://a:b']",
            "ca = 1",
            "capabilities = ['fly']",
        ] {
            let error = Reading::of(text).unwrap_err();
            assert!(!error.contains('\n') && !error.is_empty(), "{text}: {error}");
        }
        for text in [
            "[host.a]\nclient = [['a','b'],'c']\nca = ['x']\nunknown = 1",
            "[host.'http://[::1]:5']\n[host.'[::1]']\ncapabilities=['Pull']",
            "[host.'https://user:password@a']",
            "server = ''",
        ] {
            Reading::of(text).unwrap();
        }
    }

    #[test]
    fn places() {
        assert!(same_place("http://127.0.0.1:7439/v2/", "https://127.0.0.1:7439"));
        assert!(same_place("127.0.0.1:7439", "https://127.0.0.1:7439"));
        assert!(!same_place("https://127.0.0.1:7439/prefix", "https://127.0.0.1:7439"));
        assert!(!same_place("https://127.0.0.1:743", "https://127.0.0.1:7439"));
    }
}
