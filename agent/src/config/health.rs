use serde::Deserialize;

use super::units::Span;
use crate::image::Registry;

/// `[health]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// Each image is checked once in this time, at each of its upstreams. `0`: none is.
    pub interval: Span,
    /// The most checks of one registry in that time, by the whole cluster.
    pub max_per_interval: u32,
    /// The most checks of one registry at a time, by this node.
    pub parallel: u32,
    /// How long one may take.
    pub timeout: Span,
    /// How it asks.
    pub method: Method,
    /// An image that nothing uses any more is still watched for so long.
    pub unused_ttl: Span,
    /// `[[health.registry]]`: other budgets, by registry.
    #[serde(rename = "registry")]
    pub registries: Vec<RegistryHealth>,
}

/// One `[[health.registry]]`: what is left out is as in `[health]`, or as is built in for Docker Hub and public ECR.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryHealth {
    /// The registry.
    pub name: Registry,
    interval: Option<Span>,
    max_per_interval: Option<u32>,
    parallel: Option<u32>,
    timeout: Option<Span>,
    method: Option<Method>,
}

/// How a registry is asked whether it has a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// Costs nothing of a quota at most registries.
    Head,
    /// For registries that answer HEAD wrongly.
    Get,
}

/// What one registry is asked at the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Each image once in this time; zero: never.
    pub interval: std::time::Duration,
    /// So many checks in that time, by the whole cluster.
    pub max_per_interval: u32,
    /// So many at a time, by this node.
    pub parallel: u32,
    /// How long one may take.
    pub timeout: std::time::Duration,
    /// How it asks.
    pub method: Method,
}

/// Registries that count what they are asked, and how many checks they get in an interval where nothing else is said.
const COUNTING: [(&str, u32); 2] = [(Registry::DOCKER_HUB, 6), ("public.ecr.aws", 6)];

impl Health {
    /// The budget of a registry.
    #[must_use]
    pub fn budget(&self, registry: &Registry) -> Budget {
        let counting = COUNTING.iter().find(|(name, _)| *name == registry.as_str()).map(|(_, most)| *most);
        let own = self.registries.iter().find(|own| own.name == *registry);
        let most = counting.map_or(self.max_per_interval, |most| most.min(self.max_per_interval));
        Budget {
            interval: own.and_then(|own| own.interval).unwrap_or(self.interval).0,
            max_per_interval: own.and_then(|own| own.max_per_interval).unwrap_or(most),
            parallel: own.and_then(|own| own.parallel).unwrap_or(self.parallel),
            timeout: own.and_then(|own| own.timeout).unwrap_or(self.timeout).0,
            method: own.and_then(|own| own.method).unwrap_or(self.method),
        }
    }

    /// What the types can't say: the key at fault, and why.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let mut seen = std::collections::HashSet::new();
        for own in &self.registries {
            if !seen.insert(&own.name) {
                let why = format!("{} has two [[health.registry]]; make one of them", own.name);
                return Err(("name".to_owned(), why));
            }
        }
        let numbers = self.registries.iter().flat_map(|own| [own.max_per_interval, own.parallel]).flatten();
        if numbers.chain([self.max_per_interval, self.parallel]).any(|number| number == 0) {
            let why = "max_per_interval and parallel are at least 1; interval = \"0s\" turns the checks off";
            return Err(("max_per_interval".to_owned(), why.to_owned()));
        }
        Ok(())
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            interval: Span::secs(3 * 3600),
            max_per_interval: 25,
            parallel: 1,
            timeout: Span::secs(10),
            method: Method::Head,
            unused_ttl: Span::secs(24 * 3600),
            registries: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_that_count_are_asked_far_less() {
        let health: Health = toml::from_str(
            "max_per_interval = 30\n[[registry]]\nname = \"ghcr.io\"\nparallel = 3\nmethod = \"GET\"\ninterval = \"1h\"",
        )
        .unwrap();
        let of = |name: &str| health.budget(&name.parse().unwrap());
        assert_eq!(of("docker.io").max_per_interval, 6);
        assert_eq!(of("reg.corp").max_per_interval, 30);
        let own = of("ghcr.io");
        assert_eq!((own.parallel, own.method, own.interval.as_secs()), (3, Method::Get, 3600));
        assert!(health.check().is_ok());
        let entry = |line: &str| {
            let text = format!("[[registry]]\nname = \"docker.io\"\n{line}");
            let health: Health = toml::from_str(&text).unwrap();
            health.budget(&"docker.io".parse().unwrap()).max_per_interval
        };
        assert_eq!((entry("interval = \"6h\""), entry("max_per_interval = 20")), (6, 20));
        let none: Health = toml::from_str("parallel = 0").unwrap();
        assert!(none.check().is_err());
    }
}
