//! Nodes with IPv6 alone, with IPv4 alone, and with both of which one is dead.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use http::StatusCode;
use larder_integration::{
    Agent, AgentConfig, Cluster, Fault, FaultRegistry, Folder, Host, Http, Image, Namespace, Network, Node, PEERS_PORT,
    Release, When, until,
};

use crate::support::{Case, asked_by_agent, ensure_only_the_agent_asked, on_every_containerd, run};

on_every_containerd!(over tls: a_node_without_ipv4);

const NAME: &str = "reg.test/acme/app:v1";
const MANIFEST: &str = "/v2/acme/app/manifests/v1?ns=reg.test";
/// Of the node without IPv4, and of the registry on it.
const SIX: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);

/// Long enough that a machine with much to do isn't taken for a dead family.
const CONNECT: Duration = Duration::from_secs(8);

/// What `/etc/hosts` says to the agent, for as long as the folder is there.
fn knows(config: &mut AgentConfig, folder: &Folder, hosts: &str) -> Result<()> {
    let file = folder.path().join("hosts");
    std::fs::write(&file, hosts)?;
    config.with_mounts(&[format!("mount --bind {} /etc/hosts", file.display())]);
    Ok(())
}

/// Containerd, the agent, its metrics and a registry that has AAAA records alone. From 2.0 on not even a loopback
/// address is there; before, containerd can't read a hosts.toml that names an address of IPv6, the mirror's either.
async fn a_node_without_ipv4(case: Case) -> Result<()> {
    let namespace = Namespace::new()?;
    let has_loopback = case.release.minor()?.0 == 1;
    namespace.ip(&format!("addr add {SIX}/128 dev lo nodad\n"))?;
    if !has_loopback {
        namespace.ip("addr delete 127.0.0.1/8 dev lo\n")?;
    }
    let registry = FaultRegistry::start_within(&namespace, SocketAddr::new(SIX.into(), 5000))?;
    registry.add(&Image::one_layer(7, 3), "acme/app", "v1");
    let folder = Folder::new()?;
    let mut builder = case.builder()?.hosts("reg.test", &format!("server = {:?}\n", registry.url()))?;
    // What kubelet's exec and logs come through is at 127.0.0.1 otherwise, and containerd ends without that.
    if !has_loopback {
        builder.containerd.tables =
            "[plugins.\"io.containerd.grpc.v1.cri\"]\nstream_server_address = \"::1\"\n".to_owned();
    }
    builder.containerd.namespace = Some(namespace.clone());
    builder.agent.namespace = Some(namespace);
    builder.agent.is_v6 = !has_loopback;
    builder.agent.registry("reg.test", &["http://six.test:5000"]);
    knows(&mut builder.agent, &folder, &format!("{SIX} six.test\n"))?;
    let node = builder.start().await?;
    let agent = node.agent()?;
    ensure!(has_loopback || agent.address().starts_with("[::1]:"));

    node.containerd.pull(NAME).await?;
    ensure_only_the_agent_asked(&registry)?;
    let entry = std::fs::read_to_string(node.hosts_dir().join("_default/hosts.toml"))?;
    ensure!(entry.contains(&format!("[host.\"https://{}\"]", agent.address())), "{entry}");
    // From the cache too, which a blob of this size reaches by a redirect.
    node.containerd.wipe().await?;
    registry.clear_log();
    node.containerd.pull(NAME).await?;
    ensure!(registry.count("GET", "/blobs/") == 0, "{:?}", registry.requests());
    Ok(())
}

/// What containerd can't read isn't written: the hosts of the user's own in that file would be gone with ours.
#[test]
fn what_containerd_cant_read_is_not_written() {
    run(async {
        let registry = FaultRegistry::start().await?;
        registry.add(&Image::one_layer(7, 3), "acme/app", "v1");
        let url = registry.url();
        let own = format!("server = {url:?}\n\n[host.{url:?}]\n  capabilities = [\"pull\", \"resolve\"]\n");
        let mut builder = Node::builder(Release::Bookworm)?.hosts("reg.test", &own)?;
        builder.agent.is_v6 = true;
        builder.expects_entry = false;
        let node = builder.start().await?;
        let agent = node.agent()?;
        let told = async || agent.log().contains("containerd isn't told of the mirror").then_some(());
        until("it says so", Duration::from_secs(20), told).await?;
        node.containerd.pull(NAME).await?;
        ensure!(!registry.requests().iter().any(asked_by_agent), "{:?}", registry.requests());
        ensure!(std::fs::read_to_string(node.hosts_dir().join("reg.test/hosts.toml"))? == own);
        ensure!(!node.hosts_dir().join("_default").exists());
        Ok(())
    });
}

/// An agent by itself, whose `reg.test` is at `both.test`.
fn alone(folder: &Folder, namespace: &Namespace) -> AgentConfig {
    let mut config = AgentConfig::without_containerd(folder.path());
    config.namespace = Some(namespace.clone());
    config.registry("reg.test", &["http://both.test"]);
    config
}

/// A family through which nothing comes costs a moment, whichever of the two it is.
#[test]
fn a_dead_family_is_raced() {
    run(async {
        for dead in ["IPv6", "IPv4"] {
            let network = Network::new()?;
            let (node, server) = (network.host(None)?, network.host(None)?);
            let (four, six) = (server.address(), "2001:db8::2");
            node.namespace().ip("addr add 2001:db8::1/64 dev eth0 nodad\n")?;
            server.namespace().ip(&format!("addr add {six}/64 dev eth0 nodad\n"))?;
            // Nobody has this hardware address: what is sent there is lost, and nobody is told.
            let gone = if dead == "IPv6" { six.to_owned() } else { four.to_string() };
            let nobody = "lladdr 02:00:00:00:00:01 dev eth0 nud permanent";
            node.namespace().ip(&format!("neigh replace {gone} {nobody}\n"))?;
            let registries = [
                FaultRegistry::start_within(server.namespace(), (four, 80).into())?,
                FaultRegistry::start_within(server.namespace(), SocketAddr::new(six.parse()?, 80))?,
            ];
            registries.iter().for_each(|registry| registry.add(&Image::tiny(8), "acme/app", "v1"));
            let folder = Folder::new()?;
            let mut config = alone(&folder, node.namespace());
            config.set_text("mirror", "connect_timeout", &format!("{}s", CONNECT.as_secs()));
            knows(&mut config, &folder, &format!("{four} both.test\n{six} both.test\n"))?;
            let agent = Agent::start(&folder.path().join("larder"), &config).await?;
            let reply = agent.http().get(&format!("{}{MANIFEST}", agent.mirror())).await?.expect(StatusCode::OK)?;
            // One after the other, the dead one would take half of the time for both.
            ensure!(reply.to_head < CONNECT * 3 / 8, "with {dead} dead: {:?}", reply.to_head);
            let asked: Vec<_> = registries.iter().map(|registry| !registry.requests().is_empty()).collect();
            ensure!(asked == [dead == "IPv6", dead == "IPv4"], "with {dead} dead: {asked:?}");
        }
        Ok(())
    });
}

/// `[::]` takes both, also where the kernel is told that it shouldn't, and where no interface has an IPv6 address.
#[test]
fn every_address_is_every_address() {
    run(async {
        for (variable, value) in [("net/ipv6/bindv6only", "1"), ("net/ipv6/conf/all/disable_ipv6", "1")] {
            let namespace = Namespace::new()?;
            namespace.set(variable, value)?;
            let folder = Folder::new()?;
            let mut config = alone(&folder, &namespace);
            config.set_text("metrics", "listen", "[::]:7442");
            let mut agent = Agent::prepare(&folder.path().join("larder"), &config)?;
            agent.launch()?;
            let http = Http::within(Some(namespace));
            let answers = async || http.get("http://127.0.0.1:7442/readyz").await.ok();
            until("the metrics answer over IPv4", Duration::from_secs(10), answers).await?;
        }
        Ok(())
    });
}

/// Peers that have no IPv4 find each other, and fetch once for both.
#[test]
fn peers_without_ipv4() {
    run(async {
        let network = Network::new()?;
        let only_six = |host: &Host, number: u16| -> Result<Ipv6Addr> {
            let address = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 1, number);
            let four = host.address();
            host.namespace().ip(&format!("addr add {address}/64 dev eth0 nodad\naddr delete {four}/16 dev eth0\n"))?;
            host.namespace().ip("addr delete 127.0.0.1/8 dev lo\n")?;
            Ok(address)
        };
        let server = network.host(None)?;
        let registry = FaultRegistry::start_within(server.namespace(), (only_six(&server, 9)?, 80).into())?;
        let image = Image::one_layer(9, 12);
        registry.add(&image, "acme/app", "v1");
        // Slower than the nodes are to each other, as registries are.
        registry.fault(When::get(image.largest()), Fault::Trickle(6 << 20));
        let builder = Cluster::builder(&network, 2, None)?.registry("reg.test", &[&registry.url()]);
        let mut seeds = Vec::new();
        for (host, number) in builder.hosts().iter().zip(1..) {
            seeds.push(format!("[{}]:{PEERS_PORT}", only_six(host, number)?));
        }
        let builder = builder.seeds(&seeds.iter().map(String::as_str).collect::<Vec<_>>()).configure(|_, config| {
            config.is_v6 = true;
            config.set_text("peers", "listen", &format!("[::]:{PEERS_PORT}"));
        });
        // Settled: each knows both.
        let cluster = builder.start().await?;
        cluster.pull(NAME, &image).await?;
        ensure!(registry.copies(&image) <= 1.0, "{} copies", registry.copies(&image));
        let peers = cluster.member(0).agent.say(&["status", "--peers"]).await?;
        ensure!(seeds.iter().all(|seed| peers.contains(seed)), "{peers}");
        Ok(())
    });
}

/// Nodes of both families, found as a headless Service lists them: by all addresses, a node's own second one among them,
/// which is no twin of it. Whichever family a node tells of itself, the others reach it there.
#[test]
fn peers_with_both_families() {
    run(async {
        let network = Network::new()?;
        let registry = FaultRegistry::start_on(&network.host(None)?)?;
        let image = Image::one_layer(10, 12);
        registry.add(&image, "acme/app", "v1");
        // Slower than the nodes are to each other, as registries are.
        registry.fault(When::get(image.largest()), Fault::Trickle(6 << 20));
        let builder = Cluster::builder(&network, 2, None)?.registry("reg.test", &[&registry.url()]);
        let mut addresses = Vec::new();
        for (host, number) in builder.hosts().iter().zip(1..) {
            let six = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 2, number);
            host.namespace().ip(&format!("addr add {six}/64 dev eth0 nodad\n"))?;
            addresses.push([IpAddr::from(host.address()), six.into()]);
        }
        let seeds: Vec<String> =
            addresses.iter().flatten().map(|ip| SocketAddr::new(*ip, PEERS_PORT).to_string()).collect();
        let told = [addresses[0][0], addresses[1][1]];
        let builder = builder.seeds(&seeds.iter().map(String::as_str).collect::<Vec<_>>());
        let builder = builder.configure(move |number, config| {
            config.set_text("peers", "listen", &format!("[::]:{PEERS_PORT}"));
            config.set_text("peers", "advertise", &told[number].to_string());
        });
        let cluster = builder.start().await?;
        cluster.pull(NAME, &image).await?;
        ensure!(registry.copies(&image) <= 1.0, "{} copies", registry.copies(&image));
        for number in 0..2 {
            let peers = cluster.member(number).agent.say(&["status", "--peers"]).await?;
            let shown = told.iter().all(|ip| peers.contains(&SocketAddr::new(*ip, PEERS_PORT).to_string()));
            ensure!(shown, "{peers}");
        }
        ensure!(cluster.sum("larder_peer_member_events_total", &["event=\"twin\""]).await == 0.0);
        Ok(())
    });
}
