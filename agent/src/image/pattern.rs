use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use super::{ImageName, Registry, Repository};

/// Which images something holds for: `registry.k8s.io/*`, `docker.io/library/nginx:1.*`, `*@sha256:*`.
///
/// Held against the name in full (`docker.io/library/nginx:1.29`). A `*` stands for any text, slashes included; everything
/// else for itself. A pattern without a tag or digest holds for all of a repository's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImagePattern(Box<str>);

/// Not a pattern of image names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a pattern is the name of an image in full, in which * stands for any text: registry.k8s.io/*, docker.io/library/nginx:1.*"
)]
pub struct InvalidPattern;

impl ImagePattern {
    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it holds for an image.
    #[must_use]
    pub fn matches(&self, name: &ImageName) -> bool {
        is_like(&self.0, &name.to_string()) || is_like(&self.0, &format!("{}/{}", name.registry, name.repository))
    }

    /// Whether it holds for every image of a repository.
    #[must_use]
    pub fn covers(&self, registry: &Registry, repository: &Repository) -> bool {
        let pattern = self.0.strip_suffix(":*").unwrap_or(&self.0);
        is_like(pattern, &format!("{registry}/{repository}"))
    }

    /// Whether it tells the images of one repository apart, by a tag or a digest. A port is no tag.
    #[must_use]
    pub fn is_of_tags(&self) -> bool {
        let pattern = self.0.strip_suffix(":*").unwrap_or(&self.0);
        let name = pattern.rsplit_once('/').map_or(pattern, |(_, name)| name);
        name.contains([':', '@'])
    }

    /// The one image that it names, where it has no `*`: it can be fetched before it was ever seen.
    #[must_use]
    pub fn image(&self) -> Option<ImageName> {
        if self.0.contains('*') { None } else { self.0.parse().ok() }
    }
}

/// Linear in the text for each star: on a mismatch only the last star takes in more.
fn is_like(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            (p, t) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

impl FromStr for ImagePattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || b"*./:@_-[]".contains(&byte);
        if text.is_empty() || text.len() > 512 || !text.bytes().all(is_sound) {
            return Err(InvalidPattern);
        }
        // A name as people write it means the image that it names.
        if !text.contains('*') {
            let name: ImageName = text.parse().map_err(|_| InvalidPattern)?;
            let has_reference = text.contains('@') || text.rsplit('/').next().is_some_and(|last| last.contains(':'));
            let whole = format!("{}/{}", name.registry, name.repository);
            return Ok(Self(if has_reference { name.to_string() } else { whole }.into()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ImagePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| serde::de::Error::custom(format!("{text:?}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns() {
        let holds = |pattern: &str, name: &str| {
            pattern.parse::<ImagePattern>().unwrap().matches(&name.parse::<ImageName>().unwrap())
        };
        assert!(holds("registry.k8s.io/*", "registry.k8s.io/sig/pause:3.10"));
        assert!(!holds("registry.k8s.io/*", "registry.k8s.io.evil/pause:3.10"));
        assert!(holds("docker.io/library/nginx:1.*", "nginx:1.29") && !holds("docker.io/library/nginx:1.*", "nginx:2"));
        assert!(holds("nginx", "nginx:1.29"), "of a repository all tags");
        let is_of_tags = |pattern: &str| pattern.parse::<ImagePattern>().unwrap().is_of_tags();
        assert!(is_of_tags("a.b/c:v1") && is_of_tags("a.b/*:v*") && is_of_tags("*@sha256:*"));
        assert!(!is_of_tags("a.b:5000/*") && !is_of_tags("a.b/c") && !is_of_tags("a.b/c:*") && !is_of_tags("*"));
        assert!(holds("nginx:1.29", "docker.io/library/nginx:1.29") && !holds("nginx:1.29", "nginx:1.2"));
        let covers = |pattern: &str| {
            let name: ImageName = "nginx".parse().unwrap();
            pattern.parse::<ImagePattern>().unwrap().covers(&name.registry, &name.repository)
        };
        assert!(covers("nginx") && covers("docker.io/*") && covers("docker.io/library/nginx:*") && !covers("nginx:1"));
        assert!(holds("*", "a.b/c") && holds("*/app:*-rc*", "a.b/app:1-rc2"));
        for wrong in ["", "a b", "nginx:", "UPPER"] {
            assert_eq!(wrong.parse::<ImagePattern>(), Err(InvalidPattern), "{wrong:?}");
        }
        assert_eq!("nginx:1".parse::<ImagePattern>().unwrap().image(), "nginx:1".parse().ok());
        assert_eq!("ngi*".parse::<ImagePattern>().unwrap().image(), None);
    }

    proptest! {
        #[test]
        fn a_star_stands_for_any_text(before in "[a-z/]{0,6}", between in "[a-z/]{0,6}", after in "[a-z/]{0,6}") {
            let (pattern, text) = (format!("{before}*{after}"), format!("{before}{between}{after}"));
            prop_assert!(is_like(&pattern, &text));
            prop_assert_eq!(is_like(&before, &after), before == after);
        }
    }
}
