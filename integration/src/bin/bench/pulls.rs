//! Pulls through CRI: cold and warm.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use larder_integration::{
    Agent, AgentConfig, Containerd, ContainerdConfig, Folder, Front, Image, Nginx, Registry, Release, tool, until,
};

use crate::committed::Committed;
use crate::stats::Median;
use crate::{debian, memory};

pub(super) const REPOSITORY: &str = "acme/app";
pub(super) const NAME: &str = "reg.test/acme/app:v1";

/// A way from containerd to the content: a folder of hosts of its own.
pub(super) struct Arm {
    name: &'static str,
    containerd: Containerd,
    /// What it is served from, where that lies in files.
    served: Option<PathBuf>,
    pub(super) fetch: Vec<f64>,
    whole: Vec<f64>,
    /// CPU seconds of the whole machine.
    busy: Vec<f64>,
}

impl Arm {
    /// A containerd that reads `hosts_dir`, in which `host` stands for the registry, where it is given.
    pub(super) async fn new(name: &'static str, folder: &Path, hosts_dir: &Path, host: Option<&str>) -> Result<Self> {
        if let Some(host) = host {
            write_entry(hosts_dir, host, "")?;
        }
        let config = ContainerdConfig::with_hosts(hosts_dir);
        let containerd = Containerd::start(release(), &folder.join(name), &config).await?;
        Ok(Self { name, containerd, served: None, fetch: Vec::new(), whole: Vec::new(), busy: Vec::new() })
    }

    /// One that pulls from nginx over TLS, as it does through Larder.
    async fn of_nginx_by_tls(folder: &Path, hosts_dir: &Path, nginx: &Nginx) -> Result<Self> {
        write_entry(hosts_dir, &nginx.tls_url(), &format!("  ca = {:?}\n", nginx.certificate()))?;
        Self::new("nginx by TLS", folder, hosts_dir, None).await
    }

    /// Pulls, and notes, where it `counts`, the seconds until the last blob was in containerd's store, and until the
    /// pull was done. The first pair of each run doesn't count: it warms up.
    pub(super) async fn pull(&mut self, image: &Image, counts: bool) -> Result<()> {
        self.containerd.wipe().await?;
        // What was written before this pull doesn't weigh on it.
        tokio::task::spawn_blocking(nix::unistd::sync).await?;
        memory::fill().await?;
        if let Some(served) = self.served.clone() {
            tokio::task::spawn_blocking(move || memory::read_all(&served)).await??;
        }
        let committed = Committed::watch(&self.containerd, image)?;
        let before = busy()?;
        let begun = Instant::now();
        let fetched = tokio::task::spawn_blocking(move || committed.all().map(|()| begun.elapsed()));
        self.containerd.pull(NAME).await.with_context(|| self.name.to_owned())?;
        let whole = begun.elapsed();
        let fetched = fetched.await??;
        if counts {
            self.whole.push(whole.as_secs_f64());
            self.fetch.push(fetched.as_secs_f64());
            self.busy.push(busy()? - before);
        }
        Ok(())
    }
}

/// `host` stands for the registry; `more` are further lines of its table.
fn write_entry(hosts_dir: &Path, host: &str, more: &str) -> Result<()> {
    let entry = hosts_dir.join("reg.test");
    std::fs::create_dir_all(&entry)?;
    let text = format!("server = {host:?}\n[host.{host:?}]\n  capabilities = [\"pull\", \"resolve\"]\n{more}");
    Ok(std::fs::write(entry.join("hosts.toml"), text)?)
}

/// CPU seconds that the machine has been busy since it started, by hundredths.
fn busy() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let all: Vec<u64> = stat.split_whitespace().skip(1).take(7).map_while(|ticks| ticks.parse().ok()).collect();
    let [user, nice, system, _idle, _waiting, interrupts, soft_interrupts] = all[..] else {
        bail!("/proc/stat begins with another line than that of all CPUs");
    };
    Ok((user + nice + system + interrupts + soft_interrupts) as f64 / 100.0)
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

/// Nothing kept: through Larder and through nginx as a storing proxy, plain and by TLS, against the registry itself.
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
            let mut by_tls = Arm::of_nginx_by_tls(folder.path(), &hosts("nginx-tls"), &proxy).await?;
            let mut larder = Arm::new("larder", folder.path(), &hosts("larder"), Some(&upstream)).await?;
            let mut agent = agent(folder.path(), &larder, &hosts("larder"), &upstream).await?;
            let mut cpu = Vec::new();
            for pair in 0..=pairs {
                agent.kill();
                let _ = std::fs::remove_dir_all(agent.cache());
                // What containerd still has, the agent would have too.
                larder.containerd.wipe().await?;
                agent.start_again().await?;
                proven(&agent).await?;
                let mut arms = [&mut direct, &mut larder, &mut nginx, &mut by_tls];
                arms.rotate_left(pair % 4);
                for arm in arms {
                    // It has nothing of what it stored for another arm.
                    if arm.name.starts_with("nginx") {
                        proxy.start_again().await?;
                    }
                    let before = agent.process()?.cpu_time();
                    arm.pull(&image, pair > 0).await?;
                    if arm.name == "larder" && pair > 0 {
                        cpu.push(agent.process()?.cpu_time().saturating_sub(before).as_secs_f64());
                    }
                }
            }
            println!("\ncold, {what}, upstream {limit}, {} pairs, {}:", pairs, release().version()?);
            report(&[&larder, &nginx, &by_tls], &direct);
            println!("  larder       {} CPU s a pull", Median::of(&cpu));
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
        let mut by_tls = Arm::of_nginx_by_tls(folder.path(), &hosts("nginx-tls"), &files).await?;
        let mut larder = Arm::new("larder", folder.path(), &hosts("larder"), Some(&registry.url())).await?;
        let agent = agent(folder.path(), &larder, &hosts("larder"), &registry.url()).await?;
        larder.pull(&image, false).await?;
        registry.stop();
        // All from the page cache: without, one of them, now this and now that, would be read from the disk.
        (nginx.served, larder.served) = (Some(files.folder().to_owned()), Some(agent.cache().join("blobs")));
        by_tls.served.clone_from(&nginx.served);
        for pair in 0..=pairs {
            let mut arms = [&mut nginx, &mut larder, &mut by_tls];
            arms.rotate_left(pair % 3);
            for arm in arms {
                arm.pull(&image, pair > 0).await?;
            }
        }
        println!("\nwarm, the registry stopped, {what}, {} pairs, {}:", pairs, release().version()?);
        report(&[&larder, &by_tls], &nginx);
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
    let agent = Agent::start(&folder.join("agent"), &config).await?;
    proven(&agent).await?;
    Ok(agent)
}

/// Waits until the canary pull, which follows every start and then comes once an hour, is out of the way.
async fn proven(agent: &Agent) -> Result<()> {
    until("the canary pull", Duration::from_secs(20), async || {
        (agent.metrics().await.ok()?.sum("larder_canary_runs_total", &[]) > 0.0).then_some(())
    })
    .await
}

fn report(arms: &[&Arm], base: &Arm) {
    println!(
        "  {:12} fetch {:.3} s, whole pull {:.3} s; machine busy {:.2} CPU s",
        base.name,
        Median::of(&base.fetch).middle,
        Median::of(&base.whole).middle,
        Median::of(&base.busy).middle
    );
    for arm in arms {
        let (fetch, whole) = (Median::of_ratios(&arm.fetch, &base.fetch), Median::of_ratios(&arm.whole, &base.whole));
        println!(
            "  {:12} fetch {:.3} s: {fetch} of {}; whole pull {whole}; machine busy {:.2} CPU s",
            arm.name,
            Median::of(&arm.fetch).middle,
            base.name,
            Median::of(&arm.busy).middle
        );
    }
}
