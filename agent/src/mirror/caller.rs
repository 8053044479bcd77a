/// Who asks, as far as it changes the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// containerd before 2.0: shows its own upstream's error after our 404.
    ContainerdOne,
    /// containerd from 2.0 on, which says "not found" after our 404 even if its own upstream can't be reached; and
    /// everyone else.
    Other,
}

impl Caller {
    /// By User-Agent: `containerd/1.6.20~ds1`, `containerd/v2.1.4`.
    pub(super) fn from_user_agent(user_agent: &str) -> Self {
        let version = user_agent.split(' ').find_map(|product| product.strip_prefix("containerd/"));
        let major = version.map(|v| v.trim_start_matches('v')).and_then(|v| v.split('.').next());
        if major == Some("1") { Self::ContainerdOne } else { Self::Other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerds() {
        for (agent, caller) in [
            ("containerd/1.6.20~ds1", Caller::ContainerdOne),
            ("containerd/v1.7.27", Caller::ContainerdOne),
            ("containerd/2.1.4", Caller::Other),
            ("containerd/v2.3.4+unknown", Caller::Other),
            ("containerd/10.0", Caller::Other),
            ("docker/1.13 containerd/1.6.20", Caller::ContainerdOne),
            ("curl/7.88", Caller::Other),
            ("", Caller::Other),
        ] {
            assert_eq!(Caller::from_user_agent(agent), caller, "{agent}");
        }
    }
}
