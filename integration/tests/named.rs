//! What containerd has, and another registry names. containerd, which has a layer, calls every registry a source of it whose
//! manifest lists it, and never asks for it there: so a registry that says yes to every HEAD and has not a byte of it could
//! get somebody's layer out.

use anyhow::{Context, Result, ensure};
use larder_integration::{Challenge, Fault, FaultRegistry, Image, Login, Node, When, until};

use crate::keep::{ADOPTED, whole};
use crate::support::{Case, asked_by_agent, on_every_containerd};

on_every_containerd!(over tls:
    what_a_hostile_registry_names_stays_private,
    what_it_named_before_the_agent_came_stays_private_too,
    what_two_registries_are_named_for_is_anybodys_once_one_delivers_it,
);

const OURS: &str = "reg.test/acme/private:v1";
const EVIL: &str = "evil.test/mallory/app:v1";

fn alice() -> Login {
    Login::password("alice", "secret")
}

/// A registry with alice's image, and another one, open to anybody, whose manifest is the same. That one says of all of it
/// that it is there, and gives nothing but the manifest.
async fn registries(image: &Image) -> Result<(FaultRegistry, FaultRegistry)> {
    let (ours, evil) = (FaultRegistry::start().await?, FaultRegistry::start().await?);
    ours.add(image, "acme/private", "v1");
    ours.challenge(Some(Challenge::bearer().account("alice", "secret", "acme/private")));
    evil.add(image, "mallory/app", "v1");
    for blob in image.blobs() {
        evil.fault(When::get(blob), Fault::status(404));
    }
    Ok((ours, evil))
}

async fn what_a_hostile_registry_names_stays_private(case: Case) -> Result<()> {
    let image = Image::one_layer(41, 2);
    let (mut ours, mut evil) = registries(&image).await?;
    let builder = case.builder()?.registry("reg.test", &ours.url())?.registry("evil.test", &evil.url())?;
    let node = builder.start().await?;
    node.containerd.pull_as(OURS, &alice()).await?;
    whole(node.agent()?, OURS).await?;
    node.containerd.pull(EVIL).await.context("of which containerd has all")?;
    stays_private(&node, &image, &mut ours, &mut evil).await?;
    // Who opened it has it all the time.
    node.containerd.pull_as(OURS, &alice()).await.context("without the registry").map(drop)
}

/// Both are named for it then, and nobody knows whose it is. The right one gives it, to whom it always gave it.
async fn what_it_named_before_the_agent_came_stays_private_too(case: Case) -> Result<()> {
    let image = Image::one_layer(42, 2);
    let (mut ours, mut evil) = registries(&image).await?;
    let builder = case.builder()?.without_agent();
    let builder = builder.registry("reg.test", &ours.url())?.registry("evil.test", &evil.url())?;
    let mut node = builder.start().await?;
    node.containerd.pull_as(OURS, &alice()).await?;
    node.containerd.pull(EVIL).await.context("of which containerd has all")?;
    evil.clear_log();
    node.install_agent().await?;
    whole(node.agent()?, OURS).await?;
    stays_private(&node, &image, &mut ours, &mut evil).await?;
    ours.accept()?;
    node.containerd.pull_as(OURS, &alice()).await?;
    ours.refuse();
    node.containerd.wipe().await?;
    node.containerd.pull_as(OURS, &alice()).await.context("without the registry").map(drop)
}

/// Waits until the hostile registry was asked for the layer and had nothing; then nobody gets it. Both are gone at the end,
/// and containerd has nothing.
async fn stays_private(node: &Node, image: &Image, ours: &mut FaultRegistry, evil: &mut FaultRegistry) -> Result<()> {
    let layer = image.largest();
    let asked = |evil: &FaultRegistry, method: &str, status: u16| {
        evil.requests().iter().any(|request| {
            asked_by_agent(request)
                && request.method == method
                && request.path().ends_with(&layer.digest)
                && request.status == status
                && request.finished
        })
    };
    until("it says that it has it", ADOPTED, async || asked(evil, "HEAD", 200).then_some(())).await?;
    until("it is to deliver it", ADOPTED, async || asked(evil, "GET", 404).then_some(())).await?;
    let agent = node.agent()?;
    let places = [("reg.test", "acme/private"), ("evil.test", "mallory/app"), ("evil.test", "mallory/other")];
    node.containerd.wipe().await?;
    for is_gone in [false, true] {
        if is_gone {
            ours.refuse();
            evil.refuse();
        }
        for blob in image.blobs() {
            for (registry, repository) in places {
                let url = format!("{}/v2/{repository}/blobs/{}?ns={registry}", agent.mirror(), blob.digest);
                let reply = agent.http().get(&url).await?;
                ensure!(reply.status != 200, "{registry}/{repository} gets {} out, gone: {is_gone}", blob.digest);
            }
        }
        ensure!(node.containerd.pull(EVIL).await.is_err(), "mallory has the layer, gone: {is_gone}");
    }
    Ok(())
}

/// A public image, and a private copy of it elsewhere, from before the agent.
async fn what_two_registries_are_named_for_is_anybodys_once_one_delivers_it(case: Case) -> Result<()> {
    let image = Image::one_layer(43, 2);
    let (mut open, private) = (FaultRegistry::start().await?, FaultRegistry::start().await?);
    open.add(&image, "acme/app", "v1");
    private.add(&image, "acme/copy", "v1");
    private.challenge(Some(Challenge::bearer().account("alice", "secret", "acme/copy")));
    let builder = case.builder()?.without_agent();
    let mut node = builder.registry("reg.test", &open.url())?.registry("other.test", &private.url())?.start().await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    node.containerd.pull_as("other.test/acme/copy:v1", &alice()).await?;
    open.clear_log();
    private.clear_log();
    node.install_agent().await?;
    whole(node.agent()?, "reg.test/acme/app:v1").await?;
    until("it is protected", ADOPTED, async || {
        let metrics = node.agent().ok()?.metrics().await.ok()?;
        let labels = ["image=\"reg.test/acme/app:v1\""];
        (metrics.sum("larder_image_protected", &labels) == 1.0).then_some(())
    })
    .await?;
    for blob in image.blobs() {
        ensure!(open.count("GET", &blob.digest) == 1, "it delivers each once:{}", open.shown(&blob.digest));
        ensure!(private.count("GET", &blob.digest) == 0, "nobody could get it there");
    }
    open.refuse();
    node.containerd.wipe().await?;
    node.containerd.pull("reg.test/acme/app:v1").await.context("without the registry").map(drop)
}
