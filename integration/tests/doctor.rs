//! The canary and doctor, on containerds set up right and wrong.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use larder_integration::{Agent, FaultRegistry, Image, Node, NodeBuilder, Proxy, Release, free_port, until};

use crate::support::{Case, ensure_only_the_agent_asked, on_every_containerd, run};

on_every_containerd!(set_up_right);
on_every_containerd!(over tls:
    config_path_is_unset,
    config_path_names_another_folder,
    config_path_is_a_list,
    mirrors_stand_beside_it,
    a_folder_shadows_the_default,
    containerd_is_gone,
    config_path_is_fixed,
    containerd_has_a_proxy,
);

/// Starts the node; waits until the canary has run, and says whether it arrived.
async fn canary(builder: NodeBuilder) -> Result<(Node, bool)> {
    let node = builder.start().await?;
    let agent = node.agent()?;
    let ran = async || (agent.metrics().await.ok()?.sum("larder_canary_runs_total", &[]) >= 1.0).then_some(());
    until("the canary has run", Duration::from_secs(30), ran).await?;
    let arrived = agent.metrics().await?.sum("larder_canary_success", &[]) == 1.0;
    Ok((node, arrived))
}

async fn doctor(agent: &Agent) -> Result<(Output, String)> {
    let output = agent.command(&["doctor"]).await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    eprintln!("---- larder doctor: {}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok((output, said))
}

async fn set_up_right(case: Case) -> Result<()> {
    let (node, arrived) = canary(case.builder()?).await?;
    ensure!(arrived, "the canary didn't arrive");
    let (output, _) = doctor(node.agent()?).await?;
    ensure!(output.status.code() == Some(0));
    ensure!(!node.containerd.images().await?.iter().any(|name| name.contains("larder.invalid")), "the canary stays");
    Ok(())
}

/// What packages ship.
async fn config_path_is_unset(case: Case) -> Result<()> {
    let mut builder = case.builder()?;
    builder.containerd.config_path = None;
    let hosts_dir = builder.hosts_dir();
    ensure_doctor_finds(builder, &hosts_dir).await
}

async fn config_path_names_another_folder(case: Case) -> Result<()> {
    let mut builder = case.builder()?;
    builder.containerd.config_path = Some(builder.folder().join("elsewhere").display().to_string());
    let hosts_dir = builder.hosts_dir();
    ensure_doctor_finds(builder, &hosts_dir).await
}

/// Fine where containerd splits it, and silently of no use in the transfer mode of 2.1 and later.
async fn config_path_is_a_list(case: Case) -> Result<()> {
    let mut builder = case.builder()?;
    let hosts_dir = builder.hosts_dir();
    builder.containerd.config_path =
        Some(format!("{}:{}", hosts_dir.display(), builder.folder().join("more").display()));
    if case.release.minor()? >= (2, 1) {
        ensure_doctor_finds(builder, &hosts_dir).await
    } else {
        let (node, arrived) = canary(builder).await?;
        ensure!(arrived, "the canary didn't arrive");
        ensure!(doctor(node.agent()?).await?.0.status.code() == Some(0));
        Ok(())
    }
}

/// containerd then runs without CRI.
async fn mirrors_stand_beside_it(case: Case) -> Result<()> {
    let mut builder = case.builder()?;
    let table = match case.release.minor()? {
        (1, _) => "io.containerd.grpc.v1.cri",
        _ => "io.containerd.cri.v1.images",
    };
    builder.containerd.registry =
        format!("[plugins.\"{table}\".registry.mirrors.\"docker.io\"]\n  endpoint = [\"https://m.test\"]");
    builder.containerd.expects_cri = false;
    let node = builder.start().await?;
    let (output, said) = doctor(node.agent()?).await?;
    ensure!(output.status.code() == Some(1));
    ensure!(said.contains("mirrors"));
    Ok(())
}

/// A folder for the canary's registry, of somebody else's: ours comes first in it all the same.
async fn a_folder_shadows_the_default(case: Case) -> Result<()> {
    let text =
        "server = \"http://127.0.0.1:9\"\n[host.\"http://127.0.0.1:9\"]\n  capabilities = [\"pull\", \"resolve\"]\n";
    let builder = case.builder()?.hosts("larder.invalid", text)?;
    let (node, arrived) = canary(builder).await?;
    ensure!(arrived, "the canary didn't arrive");
    // An agent that may write no entry there is told so by doctor.
    let mut builder = case.builder()?.hosts("larder.invalid", text)?;
    builder.agent.set("containerd", "registries", "[]");
    builder.expects_entry = false;
    drop(node);
    let (node, arrived) = canary(builder).await?;
    ensure!(!arrived);
    ensure!(doctor(node.agent()?).await?.0.status.code() == Some(1));
    Ok(())
}

/// The agent runs and serves; doctor says that it could not check.
async fn containerd_is_gone(case: Case) -> Result<()> {
    let mut node = case.builder()?.start().await?;
    node.containerd.kill();
    let (output, said) = doctor(node.agent()?).await?;
    ensure!(output.status.code().is_some_and(|code| code != 0));
    ensure!(said.contains("containerd.sock"), "it names the socket");
    let url = format!("{}/v2/", node.agent()?.mirror());
    ensure!(node.agent()?.http().get(&url).await?.status == 200);
    Ok(())
}

/// containerd goes out by a proxy: the agent, which copies nothing by itself, has to as well.
async fn containerd_has_a_proxy(case: Case) -> Result<()> {
    let proxy = Proxy::start().await?;
    // Whatever the test's own environment says.
    let environment = |https: &str, except: &str| {
        [("HTTP_PROXY", ""), ("HTTPS_PROXY", https), ("NO_PROXY", except)]
            .into_iter()
            .flat_map(|(name, value)| [name.to_owned(), name.to_lowercase()].map(|name| (name, value.to_owned())))
            .collect::<Vec<_>>()
    };
    let by_proxy = environment(&proxy.url_as("ann", "hunter2"), "127.0.0.0/8,localhost");
    for (of_agent, finds) in [(environment("", ""), true), (by_proxy.clone(), false)] {
        let mut builder = case.builder()?;
        builder.containerd.environment = by_proxy.clone();
        builder.agent.environment = of_agent;
        let (node, arrived) = canary(builder).await?;
        ensure!(arrived, "containerd doesn't come past its proxy");
        let (output, said) = doctor(node.agent()?).await?;
        ensure!(output.status.code() == Some(i32::from(finds)));
        let found = said.contains("containerd goes to registries by http://ann:PASSWORD@")
            && said.contains("the agent goes directly");
        ensure!(found == finds && said.contains("HTTPS_PROXY") == finds && !said.contains("hunter2"));
    }
    Ok(())
}

/// `--fix` writes what is missing, once it is told to, and after a restart of containerd a pull comes through.
async fn config_path_is_fixed(case: Case) -> Result<()> {
    for version in if case.release.minor()?.0 == 1 { ["2", "1"] } else { ["3", "2"] } {
        ensure_fixed(case, version).await.with_context(|| format!("a file with version = {version}"))?;
    }
    Ok(())
}

async fn ensure_fixed(case: Case, version: &str) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    registry.add(&Image::one_layer(21, 2), "acme/app", "v1");
    let mut builder = case.builder()?.registry("reg.test", &registry.url())?;
    builder.containerd.config_path = None;
    let mut node = builder.start().await?;
    let file = node.containerd.config();
    let text = format!("# Kept.\n{}", as_version(&std::fs::read_to_string(&file)?, version));
    node.containerd.kill();
    std::fs::write(&file, &text)?;
    node.containerd.start_again().await?;
    let agent = node.agent()?;

    // Nobody is there to be asked.
    let output = agent.command(&["doctor", "--fix"]).await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && said.contains("--yes"), "{said}");
    ensure!(std::fs::read_to_string(&file)? == text, "it was changed without asking");

    let said = agent.say(&["doctor", "--fix", "--yes"]).await?;
    eprintln!("---- larder doctor --fix\n{said}");
    ensure!(said.contains("containerd config dump agrees") && said.contains("systemctl restart containerd"), "{said}");
    let changed = std::fs::read_to_string(&file)?;
    // Line by line it is what it was, but for what is new; one without version = … may get no other.
    let mut rest = changed.lines();
    ensure!(text.lines().all(|line| rest.any(|other| other == line)), "{changed}");
    let names = || std::fs::read_dir(node.folder().join("containerd"));
    let backups: Vec<_> =
        names()?.flatten().filter(|entry| entry.file_name().to_string_lossy().contains(".before-larder-")).collect();
    ensure!(backups.len() == 1 && std::fs::read_to_string(backups[0].path())? == text);
    // A second time there is nothing to do.
    ensure!(agent.command(&["doctor", "--fix", "--yes"]).await?.stdout.ends_with(b"nothing to do.\n"));
    ensure!(std::fs::read_to_string(&file)? == changed);

    node.containerd.kill();
    node.containerd.start_again().await?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    ensure_only_the_agent_asked(&registry)?;
    ensure!(doctor(node.agent()?).await?.0.status.code() == Some(0));
    Ok(())
}

/// The fixture's file in an older format.
fn as_version(text: &str, version: &str) -> String {
    let images = "[plugins.\"io.containerd.cri.v1.images\"]";
    match version {
        // Plugins have short names, and there is no version.
        "1" => text
            .replace("version = 2\n", "")
            .replace("\"io.containerd.grpc.v1.cri\"", "cri")
            .replace("\"io.containerd.internal.v1.opt\"", "opt")
            .replace("\"io.containerd.nri.v1.nri\"", "nri"),
        "2" if text.contains("version = 3\n") => {
            let lines = text.lines().filter(|line| *line != images && !line.starts_with("pinned_images"));
            lines
                .map(|line| format!("{line}\n"))
                .collect::<String>()
                .replace("version = 3\n", "version = 2\n")
                .replace("io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri")
                .replace("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri")
        }
        _ => text.to_owned(),
    }
}

/// Somebody else has the mirror's port: the agent says so, and who.
#[test]
fn the_port_is_taken() {
    run(async {
        let mut builder = Node::builder(Release::Bookworm)?;
        let port = free_port()?;
        let taken = std::net::TcpListener::bind(("127.0.0.1", port))?;
        builder.agent.set_text("mirror", "listen", &format!("127.0.0.1:{port}"));
        let folder = builder.folder().join("larder");
        let agent = Agent::prepare(&folder, &builder.agent)?;
        let output = agent.command(&["run"]).await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains(&port.to_string()), "{said}");
        let (output, said) = doctor(&agent).await?;
        ensure!(output.status.code() == Some(1) && said.contains(&port.to_string()));
        drop(taken);
        Ok(())
    });
}

/// The canary doesn't arrive, doctor ends with 1, and prints the line that mends it.
async fn ensure_doctor_finds(builder: NodeBuilder, hosts_dir: &Path) -> Result<()> {
    let (node, arrived) = canary(builder).await?;
    ensure!(!arrived, "the canary arrived though it can't have");
    let (output, said) = doctor(node.agent()?).await?;
    ensure!(output.status.code() == Some(1));
    let line = format!("config_path = \"{}\"", hosts_dir.display());
    ensure!(said.contains(&line) || said.contains(&line.replace('"', "'")), "it doesn't print: {line}");
    Ok(())
}
