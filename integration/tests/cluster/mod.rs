//! Several nodes, each on a machine of its own.

mod checks;
mod cold;
mod content;
mod copies;
mod ills;
mod images;
mod limits;
mod members;
mod private;
mod strangers;
mod tags;
mod wrong;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use larder_integration::{Cluster, ClusterBuilder, FaultRegistry, Fetched, Image, Network, Rate, Request, until};

/// What most scenarios pull.
const NAME: &str = "reg.test/acme/app:v1";
/// How fast a link is, where it matters that it isn't endless: a whole cluster of these fits on two cores.
const LINK: Rate = Rate::mbit(40);

/// A network, with a registry on it whose requests are counted.
struct Stage {
    network: Network,
    registry: FaultRegistry,
}

impl Stage {
    fn new(rate: Option<Rate>) -> Result<Self> {
        let network = Network::new()?;
        let registry = FaultRegistry::start_on(&network.host(rate)?)?;
        Ok(Self { network, registry })
    }

    /// With an image as `acme/app:v1`.
    fn with(image: &Image, rate: Option<Rate>) -> Result<Self> {
        let stage = Self::new(rate)?;
        stage.registry.add(image, "acme/app", "v1");
        Ok(stage)
    }

    /// So many nodes, whose `reg.test` is the registry.
    fn nodes(&self, size: usize, rate: Option<Rate>) -> Result<ClusterBuilder> {
        Ok(Cluster::builder(&self.network, size, rate)?.registry("reg.test", &[&self.registry.url()]))
    }

    /// Waits until so much of a copy has left upstream.
    async fn has_sent(&self, image: &Image, copies: f64) -> Result<()> {
        until("upstream has sent enough", Duration::from_secs(30), async || {
            (self.registry.copies(image) >= copies).then_some(())
        })
        .await
    }

    /// The node that upstream gave bytes of the largest layer to last.
    fn fetching(&self, cluster: &Cluster, image: &Image) -> Option<usize> {
        let requests = self.registry.requests();
        let last = requests.iter().rfind(|request| request.method == "GET" && is_for(request, &image.largest().digest));
        let from = last?.from?;
        cluster.members().iter().position(|member| member.host.address() == from)
    }

    /// Fails when more than so many copies left upstream.
    fn ensure_copies(&self, image: &Image, at_most: f64) -> Result<()> {
        let copies = self.registry.copies(image);
        let shown = self.registry.shown(&image.largest().digest);
        ensure!(copies <= at_most, "{copies:.3} copies left upstream, and {at_most} should have:{shown}");
        Ok(())
    }
}

fn is_for(request: &Request, digest: &str) -> bool {
    request.target.contains(digest)
}

/// One large layer and many small ones; about 10 MiB.
fn mixed(seed: u64) -> Image {
    let large = Image::builder(seed).layer(8 << 20);
    (0..16).fold(large, |builder, n| builder.layer((64 + 8 * n) << 10)).build()
}

/// Fails unless the slowest took at most `factor` times as long as one download, and `more`.
fn ensure_timely(fetched: &[Fetched], rate: Rate, factor: f64, more: Duration) -> Result<()> {
    for fetched in fetched {
        let limit = Duration::from_secs_f64(rate.seconds(fetched.bytes) * factor) + more;
        ensure!(fetched.took <= limit, "a pull took {:?}, and {limit:?} were allowed", fetched.took);
    }
    Ok(())
}

/// Fails unless what each agent keeps is what it is named.
async fn ensure_nothing_wrong_is_kept(cluster: &Cluster) -> Result<()> {
    for member in cluster.members() {
        member.agent.say(&["cache", "verify"]).await?;
    }
    Ok(())
}

/// Fails when what is to be done takes longer.
async fn within<T>(limit: Duration, what: impl Future<Output = Result<T>>) -> Result<T> {
    let begun = Instant::now();
    let done = what.await?;
    ensure!(begun.elapsed() <= limit, "took {:?}, and {limit:?} were allowed", begun.elapsed());
    Ok(done)
}
