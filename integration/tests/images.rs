//! `larder images`: what runs on a node, and anywhere in a cluster.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_integration::{Agent, FaultRegistry, Image, Labels, until};
use serde_json::Value;

use crate::support::{Case, on_every_containerd};

on_every_containerd!(over tls: what_runs_is_listed);

const APP: &str = "reg.test/acme/app:v1";
/// From a change in containerd to its being shown.
const SOON: Duration = Duration::from_secs(15);

/// The columns of an image's row, as `larder images` prints it.
async fn row(agent: &Agent, image: &str) -> Result<Vec<String>> {
    let table = agent.say(&["images", "--no-headers"]).await?;
    let row = table.lines().find(|line| line.starts_with(&format!("{image} "))).context(table.clone())?;
    Ok(row.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect())
}

/// `12s`
fn is_moments_ago(cell: &str) -> bool {
    cell.strip_suffix('s').is_some_and(|seconds| seconds.parse::<u64>().is_ok())
}

async fn what_runs_is_listed(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let app = Image::runnable(1)?;
    registry.add(&app, "acme/app", "v1");
    let node = case.node(&registry).await?;
    let agent = node.agent()?;
    let empty = agent.command(&["images"]).await?;
    ensure!(empty.status.success() && empty.stdout.is_empty(), "{empty:?}");

    node.containerd.pull(APP).await?;
    let container = node.containerd.run(APP, &Labels::of_container("shop", "web-0", "app")).await?;
    let used = async || {
        let row = row(agent, APP).await.ok()?;
        (row.get(4).map(String::as_str) == Some("shop/web-0/app")).then_some(row)
    };
    let used = until("the image is shown as used", SOON, used).await?;
    ensure!(used.len() == 8 && used[5].ends_with("iB") && used[7] == "-", "{used:?}");
    // It was pulled through the agent, from a registry that gives it to anybody.
    let judged = async || {
        let row = row(agent, APP).await.ok()?;
        (row[1..4] == ["Available", "yes", "1"] && is_moments_ago(&row[6])).then_some(())
    };
    let judged = until("it is shown as safe, and as seen upstream", SOON, judged).await;
    judged.with_context(|| format!("{used:?}"))?;
    let headers = agent.say(&["images"]).await?;
    ensure!(headers.starts_with("IMAGE  ") && headers.contains("   LAST SEEN UPSTREAM   "), "{headers}");

    let shown = async || -> Option<Value> {
        let json: Value = serde_json::from_str(&agent.say(&["images", "-o", "json"]).await.ok()?).ok()?;
        let image = json["images"].as_array()?.iter().find(|image| image["name"] == APP)?.clone();
        // A container is there a moment before it runs.
        (json["complete"] == true && image["used_by"][0]["stopped"] == false).then_some(image)
    };
    let image = until("it is shown as running in the JSON", SOON, shown).await?;
    ensure!(image["digest"] == app.root().digest.as_str() && image["kept"]["why"] == "in_use", "{image}");
    let wide = agent.say(&["images", "-o", "wide"]).await?;
    ensure!(wide.contains(&app.root().digest), "{wide}");

    // What has stopped still uses its image; what is gone doesn't.
    node.containerd.stop(&container).await?;
    node.containerd.remove(&container).await?;
    let unused = async || row(agent, APP).await.ok().filter(|row| row[4] == "-" && row[7] != "-");
    until("the image is shown as unused, and when it goes", SOON, unused).await?;
    Ok(())
}
