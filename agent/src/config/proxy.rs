use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Uri};
use percent_encoding::percent_decode_str;

/// A proxy: `http://[user:password@]host[:port]`, or `https://` for one that speaks TLS itself. Without a scheme it is
/// `http://`. Shown without its credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl {
    scheme: Scheme,
    authority: Authority,
    authorization: Option<HeaderValue>,
}

impl ProxyUrl {
    /// Where it is, without credentials.
    #[must_use]
    pub fn uri(&self) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
        // Scheme, authority and path are all there is to ask for.
        Uri::from_parts(parts).unwrap_or_default()
    }

    /// The value of Proxy-Authorization, where the URL has credentials. Marked as sensitive.
    #[must_use]
    pub const fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }
}

impl FromStr for ProxyUrl {
    type Err = String;

    /// The error never shows the text: it may have a password.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("the proxy is no URL of one: {why}; write http://[user:password@]host[:port]");
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Scheme::HTTP, rest),
            Some(("https", rest)) => (Scheme::HTTPS, rest),
            Some(_) => return Err(wrong("the scheme is http or https")),
            None => (Scheme::HTTP, text),
        };
        let (credentials, rest) = match rest.rsplit_once('@') {
            Some((credentials, rest)) => (Some(credentials), rest),
            None => (None, rest),
        };
        let authority: Authority =
            rest.trim_end_matches('/').parse().map_err(|_| wrong("there is no host, or a wrong port"))?;
        if authority.host().is_empty() || (authority.as_str() != authority.host() && authority.port_u16().is_none()) {
            return Err(wrong("there is no host, or a wrong port"));
        }
        let authorization = credentials.map(|credentials| {
            let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
            let mut plain: Vec<u8> = percent_decode_str(user).collect();
            plain.push(b':');
            plain.extend(percent_decode_str(password));
            let mut value = HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode(plain)))
                .map_err(|_| wrong("its credentials make no header"))?;
            value.set_sensitive(true);
            Ok::<_, String>(value)
        });
        Ok(Self { scheme, authority, authorization: authorization.transpose()? })
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_proxies() {
        let read = |text: &str| text.parse::<ProxyUrl>();
        assert_eq!(read("proxy:3128").unwrap().uri().to_string(), "http://proxy:3128/");
        assert_eq!(read("https://proxy/").unwrap().to_string(), "https://proxy");
        assert_eq!(read("http://[::1]:3128").unwrap().to_string(), "http://[::1]:3128");
        let proxy = read("http://a%40b:p%3Aw@proxy:3128").unwrap();
        assert_eq!(proxy.to_string(), "http://proxy:3128");
        // a@b:p:w
        assert_eq!(proxy.authorization().unwrap(), "Basic YUBiOnA6dw==");
        assert!(proxy.authorization().unwrap().is_sensitive());
        for bad in ["", "http://", "socks5://p", "http://p:port", "http://p/path", "http://u:p@", "a b"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
