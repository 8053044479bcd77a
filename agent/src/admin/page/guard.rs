use std::net::IpAddr;

use http::header::HOST;
use http::uri::Authority;
use http::{HeaderMap, Uri};

/// Whether a request means this machine by a name that only this machine can have. The port doesn't matter: it is
/// another one behind `ssh -L` and `kubectl port-forward`.
pub(super) fn names_loopback(uri: &Uri, headers: &HeaderMap) -> bool {
    let mut named = headers.get_all(HOST).iter();
    let (Some(host), None) = (named.next(), named.next()) else { return false };
    let host = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
    host.is_some_and(|host| is_loopback(&host)) && uri.authority().is_none_or(is_loopback)
}

fn is_loopback(authority: &Authority) -> bool {
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse().map_or_else(|_| host.eq_ignore_ascii_case("localhost"), |ip: IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn is_taken(uri: &str, hosts: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, HeaderValue::from_str(host).unwrap());
        }
        names_loopback(&uri.parse().unwrap(), &headers)
    }

    #[test]
    fn only_names_of_this_machine_are_taken() {
        for host in
            ["localhost", "LocalHost:7440", "127.0.0.1", "127.0.0.1:7440", "127.1.2.3:80", "[::1]:7440", "[::1]"]
        {
            assert!(is_taken("/", &[host]), "{host}");
        }
        for host in [
            "",
            "evil.test",
            "evil.test:7440",
            "localhost.evil.test",
            "127.0.0.1.evil.test",
            "10.0.0.1",
            "0.0.0.0",
            "[::]",
            "user@localhost",
            "localhost evil.test",
            "localhost.",
        ] {
            assert!(!is_taken("/", &[host]), "{host}");
        }
        assert!(!is_taken("/", &[]) && !is_taken("/", &["localhost", "evil.test"]));
        assert!(is_taken("http://localhost/", &["localhost"]) && !is_taken("http://evil.test/", &["localhost"]));
    }
}
