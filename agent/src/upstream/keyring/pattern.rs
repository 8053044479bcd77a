use std::cmp::Reverse;
use std::fmt;

use crate::image::{Registry, Repository};

/// An image as credentials are looked up for it: `docker.io/library/nginx`, without tag or digest.
#[derive(Debug, Clone)]
pub(super) struct Image {
    name: String,
    /// Where the registry ends in `name`.
    slash: usize,
}

/// What an entry of credentials is for: a host, whose parts may hold `*`, a port, and the beginning of a path.
///
/// The rules are kubelet's: as many parts as the image's host, each of which matches (`*` is any run of characters
/// within one part); the same port, or none on both sides; and a path that the image's begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    host: String,
    port: Option<String>,
    path: String,
}

/// How closely a pattern describes the images that it matches; the greater, the closer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    path: usize,
    wildcards: Reverse<usize>,
    literal: usize,
}

impl Image {
    pub(super) fn new(registry: &Registry, repository: &Repository) -> Self {
        Self { name: format!("{registry}/{repository}"), slash: registry.as_str().len() }
    }

    /// `registry/repository`
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The registry, with its port.
    pub(super) fn registry(&self) -> &str {
        &self.name[..self.slash]
    }

    /// What an entry for this image's registry as a whole would rank.
    pub(super) fn registry_rank(&self) -> Rank {
        let (host, _) = split_port(self.registry());
        Rank { path: 0, wildcards: Reverse(0), literal: host.len() }
    }

    /// From the slash on.
    fn path(&self) -> &str {
        &self.name[self.slash..]
    }
}

impl Pattern {
    /// Reads an entry of `matchImages`: `*.azurecr.io`, `reg.corp:5000/team`. `None` if it has no host.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.split(['?', '#']).next().unwrap_or(text);
        let (authority, path) = text.find('/').map_or((text, ""), |at| text.split_at(at));
        let (host, port) = split_port(authority);
        if host.is_empty() || host.contains(char::is_whitespace) {
            return None;
        }
        let port = (!port.is_empty()).then(|| port.to_owned());
        Some(Self { host: host.to_ascii_lowercase(), port, path: path.to_owned() })
    }

    /// Reads a key of credentials, as Docker and the plugins write them: it may start with `https://`, and `/v1/` or
    /// `/v2/` may stand before its path. All of Docker Hub's names mean the same registry.
    pub(super) fn of_key(key: &str) -> Option<Self> {
        let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
        let mut pattern = Self::parse(bare)?;
        for version in ["/v1", "/v2"] {
            if let Some(rest) = pattern.path.strip_prefix(version)
                && (rest.is_empty() || rest.starts_with('/'))
            {
                pattern.path = rest.to_owned();
                break;
            }
        }
        if pattern.path == "/" {
            pattern.path.clear();
        }
        if matches!(pattern.host.as_str(), "index.docker.io" | "registry-1.docker.io") && pattern.port.is_none() {
            Registry::DOCKER_HUB.clone_into(&mut pattern.host);
        }
        Some(pattern)
    }

    pub(super) fn matches(&self, image: &Image) -> bool {
        let (host, port) = split_port(image.registry());
        let mut parts = host.split('.');
        self.port.as_deref().unwrap_or_default() == port
            && image.path().starts_with(&self.path)
            && self.host.split('.').all(|glob| parts.next().is_some_and(|part| glob_matches(glob, part)))
            && parts.next().is_none()
    }

    pub(super) fn has_wildcard(&self) -> bool {
        self.host.contains('*')
    }

    pub(super) fn rank(&self) -> Rank {
        let wildcards = self.host.matches('*').count();
        Rank { path: self.path.len(), wildcards: Reverse(wildcards), literal: self.host.len() - wildcards }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        if let Some(port) = &self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(&self.path)
    }
}

/// Host and port of an authority; the port is empty where there is none. The colons of `[::1]` divide nothing.
fn split_port(authority: &str) -> (&str, &str) {
    match authority.rfind(':') {
        Some(at) if !authority[at..].contains(']') => (&authority[..at], &authority[at + 1..]),
        _ => (authority, ""),
    }
}

/// Whether `part` is what `glob` says, in which `*` stands for any run of characters, also for none.
fn glob_matches(glob: &str, part: &str) -> bool {
    let Some((first, rest)) = glob.split_once('*') else { return glob == part };
    let Some(mut part) = part.strip_prefix(first) else { return false };
    let mut pieces = rest.split('*').peekable();
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return part.ends_with(piece);
        }
        // The earliest place leaves the most for the pieces to come.
        let Some(at) = part.find(piece) else { return false };
        part = &part[at + piece.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image(name: &str) -> Image {
        let (registry, repository) = name.split_once('/').unwrap();
        Image::new(&registry.parse().unwrap(), &repository.parse().unwrap())
    }

    #[test]
    fn as_kubelet_matches() {
        for (pattern, name, expected) in [
            ("gcr.io", "gcr.io/a/b", true),
            ("gcr.io", "eu.gcr.io/a/b", false),
            ("*.gcr.io", "eu.gcr.io/a/b", true),
            ("*.gcr.io", "gcr.io/a/b", false),
            ("*.io", "eu.gcr.io/a", false),
            ("*.*.io", "eu.gcr.io/a", true),
            ("k8s.*.io", "k8s.gcr.io/a", true),
            ("k8s.*", "k8s.io/a", true),
            ("app*.k8s.io", "app.k8s.io/a", true),
            ("app*.k8s.io", "app-2.k8s.io/a", true),
            ("app*.k8s.io", "ap.k8s.io/a", false),
            ("*.dkr.ecr.*.amazonaws.com", "1234.dkr.ecr.eu-west-1.amazonaws.com/a", true),
            ("*.dkr.ecr.*.amazonaws.com", "1234.dkr.ecr.cn-north-1.amazonaws.com.cn/a", false),
            ("reg.corp:5000", "reg.corp:5000/a", true),
            ("reg.corp:5000", "reg.corp:5001/a", false),
            ("reg.corp:5000", "reg.corp/a", false),
            ("reg.corp", "reg.corp:5000/a", false),
            ("*:5000", "localhost:5000/a", true),
            ("reg.corp/team", "reg.corp/team/a", true),
            ("reg.corp/team/", "reg.corp/team/a", true),
            ("reg.corp/team/", "reg.corp/team", false),
            ("reg.corp/team", "reg.corp/other", false),
            ("reg.corp/", "reg.corp/any", true),
            ("reg.corp/*", "reg.corp/any", false),
            ("[::1]:5000", "[::1]:5000/a", true),
            ("[::1]", "[::1]:5000/a", false),
            ("GCR.io", "gcr.io/a", true),
            ("docker.io", "docker.io/library/a", true),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(&image(name)), expected, "{pattern} {name}");
        }
        for bad in ["", "/a", ":5000", "a b.io"] {
            assert_eq!(Pattern::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn keys_as_docker_writes_them() {
        for (key, plain) in [
            ("https://index.docker.io/v1/", "docker.io"),
            ("index.docker.io", "docker.io"),
            ("docker.io", "docker.io"),
            ("https://reg.corp/v2/", "reg.corp"),
            ("https://reg.corp/v2", "reg.corp"),
            ("http://reg.corp:5000", "reg.corp:5000"),
            ("https://reg.corp/v1/team", "reg.corp/team"),
            ("reg.corp/v1beta/team", "reg.corp/v1beta/team"),
            ("reg.corp/team", "reg.corp/team"),
            ("reg.corp/", "reg.corp"),
        ] {
            assert_eq!(Pattern::of_key(key).unwrap().to_string(), plain, "{key}");
        }
        assert_eq!(Pattern::of_key("https://"), None);
    }

    #[test]
    fn the_closest_ranks_highest() {
        let order = ["*.*", "*.reg.io", "reg.io", "eu.reg.io", "*.reg.io/a", "eu.reg.io/a", "*.reg.io/a/b"];
        let ranks: Vec<Rank> = order.iter().map(|text| Pattern::parse(text).unwrap().rank()).collect();
        assert!(ranks.is_sorted_by(|a, b| a < b), "{ranks:?}");
    }

    /// What a glob means, said as plainly as it can be, however slow.
    fn plainly(glob: &[u8], part: &[u8]) -> bool {
        match (glob.first(), part.first()) {
            (None, None) => true,
            (Some(b'*'), _) => plainly(&glob[1..], part) || (!part.is_empty() && plainly(glob, &part[1..])),
            (Some(a), Some(b)) => a == b && plainly(&glob[1..], &part[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn globs_mean_what_they_say(glob in "[ab*]{0,7}", part in "[ab]{0,9}") {
            prop_assert_eq!(glob_matches(&glob, &part), plainly(glob.as_bytes(), part.as_bytes()));
        }

        #[test]
        fn a_wildcard_stays_in_its_part(parts in prop::collection::vec("[a-z]{1,4}", 2..5), stars in 1usize..5) {
            let image = image(&format!("{}/a", parts.join(".")));
            let pattern = Pattern::parse(&vec!["*"; stars].join(".")).unwrap();
            prop_assert_eq!(pattern.matches(&image), stars == parts.len());
        }

        #[test]
        fn a_registry_matches_itself_and_no_longer_name(
            host in "[a-z]{1,5}(\\.[a-z]{1,5}){1,3}",
            port in prop::option::of(1u16..),
            path in "[a-z]{1,4}(/[a-z]{1,4}){0,3}",
        ) {
            let registry = port.map_or(host.clone(), |port| format!("{host}:{port}"));
            let itself = image(&format!("{registry}/{path}"));
            let matches = |key: String| Pattern::of_key(&key).unwrap().matches(&itself);
            prop_assert!(matches(registry.clone()));
            prop_assert!(matches(["https://", &registry, "/", &path].concat()));
            prop_assert!(!matches(["x.", &registry].concat()));
            prop_assert!(!matches([&registry, "/", &path, "/x"].concat()));
        }

        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            if let Some(pattern) = Pattern::of_key(&text) {
                pattern.matches(&image("reg.corp:5000/a/b"));
                pattern.rank();
            }
        }
    }
}
