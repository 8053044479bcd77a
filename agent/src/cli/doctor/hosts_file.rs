use std::net::IpAddr;
use std::path::{Path, PathBuf};

use toml_edit::{Document, Item, TableLike};

/// A registry's hosts.toml, as far as doctor has to understand it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HostsFile {
    /// The folder has none. It wins over `_default` all the same.
    Absent,
    Unreadable(String),
    /// containerd logs it and goes on as if it weren't there.
    Malformed {
        line: usize,
        message: String,
    },
    Parsed {
        /// In the file's order.
        hosts: Vec<Host>,
    },
}

/// One `[host."…"]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) url: String,
    pub(super) line: usize,
    /// `None`: all of them.
    pub(super) capabilities: Option<Vec<String>>,
    /// Absolute, or below the folder of the file.
    pub(super) ca: Vec<PathBuf>,
    pub(super) skip_verify: bool,
    pub(super) dial_timeout: bool,
    /// Whether it is a table with a header of its own: containerd 2.x sees no other.
    pub(super) has_header: bool,
}

impl HostsFile {
    pub(super) fn parse(text: &str, folder: &Path) -> Self {
        let line_of =
            |offset: usize| text.as_bytes()[..offset.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1;
        let document = match Document::parse(text) {
            Ok(document) => document,
            Err(error) => {
                let line = line_of(error.span().map_or(0, |span| span.start));
                return Self::Malformed { line, message: error.message().to_owned() };
            }
        };
        let root_has_header = document.get("host").is_none_or(Item::is_table);
        let hosts = document.get("host").and_then(Item::as_table_like).map(|table| {
            let read = |(url, item): (&str, &Item)| {
                let line = item.span().map_or(1, |span| line_of(span.start));
                item.as_table_like().map(|table| Host {
                    url: url.to_owned(),
                    line,
                    capabilities: table.get("capabilities").map(texts),
                    ca: table.get("ca").map(texts).unwrap_or_default().iter().map(|ca| folder.join(ca)).collect(),
                    skip_verify: flag(table, "skip_verify"),
                    dial_timeout: table.get("dial_timeout").is_some(),
                    has_header: root_has_header && item.as_table().is_some_and(|table| !table.is_dotted()),
                })
            };
            let mut hosts: Vec<Host> = table.iter().filter_map(read).collect();
            hosts.sort_by_key(|host| host.line);
            hosts
        });
        Self::Parsed { hosts: hosts.unwrap_or_default() }
    }

    pub(super) fn hosts(&self) -> &[Host] {
        if let Self::Parsed { hosts } = self { hosts } else { &[] }
    }
}

impl Host {
    /// Host and port.
    pub(super) fn authority(&self) -> &str {
        let rest = self.url.split_once("://").map_or(self.url.as_str(), |(_, rest)| rest);
        rest.split('/').next().unwrap_or_default()
    }

    /// The port, where the URL names one.
    pub(super) fn port(&self) -> Option<u16> {
        self.authority().rsplit_once(':')?.1.parse().ok()
    }

    /// The address, where the URL names no name.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        self.name().trim_start_matches('[').trim_end_matches(']').parse().ok()
    }

    /// Whether it is this machine, by whatever loopback name.
    pub(super) fn is_this_machine(&self) -> bool {
        self.name() == "localhost" || self.ip().is_some_and(|ip| ip.is_loopback())
    }

    fn name(&self) -> &str {
        let authority = self.authority();
        authority.rsplit_once(':').filter(|_| self.port().is_some()).map_or(authority, |(name, _)| name)
    }

    /// containerd takes what doesn't start with `http` for HTTPS.
    pub(super) fn is_plain(&self) -> bool {
        self.url.starts_with("http://")
    }

    pub(super) fn can(&self, capability: &str) -> bool {
        self.capabilities.as_ref().is_none_or(|all| all.iter().any(|one| one == capability))
    }
}

/// One text, or a list of them.
fn texts(item: &Item) -> Vec<String> {
    match item.as_value() {
        Some(toml_edit::Value::String(text)) => vec![text.value().clone()],
        Some(toml_edit::Value::Array(list)) => list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    }
}

fn flag(table: &dyn TableLike, key: &str) -> bool {
    table.get(key).and_then(Item::as_bool).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hosts_in_order_with_their_fields() {
        let text = "server = 'https://r'\n[host.'https://127.0.0.1:7439']\n  capabilities = ['pull', 'resolve']\n  ca = 'ca.pem'\n[host.'http://b/v2']\nskip_verify = true\nca = ['/x', 'y']\n";
        let file = HostsFile::parse(text, Path::new("/certs/_default"));
        let [first, second] = file.hosts() else { panic!("{file:?}") };
        assert_eq!((first.authority(), first.line, first.is_plain()), ("127.0.0.1:7439", 2, false));
        assert!(first.can("pull") && first.can("resolve") && !first.can("push") && first.has_header);
        assert_eq!(first.ca, [Path::new("/certs/_default/ca.pem")]);
        assert_eq!((second.authority(), second.line), ("b", 5));
        assert!(second.is_plain() && second.can("push") && second.skip_verify);
        assert_eq!(second.ca, [Path::new("/x"), Path::new("/certs/_default/y")]);
    }

    #[test]
    fn which_machine_a_host_is() {
        for (url, port, ip, is_this_machine) in [
            ("https://127.0.0.1:7439/v2", Some(7439), Some("127.0.0.1"), true),
            ("http://[::1]:80", Some(80), Some("::1"), true),
            ("[::1]", None, Some("::1"), true),
            ("https://[fd00::1]:5000", Some(5000), Some("fd00::1"), false),
            ("localhost:1", Some(1), None, true),
            ("https://localhost", None, None, true),
            ("http://10.0.0.5", None, Some("10.0.0.5"), false),
            ("https://mirror.corp:99999", None, None, false),
        ] {
            let file = HostsFile::parse(&format!("[host.'{url}']"), Path::new("/"));
            let [host] = file.hosts() else { panic!("{file:?}") };
            let ip = ip.map(|ip| ip.parse().unwrap());
            assert_eq!((host.port(), host.ip(), host.is_this_machine()), (port, ip, is_this_machine), "{url}");
        }
    }

    #[test]
    fn tables_without_a_header() {
        for text in ["host = {'https://a' = {}}", "[host]\n'https://a' = {}", "[host]\n'https://a'.ca = 'x'"] {
            let file = HostsFile::parse(text, Path::new("/"));
            assert!(file.hosts().iter().all(|host| !host.has_header) && file.hosts().len() == 1, "{text}: {file:?}");
        }
        assert_eq!(HostsFile::parse("server = 'a'", Path::new("/")), HostsFile::Parsed { hosts: Vec::new() });
        assert!(matches!(HostsFile::parse("a = 1\n[host", Path::new("/")), HostsFile::Malformed { line: 2, .. }));
    }

    proptest! {
        #[test]
        fn never_panics(text in "(\\PC|\n){0,100}") {
            let _ = HostsFile::parse(&text, Path::new("/"));
        }

        #[test]
        fn never_panics_on_keys(text in "((\\[?host(\\.'a')?\\]?|ca|capabilities|skip_verify)( = (1|'x'|\\[1, 'x'\\]|\\{a = 1\\}))?\n){0,5}") {
            let _ = HostsFile::parse(&text, Path::new("/"));
        }
    }
}
