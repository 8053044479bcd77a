//! The first of a registry's two upstreams fails, in every way there is and in every place: nobody sees it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use larder_integration::{
    Agent, AgentConfig, Challenge, Cut, Face, Failover, Fault, FaultRegistry, Folder, Ill, Image, Login, Node, Place,
    Summary, Trial, When, free_port, until,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Case, ensure_only_the_agent_asked, on_every_containerd, run};

const SMALL: usize = 64 << 10;
const LARGE: usize = 64 << 20;
const ERRORS: &str = "larder_upstream_errors_total";

on_every_containerd!(over tls:
    the_first_upstream_fails_and_containerd_sees_nothing,
    the_first_upstream_challenges_and_stays_the_first,
    wrong_bytes_of_one_upstream_fail_one_pull_at_most,
    both_upstreams_have_half_of_a_layer,
    every_upstream_is_down_for_a_moment,
);

#[test]
fn each_ill_in_resolve() {
    run(each_ill(Place::Resolve, SMALL));
}

#[test]
fn each_ill_in_resolve_without_head() {
    run(each_ill(Place::Tagged, SMALL));
}

#[test]
fn each_ill_in_the_manifest() {
    run(each_ill(Place::Manifest, SMALL));
}

#[test]
fn each_ill_at_the_start_of_small_blobs() {
    run(each_ill(Place::Start, SMALL));
}

#[test]
fn each_ill_at_the_start_of_large_blobs() {
    run(each_ill(Place::Start, LARGE));
}

#[test]
fn each_ill_in_the_middle_of_small_blobs() {
    run(each_ill(Place::Middle, SMALL));
}

#[test]
fn each_ill_in_the_middle_of_large_blobs() {
    run(each_ill(Place::Middle, LARGE));
}

/// `LARDER_SEED` repeats a run.
#[test]
fn a_thousand_pulls_with_random_ills() {
    run(async {
        let mut random = seeded()?;
        let mut trials: Vec<Trial> = (0..Failover::PULLS).map(|_| Trial::any(&mut random)).collect();
        // All of the large ones would take minutes in a debug build.
        for trial in trials.iter_mut().filter(|trial| trial.bytes == LARGE).skip(60) {
            trial.bytes = SMALL;
        }
        let failover = Failover::start(4).await?;
        let met = pull_all(&failover, trials, 8).await?.met;
        ensure!(met > 300, "only {met} pulls met an upstream that failed");
        Ok(())
    });
}

async fn each_ill(place: Place, bytes: usize) -> Result<()> {
    let mut random = seeded()?;
    let ills: Vec<Ill> = Ill::ALL.into_iter().filter(|ill| ill.occurs_in(place)).collect();
    let trial = |&ill: &Ill| Trial { ill, place, bytes, seed: random.random(), copy: 0 };
    let trials: Vec<Trial> = ills.iter().map(trial).collect();
    let failover = Failover::start(1).await?;
    let summary = pull_all(&failover, trials, 4).await?;
    let metrics = failover.agent().metrics().await?;
    for ill in ills {
        // What leaves no trace at an upstream, the agent itself has to have seen.
        let met = match ill {
            Ill::NoSuchName => metrics.sum(ERRORS, &["upstream=\"nowhere.invalid\"", "kind=\"dns\""]) > 0.0,
            Ill::Refuses | Ill::UnknownCa | Ill::ExpiredCertificate | Ill::RedirectsToNobody => {
                let first = format!("upstream=\"{}\"", failover.first_of(ill).await);
                let kind = match ill {
                    Ill::Refuses => "kind=\"refused\"",
                    Ill::RedirectsToNobody => "kind=\"dns\"",
                    _ => "kind=\"tls\"",
                };
                metrics.sum(ERRORS, &[&first, kind]) > 0.0
            }
            _ => summary.met_ills.contains(&ill),
        };
        ensure!(met, "{ill}: the upstream that has it wasn't asked in vain");
    }
    Ok(())
}

/// Fails when a pull does, or something wrong is kept.
async fn pull_all(failover: &Failover, trials: Vec<Trial>, at_once: usize) -> Result<Summary> {
    let summary = failover.pull_all(trials, at_once).await;
    eprintln!("{summary}");
    failover.ensure_nothing_wrong_is_kept().await?;
    ensure!(summary.failures.is_empty(), "{summary}");
    Ok(summary)
}

/// A reset would fail containerd's pull, where after an early end it asks again from where it stood.
#[test]
fn a_reply_that_nobody_can_finish_ends_by_fin() {
    run(async {
        let (folder, gone, wrong) = (Folder::new()?, FaultRegistry::start().await?, FaultRegistry::start().await?);
        let cases = [
            ("gone.test", &gone, Image::opaque(1, 16 << 20), Fault::Turn(9 << 20, Face::Refusing)),
            ("wrong.test", &wrong, Image::opaque(2, 16 << 20), Fault::WrongByte(3 << 20)),
        ];
        let mut config = AgentConfig::without_containerd(folder.path());
        config.set_text("mirror", "resume_within", "1s");
        config.registry("gone.test", &[&gone.url()]).registry("wrong.test", &[&wrong.url()]);
        let agent = Agent::start(&folder.path().join("agent"), &config).await?;
        for (name, registry, image, fault) in cases {
            let layer = image.largest();
            registry.add(&image, "acme/app", "v1");
            registry.fault(When::get(layer), fault);
            let path = format!("/v2/acme/app/blobs/{}", layer.digest);
            let reply = to_the_fin(&agent.address(), &format!("{path}?ns={name}")).await.context(name)?;
            let end = reply.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("no head")? + 4;
            let (head, body) = (String::from_utf8_lossy(&reply[..end]).to_ascii_lowercase(), &reply[end..]);
            ensure!(head.starts_with("http/1.1 200 "), "{name}: {head}");
            ensure!(head.contains(&format!("content-length: {}\r\n", layer.bytes.len())), "{name}: {head}");
            ensure!(!body.is_empty() && body.len() < layer.bytes.len(), "{name}: {} bytes came", body.len());
        }
        ensure!(!gone.is_listening() && wrong.met() > 0);
        // A reset doesn't pass for that.
        wrong.heal();
        wrong.fault(When::any(), Fault::CutAt(100, Cut::Reset));
        ensure!(to_the_fin(&wrong.host(), "/v2/acme/app/manifests/v1").await.is_err());
        Ok(())
    });
}

/// All that comes for a GET until the other side ends the connection. Fails when it resets it.
async fn to_the_fin(address: &str, path: &str) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: any\r\n\r\n").as_bytes()).await?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.with_context(|| format!("after {} bytes", reply.len()))?;
    Ok(reply)
}

fn seeded() -> Result<StdRng> {
    let seed = std::env::var("LARDER_SEED").map_or_else(|_| Ok(rand::random()), |seed| seed.parse())?;
    eprintln!("LARDER_SEED={seed}");
    Ok(StdRng::seed_from_u64(seed))
}

/// A node whose containerd can't get past the agent, and whose registries have these two upstreams each.
async fn node(case: Case, registries: &[(&str, &FaultRegistry, &FaultRegistry)]) -> Result<Node> {
    let nowhere = format!("server = \"http://127.0.0.1:{}\"\n", free_port()?);
    let mut builder = case.builder()?;
    for (name, first, second) in registries {
        builder = builder.hosts(name, &nowhere)?;
        builder.agent.registry(name, &[&first.url(), &second.url()]);
    }
    builder.start().await
}

/// A sample of ills, each with a name of its own for the pair: what one did doesn't keep the next from being met.
async fn the_first_upstream_fails_and_containerd_sees_nothing(case: Case) -> Result<()> {
    let well = FaultRegistry::start().await?;
    let nobody = format!("http://127.0.0.1:{}", free_port()?);
    let wants = |challenge: &str| Fault::status_with(401, "www-authenticate", challenge);
    let wants_token = wants(&format!("Bearer realm=\"{nobody}/token\",service=\"nobody\""));
    let ills = [
        ("tag", wants_token.clone()),
        ("tag", wants("Basic realm=\"nobody\"")),
        ("manifest", wants_token.clone()),
        ("layer", wants_token),
        ("tag", Fault::status(503)),
        ("tag", Fault::status(404)),
        ("tag", Fault::status(429)),
        ("tag", Fault::Silent),
        ("tag", Fault::RedirectTo("https://nowhere.invalid".into())),
        ("manifest", Fault::Header("docker-content-digest".into(), format!("sha256:{:064x}", 7))),
        ("manifest", Fault::NoReply(Cut::Reset)),
        ("layer", Fault::status(401)),
        ("layer", Fault::Gzip),
        ("layer", Fault::CutAt(7_000_001, Cut::Close)),
        ("layer", Fault::CutAt(11_000_001, Cut::Reset)),
        ("layer", Fault::StallAt(5_000_001)),
        ("layer", Fault::Turn(3_000_001, Face::Refusing)),
    ];
    let mut firsts = Vec::new();
    for _ in &ills {
        firsts.push(FaultRegistry::start().await?);
    }
    let names: Vec<String> = (0..ills.len()).map(|n| format!("ill{n}.test")).collect();
    let pairs: Vec<_> = names.iter().zip(&firsts).map(|(name, first)| (name.as_str(), first, &well)).collect();
    let node = node(case, &pairs).await?;
    for (n, (first, (place, fault))) in firsts.iter().zip(&ills).enumerate() {
        let image = Image::one_layer(100 + n as u64, 12);
        let repository = format!("acme/app{n}");
        first.add(&image, &repository, "v1");
        well.add(&image, &repository, "v1");
        let when = match *place {
            "tag" => When::path("/manifests/v1"),
            "manifest" => When::get(image.root()),
            _ => When::get(image.largest()),
        };
        first.fault(when, fault.clone());
        let begun = Instant::now();
        let name = format!("ill{n}.test/{repository}:v1");
        node.containerd.pull(&name).await.with_context(|| format!("{place}: {fault:?}"))?;
        ensure!(begun.elapsed() < Duration::from_secs(15), "{place}: {fault:?}: took {:?}", begun.elapsed());
        ensure!(first.met() > 0, "{place}: {fault:?} wasn't met");
        ensure_only_the_agent_asked(first)?;
    }
    ensure_only_the_agent_asked(&well)
}

/// What a tag means is said by the first for whom it knows: with credentials, and with a token that anybody gets. While it
/// gives no tokens, or is gone, the second says it.
async fn the_first_upstream_challenges_and_stays_the_first(case: Case) -> Result<()> {
    let (mut first, second) = (FaultRegistry::start().await?, FaultRegistry::start().await?);
    let [of_first, of_second] = [Image::tiny(1), Image::tiny(2)];
    let means = |image: &Image| image.blobs()[0].digest.clone();
    for repository in ["acme/open", "acme/later", "acme/private"] {
        first.add(&of_first, repository, "v1");
        second.add(&of_second, repository, "v1");
    }
    let challenge = Challenge::bearer().open("acme/open").open("acme/later");
    first.challenge(Some(challenge.account("alice", "wonder:land", "acme/private")));
    let node = node(case, &[("reg.test", &first, &second)]).await?;
    node.containerd.ctr_pull("reg.test/acme/open:v1", node.hosts_dir()).await?;
    ensure!(node.containerd.pull("reg.test/acme/open:v1").await? == means(&of_first));
    let alice = Login::password("alice", "wonder:land");
    ensure!(node.containerd.pull_as("reg.test/acme/private:v1", &alice).await? == means(&of_first));
    // But for a HEAD, by which the two are compared.
    ensure!(second.count("GET", "/v2/") == 0, "the second was asked:{}", second.shown("/v2/"));

    first.fault(When::path("/token"), Fault::status(503));
    ensure!(node.containerd.pull("reg.test/acme/later:v1").await? == means(&of_second));
    first.refuse();
    ensure!(node.containerd.pull("reg.test/acme/open:v1").await? == means(&of_second));
    ensure_only_the_agent_asked(&first)?;
    ensure_only_the_agent_asked(&second)
}

/// A wrong byte in a layer that went out before it was verified: the next pull is right, at once.
async fn wrong_bytes_of_one_upstream_fail_one_pull_at_most(case: Case) -> Result<()> {
    let (first, second) = (FaultRegistry::start().await?, FaultRegistry::start().await?);
    let node = node(case, &[("reg.test", &first, &second)]).await?;
    for (seed, mebibytes, at) in [(1, 2, 1 << 20), (2, 24, 1000), (3, 24, 24 << 20)] {
        let image = Image::one_layer(seed, mebibytes);
        let repository = format!("acme/app{seed}");
        first.add(&image, &repository, "v1");
        second.add(&image, &repository, "v1");
        first.fault(When::get(image.largest()), Fault::WrongByte(at));
        let name = format!("reg.test/{repository}:v1");
        match node.containerd.pull(&name).await {
            Ok(_) => {}
            Err(error) if mebibytes < 4 => return Err(error.context("a small blob is verified first")),
            Err(_) => drop(node.containerd.pull(&name).await.with_context(|| format!("the pull after, seed {seed}"))?),
        }
    }
    node.agent()?.say(&["cache", "verify"]).await?;
    Ok(())
}

/// The second goes on where the first ended, and sends no more than what is missing.
async fn both_upstreams_have_half_of_a_layer(case: Case) -> Result<()> {
    let (first, second) = (FaultRegistry::start().await?, FaultRegistry::start().await?);
    let node = node(case, &[("reg.test", &first, &second)]).await?;
    for (seed, ranges) in [(1, true), (2, false)] {
        let image = Image::one_layer(seed, 32);
        let (layer, repository) = (image.largest(), format!("acme/app{seed}"));
        first.add(&image, &repository, "v1");
        second.add(&image, &repository, "v1");
        first.fault(When::get(layer).first(1), Fault::CutAt(20 << 20, Cut::Close));
        first.fault(When::get(layer), Fault::status(500));
        if !ranges {
            second.fault(When::get(layer), Fault::NoRange);
        }
        node.containerd.pull(&format!("reg.test/{repository}:v1")).await?;
        let (sent, length) = (second.sent(&layer.digest), layer.bytes.len() as u64);
        let most = if ranges { length - (20 << 20) + (1 << 20) } else { length };
        ensure!(sent <= most, "the second sent {sent} of {length} bytes");
    }
    ensure_only_the_agent_asked(&first)?;
    ensure_only_the_agent_asked(&second)
}

/// In the middle of a layer, nobody is left to ask; then one is back. containerd has waited, and sees one body.
async fn every_upstream_is_down_for_a_moment(case: Case) -> Result<()> {
    let (first, mut second) = (FaultRegistry::start().await?, FaultRegistry::start().await?);
    let node = node(case, &[("reg.test", &first, &second)]).await?;
    let image = Image::one_layer(1, 24);
    for registry in [&first, &second] {
        registry.add(&image, "acme/app", "v1");
    }
    first.fault(When::get(image.largest()), Fault::Turn(6 << 20, Face::Refusing));
    second.fault(When::get(image.largest()).first(1), Fault::Turn(1 << 20, Face::Refusing));
    let comes_back = async {
        until("both are gone", Duration::from_secs(20), async || {
            (!first.is_listening() && !second.is_listening()).then_some(())
        })
        .await?;
        until("the second is back", Duration::from_secs(5), async || second.accept().ok()).await
    };
    let (pulled, came_back) = tokio::join!(node.containerd.pull("reg.test/acme/app:v1"), comes_back);
    came_back?;
    pulled?;
    ensure_only_the_agent_asked(&second)
}
