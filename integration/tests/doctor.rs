//! The canary and doctor, on containerds set up right and wrong.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use anyhow::{Result, ensure};
use larder_integration::{Agent, Node, NodeBuilder, Release, free_port, until};

use crate::support::{Case, on_every_containerd, run};

on_every_containerd!(set_up_right);
on_every_containerd!(over tls:
    config_path_is_unset,
    config_path_names_another_folder,
    config_path_is_a_list,
    mirrors_stand_beside_it,
    a_folder_shadows_the_default,
    containerd_is_gone,
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
