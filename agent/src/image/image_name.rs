use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Digest, InvalidName, Reference, Registry, Repository, Tag};

/// The name of an image, in full: `docker.io/library/nginx:1.29`, `reg.corp:5000/acme/app@sha256:…`.
///
/// Read as Docker, containerd and kubelet read names that people write: without a registry it is Docker Hub's, with one
/// part there an official image's, and without a tag it is `latest`. Of a name with tag and digest, the digest counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageName {
    /// What is asked for it.
    pub registry: Registry,
    /// Its path there.
    pub repository: Repository,
    /// The tag or the digest.
    pub reference: Reference,
}

impl ImageName {
    /// The digest, of a name that has one.
    #[must_use]
    pub const fn digest(&self) -> Option<&Digest> {
        match &self.reference {
            Reference::Digest(digest) => Some(digest),
            Reference::Tag(_) => None,
        }
    }

    /// The tag, of a name that has no digest.
    #[must_use]
    pub const fn tag(&self) -> Option<&Tag> {
        match &self.reference {
            Reference::Tag(tag) => Some(tag),
            Reference::Digest(_) => None,
        }
    }

    /// The image that is meant where a mirror listens at `mirror`: in a name that begins with the mirror itself, the path
    /// says the registry, as it does in the mirror's requests. `localhost:7439/ghcr.io/acme/app:v1`, as kube-image-keeper
    /// has written it into Pods, is `ghcr.io/acme/app:v1`.
    #[must_use]
    pub fn behind(self, mirror: SocketAddr) -> Self {
        if !self.registry.is_at(mirror) {
            return self;
        }
        let separator = if self.digest().is_some() { '@' } else { ':' };
        // What is left without the mirror is a name as people write them.
        format!("{}{separator}{}", self.repository, self.reference).parse().unwrap_or(self)
    }
}

impl FromStr for ImageName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        // An image's id, and not the tag of a repository called sha256.
        if text.parse::<Digest>().is_ok() {
            return Err(InvalidName::Repository);
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse::<Digest>().map_err(|_| InvalidName::Tag)?)),
            None => (text, None),
        };
        let (first, rest) = match name.split_once('/') {
            Some((first, rest)) if Registry::is_host(first) => (Some(first), rest),
            _ => (None, name),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag.parse::<Tag>()?)),
            None => (rest, None),
        };
        let registry = first.map_or_else(|| Ok(Registry::docker_hub()), str::parse)?;
        let repository: Repository = path.parse()?;
        let is_hub = registry.as_str() == Registry::DOCKER_HUB;
        let reference = match (digest, tag) {
            (Some(digest), _) => Reference::Digest(digest),
            (None, Some(tag)) => Reference::Tag(tag),
            (None, None) => Reference::Tag("latest".parse()?),
        };
        let repository = if is_hub { repository.at_docker_hub() } else { repository };
        Ok(Self { registry, repository, reference })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.digest().is_some() { '@' } else { ':' };
        write!(f, "{}/{}{separator}{}", self.registry, self.repository, self.reference)
    }
}

impl PartialOrd for ImageName {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ImageName {
    /// As their texts are.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let of = |name: &Self| (name.registry.clone(), name.repository.clone(), name.reference.to_string());
        of(self).cmp(&of(other))
    }
}

impl Serialize for ImageName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_people_write_them() {
        let digest = Digest::of(b"x");
        for (text, full) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.29", "docker.io/library/nginx:1.29".to_owned()),
            ("acme/app", "docker.io/acme/app:latest".to_owned()),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("localhost/app:v1", "localhost/app:v1".to_owned()),
            ("reg.corp:5000/acme/app", "reg.corp:5000/acme/app:latest".to_owned()),
            ("reg.corp:5000/acme/app:v1", "reg.corp:5000/acme/app:v1".to_owned()),
            (&format!("nginx:1.29@{digest}"), format!("docker.io/library/nginx@{digest}")),
            (&format!("ghcr.io/a/b@{digest}"), format!("ghcr.io/a/b@{digest}")),
        ] {
            let name: ImageName = text.parse().unwrap();
            assert_eq!(name.to_string(), full, "{text}");
            assert_eq!(name.to_string().parse::<ImageName>(), Ok(name));
        }
        let digest = digest.to_string();
        for wrong in ["", ":", "nginx:", "a/../b", "Nginx", "nginx@sha256:0", "reg.corp:x/a", "a b", &digest] {
            assert!(wrong.parse::<ImageName>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn names_that_begin_with_the_mirror() {
        let mirror = SocketAddr::from(([127, 0, 0, 1], 7439));
        let digest = Digest::of(b"x");
        for (text, meant) in [
            ("localhost:7439/ghcr.io/acme/app:v1", "ghcr.io/acme/app:v1".to_owned()),
            ("127.0.0.1:7439/docker.io/library/nginx:1.29", "docker.io/library/nginx:1.29".to_owned()),
            ("[::1]:7439/docker.io/nginx:1.29", "docker.io/library/nginx:1.29".to_owned()),
            ("localhost:7439/nginx", "docker.io/library/nginx:latest".to_owned()),
            (&format!("localhost:7439/ghcr.io/acme/app@{digest}"), format!("ghcr.io/acme/app@{digest}")),
            // Others are what they say.
            ("localhost:5000/ghcr.io/acme/app:v1", "localhost:5000/ghcr.io/acme/app:v1".to_owned()),
            ("localhost/acme/app:v1", "localhost/acme/app:v1".to_owned()),
            ("reg.corp:7439/acme/app:v1", "reg.corp:7439/acme/app:v1".to_owned()),
            ("ghcr.io/acme/app:v1", "ghcr.io/acme/app:v1".to_owned()),
            // A registry without a path: nothing could be asked for it.
            ("localhost:7439/ghcr.io:v1", "docker.io/library/ghcr.io:v1".to_owned()),
        ] {
            assert_eq!(text.parse::<ImageName>().unwrap().behind(mirror).to_string(), meant, "{text}");
        }
    }
}
