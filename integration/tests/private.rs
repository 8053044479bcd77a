//! Private images: who may pull them does, in an outage too; who may not, does not, whatever the cache holds.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::StatusCode;
use larder_integration::{
    Blob, Challenge, Cut, Fault, FaultRegistry, Image, Login, Node, NodeBuilder, Puller, Release, When, free_port,
    until,
};

use crate::support::{Case, asked_by_agent, ensure_only_the_agent_asked, on_every_containerd};

on_every_containerd!(the_right_credentials_open_it_and_none_other, who_could_pull_it_can_in_an_outage_and_nobody_else,);
on_every_containerd!(over tls:
    credentials_come_in_every_form,
    a_basic_registry_is_asked_by_name,
    tokens_that_end_are_refreshed,
    a_refusal_reads_as_without_an_agent,
    nothing_is_remembered_when_that_is_turned_off,
    a_repository_turns_private_and_public,
    a_hostile_registry_gets_nothing_out,
    rights_to_one_repository_are_none_to_another,
);

const NAME: &str = "reg.test/acme/app:v1";

fn alice() -> Login {
    Login::password("alice", "wonder:land")
}

fn mallory() -> Login {
    Login::password("mallory", "guess")
}

/// Bearer, and alice alone.
fn for_alice() -> Challenge {
    Challenge::bearer().account("alice", "wonder:land", "acme/app")
}

/// Its challenge, and an image as `acme/app:v1`.
async fn registry(challenge: Challenge) -> Result<(FaultRegistry, Image)> {
    let (registry, image) = (FaultRegistry::start().await?, Image::many_layers(1, 3, 3000));
    registry.add(&image, "acme/app", "v1");
    registry.challenge(Some(challenge));
    Ok((registry, image))
}

/// Without and with wrong credentials it fails before and after it was pulled; with the right ones it is served from
/// the cache. No anonymous token is ever spent for a pull that brings credentials.
async fn the_right_credentials_open_it_and_none_other(case: Case) -> Result<()> {
    let (registry, image) = registry(for_alice()).await?;
    let node = case.node(&registry).await?;
    ensure_closed(&node, NAME).await.context("before anyone has pulled it")?;

    registry.clear_log();
    node.containerd.pull_as(NAME, &alice()).await?;
    ensure_only_the_agent_asked(&registry)?;
    ensure!(tokens_of_agent(&registry, true) == 0, "anonymous tokens were fetched: {:?}", registry.requests());

    node.containerd.wipe().await?;
    ensure_closed(&node, NAME).await.context("when it is in the cache")?;
    ensure_closed(&node, &format!("reg.test/acme/app@{}", image.root().digest)).await.context("by digest")?;
    for blob in image.blobs().iter().chain(image.manifests()) {
        ensure_no_way_to(&node, "reg.test", "acme/app", blob, None).await?;
        ensure_no_way_to(&node, "reg.test", "acme/app", blob, Some(mallory())).await?;
    }

    registry.clear_log();
    node.containerd.wipe().await?;
    node.containerd.pull_as(NAME, &alice()).await?;
    ensure_only_the_agent_asked(&registry)?;
    ensure!(registry.count("GET", "/blobs/") == 0, "it was downloaded again: {:?}", registry.requests());
    Ok(())
}

/// The registry and its token server are gone. What decides is what they once said, also after a restart.
async fn who_could_pull_it_can_in_an_outage_and_nobody_else(case: Case) -> Result<()> {
    let (mut registry, _) = registry(for_alice().account("bob", "builder", "acme/other")).await?;
    let mut node = case.node(&registry).await?;
    node.containerd.pull_as(NAME, &alice()).await?;
    registry.refuse();
    for ended in ["not", "by SIGTERM", "by SIGKILL"] {
        match ended {
            "by SIGTERM" => node.agent_mut()?.stop()?,
            "by SIGKILL" => node.agent_mut()?.kill(),
            _ => {}
        }
        if !node.agent_mut()?.is_running() {
            node.agent_mut()?.start_again().await?;
        }
        node.containerd.wipe().await?;
        ensure_closed(&node, NAME).await?;
        // One that the registry knows, and that never opened this.
        ensure!(node.containerd.pull_as(NAME, &Login::password("bob", "builder")).await.is_err());
        ensure!(node.containerd.pull_as(NAME, &Login::password("alice", "wonderland")).await.is_err());
        let pulled = node.containerd.pull_as(NAME, &alice()).await;
        pulled.with_context(|| format!("alice in an outage, the agent ended: {ended}"))?;
    }
    ensure_nothing_secret_is_kept(&node, &registry)
}

/// What a token opened that the registry gave, it opens until it ends; nothing opens it from then on.
async fn nothing_is_remembered_when_that_is_turned_off(case: Case) -> Result<()> {
    let (mut registry, _) = registry(for_alice().lifetime(Duration::from_secs(2))).await?;
    let mut builder = case.builder()?.registry("reg.test", &registry.url())?;
    builder.agent.set_text("private", "remember", "0s");
    let mut node = builder.start().await?;
    node.containerd.pull_as(NAME, &alice()).await?;
    registry.refuse();
    until("the token has ended", Duration::from_secs(30), async || {
        node.containerd.wipe().await.ok()?;
        node.containerd.pull_as(NAME, &alice()).await.err()
    })
    .await?;
    node.agent_mut()?.stop()?;
    node.agent_mut()?.start_again().await?;
    ensure!(node.containerd.pull_as(NAME, &alice()).await.is_err(), "it was remembered in the cache's folder");
    until("it listens again", Duration::from_secs(5), async || registry.accept().ok()).await?;
    until("it is pulled again", Duration::from_secs(20), async || node.containerd.pull_as(NAME, &alice()).await.ok())
        .await?;
    Ok(())
}

/// Name and password, the two joined, an identity token; by POST, and by GET where the token server knows that alone.
async fn credentials_come_in_every_form(case: Case) -> Result<()> {
    let by_get_alone = for_alice().by_get_alone();
    let strict = for_alice().that_refuses_strangers();
    let cases = [
        (for_alice(), alice()),
        (for_alice(), Login::Encoded("alice".to_owned(), "wonder:land".to_owned())),
        (Challenge::bearer().identity("who-I-am", "acme/app"), Login::Identity("who-I-am".to_owned())),
        (by_get_alone, alice()),
        (strict, alice()),
    ];
    for (challenge, login) in cases {
        let (registry, _) = registry(challenge).await?;
        let node = node_of_the_agent_alone(case, &registry).await?;
        node.containerd.pull_as(NAME, &login).await.with_context(|| format!("{login:?}"))?;
        ensure!(tokens_of_agent(&registry, true) == 0, "{login:?}: anonymous tokens were fetched");
        ensure!(tokens_of_agent(&registry, false) > 0, "{login:?}: no token was fetched");
        ensure!(node.containerd.pull_as(NAME, &mallory()).await.is_err(), "{login:?}: mallory has it too");
        ensure_nothing_secret_is_kept(&node, &registry).with_context(|| format!("{login:?}"))?;
    }
    Ok(())
}

async fn a_basic_registry_is_asked_by_name(case: Case) -> Result<()> {
    let (mut registry, _) = registry(Challenge::basic().account("alice", "wonder:land", "acme/app")).await?;
    let node = node_of_the_agent_alone(case, &registry).await?;
    ensure_closed(&node, NAME).await?;
    node.containerd.pull_as(NAME, &alice()).await?;
    node.containerd.wipe().await?;
    ensure_closed(&node, NAME).await?;
    node.containerd.pull_as(NAME, &alice()).await?;
    registry.refuse();
    node.containerd.wipe().await?;
    ensure_closed(&node, NAME).await?;
    node.containerd.pull_as(NAME, &alice()).await.context("in an outage")?;
    ensure_nothing_secret_is_kept(&node, &registry)
}

/// Each token holds for two seconds: a layer that was cut is taken up with another.
async fn tokens_that_end_are_refreshed(case: Case) -> Result<()> {
    let (registry, image) = registry(for_alice().lifetime(Duration::from_secs(2))).await?;
    let layer = image.largest();
    // Four seconds for one layer of three.
    registry.fault(When::get(layer).first(1), Fault::Trickle(700 << 10));
    let long = Image::one_layer(2, 12);
    registry.add(&long, "acme/app", "v2");
    registry.fault(When::get(long.largest()).first(1), Fault::CutAt(6 << 20, Cut::Close));
    let node = node_of_the_agent_alone(case, &registry).await?;
    node.containerd.pull_as(NAME, &alice()).await?;
    node.containerd.pull_as("reg.test/acme/app:v2", &alice()).await?;
    ensure!(tokens_of_agent(&registry, true) == 0);
    ensure!(tokens_of_agent(&registry, false) > 1, "{:?}", registry.requests());
    Ok(())
}

const ACCESS_DENIED: &str =
    "pull access denied, repository does not exist or may require authorization: server message: insufficient_scope";

/// Word for word on 1.6 and 1.7; from 2.0 on as any refusal.
async fn a_refusal_reads_as_without_an_agent(case: Case) -> Result<()> {
    let kinds = [
        ("a token that opens nothing", for_alice()),
        ("a token server that refuses", for_alice().that_refuses_strangers()),
        ("Basic", Challenge::basic().account("alice", "wonder:land", "acme/app")),
    ];
    let bob = Login::password("bob", "builder");
    let with_bob = |challenge: Challenge| challenge.account("bob", "builder", "acme/other");
    for (kind, challenge) in kinds {
        let (registry, _) = registry(with_bob(challenge)).await?;
        let plain = case.builder()?.without_agent().registry("reg.test", &registry.url())?.start().await?;
        let node = case.node(&registry).await?;
        for (who, login) in [("nobody", None), ("mallory", Some(mallory())), ("bob", Some(bob.clone()))] {
            let without = refusal(&plain, login.as_ref()).await?;
            let with = refusal(&node, login.as_ref()).await?;
            // From 2.0 on containerd shows the first host's refusal, which is the agent's.
            let own_words = matches!(case.release, Release::Sid | Release::Newest) && with.contains(ACCESS_DENIED);
            ensure!(
                with == without || own_words,
                "{kind}, {who}: it says\n  {with}\nand without an agent\n  {without}"
            );
        }
    }
    Ok(())
}

/// What containerd says of a pull that must fail.
async fn refusal(node: &Node, login: Option<&Login>) -> Result<String> {
    let pulled = match login {
        Some(login) => node.containerd.pull_as(NAME, login).await,
        None => node.containerd.pull(NAME).await,
    };
    let error = pulled.err().with_context(|| format!("{login:?} could pull it"))?;
    Ok(format!("{error:#}"))
}

/// What was anybody's is not any more once the registry says so, and the other way round.
async fn a_repository_turns_private_and_public(case: Case) -> Result<()> {
    let (registry, image) = registry(Challenge::bearer().open("acme/app")).await?;
    let node = node_of_the_agent_alone(case, &registry).await?;
    node.containerd.pull(NAME).await?;

    registry.challenge(Some(for_alice()));
    node.containerd.wipe().await?;
    ensure_closed(&node, NAME).await.context("turned private")?;
    node.containerd.pull_as(NAME, &alice()).await?;
    // Now that this is known, by digest too.
    for blob in image.blobs().iter().chain(image.manifests()) {
        ensure_no_way_to(&node, "reg.test", "acme/app", blob, None).await?;
    }

    registry.challenge(None);
    node.containerd.wipe().await?;
    node.containerd.pull(NAME).await.context("turned public")?;
    Ok(())
}

/// A registry of mallory's lists the digests of a private image, and says of each that it has it.
async fn a_hostile_registry_gets_nothing_out(case: Case) -> Result<()> {
    let (registry, image) = registry(for_alice()).await?;
    let hostile = FaultRegistry::start().await?;
    hostile.add(&image, "mallory/app", "v1");
    for blob in image.blobs() {
        hostile.fault(When::get(blob), Fault::status(404));
    }
    let mut builder = closed(case.builder()?, &["reg.test", "evil.test"])?;
    builder.agent.registry("reg.test", &[&registry.url()]).registry("evil.test", &[&hostile.url()]);
    let mut node = builder.start().await?;
    node.containerd.pull_as(NAME, &alice()).await?;

    node.containerd.wipe().await?;
    ensure!(node.containerd.pull("evil.test/mallory/app:v1").await.is_err(), "mallory has the layers");
    for is_new in [false, true] {
        if is_new {
            node.agent_mut()?.kill();
            node.agent_mut()?.start_again().await?;
        }
        for blob in image.blobs() {
            ensure_no_way_to(&node, "evil.test", "mallory/app", blob, None).await?;
            ensure_no_way_to(&node, "evil.test", "mallory/app", blob, Some(mallory())).await?;
        }
    }
    // Who does have it, has to show all of it.
    hostile.heal();
    hostile.clear_log();
    let layer = image.largest();
    let reply = Puller::new(node.agent()?, "evil.test", None).get("mallory/app", &path_of(layer)).await?;
    ensure!(reply.expect(StatusCode::OK)?.body == layer.bytes);
    ensure!(hostile.sent(&layer.digest) == layer.bytes.len() as u64, "{:?}", hostile.requests());
    Ok(())
}

/// Bob may read a repository of the same registry, and names alice's layers in it.
async fn rights_to_one_repository_are_none_to_another(case: Case) -> Result<()> {
    let challenge = for_alice().account("bob", "builder", "bob/app");
    let (mut registry, image) = registry(challenge).await?;
    registry.add(&image, "bob/app", "stolen");
    image.blobs().iter().for_each(|blob| registry.hide("bob/app", blob));
    let own = Image::tiny(50);
    registry.add(&own, "bob/app", "v1");
    let bob = || Login::password("bob", "builder");
    let node = node_of_the_agent_alone(case, &registry).await?;
    node.containerd.pull_as(NAME, &alice()).await?;
    node.containerd.pull_as("reg.test/bob/app:v1", &bob()).await?;
    node.containerd.wipe().await?;

    ensure!(node.containerd.pull_as(NAME, &bob()).await.is_err(), "bob has alice's image");
    ensure!(node.containerd.pull_as("reg.test/bob/app:stolen", &bob()).await.is_err(), "bob has alice's layers");
    for blob in image.blobs() {
        ensure_no_way_to(&node, "reg.test", "bob/app", blob, Some(bob())).await?;
        ensure_no_way_to(&node, "reg.test", "acme/app", blob, Some(bob())).await?;
    }
    // Nor in an outage.
    registry.refuse();
    for blob in image.blobs() {
        ensure_no_way_to(&node, "reg.test", "bob/app", blob, Some(bob())).await?;
    }
    node.containerd.pull_as("reg.test/bob/app:v1", &bob()).await?;
    Ok(())
}

/// Neither without credentials nor with wrong ones.
async fn ensure_closed(node: &Node, name: &str) -> Result<()> {
    ensure!(node.containerd.pull(name).await.is_err(), "{name}: pulled without credentials");
    ensure!(node.containerd.pull_as(name, &mallory()).await.is_err(), "{name}: pulled with wrong credentials");
    Ok(())
}

/// Whatever was shown to the registry and its token server, and whatever that gave for it, is in no file of the agent's:
/// neither as it was said, nor as it was encoded on the way.
fn ensure_nothing_secret_is_kept(node: &Node, registry: &FaultRegistry) -> Result<()> {
    let secrets = registry.secrets();
    ensure!(!secrets.is_empty(), "nothing was shown to the registry");
    let own = ["wonder:land", "wonder%3Aland", "wonder%3aland", "who-I-am"].map(str::to_owned);
    let encoded = ["alice:wonder:land", "wonder:land", "who-I-am"].map(|secret| STANDARD_NO_PAD.encode(secret));
    let all = secrets.into_iter().chain(own).chain(encoded);
    let found = kept(node, &all.collect::<Vec<_>>())?;
    ensure!(found.is_empty(), "kept: {found}");
    let name = ["acme/app".to_owned()];
    ensure!(!kept(node, &name)?.is_empty(), "what is no secret isn't found either");
    Ok(())
}

/// Where in the agent's files, its log among them, these words stand.
fn kept(node: &Node, words: &[String]) -> Result<String> {
    let mut grep = std::process::Command::new("grep");
    // Files come and go while it reads.
    grep.args(["-raowFs", "--devices=skip"])
        .args(words.iter().flat_map(|word| ["-e", word]))
        .arg(node.agent()?.folder());
    Ok(String::from_utf8_lossy(&grep.output()?.stdout).into_owned())
}

/// The mirror doesn't give a blob to this caller, in any way to ask.
async fn ensure_no_way_to(
    node: &Node,
    registry: &str,
    repository: &str,
    blob: &Blob,
    login: Option<Login>,
) -> Result<()> {
    let who = format!("{repository} of {registry}, {}, {login:?}", blob.digest);
    let puller = Puller::new(node.agent()?, registry, login);
    let path = path_of(blob);
    let replies = [
        puller.get(repository, &path).await?,
        puller.get_range(repository, &path, "bytes=0-99").await?,
        puller.get_range(repository, &path, "bytes=100-").await?,
    ];
    for reply in replies {
        let refused = reply.status.is_client_error() || reply.status.is_server_error();
        ensure!(refused, "{who}: {}, {} bytes", reply.status, reply.body.len());
    }
    Ok(())
}

fn path_of(blob: &Blob) -> String {
    let kind = if blob.media_type.contains("manifest") { "manifests" } else { "blobs" };
    format!("{kind}/{}", blob.digest)
}

/// How many tokens the agent has asked for: anonymous ones, or others.
fn tokens_of_agent(registry: &FaultRegistry, anonymous: bool) -> usize {
    let requests = registry.requests();
    let tokens = requests.iter().filter(|request| request.path() == "/token" && asked_by_agent(request));
    tokens.filter(|request| request.is_for_an_anonymous_token() == anonymous).count()
}

/// containerd's pulls of these registries end at the agent.
fn closed(mut builder: NodeBuilder, registries: &[&str]) -> Result<NodeBuilder> {
    let nowhere = format!("server = \"http://127.0.0.1:{}\"\n", free_port()?);
    for name in registries {
        builder = builder.hosts(name, &nowhere)?;
    }
    Ok(builder)
}

async fn node_of_the_agent_alone(case: Case, registry: &FaultRegistry) -> Result<Node> {
    let mut builder = closed(case.builder()?, &["reg.test"])?;
    builder.agent.registry("reg.test", &[&registry.url()]);
    builder.start().await
}
