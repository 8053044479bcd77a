//! Who doesn't belong to the cluster gets nothing, and is counted.

use std::time::Duration;

use anyhow::ensure;
use larder_integration::{Authority, Blob, Cluster, Folder, Image, PEERS_PORT, until};

use super::{NAME, Stage};
use crate::support::run;

/// The number of a node that there isn't.
const NODE: &str = "0123456789abcdef0123456789abcdef";

/// An agent of another authority knows the address, and that is all it ever knows.
#[test]
fn another_authority_is_believed_by_nobody() {
    run(async {
        let image = Image::one_layer(1, 3);
        let stage = Stage::with(&image, None)?;
        let cluster = stage.nodes(3, None)?.start().await?;
        cluster.member(0).pull(NAME).await?;
        let seeds: Vec<String> =
            cluster.members().iter().map(|member| format!("{}:{PEERS_PORT}", member.host.address())).collect();
        let seeds: Vec<&str> = seeds.iter().map(String::as_str).collect();
        // A cluster of one, with an authority of its own.
        let stranger = stage.nodes(1, None)?.seeds(&seeds).launch().await?;
        until("its datagrams are counted", Duration::from_secs(10), async || {
            (cluster.sum("larder_peer_refused_total", &["reason=\"wrong_key\""]).await > 0.0).then_some(())
        })
        .await?;
        stage.registry.clear_log();
        stranger.member(0).pull(NAME).await?;
        stage.ensure_copies(&image, 1.0)?;
        ensure!(stage.registry.copies(&image) == 1.0, "a stranger was given content");
        ensure!(stranger.member(0).sees().await?.0 <= 1);
        for member in cluster.members() {
            ensure!(member.sees().await?.0 == 3, "a stranger was taken for a member");
        }
        Ok(())
    });
}

/// TLS without a certificate, with one of a stranger, with one that expired: refused before a request is read.
#[test]
fn connections_take_a_certificate_that_holds() {
    run(async {
        let stage = Stage::with(&Image::tiny(2), None)?;
        let cluster = stage.nodes(2, None)?.start().await?;
        let folder = Folder::new()?;
        let (ours, theirs) = (cluster.authority(), Authority::new()?);
        let outside = stage.network.host(None)?;
        let refused =
            async |reason: &str| cluster.sum("larder_peer_refused_total", &[&format!("reason=\"{reason}\"")]).await;
        // One of ours is let in.
        let member = ours.issue(&folder.path().join("ours"), NODE, false)?;
        ensure!(cluster.member(0).call(&outside, Some(&member), "Health/Check", &[]).await?.status == "0");
        let cases = [
            ("no_certificate", None),
            ("wrong_ca", Some(theirs.issue(&folder.path().join("theirs"), NODE, false)?)),
            ("expired", Some(ours.issue(&folder.path().join("expired"), NODE, true)?)),
        ];
        for (reason, files) in cases {
            let before = refused(reason).await;
            let answer = cluster.member(0).call(&outside, files.as_ref(), "Health/Check", &[]).await;
            ensure!(answer.is_err(), "{reason}: an answer came: {answer:?}");
            until(&format!("{reason} is counted"), Duration::from_secs(5), async || {
                (refused(reason).await > before).then_some(())
            })
            .await?;
        }
        Ok(())
    });
}

/// `key { registry, repository, tag }, lease, answer { digest, media type, size, access: anonymous }`
fn tag_report(tag: &str, lease: Option<u64>, manifest: &Blob) -> Vec<u8> {
    // A number of two bytes, below 1 << 14.
    let number = |n: usize| [(n & 0x7f) as u8 | 0x80, (n >> 7) as u8];
    let field = |tag: u8, bytes: &[u8]| [&[tag << 3 | 2], &number(bytes.len())[..], bytes].concat();
    let key = [field(1, b"reg.test"), field(2, b"acme/app"), field(3, tag.as_bytes())].concat();
    let lease = lease.map(|lease| [&[2 << 3 | 1][..], &lease.to_le_bytes()].concat()).unwrap_or_default();
    let answer = [
        field(1, manifest.digest.as_bytes()),
        field(2, manifest.media_type.as_bytes()),
        [&[3 << 3], &number(manifest.bytes.len())[..]].concat(),
        vec![5 << 3, 1],
    ];
    [field(1, &key), lease, field(3, &answer.concat())].concat()
}

/// A member that nobody asked says what a tag means: nobody takes it up, also while the registry is gone.
#[test]
fn a_tag_means_what_those_say_who_were_to_ask() {
    run(async {
        let (image, other) = (Image::tiny(5), Image::tiny(6));
        let mut stage = Stage::with(&image, None)?;
        stage.registry.add(&other, "acme/app", "v2");
        let cluster = stage.nodes(3, None)?.start().await?;
        cluster.pull(NAME, &image).await?;
        cluster.pull("reg.test/acme/app:v2", &other).await?;
        let folder = Folder::new()?;
        let (outside, files) = (stage.network.host(None)?, cluster.authority().issue(folder.path(), NODE, false)?);
        // What a node keeps of an answer tells times apart by the second.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        for member in cluster.members() {
            for lease in [None, Some(7)] {
                let report = tag_report("v1", lease, other.root());
                let answer = member.call(&outside, Some(&files), "Tags/Report", &report).await?;
                ensure!(answer.status == "0", "it isn't understood: {answer:?}");
            }
        }
        stage.registry.refuse();
        cluster.pull(NAME, &image).await?;
        Ok(())
    });
}

/// What was overheard and is sent again is dropped.
#[test]
fn replayed_datagrams_are_dropped() {
    run(async {
        let stage = Stage::with(&Image::tiny(3), None)?;
        let cluster: Cluster = stage.nodes(2, None)?.start().await?;
        let (one, other) = (&cluster.member(0).host, &cluster.member(1).host);
        let before = cluster.sum("larder_peer_refused_total", &["reason=\"replay\""]).await;
        let overheard = one.overhear(PEERS_PORT, 3).await?;
        for datagram in &overheard {
            other.send_datagram((one.address(), PEERS_PORT).into(), datagram)?;
        }
        until("replays are counted", Duration::from_secs(5), async || {
            let now = cluster.sum("larder_peer_refused_total", &["reason=\"replay\""]).await;
            (now >= before + 3.0).then_some(())
        })
        .await
    });
}

/// A newer agent says more than this one knows, and asks for what it hasn't: it is answered as far as it is understood.
#[test]
fn newer_agents_are_understood() {
    run(async {
        let image = Image::tiny(4);
        let stage = Stage::with(&image, None)?;
        let cluster = stage.nodes(2, None)?.start().await?;
        cluster.member(0).pull(NAME).await?;
        let folder = Folder::new()?;
        let (outside, files) = (stage.network.host(None)?, cluster.authority().issue(folder.path(), NODE, false)?);
        let call =
            async |method: &str, message: &[u8]| cluster.member(0).call(&outside, Some(&files), method, message).await;
        // Fields of numbers that nobody has given a meaning yet: a number, and a piece of text.
        let unknown = [&[0xf8, 0x3f, 0x01][..], &[0x82, 0x40, 0x03], b"new"].concat();
        ensure!(call("Health/Check", &unknown).await?.status == "0");
        let mut asked = Vec::new();
        // key { digest, registry, access: anonymous }, size
        let digest = image.largest().digest.as_bytes();
        let key = [&[0x0a, digest.len() as u8][..], digest, &[0x12, 0x08], b"reg.test", &[0x18, 0x01]].concat();
        asked.extend([0x0a, key.len() as u8]);
        asked.extend(&key);
        asked.extend(&unknown);
        let answer = call("Directory/Ask", &asked).await?;
        ensure!(answer.status == "0" && !answer.message.is_empty(), "{answer:?}");
        // What it doesn't know it says so, and goes on.
        ensure!(call("Directory/Reconcile", &[]).await?.status == "12");
        ensure!(call("Future/Method", &[]).await?.status == "12");
        ensure!(call("Health/Check", &[]).await?.status == "0");
        Ok(())
    });
}
