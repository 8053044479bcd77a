use http::header::LOCATION;
use http::uri::Scheme;
use http::{HeaderMap, StatusCode, Uri};

/// Where a redirect leads; `None` for an answer that is none, an error text for one that leads nowhere.
pub(super) fn target(from: &Uri, status: StatusCode, headers: &HeaderMap) -> Option<Result<Uri, String>> {
    if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    Some(match location {
        Some(location) => join(from, location).ok_or_else(|| "a redirect to what is no URL".to_owned()),
        None => Err("a redirect to nowhere".to_owned()),
    })
}

/// Resolves a Location against the URL that answered with it. Only `http` and `https`, and no credentials in it.
fn join(from: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let scheme = from.scheme_str()?;
    let authority = from.authority()?.as_str();
    let absolute = if location.contains("://") && !location.starts_with(['/', '?']) {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", from.path())
    } else {
        let folder = from.path().rfind('/').map_or("/", |slash| &from.path()[..=slash]);
        format!("{scheme}://{authority}{folder}{location}")
    };
    plain_url(&absolute)
}

/// A URL that may be asked: absolute, `http` or `https`, without credentials.
pub(super) fn plain_url(text: &str) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let scheme = uri.scheme()?;
    let sound = (*scheme == Scheme::HTTP || *scheme == Scheme::HTTPS)
        && uri.authority().is_some_and(|a| !a.host().is_empty() && !a.as_str().contains('@'));
    sound.then_some(uri)
}

/// Whether what is meant for one may be told the other: same scheme, host and port.
pub(super) fn same_origin(one: &Uri, other: &Uri) -> bool {
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    one.scheme() == other.scheme() && host(one) == host(other) && port(one) == port(other)
}

/// The port that a URL leads to.
pub(super) fn port(uri: &Uri) -> u16 {
    let default = if uri.scheme() == Some(&Scheme::HTTP) { 80 } else { 443 };
    uri.port_u16().unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn locations() {
        let from = uri("https://r.io:5000/v2/a/blobs/x?y=1");
        for (location, expected) in [
            ("https://cdn.io/b?s=1#f", Some("https://cdn.io/b?s=1")),
            ("//cdn.io/b", Some("https://cdn.io/b")),
            ("/b?u=http://x/", Some("https://r.io:5000/b?u=http://x/")),
            ("b", Some("https://r.io:5000/v2/a/blobs/b")),
            ("?z", Some("https://r.io:5000/v2/a/blobs/x?z")),
            ("ftp://cdn.io/b", None),
            ("https://u:p@cdn.io/b", None),
            ("https:///b", None),
            ("https://cdn io/b", None),
        ] {
            assert_eq!(join(&from, location).map(|u| u.to_string()).as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn origins() {
        assert!(same_origin(&uri("https://R.io/a"), &uri("https://r.io:443/b")));
        assert!(!same_origin(&uri("https://r.io"), &uri("http://r.io")));
        assert!(!same_origin(&uri("https://r.io:80"), &uri("http://r.io")));
        assert!(!same_origin(&uri("https://r.io"), &uri("https://r.io:8443")));
    }
}
