//! How a scenario runs: on which containerd, over what, and for how long at most.

use std::time::Duration;

use anyhow::{Result, ensure};
use larder_integration::{FaultRegistry, Node, NodeBuilder, Release, free_port};

/// A scenario that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(150);

/// What a scenario runs on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// The containerd.
    pub(crate) release: Release,
    /// Whether containerd reaches the agent over TLS.
    pub(crate) tls: bool,
}

impl Case {
    /// A node of this case, before it starts.
    pub(crate) fn builder(self) -> Result<NodeBuilder> {
        Ok(Node::builder(self.release)?.tls(self.tls))
    }

    /// A node of this case whose `reg.test` is this registry.
    pub(crate) async fn node(self, registry: &FaultRegistry) -> Result<Node> {
        self.builder()?.registry("reg.test", &registry.url())?.start().await
    }

    /// The same, but containerd can't reach the registry past the agent.
    pub(crate) async fn node_of_the_agent_alone(self, registry: &FaultRegistry) -> Result<Node> {
        self.builder_of_the_agent_alone(registry)?.start().await
    }

    /// Such a node, before it starts.
    pub(crate) fn builder_of_the_agent_alone(self, registry: &FaultRegistry) -> Result<NodeBuilder> {
        let nowhere = format!("http://127.0.0.1:{}", free_port()?);
        let mut builder = self.builder()?.hosts("reg.test", &format!("server = {nowhere:?}\n"))?;
        builder.agent.set_text("mirror", "stall_timeout", "1s").set_text("mirror", "header_timeout", "2s");
        builder.agent.registry("reg.test", &[&registry.url()]);
        Ok(builder)
    }
}

/// Runs a scenario to its end. An error fails the test, with the whole chain of causes.
pub(crate) fn run(scenario: impl Future<Output = Result<()>>) {
    run_within(LIMIT, scenario);
}

/// The same for one that is known to take longer.
pub(crate) fn run_within(limit: Duration, scenario: impl Future<Output = Result<()>>) {
    larder_integration::show_logs();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let outcome = runtime.block_on(async { tokio::time::timeout(limit, scenario).await });
    runtime.shutdown_background();
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{error:#}"),
        Err(_) => panic!("not done within {limit:?}"),
    }
}

/// Fails unless every request came from the agent: containerd must not have gone past it.
pub(crate) fn ensure_only_the_agent_asked(registry: &FaultRegistry) -> Result<()> {
    let past = registry.requests().into_iter().find(|request| !asked_by_agent(request));
    ensure!(past.is_none(), "containerd went past the agent: {past:?}");
    Ok(())
}

/// Whether a request came from the agent, by what it says of itself.
pub(crate) fn asked_by_agent(request: &larder_integration::Request) -> bool {
    request.header("user-agent").is_some_and(|agent| agent.starts_with("larder/"))
}

/// Tests of the async functions named, each of a [`Case`], on every containerd; over TLS and plain, or over TLS alone; or
/// by one containerd, where it makes no difference which.
macro_rules! on_every_containerd {
    (over tls by one: $($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            use larder_integration::Release;

            use super::$scenario as scenario;
            use crate::support::{Case, run};

            #[test]
            fn containerd_sid() {
                run(scenario(Case { release: Release::Sid, tls: true }));
            }
        }
    )+};
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            use super::$scenario as scenario;
            $crate::support::each_release! { scenario tls true }
            $crate::support::each_release! { scenario plain false }
        }
    )+};
    (over tls: $($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            use super::$scenario as scenario;
            $crate::support::each_release! { scenario tls true }
        }
    )+};
}

macro_rules! each_release {
    ($scenario:ident $transport:ident $tls:literal) => {
        mod $transport {
            use larder_integration::Release;

            use crate::support::{Case, run};

            #[test]
            fn containerd_1_6() {
                run(super::$scenario(Case { release: Release::Bookworm, tls: $tls }));
            }

            #[test]
            fn containerd_1_7() {
                run(super::$scenario(Case { release: Release::Trixie, tls: $tls }));
            }

            #[test]
            fn containerd_sid() {
                run(super::$scenario(Case { release: Release::Sid, tls: $tls }));
            }

            #[test]
            #[cfg_attr(not(newest_containerd), ignore = "the newest containerd isn't built: Go isn't here")]
            fn containerd_newest() {
                run(super::$scenario(Case { release: Release::Newest, tls: $tls }));
            }
        }
    };
}

pub(crate) use {each_release, on_every_containerd};
