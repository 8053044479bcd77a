use std::net::IpAddr;
use std::sync::Arc;

use http::Uri;
use http::uri::Scheme;

use super::redirect;
use crate::config::ProxyUrl;

/// Through which proxy a URL is reached.
#[derive(Debug, Clone)]
pub(super) enum Proxies {
    /// None.
    Direct,
    /// This one, whatever the environment says.
    Always(Arc<ProxyUrl>),
    /// As the environment says.
    Environment(Arc<Environment>),
}

/// `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, as the programs around us read them that are written in Go.
#[derive(Debug, Default)]
pub(super) struct Environment {
    https: Option<ProxyUrl>,
    http: Option<ProxyUrl>,
    except: Exceptions,
}

impl Proxies {
    pub(super) fn of(&self, uri: &Uri) -> Option<&ProxyUrl> {
        match self {
            Self::Direct => None,
            Self::Always(proxy) => Some(proxy),
            Self::Environment(environment) => environment.of(uri),
        }
    }
}

impl Environment {
    /// Reads the variables, upper case before lower case.
    ///
    /// # Errors
    /// The name of the variable that can't be used, and why. The value isn't shown: it may have a password.
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, (&'static str, String)> {
        let first = |names: [&'static str; 2]| {
            names
                .into_iter()
                .find_map(|name| variable(name).filter(|value| !value.is_empty()).map(|value| (name, value)))
        };
        let proxy = |names| {
            let Some((name, value)) = first(names) else { return Ok(None) };
            value.parse().map(Some).map_err(|why| (name, why))
        };
        Ok(Self {
            https: proxy(["HTTPS_PROXY", "https_proxy"])?,
            http: proxy(["HTTP_PROXY", "http_proxy"])?,
            except: Exceptions::read(&first(["NO_PROXY", "no_proxy"]).map_or(String::new(), |(_, value)| value)),
        })
    }

    fn of(&self, uri: &Uri) -> Option<&ProxyUrl> {
        let is_tls = uri.scheme() == Some(&Scheme::HTTPS);
        let proxy = if is_tls { self.https.as_ref() } else { self.http.as_ref() }?;
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let ip: Option<IpAddr> = host.parse().ok();
        let is_here = host == "localhost" || ip.is_some_and(|ip| ip.to_canonical().is_loopback());
        (!is_here && !self.except.cover(&host, ip, redirect::port(uri))).then_some(proxy)
    }
}

/// `NO_PROXY`.
#[derive(Debug, Default)]
struct Exceptions {
    everything: bool,
    networks: Vec<(IpAddr, u32)>,
    addresses: Vec<(IpAddr, Option<u16>)>,
    names: Vec<Name>,
}

#[derive(Debug)]
struct Name {
    /// In lower case, with a dot in front.
    suffix: String,
    /// Whether the name without the dot is meant too.
    itself: bool,
    port: Option<u16>,
}

impl Exceptions {
    /// Divided by commas: `*`, a network (`10.0.0.0/8`), an address, a name that stands for all below it too, or
    /// `.name` and `*.name` for those below alone; the last three with a port or for all ports. What is none of these
    /// is left out, as Go does.
    fn read(text: &str) -> Self {
        let mut all = Self::default();
        for entry in text.split(',').map(|entry| entry.trim().to_ascii_lowercase()).filter(|entry| !entry.is_empty()) {
            if entry == "*" {
                return Self { everything: true, ..Self::default() };
            }
            if let Some(network) = network(&entry) {
                all.networks.push(network);
                continue;
            }
            let Some((host, port)) = split_port(&entry) else { continue };
            if let Ok(ip) = host.parse::<IpAddr>() {
                all.addresses.push((ip.to_canonical(), port));
                continue;
            }
            let host = if host.starts_with("*.") { &host[1..] } else { host };
            let itself = !host.starts_with('.');
            let suffix = if itself { format!(".{host}") } else { host.to_owned() };
            if suffix.len() > 1 {
                all.names.push(Name { suffix, itself, port });
            }
        }
        all
    }

    fn cover(&self, host: &str, ip: Option<IpAddr>, port: u16) -> bool {
        let is_port = |wanted: Option<u16>| wanted.is_none_or(|wanted| wanted == port);
        if self.everything {
            return true;
        }
        match ip.map(|ip| ip.to_canonical()) {
            Some(ip) => {
                self.networks.iter().any(|(network, bits)| shares_prefix(*network, ip, *bits))
                    || self.addresses.iter().any(|(address, port)| *address == ip && is_port(*port))
            }
            None => self.names.iter().any(|name| {
                let is_meant = host.ends_with(&name.suffix) || name.itself && *host == name.suffix[1..];
                is_meant && is_port(name.port)
            }),
        }
    }
}

fn network(entry: &str) -> Option<(IpAddr, u32)> {
    let (address, bits) = entry.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits = bits.parse().ok().filter(|bits| *bits <= if address.is_ipv4() { 32 } else { 128 })?;
    Some((address, bits))
}

/// Whether the first bits are the same.
fn shares_prefix(one: IpAddr, other: IpAddr, bits: u32) -> bool {
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros() >= bits,
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros() >= bits,
        _ => false,
    }
}

/// Host and port; a bare IPv6 address has colons and no port. `None` without a host, or with a port that is none.
fn split_port(entry: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match entry.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port.parse().ok()?)),
        _ => (entry, None),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Environment::read(|name| pairs.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone())).unwrap()
    }

    fn is_proxied(no_proxy: &str, url: &str) -> bool {
        let environment =
            environment(&[("HTTPS_PROXY", "http://p:1"), ("HTTP_PROXY", "http://p:2"), ("NO_PROXY", no_proxy)]);
        environment.of(&url.parse().unwrap()).is_some()
    }

    #[test]
    fn each_scheme_has_its_own_proxy() {
        let at = |environment: &Environment, url: &str| environment.of(&url.parse().unwrap()).map(ToString::to_string);
        let both = environment(&[("https_proxy", "p:1"), ("HTTP_PROXY", "http://p:2"), ("http_proxy", "http://p:3")]);
        assert_eq!(at(&both, "https://r.io").as_deref(), Some("http://p:1"));
        assert_eq!(at(&both, "http://r.io").as_deref(), Some("http://p:2"), "upper case goes first");
        let one = environment(&[("HTTPS_PROXY", ""), ("https_proxy", "http://p:1")]);
        assert_eq!(at(&one, "https://r.io").as_deref(), Some("http://p:1"));
        assert_eq!(at(&one, "http://r.io"), None);
        let wrong = Environment::read(|name| (name == "https_proxy").then(|| "socks5://u:hush@p".to_owned()));
        let (name, why) = wrong.unwrap_err();
        assert!(name == "https_proxy" && !why.contains("hush"), "{name}: {why}");
    }

    #[test]
    fn what_no_proxy_covers() {
        for (no_proxy, url, expected) in [
            ("", "https://r.io", true),
            ("r.io", "https://r.io", false),
            ("r.io", "https://a.R.io", false),
            ("r.io", "https://tr.io", true),
            (".r.io", "https://r.io", true),
            (".r.io", "https://a.r.io", false),
            ("*.r.io", "https://r.io", true),
            ("*.r.io", "https://a.b.r.io", false),
            (" x.io , R.io ", "https://r.io", false),
            ("r.io:443", "https://r.io", false),
            ("r.io:443", "http://r.io", true),
            ("r.io:5000", "https://r.io:5000", false),
            ("r.io:5000", "https://r.io:5001", true),
            ("*", "https://r.io", false),
            ("x.io,*", "https://10.0.0.1", false),
            ("10.0.0.0/8", "https://10.1.2.3", false),
            ("10.0.0.0/8", "https://11.1.2.3", true),
            ("10.0.0.0/33", "https://10.1.2.3", true),
            ("0.0.0.0/0", "https://10.1.2.3", false),
            ("fd00::/8", "https://[fd12::1]:5000", false),
            ("10.1.2.3", "https://10.1.2.3", false),
            ("10.1.2.3:80", "https://10.1.2.3", true),
            ("[fd12::1]:5000", "https://[fd12::1]:5000", false),
            ("fd12::1", "https://[fd12::1]", false),
            ("2.3", "https://10.1.2.3", true),
            (":443", "https://r.io", true),
            ("", "https://localhost", false),
            ("", "http://127.9.9.9:5000", false),
            ("", "http://[::1]", false),
        ] {
            assert_eq!(is_proxied(no_proxy, url), expected, "{url} with {no_proxy:?}");
        }
    }

    proptest! {
        #[test]
        fn a_network_covers_what_shares_its_first_bits(network: u128, other: u128, bits in 0..=128u32) {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            let v6 = format!("{}/{bits}", Ipv6Addr::from_bits(network));
            let found = Exceptions::read(&v6).cover("", Some(Ipv6Addr::from_bits(other).into()), 1);
            // Addresses that carry one of the other family are compared as such.
            prop_assume!(Ipv6Addr::from_bits(other).to_ipv4_mapped().is_none());
            prop_assert_eq!(found, network & mask == other & mask);
            let (network, other, bits) = (network as u32, other as u32, bits / 4);
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            let v4 = format!("{}/{bits}", Ipv4Addr::from_bits(network));
            let found = Exceptions::read(&v4).cover("", Some(Ipv4Addr::from_bits(other).into()), 1);
            prop_assert_eq!(found, network & mask == other & mask);
        }

        #[test]
        fn anything_can_be_read(text in "[a-c0-9.:/*\\[\\], -]{0,40}") {
            let _ = Exceptions::read(&text).cover("a.b", None, 443);
        }
    }
}
