//! Private images stay private, whoever has them.

use anyhow::{Context, Result, ensure};
use larder_integration::{Blob, Challenge, Cluster, FaultRegistry, Folder, Image, Login, Network, Puller};

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
        let image = Image::many_layers(1, 2, 3000);
        let Stage { network, registry, .. } = Stage::with(&image, None)?;
        registry.challenge(Some(Challenge::bearer().account("alice", "wonderland", "acme/app")));
        let other = FaultRegistry::start_on(&network.host(None)?)?;
        other.add(&image, "evil/app", "v1");
        for blob in image.blobs() {
            other.remove(blob);
        }
        let builder = Cluster::builder(&network, 3, None)?;
        let builder = builder.registry("private.test", &[&registry.url()]).registry("open.test", &[&other.url()]);
        let cluster = builder.start().await?;
        cluster.member(0).pull_as(PRIVATE, &alice()).await.context("the first")?;
        registry.clear_log();
        Ok(Self { network, registry, other, cluster, image })
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
