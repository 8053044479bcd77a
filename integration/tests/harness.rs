//! The fixtures themselves: what the other scenarios stand on has to hold without an agent.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_integration::{Challenge, Cut, Fault, FaultRegistry, Image, Login, Registry, When, until};

use crate::support::{Case, on_every_containerd, run};

// Without an agent there is nothing that TLS could be spoken to.
on_every_containerd!(over tls: pulls_from_a_registry, meets_faults, comes_back_after_kill, shows_credentials);

/// Through CRI and ctr, by tag and digest, an image and an index; wiped, it pulls again.
async fn pulls_from_a_registry(case: Case) -> Result<()> {
    let registry = Registry::start().await?;
    let (image, index) = (Image::many_layers(1, 3, 300), Image::index(2, 1));
    registry.push(&image, "acme/app", "v1").await?;
    registry.push(&index, "acme/multi", "v1").await?;
    let node = case.builder()?.without_agent().registry("reg.test", &registry.url())?.start().await?;

    let id = node.containerd.pull("reg.test/acme/app:v1").await?;
    ensure!(id == image.blobs()[0].digest, "CRI names an image by its config: {id}");
    node.containerd.pull(&format!("reg.test/acme/multi@{}", index.root().digest)).await?;
    ensure!(node.containerd.images().await?.contains(&"reg.test/acme/app:v1".to_owned()));
    ensure!(node.containerd.content().await?.contains(&image.largest().digest));
    let layer = format!("/blobs/{}", image.largest().digest);
    ensure!(registry.count("GET", &layer) == 1);

    node.containerd.wipe().await?;
    ensure!(node.containerd.content().await?.is_empty());
    node.containerd.pull("reg.test/acme/app:v1").await?;
    ensure!(registry.count("GET", &layer) == 2, "wiped, it is downloaded again");

    node.containerd.wipe().await?;
    node.containerd.ctr_pull("reg.test/acme/app:v1", node.hosts_dir()).await?;
    ensure!(registry.count("GET", &layer) == 3);
    Ok(())
}

/// containerd takes up a body that was cut cleanly, and fails on one that was reset: see that both really happen.
async fn meets_faults(case: Case) -> Result<()> {
    let mut registry = FaultRegistry::start().await?;
    let (cut, reset) = (Image::one_layer(3, 4), Image::one_layer(4, 4));
    registry.add(&cut, "acme/cut", "v1");
    registry.add(&reset, "acme/reset", "v1");
    registry.fault(When::get(cut.largest()).first(1), Fault::CutAt(1 << 20, Cut::Close));
    registry.fault(When::get(reset.largest()).first(1), Fault::CutAt(1 << 20, Cut::Reset));
    let node = case.builder()?.without_agent().registry("reg.test", &registry.url())?.start().await?;

    node.containerd.pull("reg.test/acme/cut:v1").await?;
    let layers: Vec<_> = registry.requests().into_iter().filter(|r| r.target.contains(&cut.largest().digest)).collect();
    ensure!(layers.len() == 2 && layers[0].sent == 1 << 20, "{layers:?}");
    ensure!(layers[1].header("range") == Some("bytes=1048576-"), "{layers:?}");

    let failed = node.containerd.pull("reg.test/acme/reset:v1").await;
    ensure!(failed.is_err_and(|error| error.to_string().contains("connection reset")));

    registry.refuse();
    let failed = node.containerd.pull("reg.test/acme/cut:v2").await;
    ensure!(failed.is_err_and(|error| error.to_string().contains("connection refused")));
    registry.accept()?;
    node.containerd.pull("reg.test/acme/cut:v1").await?;
    Ok(())
}

/// Killed and started again, it still has its images.
async fn comes_back_after_kill(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    registry.add(&Image::tiny(5), "acme/app", "v1");
    let mut node = case.builder()?.without_agent().registry("reg.test", &registry.url())?.start().await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    node.containerd.kill();
    node.containerd.start_again().await?;
    ensure!(node.containerd.images().await?.contains(&"reg.test/acme/app:v1".to_owned()));
    Ok(())
}

/// Each form of credentials opens what it should at each kind of registry, and nothing else does.
async fn shows_credentials(case: Case) -> Result<()> {
    let (alice, bob) = (Login::password("alice", "secret"), Login::password("bob", "builder"));
    let encoded = Login::Encoded("alice".to_owned(), "secret".to_owned());
    let identity = Login::Identity("who-I-am".to_owned());
    let everyone = |challenge: Challenge| {
        let challenge = challenge.account("alice", "secret", "acme/app").account("bob", "builder", "acme/other");
        challenge.identity("who-I-am", "acme/app").open("acme/open")
    };
    let kinds = [
        ("Bearer", everyone(Challenge::bearer()), vec![&alice, &encoded, &identity]),
        ("by GET alone", everyone(Challenge::bearer().by_get_alone()), vec![&alice, &encoded]),
        ("refusing", everyone(Challenge::bearer().that_refuses_strangers()), vec![&alice, &identity]),
        ("Basic", everyone(Challenge::basic()), vec![&alice, &encoded]),
    ];
    for (kind, challenge, logins) in kinds {
        let registry = FaultRegistry::start().await?;
        registry.add(&Image::tiny(7), "acme/app", "v1");
        registry.add(&Image::tiny(8), "acme/open", "v1");
        registry.challenge(Some(challenge));
        let node = case.builder()?.without_agent().registry("reg.test", &registry.url())?.start().await?;
        let (name, wrong) = ("reg.test/acme/app:v1", Login::password("alice", "wrong"));
        node.containerd.pull("reg.test/acme/open:v1").await.with_context(|| format!("{kind}: anyone"))?;
        ensure!(node.containerd.pull(name).await.is_err(), "{kind}: anyone");
        for login in [&bob, &wrong] {
            ensure!(node.containerd.pull_as(name, login).await.is_err(), "{kind}: {login:?}");
        }
        for login in logins {
            node.containerd.pull_as(name, login).await.with_context(|| format!("{kind}: {login:?}"))?;
            node.containerd.wipe().await?;
        }
    }
    Ok(())
}

/// The faults that only a client other than containerd can see whole.
#[test]
fn faults_are_what_they_say() {
    run(async {
        let registry = FaultRegistry::start().await?;
        let image = Image::one_layer(6, 1);
        registry.add(&image, "acme/app", "v1");
        let (layer, http) = (image.largest(), larder_integration::Http::new());
        let url = format!("{}/v2/acme/app/blobs/{}", registry.url(), layer.digest);

        let reply = http.get(&url).await?;
        ensure!(reply.body == layer.bytes && reply.cut.is_none());
        let reply = http.get_range(&url, "bytes=100-199").await?;
        ensure!(reply.status == 206 && reply.body == layer.bytes.slice(100..200));
        ensure!(reply.header("content-range") == format!("bytes 100-199/{}", layer.bytes.len()));

        let only = async |fault| {
            registry.heal();
            registry.fault(When::get(layer), fault);
            http.get_range(&url, "bytes=100-").await
        };
        let (length, tail) = (layer.bytes.len(), layer.bytes.slice(100..));
        let reply = only(Fault::WrongByte(500)).await?;
        let wrong: Vec<usize> = (0..tail.len()).filter(|&at| reply.body[at] != tail[at]).collect();
        ensure!(wrong == [400], "{wrong:?}");
        ensure!(only(Fault::NoRange).await?.body.len() == length);
        ensure!(only(Fault::Short(10)).await?.body.len() == tail.len() - 10);
        ensure!(only(Fault::Long(10)).await?.body.len() == tail.len() + 10);
        ensure!(only(Fault::Length(10)).await?.cut.is_some());
        ensure!(only(Fault::CutAt(1000, Cut::Close)).await?.body.len() == 1000);
        ensure!(only(Fault::Chunked).await?.body == tail);
        ensure!(only(Fault::UntilClose).await?.body == tail);
        ensure!(only(Fault::status(503)).await?.status == 503);
        ensure!(only(Fault::Redirect("/v2/".into())).await?.header("location") == "/v2/");
        ensure!(only(Fault::NoReply(Cut::Reset)).await.is_err());
        let begun = std::time::Instant::now();
        ensure!(only(Fault::Trickle(4 << 20)).await?.body == tail);
        ensure!(begun.elapsed() > Duration::from_millis(200));

        registry.heal();
        registry.fault(When::get(layer), Fault::StallAt(70_000));
        registry.clear_log();
        let stalled = tokio::spawn({
            let (http, url) = (http.clone(), url.clone());
            async move { http.get(&url).await }
        });
        until("it stalls", Duration::from_secs(5), async || (registry.sent(&layer.digest) == 70_000).then_some(()))
            .await?;
        ensure!(!stalled.is_finished());
        stalled.abort();
        Ok(())
    });
}
