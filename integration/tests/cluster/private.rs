//! Private images stay private, whoever has them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_integration::{Blob, Challenge, Cluster, FaultRegistry, Folder, Image, Login, Network, Puller, until};

use super::Stage;
use crate::support::run;

const PRIVATE: &str = "private.test/acme/app:v1";
/// As which a member wants something, in the words of the wire.
const ANONYMOUS: u8 = 1;
const AUTHORIZED: u8 = 2;
/// A parting that says: not here, or not for this key.
const ABSENT: [u8; 4] = [0x22, 0x02, 0x08, 0x07];

fn alice() -> Login {
    Login::password("alice", "wonderland")
}

fn mallory() -> Login {
    Login::password("mallory", "guess")
}

/// Whose own repository is another.
fn bob() -> Login {
    Login::password("bob", "builder")
}

/// A word of the registry's to one node is known to the others as soon as that node has told them.
const TOLD: Duration = Duration::from_secs(60);

struct Scene {
    network: Network,
    registry: FaultRegistry,
    other: FaultRegistry,
    cluster: Cluster,
    image: Image,
}

impl Scene {
    /// A registry that opens itself to alice alone, another that is open to all and lists what it hasn't, and three
    /// nodes, the first of which pulled as alice.
    async fn set() -> Result<Self> {
        Self::of(3).await
    }

    async fn of(nodes: usize) -> Result<Self> {
        Self::remembering(nodes, "30d").await
    }

    async fn remembering(nodes: usize, lifetime: &'static str) -> Result<Self> {
        let image = Image::many_layers(1, 2, 3000);
        let Stage { network, registry, .. } = Stage::with(&image, None)?;
        registry.add(&Image::tiny(50), "acme/other", "v1");
        let challenge = Challenge::bearer().account("bob", "builder", "acme/other");
        registry.challenge(Some(challenge.account("alice", "wonderland", "acme/app")));
        let other = FaultRegistry::start_on(&network.host(None)?)?;
        other.add(&image, "evil/app", "v1");
        for blob in image.blobs() {
            other.remove(blob);
        }
        let builder = Cluster::builder(&network, nodes, None)?;
        let builder = builder.configure(move |_, config| {
            config.set_text("private", "remember", lifetime);
        });
        let builder = builder.registry("private.test", &[&registry.url()]).registry("open.test", &[&other.url()]);
        let cluster = builder.start().await?;
        cluster.member(0).pull_as(PRIVATE, &alice()).await.context("the first")?;
        registry.clear_log();
        Ok(Self { network, registry, other, cluster, image })
    }

    /// Alice can pull it there, and gets it from other nodes: there is no registry.
    async fn pulls(&self, node: usize) -> Result<()> {
        let pulled = until("alice pulls it through another node", TOLD, async || {
            self.cluster.member(node).pull_as(PRIVATE, &alice()).await.ok()
        });
        ensure!(pulled.await?.root == self.image.root().digest);
        Ok(())
    }

    async fn ensure_closed(&self, node: usize, registry: &str, repository: &str, login: Option<&Login>) -> Result<()> {
        let puller = Puller::new(&self.cluster.member(node).agent, registry, login.cloned());
        for blob in self.image.blobs() {
            let reply = puller.get(repository, &format!("blobs/{}", blob.digest)).await?;
            ensure!(!reply.status.is_success(), "{registry} gave {} to {login:?}", blob.digest);
            ensure!(!holds(&reply.body, blob), "{registry} gave bytes of {}", blob.digest);
        }
        Ok(())
    }
}

fn holds(body: &[u8], blob: &Blob) -> bool {
    body.len() >= 32 && blob.bytes.windows(32).any(|window| window == &body[..32])
}

fn contains(message: &[u8], bytes: &[u8]) -> bool {
    message.windows(bytes.len()).any(|window| window == bytes)
}

/// `key { digest, registry, access }`
fn read_request(digest: &str, registry: &str, access: u8) -> Vec<u8> {
    let text = |number: u8, text: &str| [&[number << 3 | 2, text.len() as u8], text.as_bytes()].concat();
    let key = [text(1, digest), text(2, registry), vec![3 << 3, access]].concat();
    [&[1 << 3 | 2, key.len() as u8], &key[..]].concat()
}

/// Who may pull it gets it from the peer; who may not, doesn't.
#[test]
fn a_peer_gives_it_to_those_alone_who_may_have_it() {
    run(async {
        let scene = Scene::set().await?;
        for node in 0..3 {
            scene.ensure_closed(node, "private.test", "acme/app", None).await?;
            scene.ensure_closed(node, "private.test", "acme/app", Some(&mallory())).await?;
        }
        // Nor does it get lost by their asking, here or there.
        scene.ensure_closed(0, "open.test", "evil/app", None).await?;
        scene.ensure_closed(1, "open.test", "evil/app", None).await?;
        scene.registry.clear_log();
        scene.cluster.member(1).pull_as(PRIVATE, &alice()).await?;
        ensure!(scene.registry.sent("/blobs/") == 0, "it was downloaded again: {}", scene.registry.shown(""));
        scene.ensure_closed(1, "private.test", "acme/app", None).await
    });
}

/// A registry that lists the digests of another's private layers doesn't get them out, here or at a peer.
#[test]
fn it_is_not_given_for_another_registry() {
    run(async {
        let scene = Scene::set().await?;
        for node in 0..3 {
            scene.ensure_closed(node, "open.test", "evil/app", None).await?;
            scene.ensure_closed(node, "open.test", "evil/app", Some(&alice())).await?;
        }
        // Each of these was asked of the registry that it was asked for.
        for blob in scene.image.blobs() {
            ensure!(scene.other.count("GET", &blob.digest) > 0, "{} wasn't asked for", blob.digest);
        }
        Ok(())
    });
}

/// A member with a mind of its own asks at the port for peers: as anybody, and for another registry.
#[test]
fn the_door_for_peers_gives_it_for_its_own_registry_alone() {
    run(async {
        let scene = Scene::set().await?;
        let (folder, outside) = (Folder::new()?, scene.network.host(None)?);
        let files = scene.cluster.authority().issue(folder.path(), "0123456789abcdef0123456789abcdef", false)?;
        let read = async |blob: &Blob, registry: &str, access: u8| {
            let message = read_request(&blob.digest, registry, access);
            scene.cluster.member(0).call(&outside, Some(&files), "Content/Read", &message).await
        };
        let refused = async || scene.cluster.sum("larder_peer_refusals_total", &["reason=\"absent\""]).await;
        for blob in scene.image.blobs() {
            let given = read(blob, "private.test", AUTHORIZED).await?;
            // In messages: what is in one piece is its beginning.
            let begins = contains(&given.message, &blob.bytes[..blob.bytes.len().min(1024)]);
            let is_given = begins && given.message.len() > blob.bytes.len();
            ensure!(is_given, "{} isn't given to who may have it", blob.digest);
            let before = refused().await;
            for (registry, access) in [("private.test", ANONYMOUS), ("open.test", AUTHORIZED), ("open.test", ANONYMOUS)]
            {
                let answer = read(blob, registry, access).await?;
                ensure!(answer.message.ends_with(&ABSENT), "{registry} {access}: {answer:?}");
                let is_given = blob.bytes.chunks_exact(32).any(|bytes| contains(&answer.message, bytes));
                ensure!(!is_given, "{registry} gave bytes of {} as {access}", blob.digest);
            }
            ensure!(refused().await == before + 3.0, "a refusal isn't counted");
        }
        Ok(())
    });
}

/// All at once, with the right and without: one copy for those who may.
#[test]
fn they_pull_at_once() {
    run(async {
        let mut scene = Scene::set().await?;
        let image = Image::many_layers(2, 2, 3000);
        scene.registry.add(&image, "acme/app", "v1");
        scene.image = image;
        let login = alice();
        let members = scene.cluster.members();
        let right = futures_util::future::try_join_all(members.iter().map(|member| member.pull_as(PRIVATE, &login)));
        let wrong = async {
            for node in 0..3 {
                scene.ensure_closed(node, "private.test", "acme/app", None).await?;
                scene.ensure_closed(node, "private.test", "acme/app", Some(&mallory())).await?;
            }
            Ok(())
        };
        tokio::try_join!(right, wrong)?;
        let copies = scene.registry.copies(&scene.image);
        ensure!(copies <= 1.1, "{copies} copies left upstream");
        Ok(())
    });
}

/// The registry and its token server are gone. Who could pull it through any node can through each, also after all of them
/// were started again; nobody else can, and nobody whom the registry has refused since.
#[test]
fn who_could_pull_it_through_one_node_can_through_another_in_an_outage() {
    run(async {
        let mut scene = Scene::of(4).await?;
        scene.cluster.member(0).pull_as("private.test/acme/other:v1", &bob()).await?;
        scene.registry.refuse();
        scene.pulls(1).await?;
        let held = async |scene: &Scene| {
            for node in 0..4 {
                for login in [None, Some(mallory()), Some(bob())] {
                    scene.ensure_closed(node, "private.test", "acme/app", login.as_ref()).await?;
                    // Nor by way of a repository that opens to who asks.
                    scene.ensure_closed(node, "private.test", "acme/other", login.as_ref()).await?;
                }
                ensure!(scene.cluster.member(node).pull_as(PRIVATE, &mallory()).await.is_err(), "mallory, at {node}");
            }
            anyhow::Ok(())
        };
        held(&scene).await?;

        for node in 0..4 {
            scene.cluster.member_mut(node).agent.stop()?;
        }
        for node in 0..4 {
            scene.cluster.member_mut(node).agent.start_again().await?;
        }
        scene.cluster.settle().await?;
        scene.pulls(2).await.context("after a new start of all")?;
        held(&scene).await?;

        // Of alice the registry wants to know nothing any more, and says so to the first node.
        let dismissed = Challenge::bearer().account("alice", "wonderland", "acme/other");
        scene.registry.challenge(Some(dismissed));
        scene.registry.accept()?;
        until("the first node hears of it", TOLD, async || {
            scene.cluster.member(0).pull_as(PRIVATE, &alice()).await.err()
        })
        .await?;
        scene.registry.refuse();
        until("it is closed to her at another", TOLD, async || {
            scene.cluster.member(3).pull_as(PRIVATE, &alice()).await.err()
        })
        .await?;
        for node in [0, 3] {
            scene.ensure_closed(node, "private.test", "acme/app", Some(&alice())).await?;
        }
        Ok(())
    });
}

/// What isn't remembered here is told to nobody, and believed of nobody.
#[test]
fn where_nothing_is_remembered_nobody_else_is_asked() {
    run(async {
        let mut scene = Scene::remembering(2, "0s").await?;
        scene.registry.refuse();
        scene.ensure_closed(1, "private.test", "acme/app", Some(&alice())).await?;
        ensure!(scene.cluster.member(1).pull_as(PRIVATE, &alice()).await.is_err());
        Ok(())
    });
}
