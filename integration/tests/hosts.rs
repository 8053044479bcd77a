//! The entries in certs.d: written over users' files, and every byte given back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_integration::{FaultRegistry, Image, Request, Transport, listing, until};

use crate::support::{Case, asked_by_agent, ensure_only_the_agent_asked, on_every_containerd};

on_every_containerd!(users_files_come_back_byte_for_byte);
on_every_containerd!(over tls: folders_that_appear_get_an_entry, the_users_own_mirrors_stay_in_use);
on_every_containerd!(over tls: the_users_own_mirror_is_asked_by_the_agent);

/// Files of every kind that users have.
const FILES: [(&str, &str); 5] = [
    (
        "plain.test/hosts.toml",
        "# Ours.\nserver = \"https://plain.test\"\n\n[host.\"https://m.test\"]\n  capabilities = [\"pull\"]\n",
    ),
    ("inline.test/hosts.toml", "host.\"https://m.test\" = { capabilities = [\"pull\"], skip_verify = true }\n"),
    ("broken.test/hosts.toml", "server = \n[[["),
    ("empty.test/hosts.toml", ""),
    ("certs.test/ca.crt", "-----BEGIN CERTIFICATE-----\n"),
];

async fn users_files_come_back_byte_for_byte(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    registry.add(&Image::tiny(1), "acme/app", "v1");
    let builder = case.builder()?.registry("reg.test", &registry.url())?;
    for (path, text) in FILES {
        let path = builder.hosts_dir().join(path);
        std::fs::create_dir_all(path.parent().context("a parent")?)?;
        std::fs::write(path, text)?;
    }
    std::os::unix::fs::symlink("plain.test", builder.hosts_dir().join("linked.test"))?;
    let before = listing(&builder.hosts_dir(), &[])?;
    let mut node = builder.start().await?;
    let applied = listing(node.hosts_dir(), &[])?;
    ensure!(applied != before && applied.contains_key(&node.hosts_dir().join("_default/hosts.toml")), "{applied:?}");

    // containerd reads what was written.
    node.containerd.pull("reg.test/acme/app:v1").await?;
    ensure_only_the_agent_asked(&registry)?;

    // A second time changes nothing.
    node.agent_mut()?.stop()?;
    node.agent()?.say(&["hosts", "apply"]).await?;
    ensure!(listing(node.hosts_dir(), &[])? == applied, "applied again, something else is there");
    ensure!(node.agent()?.say(&["hosts", "show"]).await?.contains("plain.test"));

    node.agent()?.say(&["hosts", "restore"]).await?;
    ensure!(listing(node.hosts_dir(), &[])? == before, "{:?}", listing(node.hosts_dir(), &[])?);
    registry.clear_log();
    node.containerd.wipe().await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    ensure!(!registry.requests().iter().any(asked_by_agent), "restored, containerd goes to its upstream");
    Ok(())
}

/// The first folder that exists wins over `_default`: one that somebody makes would take a registry away from us.
async fn folders_that_appear_get_an_entry(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    registry.add(&Image::tiny(2), "acme/app", "v1");
    let mut builder = case.builder()?;
    builder.agent.registry("reg.test", &[&registry.url()]);
    let node = builder.start().await?;
    let file = node.hosts_dir().join("reg.test/hosts.toml");
    let theirs = format!(
        "server = {:?}\n[host.{:?}]\n  capabilities = [\"pull\", \"resolve\"]\n",
        registry.url(),
        registry.url()
    );
    std::fs::create_dir(node.hosts_dir().join("reg.test"))?;
    std::fs::write(&file, &theirs)?;
    let ours = format!("127.0.0.1:{}", node.agent()?.mirror_port());
    let entered = async || std::fs::read_to_string(&file).ok()?.contains(&ours).then_some(());
    until("the new folder gets an entry", Duration::from_secs(20), entered).await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    ensure_only_the_agent_asked(&registry)?;

    // They change it once more; their change is what comes back.
    let changed = format!("# Changed.\n{theirs}");
    std::fs::write(&file, &changed)?;
    until("the changed file gets an entry", Duration::from_secs(20), entered).await?;
    node.agent()?.say(&["hosts", "restore"]).await.ok();
    Ok(())
}

/// Without the agent, the user's own hosts are asked in their order.
async fn the_users_own_mirrors_stay_in_use(case: Case) -> Result<()> {
    let (first, second) = (FaultRegistry::start().await?, FaultRegistry::start().await?);
    for registry in [&first, &second] {
        registry.add(&Image::tiny(3), "acme/app", "v1");
    }
    let host =
        |registry: &FaultRegistry| format!("[host.{:?}]\n  capabilities = [\"pull\", \"resolve\"]\n", registry.url());
    let text = format!("server = {:?}\n{}{}", second.url(), host(&first), host(&second));
    let mut builder = case.builder()?.hosts("reg.test", &text)?;
    builder.agent.registry("reg.test", &[&second.url()]);
    let mut node = builder.start().await?;
    node.agent_mut()?.kill();
    node.containerd.pull("reg.test/acme/app:v1").await?;
    ensure!(!first.requests().is_empty() && second.requests().is_empty());
    Ok(())
}

/// What worked before the agent works through it: a mirror with a path, a CA, a client certificate and a header, of a
/// registry that is down.
async fn the_users_own_mirror_is_asked_by_the_agent(case: Case) -> Result<()> {
    let (first, second) = (FaultRegistry::start_over(Transport::Mutual).await?, FaultRegistry::start().await?);
    first.add(&Image::one_layer(4, 3), "proxy/acme/app", "v1");
    second.add(&Image::tiny(5), "acme/app", "v2");
    second.add(&Image::tiny(6), "acme/app", "v3");
    let mirror = format!("{}/v2/proxy", first.url());
    let fields = "capabilities = [\"pull\", \"resolve\"]\n  override_path = true\n  ca = \"corp.pem\"\n  \
                  client = [[\"c.pem\", \"c.key\"]]";
    let text = format!("[host.{mirror:?}]\n  {fields}\n  [host.{mirror:?}.header]\n    x-team = \"builds\"\n");
    let builder = case.builder()?.hosts("reg.test", &text)?;
    let (certificate, key) = first.client_certificate();
    for (file, text) in [("corp.pem", first.ca()), ("c.pem", certificate), ("c.key", key)] {
        std::fs::write(builder.hosts_dir().join("reg.test").join(file), text)?;
    }
    let mut node = builder.start().await?;

    node.containerd.pull("reg.test/acme/app:v1").await?;
    ensure_only_the_agent_asked(&first)?;
    let with_header = |request: &Request| request.header("x-team") == Some("builds");
    ensure!(!first.requests().is_empty() && first.requests().iter().all(with_header), "{:?}", first.requests());
    for command in [["status"].as_slice(), &["hosts", "show"]] {
        let said = node.agent()?.say(command).await?;
        ensure!(said.contains(&format!("reg.test: {mirror}, from")), "{said}");
    }

    // Another mirror in the same file is asked from then on.
    let text = format!("[host.{:?}]\n  capabilities = [\"pull\", \"resolve\"]\n", second.url());
    std::fs::write(node.hosts_dir().join("reg.test/hosts.toml"), text)?;
    let agent = node.agent()?;
    let (file, own) = (node.hosts_dir().join("reg.test/hosts.toml"), format!("127.0.0.1:{}", agent.mirror_port()));
    let taken_over = async || {
        let is_asked = agent.say(&["status"]).await.ok()?.contains(&second.url());
        (is_asked && std::fs::read_to_string(&file).ok()?.contains(&own)).then_some(())
    };
    until("the new mirror is taken over", Duration::from_secs(20), taken_over).await?;
    node.containerd.pull("reg.test/acme/app:v2").await?;
    ensure!(!second.requests().is_empty());
    ensure_only_the_agent_asked(&second)?;

    // Told not to, the agent asks neither, and containerd still does.
    node.agent_mut()?.stop()?;
    let config = node.agent()?.config();
    let text = std::fs::read_to_string(&config)?;
    std::fs::write(&config, text.replace("[containerd]\n", "[containerd]\nadopt_mirrors = false\n"))?;
    node.agent_mut()?.launch()?;
    node.agent_mut()?.ready().await?;
    second.clear_log();
    node.containerd.pull("reg.test/acme/app:v3").await?;
    ensure!(!second.requests().iter().any(asked_by_agent), "{:?}", second.requests());
    Ok(())
}
