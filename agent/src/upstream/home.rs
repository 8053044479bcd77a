use http::Uri;
use http::uri::Scheme;

use super::redirect;
use crate::config::UpstreamUrl;
use crate::image::Registry;

/// An upstream's own address, and how URLs there are written.
#[derive(Debug, Clone)]
pub(super) struct Home {
    pub(super) url: UpstreamUrl,
    /// Whether the path stands for `/v2` already.
    pub(super) is_whole_path: bool,
    /// What a mirror of several registries is told.
    pub(super) ns: Option<Registry>,
}

impl Home {
    /// The URL of a path below `/v2/`, which may have a query.
    pub(super) fn v2(&self, path: &str) -> Result<Uri, http::Error> {
        let named;
        let path = match &self.ns {
            // The bare address is what is probed.
            Some(ns) if !path.is_empty() => {
                let divider = if path.contains('?') { '&' } else { '?' };
                let ns: String = form_urlencoded::byte_serialize(ns.as_str().as_bytes()).collect();
                named = format!("{path}{divider}ns={ns}");
                &named
            }
            _ => path,
        };
        if self.is_whole_path { self.url.below(path) } else { self.url.v2(path) }
    }

    /// Whether a URL leads here: the same host and port, and not by plain HTTP where this is HTTPS.
    pub(super) fn is_at(&self, uri: &Uri) -> bool {
        let authority = self.url.authority();
        let port = authority.port_u16().unwrap_or(if self.url.is_plain() { 80 } else { 443 });
        uri.host().is_some_and(|host| host.eq_ignore_ascii_case(authority.host())) && redirect::port(uri) == port
    }

    /// Whether what is meant for it may be told to who is at this URL.
    pub(super) fn is_trusted_at(&self, uri: &Uri) -> bool {
        self.is_at(uri) && (self.url.is_plain() || uri.scheme() == Some(&Scheme::HTTPS))
    }
}

/// Whether an upstream is a registry's own address: the one that its name stands for.
pub(super) fn is_origin(url: &UpstreamUrl, registry: &Registry) -> bool {
    let Some(own) = UpstreamUrl::origin(registry) else { return false };
    let host = url.authority().host();
    let is_port = match url.authority().port_u16() {
        // At the usual port of its scheme.
        None => own.authority().port_u16().is_none_or(|port| port == 443),
        Some(port) => port == own.authority().port_u16().unwrap_or(443),
    };
    let is_hub = *registry == Registry::docker_hub() && host.eq_ignore_ascii_case(Registry::DOCKER_HUB);
    is_port && (is_hub || host.eq_ignore_ascii_case(own.authority().host()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_urls_are_written() {
        let home = |url: &str, is_whole_path, ns: Option<&str>| Home {
            url: url.parse().unwrap(),
            is_whole_path,
            ns: ns.map(|ns| ns.parse().unwrap()),
        };
        for (home, path, expected) in [
            (home("https://m.corp/hub", false, None), "a/tags/list", "https://m.corp/hub/v2/a/tags/list"),
            (home("https://m.corp/hub", true, None), "a/tags/list", "https://m.corp/hub/a/tags/list"),
            (home("https://m.corp/v2", false, Some("r.io:5000")), "a", "https://m.corp/v2/a?ns=r.io%3A5000"),
            (home("https://m.corp", false, Some("r.io")), "a?n=1", "https://m.corp/v2/a?n=1&ns=r.io"),
            (home("https://m.corp/x", true, Some("r.io")), "", "https://m.corp/x/"),
        ] {
            assert_eq!(home.v2(path).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn what_a_registrys_own_address_is() {
        for (url, registry, expected) in [
            ("https://registry-1.docker.io", "docker.io", true),
            ("https://docker.io", "docker.io", true),
            ("https://mirror.gcr.io", "docker.io", false),
            ("https://GHCR.io:443", "ghcr.io", true),
            ("https://ghcr.io:8443", "ghcr.io", false),
            ("http://reg.corp:5000", "reg.corp:5000", true),
            ("http://reg.corp", "reg.corp", true),
            ("http://reg.corp:8080", "reg.corp", false),
        ] {
            assert_eq!(is_origin(&url.parse().unwrap(), &registry.parse().unwrap()), expected, "{url} of {registry}");
        }
    }
}
