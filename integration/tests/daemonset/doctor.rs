//! `larder doctor`, asked in the Pod: it tells what is wrong from what it merely doesn't see.

use anyhow::{Result, ensure};
use larder_integration::{FaultRegistry, Folder, Transport};

use super::node;
use crate::support::Case;

mod it_knows_where_it_is {
    use super::it_knows_where_it_is as scenario;
    use crate::support::each_release;
    each_release! { scenario tls true }
}

/// A user's file names a CA in a folder that the DaemonSet doesn't mount; all else is well.
async fn it_knows_where_it_is(case: Case) -> Result<()> {
    let registry = FaultRegistry::start().await?;
    let (node, set) = node(case, &registry, "presets/plain").await?;
    let (mirror, corp) = (FaultRegistry::start_over(Transport::Tls).await?, Folder::new()?);
    let ca = corp.path().join("ca.pem");
    std::fs::write(&ca, mirror.ca())?;
    let theirs = node.hosts_dir().join("corp.test");
    std::fs::create_dir_all(&theirs)?;
    let host = format!("[host.{:?}]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = {ca:?}\n", mirror.url());
    std::fs::write(theirs.join("hosts.toml"), &host)?;
    let containerd = &node.containerd;
    let pod = set.start(containerd, "larder-1").await?;

    let (code, said) = containerd.exec(&pod, &["larder", "doctor"]).await?;
    eprintln!("---- larder doctor: {code}\n{said}");
    for part in [
        "this is a Pod".to_owned(),
        "containerd pulls through the mirror".to_owned(),
        format!("{} names ca = {}, which isn't seen from this Pod", mirror.url(), ca.display()),
        format!("    - path: {}", corp.path().display()),
        format!("the agent doesn't ask {}", mirror.url()),
        "containerd's proxies aren't seen from this Pod".to_owned(),
        "the folders that the agent needs are within its reach".to_owned(),
        "certificate authorities are believed, from /etc/ssl/certs".to_owned(),
    ] {
        ensure!(said.contains(&part), "{part:?} isn't said");
    }
    ensure!(code == 0, "nothing of that is a problem");
    // The file of the node isn't this Pod's to write, and it needs nothing.
    let (_, said) = containerd.exec(&pod, &["larder", "doctor", "--fix", "--yes"]).await?;
    ensure!(said.contains("--fix has nothing to do"), "{said}");
    // Their host stays in containerd's own chain, after ours.
    let entry = std::fs::read_to_string(theirs.join("hosts.toml"))?;
    ensure!(entry.find(&set.mirror_port().to_string()) < entry.find(&mirror.url()) && entry.contains(&mirror.url()));
    containerd.end_pod(&pod, set.grace()).await
}
