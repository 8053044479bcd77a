use http::HeaderMap;

/// What is left of a registry's quota on us, as Docker Hub says it with its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Pulls in all, in a window of hours.
    pub limit: u64,
    /// Pulls that are left of it.
    pub remaining: u64,
}

impl Quota {
    /// What `ratelimit-limit` and `ratelimit-remaining` say: `100;w=21600`.
    pub(super) fn read(headers: &HeaderMap) -> Option<Self> {
        let number = |name| -> Option<u64> {
            let text = headers.get(name)?.to_str().ok()?;
            text.split(';').next()?.trim().parse().ok()
        };
        Some(Self { limit: number("ratelimit-limit")?, remaining: number("ratelimit-remaining")? })
    }

    /// Whether work that nobody waits for may use it: more than a fifth is left.
    pub(super) const fn is_ample(self) -> bool {
        self.remaining > self.limit / 5
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(limit: &str, remaining: &str) -> Option<Quota> {
        let mut headers = HeaderMap::new();
        headers.insert("ratelimit-limit", limit.parse().unwrap());
        headers.insert("ratelimit-remaining", remaining.parse().unwrap());
        Quota::read(&headers)
    }

    #[test]
    fn as_docker_hub_writes_it() {
        assert_eq!(read("100;w=21600", "76;w=21600"), Some(Quota { limit: 100, remaining: 76 }));
        assert_eq!(read("200", "0"), Some(Quota { limit: 200, remaining: 0 }));
        assert_eq!(read("many", "1"), None);
        assert_eq!(Quota::read(&HeaderMap::new()), None);
        assert!(!read("100", "20").unwrap().is_ample() && read("100", "21").unwrap().is_ample());
    }
}
