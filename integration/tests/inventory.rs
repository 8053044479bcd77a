//! What the agent knows of a containerd: its images, who uses them, what it holds; through all that befalls it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder::config;
use larder::containerd::client::Client;
use larder::containerd::inventory::{self, Inventory, Metrics, RuntimeImage};
use larder::image::Digest;
use larder_integration::{Containerd, ContainerdConfig, FaultRegistry, Folder, Image, Labels, Node, Release, until};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::support::{Case, on_every_containerd, run};

on_every_containerd!(over tls:
    tells_what_is_there_and_who_uses_it,
    a_container_keeps_its_image,
    the_runtime_tells_what_a_name_meant,
    discarded_layers_are_not_held,
    other_namespaces_are_looked_into_where_they_are_named,
    follows_through_a_restart_and_a_hang,
);

/// A change is there after the pause that gathers events, and a listing.
const SOON: Duration = Duration::from_secs(5);
/// containerd collects garbage when it likes; its content is looked at again some seconds later.
const COLLECTED: Duration = Duration::from_secs(30);
/// A containerd that hangs is missed with a call that isn't answered.
const MISSED: Duration = Duration::from_secs(40);

const APP: &str = "reg.test/acme/app:v1";

/// An inventory that is followed. Dropped, it isn't any more.
struct Following {
    inventories: watch::Receiver<Option<Arc<Inventory>>>,
    registry: Registry,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Following {
    fn of(socket: &Path) -> Result<Self> {
        Self::within(socket, &config::Containerd::default().namespaces)
    }

    /// Of these namespaces alone.
    fn within(socket: &Path, namespaces: &[String]) -> Result<Self> {
        let (socket, namespaces) = (socket.to_owned(), namespaces.to_owned());
        let containerd = config::Containerd { socket, namespaces, ..config::Containerd::default() };
        let (stop, tasks, metrics) = (CancellationToken::new(), TaskTracker::new(), Metrics::default());
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let client = Arc::new(Client::new(&containerd)?);
        let mirror = config::Config::default().mirror.listen;
        let inventories = inventory::watch(client, mirror, metrics, &tasks, stop.clone());
        Ok(Self { inventories, registry, stop, tasks })
    }

    /// Waits for an inventory that is so.
    async fn until(
        &mut self,
        what: &str,
        limit: Duration,
        is_so: impl Fn(&Inventory) -> bool,
    ) -> Result<Arc<Inventory>> {
        let wait = self.inventories.wait_for(|inventory| inventory.as_deref().is_some_and(&is_so));
        if let Ok(found) = tokio::time::timeout(limit, wait).await {
            return found?.clone().context("nothing");
        }
        let last = self.inventories.borrow().clone();
        anyhow::bail!("waited {limit:?} in vain: {what}; the last was {:#?}", last.map(|last| last.images.clone()))
    }

    async fn until_connected(&self, is_connected: bool, limit: Duration) -> Result<()> {
        let line = format!("larder_containerd_connected {}", u8::from(is_connected));
        until(&line, limit, async || self.metrics().ok()?.lines().any(|shown| shown == line).then_some(())).await
    }

    fn metrics(&self) -> Result<String> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// The task ends when it is told to.
    async fn end(self) -> Result<()> {
        self.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(SOON, self.tasks.wait()).await.context("the inventory is followed after its end")
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn image<'a>(inventory: &'a Inventory, target: &str) -> Option<&'a RuntimeImage> {
    inventory.images.iter().find(|image| image.target.to_string() == target)
}

fn names(image: &RuntimeImage) -> Vec<String> {
    image.names.iter().map(ToString::to_string).collect()
}

fn holds(inventory: &Inventory, digest: &str) -> bool {
    digest.parse::<Digest>().is_ok_and(|digest| inventory.contents.contains_key(&digest))
}

/// A containerd that pulls `reg.test` from a registry with a runnable image, without an agent.
async fn node(case: Case, registry: &FaultRegistry, discards_layers: bool) -> Result<Node> {
    let mut builder = case.builder()?.without_agent().registry("reg.test", &registry.url())?;
    builder.containerd.discards_layers = discards_layers;
    builder.start().await
}

/// Names that mean one image, its content and where that lies, and its containers: running, stopped, removed.
async fn tells_what_is_there_and_who_uses_it(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let (app, pause) = (Image::runnable(1)?, Image::runnable(2)?);
    registry.add(&app, "acme/app", "v1");
    registry.add(&pause, "pause", "3");
    let node = node(case, &registry, false).await?;
    let mut following = Following::of(&node.containerd.socket())?;
    let target = app.root().digest.clone();

    following.until("nothing is there", SOON, |inventory| inventory.images.is_empty()).await?;
    node.containerd.pull(APP).await?;
    let whole = |inventory: &Inventory| {
        image(inventory, &target).is_some_and(|image| image.names.len() == 2)
            && app.manifests().iter().chain(app.blobs()).all(|blob| holds(inventory, &blob.digest))
    };
    let pulled = following.until("the image is there, whole", SOON, whole).await?;
    let found = image(&pulled, &target).context("no image")?;
    ensure!(names(found) == [APP.to_owned(), format!("reg.test/acme/app@{target}")], "{found:?}");
    ensure!(found.media_type.as_str() == app.root().media_type && found.users.is_empty(), "{found:?}");
    let layer: Digest = app.largest().digest.parse()?;
    let root = pulled.content_root.as_ref().context("no root")?;
    ensure!(std::fs::read(root.join("blobs/sha256").join(layer.hex()))? == app.largest().bytes);
    ensure!(pulled.contents[&layer].sources[0].1.as_str() == "acme/app");

    node.containerd.pull("reg.test/pause:3").await?;
    let sandbox = node.containerd.run("reg.test/pause:3", &Labels::of_sandbox("shop", "web")).await?;
    let container = node.containerd.run(APP, &Labels::of_container("shop", "web", "app")).await?;
    let users = |inventory: &Inventory| {
        let all = inventory.images.iter().flat_map(|image| &image.users);
        let mut all: Vec<_> = all.map(|user| format!("{} {}", user.name, u8::from(user.is_stopped))).collect();
        all.sort();
        all
    };
    let both = |inventory: &Inventory| users(inventory) == ["shop/web 0", "shop/web/app 0"];
    let running = following.until("both run", SOON, both).await?;
    ensure!(
        image(&running, &pause.root().digest).is_some_and(|image| image.is_pinned),
        "the sandbox's image is pinned"
    );
    ensure!(image(&running, &target).is_some_and(|image| !image.is_pinned));
    // One that begins now sees the same as one that has seen it come.
    let mut fresh = Following::of(&node.containerd.socket())?;
    fresh.until("who begins now sees the same", SOON, both).await?;

    node.containerd.stop(&container).await?;
    let stopped = |inventory: &Inventory| users(inventory) == ["shop/web 0", "shop/web/app 1"];
    following.until("stopped containers are users", SOON, stopped).await?;
    node.containerd.remove(&container).await?;
    following.until("removed ones aren't", SOON, |inventory| users(inventory) == ["shop/web 0"]).await?;
    node.containerd.stop(&sandbox).await?;
    let metrics = following.metrics()?;
    ensure!(metrics.contains("larder_containerd_images 2\n"), "{metrics}");
    ensure!(metrics.contains("larder_containerd_events_total{about=\"task\"}"), "{metrics}");
    following.end().await
}

/// A tag that moves and names that go don't change what a container was made from; the content that goes is seen to go.
async fn a_container_keeps_its_image(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let (old, new) = (Image::runnable(1)?, Image::runnable(2)?);
    registry.add(&old, "acme/app", "v1");
    let node = node(case, &registry, false).await?;
    let mut following = Following::of(&node.containerd.socket())?;
    node.containerd.pull(APP).await?;
    node.containerd.run(APP, &Labels::of_container("shop", "web", "app")).await?;
    let used = |inventory: &Inventory| image(inventory, &old.root().digest).is_some_and(|image| image.users.len() == 1);
    following.until("it is used", SOON, used).await?;

    registry.add(&new, "acme/app", "v1");
    node.containerd.pull(APP).await?;
    let moved = |inventory: &Inventory| {
        image(inventory, &new.root().digest).is_some_and(|image| image.names.len() == 2 && image.users.is_empty())
    };
    let after = following.until("the tag means the new image", SOON, moved).await?;
    ensure!(used(&after), "{:?}", after.images);

    let by_digest = format!("reg.test/acme/app@{}", old.root().digest);
    for name in [&by_digest, &old.blobs()[0].digest] {
        node.containerd.ctr_of_cri(&["images", "rm", "--sync", name]).await?;
    }
    let collected =
        |inventory: &Inventory| !holds(inventory, &old.root().digest) && !holds(inventory, &old.blobs()[1].digest);
    let after = following.until("its content is gone", COLLECTED, collected).await?;
    ensure!(used(&after) && moved(&after), "{:?}", after.images);
    let found = image(&after, &old.root().digest).context("no image")?;
    ensure!(names(found) == [by_digest], "{found:?}");
    Ok(())
}

/// A tag had moved before anybody looked: the runtime interface knows which image a Pod was made from.
async fn the_runtime_tells_what_a_name_meant(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let (old, new) = (Image::runnable(1)?, Image::runnable(2)?);
    registry.add(&old, "acme/app", "v1");
    registry.add(&Image::runnable(3)?, "pause", "3");
    let node = node(case, &registry, false).await?;
    node.containerd.pull(APP).await?;
    node.containerd.run_pod("shop", "web", APP).await?;
    registry.add(&new, "acme/app", "v1");
    node.containerd.pull(APP).await?;

    let mut following = Following::of(&node.containerd.socket())?;
    let both = |inventory: &Inventory| {
        [&old, &new].iter().all(|one| image(inventory, &one.root().digest).is_some()) && inventory.strays.is_empty()
    };
    let found = following.until("both images are there", SOON, both).await?;
    let users = |target: &str| image(&found, target).map(|image| image.users.clone()).unwrap_or_default();
    let user = users(&old.root().digest);
    ensure!(user.len() == 1 && user[0].name == "shop/web/main" && !user[0].is_stopped, "{found:?}");
    ensure!(users(&new.root().digest).is_empty(), "{found:?}");
    let sandbox = found.images.iter().find(|image| image.users.iter().any(|user| user.name == "shop/web"));
    ensure!(sandbox.is_some_and(|image| image.is_pinned), "{found:?}");

    // All that the old image was called is removed: who has known it still does, and who comes now knows its id alone.
    let (by_digest, id) = (format!("reg.test/acme/app@{}", old.root().digest), &old.blobs()[0].digest);
    for name in [&by_digest, id] {
        node.containerd.ctr_of_cri(&["images", "rm", "--sync", name]).await?;
    }
    let gone = |inventory: &Inventory| !holds(inventory, &old.root().digest);
    let known = following.until("its content is gone", COLLECTED, gone).await?;
    ensure!(image(&known, &old.root().digest).is_some_and(|image| image.users == user), "{known:?}");
    let mut fresh = Following::of(&node.containerd.socket())?;
    let stray = |inventory: &Inventory| {
        inventory
            .strays
            .iter()
            .any(|stray| stray.user == user[0] && stray.config.map(|config| config.to_string()).as_ref() == Some(id))
    };
    fresh.until("its container is a stray", SOON, stray).await?;
    Ok(())
}

/// Where layers are discarded once they are unpacked, they are not among what is held, though no event says so.
async fn discarded_layers_are_not_held(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let app = Image::runnable(1)?;
    registry.add(&app, "acme/app", "v1");
    let node = node(case, &registry, true).await?;
    let mut following = Following::of(&node.containerd.socket())?;
    following.until("containerd answers", SOON, |_| true).await?;
    node.containerd.pull(APP).await?;
    let layers: Vec<Digest> = app.blobs()[1..].iter().map(|layer| layer.digest.parse()).collect::<Result<_, _>>()?;
    let discarded = |inventory: &Inventory| {
        image(inventory, &app.root().digest).is_some()
            && holds(inventory, &app.root().digest)
            && layers.iter().all(|layer| !inventory.contents.contains_key(layer))
    };
    following.until("the manifest is held, and no layer", COLLECTED, discarded).await?;
    ensure!(!node.containerd.content().await?.contains(&app.largest().digest), "containerd has it");
    Ok(())
}

/// Of an image and a container in a namespace of somebody else's, who is told of it knows, and nobody else.
async fn other_namespaces_are_looked_into_where_they_are_named(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let (other, app) = (Image::runnable(1)?, Image::runnable(2)?);
    registry.add(&other, "acme/other", "v1");
    registry.add(&app, "acme/app", "v1");
    let node = node(case, &registry, false).await?;
    let (socket, hosts_dir) = (node.containerd.socket(), node.hosts_dir().display().to_string());
    let mut default = Following::of(&socket)?;
    let mut both = Following::within(&socket, &["k8s.io".to_owned(), "other".to_owned()])?;
    let ctr = node.containerd.client()?;
    let name = "reg.test/acme/other:v1";
    ctr.run("other", &["images", "pull", "--hosts-dir", &hosts_dir, name]).await?;
    ctr.run("other", &["containers", "create", name, "theirs"]).await?;
    node.containerd.pull(APP).await?;

    let target = &other.root().digest;
    let is_used = |inventory: &Inventory| {
        let users = image(inventory, target).map_or(&[][..], |image| image.users.as_slice());
        users.len() == 1 && users[0].name == "theirs" && users[0].is_stopped
    };
    let app_too = |inventory: &Inventory| image(inventory, &app.root().digest).is_some();
    let seen = both.until("all of both are there", SOON, |inventory| is_used(inventory) && app_too(inventory)).await?;
    let found = image(&seen, target).context("no image")?;
    ensure!(found.namespace.as_ref() == "other" && names(found) == [name], "{found:?}");
    ensure!(image(&seen, &app.root().digest).is_some_and(|image| image.namespace.as_ref() == "k8s.io"), "{seen:?}");
    ensure!(holds(&seen, target) && holds(&seen, &other.blobs()[0].digest), "its content isn't among what is held");
    let seen = default.until("what came last is there", SOON, app_too).await?;
    ensure!(seen.images.len() == 1 && !holds(&seen, target) && !holds(&seen, &other.blobs()[0].digest), "{seen:?}");

    ctr.run("other", &["containers", "rm", "theirs"]).await?;
    ctr.run("other", &["images", "rm", "--sync", name]).await?;
    both.until("what goes there is seen to go", COLLECTED, |inventory| {
        image(inventory, target).is_none() && !holds(inventory, target) && app_too(inventory)
    })
    .await?;
    Ok(())
}

/// Missing, killed, frozen: what was known stands, and what happened meanwhile is there afterwards.
async fn follows_through_a_restart_and_a_hang(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let images = [Image::runnable(1)?, Image::runnable(2)?, Image::runnable(3)?];
    for (n, image) in images.iter().enumerate() {
        registry.add(image, "acme/app", &format!("v{}", n + 1));
    }
    let mut node = node(case, &registry, false).await?;
    node.containerd.kill();
    let (socket, link) = (node.containerd.socket(), node.folder().join("link.sock"));
    std::os::unix::fs::symlink(&socket, &link)?;
    let mut following = Following::of(&link)?;
    node.containerd.start_again().await?;
    following.until("it is found once it has started", Duration::from_secs(10), |_| true).await?;
    node.containerd.pull(APP).await?;
    let container = node.containerd.run(APP, &Labels::of_container("shop", "web", "app")).await?;
    let runs = |inventory: &Inventory, is_stopped: bool| {
        let image = image(inventory, &images[0].root().digest);
        image.is_some_and(|image| image.users.iter().any(|user| user.is_stopped == is_stopped))
    };
    following.until("it runs", SOON, |inventory| runs(inventory, false)).await?;

    node.containerd.kill();
    following.until_connected(false, SOON).await?;
    let last = following.inventories.borrow().clone().context("forgotten")?;
    ensure!(runs(&last, false), "what was known stands");
    // Nobody hears an event of what happens until it can be reached again.
    std::fs::remove_file(&link)?;
    node.containerd.start_again().await?;
    node.containerd.pull("reg.test/acme/app:v2").await?;
    node.containerd.stop(&container).await?;
    std::os::unix::fs::symlink(&socket, &link)?;
    let both = |inventory: &Inventory| runs(inventory, true) && image(inventory, &images[1].root().digest).is_some();
    following.until("what happened since", Duration::from_secs(10), both).await?;
    following.until_connected(true, SOON).await?;

    node.containerd.freeze()?;
    following.until_connected(false, MISSED).await?;
    node.containerd.thaw()?;
    node.containerd.pull("reg.test/acme/app:v3").await?;
    let third = |inventory: &Inventory| both(inventory) && image(inventory, &images[2].root().digest).is_some();
    following.until("what happened after the hang", Duration::from_secs(15), third).await?;
    following.end().await
}

/// The next version comes up in the place of the last.
#[test]
fn another_version_is_followed_after_a_restart() {
    run(async {
        let registry = FaultRegistry::start().await?;
        registry.add(&Image::runnable(1)?, "acme/app", "v1");
        let folder = Folder::new()?;
        let (at, hosts_dir) = (folder.path().join("containerd"), folder.path().join("certs.d"));
        let hosts = hosts_dir.join("reg.test");
        std::fs::create_dir_all(&hosts)?;
        let url = registry.url();
        std::fs::write(hosts.join("hosts.toml"), format!("server = {url:?}\n\n[host.{url:?}]\n"))?;
        let config = ContainerdConfig::with_hosts(&hosts_dir);
        let mut following: Option<Following> = None;
        for (n, release) in [Release::Bookworm, Release::Trixie, Release::Sid].into_iter().enumerate() {
            let containerd = Containerd::start(release, &at, &config).await?;
            if following.is_none() {
                following = Some(Following::of(&containerd.socket())?);
                containerd.pull(APP).await?;
            }
            let following = following.as_mut().context("not followed")?;
            let tag = format!("reg.test/acme/app:then-{n}");
            containerd.ctr_of_cri(&["images", "tag", APP, &tag]).await?;
            let tagged = |inventory: &Inventory| inventory.images.iter().any(|image| names(image).contains(&tag));
            following
                .until(&format!("the image has a name that {release} gave it"), Duration::from_secs(15), tagged)
                .await?;
        }
        Ok(())
    });
}
