//! One `[[registry.upstream]]`, as an operator writes it.

use std::fmt::Write;
use std::path::Path;

/// Where a registry's content is, and how it is reached. The paths are those of PEM files.
#[derive(Debug, Clone)]
pub struct Upstream {
    url: String,
    // TOML values by key, in the order given.
    values: Vec<(&'static str, String)>,
    headers: Vec<(String, String)>,
}

impl Upstream {
    /// One that is reached as registries are: by TLS, believing the system's authorities.
    pub fn new(url: &str) -> Self {
        Self { url: url.to_owned(), values: Vec::new(), headers: Vec::new() }
    }

    /// One by plain HTTP, or with whatever certificate it has.
    pub fn insecure(url: &str) -> Self {
        Self::new(url).set("insecure", "true".to_owned())
    }

    /// Believes the authority in this file too.
    pub fn ca(self, file: &Path) -> Self {
        self.set("ca", format!("{file:?}"))
    }

    /// Shows the certificate in this file, with the key in that one.
    pub fn client(self, certificate: &Path, key: &Path) -> Self {
        self.set("client_cert", format!("{certificate:?}")).set("client_key", format!("{key:?}"))
    }

    /// Sends this header along.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Is reached through this proxy: a URL, or `none`.
    pub fn proxy(self, url: &str) -> Self {
        self.set("proxy", format!("{url:?}"))
    }

    /// Gets no more connections at once.
    pub fn max_connections(self, count: u32) -> Self {
        self.set("max_connections", count.to_string())
    }

    /// Is shown the credentials in this file.
    pub fn credentials(self, file: &Path) -> Self {
        self.set("credentials", format!("{file:?}"))
    }

    fn set(mut self, key: &'static str, value: String) -> Self {
        self.values.push((key, value));
        self
    }

    pub(super) fn write(&self, text: &mut String) {
        let _ = writeln!(text, "[[registry.upstream]]\nurl = {:?}", self.url);
        for (key, value) in &self.values {
            let _ = writeln!(text, "{key} = {value}");
        }
        if !self.headers.is_empty() {
            let headers: Vec<String> =
                self.headers.iter().map(|(name, value)| format!("{name:?} = {value:?}")).collect();
            let _ = writeln!(text, "headers = {{ {} }}", headers.join(", "));
        }
    }
}
