//! A node pulls through the agent.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use larder_integration::{Containerd, ContainerdConfig, Fault, FaultRegistry, Image, Labels, Registry, When, until};

use crate::support::{Case, ensure_only_the_agent_asked, on_every_containerd};

on_every_containerd!(
    by_cri,
    by_ctr,
    from_a_real_registry,
    two_at_once_make_one_request_for_each_blob,
    a_tag_that_moved_is_followed,
    a_name_that_kube_image_keeper_rewrote,
);
on_every_containerd!(over tls: many_layers, a_registry_without_an_entry_of_its_own, what_is_kept_is_not_asked_again);

/// Who has containerd pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// Kubelet, or who speaks as it does.
    Cri,
    /// containerd's own command, given the folder of hosts.
    Ctr,
}

async fn by_cri(case: Case) -> Result<()> {
    by_tag_by_digest_and_by_index(case, Caller::Cri).await
}

async fn by_ctr(case: Case) -> Result<()> {
    by_tag_by_digest_and_by_index(case, Caller::Ctr).await
}

/// Every byte comes by way of the agent.
async fn by_tag_by_digest_and_by_index(case: Case, caller: Caller) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    // Larger than what is verified before its first byte goes out, and smaller.
    let (large, small) = (Image::one_layer(1, 12), Image::one_layer(2, 1));
    let (index, other) = (Image::index(3, 2), Image::index(9, 6));
    let pulls = [
        ("acme/large", ":v1".to_owned(), &large),
        ("acme/team/small", format!("@{}", small.root().digest), &small),
        ("acme/index", ":v1".to_owned(), &index),
        ("acme/team/index", format!("@{}", other.root().digest), &other),
    ];
    pulls.iter().for_each(|(repository, _, image)| registry.add(image, repository, "v1"));
    let node = case.node(&registry).await?;

    let mut bytes = 0;
    for (repository, reference, image) in pulls {
        let name = format!("reg.test/{repository}{reference}");
        match caller {
            Caller::Cri => ensure!(node.containerd.pull(&name).await? == image.blobs()[0].digest, "{name}"),
            Caller::Ctr => drop(node.containerd.ctr_pull(&name, node.hosts_dir()).await?),
        }
        let content = node.containerd.content().await?;
        // Config and layer of this machine's platform come first.
        let (own, others) = image.blobs().split_at(2);
        for blob in own.iter().chain([image.root()]) {
            ensure!(content.contains(&blob.digest), "{name}: containerd hasn't {}", blob.digest);
            ensure!(registry.count("GET", &blob.digest) == 1, "{name}: asked once for {}", blob.digest);
            bytes += blob.bytes.len();
        }
        // containerd 2.x asks for what describes the others all the same, when `ctr` has it pull.
        if let Some(layer) = others.last() {
            ensure!(registry.count("GET", &layer.digest) == 0, "{name}: another platform's layer isn't fetched");
        }
    }
    ensure_only_the_agent_asked(&registry)?;
    let metrics = node.agent()?.metrics().await?;
    ensure!(metrics.sum("larder_served_bytes_total", &[]) >= bytes as f64);
    Ok(())
}

/// Debian's docker-registry in the place of ours.
async fn from_a_real_registry(case: Case) -> Result<()> {
    let registry = Registry::start().await?;
    let (image, index) = (Image::many_layers(4, 3, 500), Image::index(5, 5));
    registry.push(&image, "acme/app", "v1").await?;
    registry.push(&index, "acme/index", "v1").await?;
    let node = case.builder()?.registry("reg.test", &registry.url())?.start().await?;
    let before = registry.count("GET", &image.largest().digest);
    node.containerd.pull("reg.test/acme/app:v1").await?;
    node.containerd.pull("reg.test/acme/index:v1").await?;
    ensure!(registry.count("GET", &image.largest().digest) == before + 1);

    node.containerd.wipe().await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    node.containerd.pull("reg.test/acme/index:v1").await?;
    ensure!(registry.count("GET", &image.largest().digest) == before + 1, "the agent has kept it");
    Ok(())
}

/// Two containerds and a client of the tests' own, while the layer is still arriving.
async fn two_at_once_make_one_request_for_each_blob(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::one_layer(6, 12);
    registry.add(&image, "acme/app", "v1");
    registry.fault(When::get(image.largest()), Fault::Trickle(8 << 20));
    let builder = case.builder()?.registry("reg.test", &registry.url())?;
    let beside = builder.folder().join("beside");
    let node = builder.start().await?;
    let config = ContainerdConfig::with_hosts(node.hosts_dir());
    let second = Containerd::start(case.release, &beside, &config).await?;

    let digest = &image.largest().digest;
    let url = format!("{}/v2/acme/app/blobs/{digest}?ns=reg.test", node.agent()?.mirror());
    let third = async {
        until("the layer arrives", Duration::from_secs(20), async || (registry.sent(digest) > 0).then_some(())).await?;
        node.agent()?.http().get(&url).await
    };
    let (one, two, three) =
        tokio::join!(node.containerd.pull("reg.test/acme/app:v1"), second.pull("reg.test/acme/app:v1"), third);
    ensure!(one? == two?);
    ensure!(three?.body == image.largest().bytes);

    for blob in image.blobs().iter().chain(image.manifests()) {
        let count = registry.count("GET", &blob.digest);
        ensure!(count == 1, "{count} requests for {}", blob.digest);
    }
    ensure!(registry.sent(digest) == image.largest().bytes.len() as u64);
    ensure_only_the_agent_asked(&registry)
}

/// A tag is what upstream says it is now.
async fn a_tag_that_moved_is_followed(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let (old, new) = (Image::tiny(7), Image::tiny(8));
    registry.add(&old, "acme/app", "latest");
    let node = case.node(&registry).await?;
    ensure!(node.containerd.pull("reg.test/acme/app:latest").await? == old.blobs()[0].digest);
    registry.add(&new, "acme/app", "latest");
    ensure!(node.containerd.pull("reg.test/acme/app:latest").await? == new.blobs()[0].digest);
    registry.add(&old, "acme/app", "latest");
    ensure!(node.containerd.pull("reg.test/acme/app:latest").await? == old.blobs()[0].digest);
    ensure_only_the_agent_asked(&registry)
}

async fn many_layers(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::many_layers(10, 60, 64);
    registry.add(&image, "acme/app", "v1");
    let node = case.node(&registry).await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    ensure!(registry.requests().iter().filter(|request| request.target.contains("/blobs/")).count() == 61);
    ensure_only_the_agent_asked(&registry)
}

/// By `_default`: no folder names this registry.
async fn a_registry_without_an_entry_of_its_own(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::one_layer(11, 5);
    registry.add(&image, "acme/app", "v1");
    let mut builder = case.builder()?;
    builder.agent.registry(&registry.host(), &[&registry.url()]);
    let node = builder.start().await?;
    node.containerd.pull(&format!("{}/acme/app:v1", registry.host())).await?;
    ensure!(registry.count("GET", &image.largest().digest) == 1);
    ensure_only_the_agent_asked(&registry)
}

/// Wiped, containerd gets everything from the agent; upstream is asked what the tag means now, and nothing else.
async fn what_is_kept_is_not_asked_again(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let image = Image::many_layers(12, 4, 2000);
    registry.add(&image, "acme/app", "v1");
    let node = case.node(&registry).await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    node.containerd.wipe().await?;
    registry.clear_log();
    node.containerd.pull("reg.test/acme/app:v1").await?;
    let requests = registry.requests();
    ensure!(requests.iter().all(|request| request.method == "HEAD"), "{requests:?}");
    ensure!(!requests.is_empty(), "nobody asked what the tag means now");
    Ok(())
}

/// Of its first version: the address of its proxy, at whose port the agent is now, and then the image's own name.
async fn a_name_that_kube_image_keeper_rewrote(case: Case) -> Result<()> {
    // By `_default`; and where nothing is entered, since containerd takes localhost to be a registry over plain HTTP.
    let ways = if case.tls { &[true][..] } else { &[true, false] };
    for &is_entered in ways {
        let mut registry = FaultRegistry::start().await?;
        let image = Image::builder(13).layer(5 << 20).program()?.build();
        registry.add(&image, "acme/app", "v1");
        let mut builder = case.builder()?;
        builder.agent.registry("reg.test", &[&registry.url()]);
        if !is_entered {
            builder.agent.set("containerd", "registries", "[]");
            builder.expects_entry = false;
        }
        let node = builder.start().await?;
        ensure!(node.hosts_dir().join("_default").exists() == is_entered);
        let name = format!("localhost:{}/reg.test/acme/app:v1", node.agent()?.mirror_port());
        let pull = async || node.containerd.pull(&name).await.with_context(|| format!("entered: {is_entered}"));
        pull().await?;
        ensure!(registry.count("GET", &image.largest().digest) == 1);
        ensure_only_the_agent_asked(&registry)?;

        // What runs by that name is known by its own: it can be checked, and it can be kept.
        let container = node.containerd.run(&name, &Labels::of_container("shop", "web-0", "app")).await?;
        let rows = async || node.agent()?.say(&["images", "--no-headers"]).await;
        let is_safe = async || {
            let rows = rows().await.ok()?;
            let row: Vec<&str> = rows.split_whitespace().collect();
            let is_so =
                row.starts_with(&["reg.test/acme/app:v1", "Available", "yes"]) && row.contains(&"shop/web-0/app");
            is_so.then_some(rows)
        };
        let shown = until("it is shown as safe by its own name", Duration::from_secs(20), is_safe).await;
        let shown = match shown {
            Ok(shown) => shown,
            Err(error) => bail!("{error}, entered: {is_entered}: {}", rows().await?),
        };
        ensure!(shown.lines().count() == 1 && !shown.contains("localhost"), "{shown}");
        node.containerd.stop(&container).await?;
        node.containerd.remove(&container).await?;

        registry.refuse();
        node.containerd.wipe().await?;
        ensure!(pull().await.context("while the registry is down")? == image.blobs()[0].digest);
    }
    Ok(())
}
