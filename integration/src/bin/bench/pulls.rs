//! Pulls through CRI: cold and warm.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use larder_integration::{
    Agent, AgentConfig, Containerd, ContainerdConfig, Folder, Front, Image, Nginx, Registry, Release, tool,
};

use crate::debian;
use crate::stats::Median;

pub(super) const REPOSITORY: &str = "acme/app";
pub(super) const NAME: &str = "reg.test/acme/app:v1";

/// A way from containerd to the content: a folder of hosts of its own.
pub(super) struct Arm {
    name: &'static str,
    containerd: Containerd,
    pub(super) fetch: Vec<f64>,
    whole: Vec<f64>,
}

impl Arm {
    /// A containerd that reads `hosts_dir`, in which `host` stands for the registry, where it is given.
    pub(super) async fn new(name: &'static str, folder: &Path, hosts_dir: &Path, host: Option<&str>) -> Result<Self> {
        if let Some(host) = host {
            let entry = hosts_dir.join("reg.test");
            std::fs::create_dir_all(&entry)?;
            let text = format!("server = {host:?}\n[host.{host:?}]\n  capabilities = [\"pull\", \"resolve\"]\n");
            std::fs::write(entry.join("hosts.toml"), text)?;
        }
        let config = ContainerdConfig::with_hosts(hosts_dir);
        let containerd = Containerd::start(release(), &folder.join(name), &config).await?;
        Ok(Self { name, containerd, fetch: Vec::new(), whole: Vec::new() })
    }

    /// Pulls, and notes, where it `counts`, the seconds until the last blob was in containerd's store, and until the
    /// pull was done. The first pair of each run doesn't count: it warms up.
    pub(super) async fn pull(&mut self, image: &Image, counts: bool) -> Result<()> {
        self.containerd.wipe().await?;
        let blobs: Vec<_> = image.blobs().iter().map(|blob| self.containerd.blob(&blob.digest)).collect();
        let begun = Instant::now();
        let fetched = tokio::task::spawn_blocking(move || {
            while !blobs.iter().all(|blob| blob.exists()) && begun.elapsed() < Duration::from_secs(60) {
                std::thread::sleep(Duration::from_millis(1));
            }
            begun.elapsed()
        });
        self.containerd.pull(NAME).await.with_context(|| self.name.to_owned())?;
        let whole = begun.elapsed();
        let fetched = fetched.await?;
        if counts {
            self.whole.push(whole.as_secs_f64());
            self.fetch.push(fetched.as_secs_f64());
        }
        Ok(())
    }
}

/// `LARDER_BENCH_ONLY` is a part of the name of the cases that are to run.
pub(super) fn asked_for(case: &str) -> bool {
    std::env::var("LARDER_BENCH_ONLY").map_or(true, |only| case.contains(&only))
}

fn release() -> Release {
    if tool(&format!("{}/VERSION", Release::Newest)).is_ok() { Release::Newest } else { Release::Sid }
}

fn images() -> Result<Vec<(&'static str, Image)>> {
    Ok(vec![
        ("one layer of 512 MiB", Image::one_layer(1, 512)),
        ("100 layers of 512 KiB", Image::many_layers(2, 100, 512)),
        ("a Debian root filesystem", debian::image()?),
    ])
}

/// Nothing kept: through Larder and through nginx as a storing proxy, against the registry itself.
pub(crate) async fn cold(pairs: usize) -> Result<()> {
    for (what, image) in images()? {
        for (limit, rate) in [("1 Gbit/s", Some(125_000_000)), ("unlimited", None)] {
            if !asked_for(&format!("{what}, {limit}")) {
                continue;
            }
            let folder = Folder::new()?;
            let registry = Registry::start().await?;
            registry.push(&image, REPOSITORY, "v1").await?;
            let address: SocketAddr = registry.host().parse()?;
            let front = Front::start(address, rate).await?;
            // Unlimited, no proxy of ours is in the way.
            let upstream = rate.map_or_else(|| registry.url(), |_| front.url());
            let mut proxy = Nginx::storing_proxy(&upstream).await?;
            let hosts = |name: &str| folder.path().join(format!("hosts-{name}"));
            let mut direct = Arm::new("direct", folder.path(), &hosts("direct"), Some(&upstream)).await?;
            let mut nginx = Arm::new("nginx", folder.path(), &hosts("nginx"), Some(&proxy.url())).await?;
            let mut larder = Arm::new("larder", folder.path(), &hosts("larder"), Some(&upstream)).await?;
            let mut agent = agent(folder.path(), &larder, &hosts("larder"), &upstream).await?;
            for pair in 0..=pairs {
                agent.kill();
                let _ = std::fs::remove_dir_all(agent.cache());
                agent.start_again().await?;
                proxy.start_again().await?;
                let mut arms = [&mut direct, &mut larder, &mut nginx];
                arms.rotate_left(pair % 3);
                for arm in arms {
                    arm.pull(&image, pair > 0).await?;
                }
            }
            println!("\ncold, {what}, upstream {limit}, {} pairs, {}:", pairs, release().version()?);
            report(&[&larder, &nginx], &direct);
        }
    }
    Ok(())
}

/// The registry stopped: Larder against nginx serving the same blobs from files.
pub(crate) async fn warm(pairs: usize) -> Result<()> {
    for (what, image) in images()? {
        if !asked_for(what) {
            continue;
        }
        let folder = Folder::new()?;
        let mut registry = Registry::start().await?;
        registry.push(&image, REPOSITORY, "v1").await?;
        let files = Nginx::of_files(&[(&image, REPOSITORY, "v1")]).await?;
        let hosts = |name: &str| folder.path().join(format!("hosts-{name}"));
        let mut nginx = Arm::new("nginx", folder.path(), &hosts("nginx"), Some(&files.url())).await?;
        let mut larder = Arm::new("larder", folder.path(), &hosts("larder"), Some(&registry.url())).await?;
        let _agent = agent(folder.path(), &larder, &hosts("larder"), &registry.url()).await?;
        larder.pull(&image, false).await?;
        registry.stop();
        for pair in 0..=pairs {
            let mut arms = [&mut nginx, &mut larder];
            arms.rotate_left(pair % 2);
            for arm in arms {
                arm.pull(&image, pair > 0).await?;
            }
        }
        println!("\nwarm, the registry stopped, {what}, {} pairs, {}:", pairs, release().version()?);
        report(&[&larder], &nginx);
    }
    Ok(())
}

/// As installed: TLS in hosts.toml.
pub(super) async fn agent(folder: &Path, arm: &Arm, hosts_dir: &Path, upstream: &str) -> Result<Agent> {
    let mut config = AgentConfig::default();
    config
        .set_path("containerd", "hosts_dir", hosts_dir)
        .set_path("containerd", "socket", &arm.containerd.socket())
        .set_text("log", "level", "info")
        .registry("reg.test", &[upstream]);
    Agent::start(&folder.join("agent"), &config).await
}

fn report(arms: &[&Arm], base: &Arm) {
    println!(
        "  {:8} fetch {:.3} s, whole pull {:.3} s",
        base.name,
        Median::of(&base.fetch).middle,
        Median::of(&base.whole).middle
    );
    for arm in arms {
        let (fetch, whole) = (Median::of_ratios(&arm.fetch, &base.fetch), Median::of_ratios(&arm.whole, &base.whole));
        println!(
            "  {:8} fetch {:.3} s: {fetch} of {}; whole pull {whole}",
            arm.name,
            Median::of(&arm.fetch).middle,
            base.name
        );
    }
}
