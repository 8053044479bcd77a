use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::FutureExt as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prometheus_client::registry::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::join::join;
use super::takeover::{self, Offer, Taken};
use super::word::{Teller, Word};
use crate::admin::{self, Agent, Figures, Flows, MetricsPort, Page, Socket, Standing, Textfile, view};
use crate::config::{self, Config, HostsTarget};
use crate::containerd::canary::Canary;
use crate::containerd::client::{Client, Version};
use crate::containerd::hosts::{self, Adopted, Adoption, Applied, Entry, HostsDir, HostsError};
use crate::containerd::inventory;
use crate::health::{self, Monitor};
use crate::keep::{self, Keep};
use crate::mirror::{Identity, Listener, Mirror};
use crate::peers::{self, Candidate, ClusterMetrics, Grants};
use crate::pull::Pull;
use crate::sharing::{Callers, Sharing};
use crate::upstream::Upstreams;

/// How long background work may take to end.
const END: Duration = Duration::from_secs(5);

/// How long those who were let in may take to be answered, when another process waits to serve the others.
const ANSWERS: Duration = Duration::from_secs(1);

/// How soon a containerd that didn't answer is asked again which version it is.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// How long the user's own hosts.toml files may take to be read before the mirror opens.
const LOOK: Duration = Duration::from_secs(5);

/// Runs the agent until a signal ends it.
pub(super) fn run(config: &Config, teller: Teller) -> anyhow::Result<ExitCode> {
    // The process that watches us is ended with `kill -9`: go with it, rather than hold port and store as an orphan.
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    // Started by way of /proc/self/exe, it would be "exe" in every list of processes.
    nix::sys::prctl::set_name(c"larder")?;
    // A place for every connection that the mirror takes, and the files behind it.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    // A node's cores are for its Pods: four threads serve faster than any disk or link.
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().min(4));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(64)
        .thread_keep_alive(Duration::from_secs(5))
        .thread_stack_size(1 << 20)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(serve(config, teller));
    runtime.shutdown_timeout(END);
    outcome
}

/// Puts the house together, opens its doors, and closes them before anything behind them ends.
async fn serve(config: &Config, mut teller: Teller) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // The doors close first; what they stand before goes on until the last reply has ended.
    let (stop, end, tasks) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());

    // What may be wrong is found before the store is asked for: one that waits for its turn must be able to take it.
    let upstreams = Arc::new(Upstreams::new(config)?);
    let containerd = Arc::new(Client::new(&config.containerd)?);
    let hosts_dir = Arc::new(hosts_dir(config)?);
    let standing = watch::Sender::new(Standing::Starting);
    let desk =
        Socket::bind(&config.admin.socket).map(|socket| tasks.spawn(socket.serve(standing.subscribe(), stop.clone())));
    let taken = tokio::select! {
        taken = takeover::take(config, &standing, &mut teller) => taken?,
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
    };
    let Taken { store, door, left, has_waited } = taken;
    let canary = Arc::new(Canary::new());
    let watched = inventory::Metrics::default();
    let (mirror, client) = (config.mirror.listen, Arc::clone(&containerd));
    let inventory = inventory::watch(client, mirror, watched.clone(), &tasks, end.clone());
    let grants = match config.peers.is_on() {
        true => Grants::shared(store.clone(), config.health.clone()),
        false => Grants::alone(store.clone(), config.health.clone()),
    };
    let cluster = ClusterMetrics::default();
    let candidate = Candidate {
        config: config.peers.clone(),
        dir: config.cache.dir.join("peers"),
        store: store.clone(),
        inventory: inventory.clone(),
        grants: grants.clone(),
        remember: config.private.remember.0,
        metrics: cluster.clone(),
        tasks: tasks.clone(),
        ends: peers::Ends { stop: stop.clone(), end: end.clone() },
    };
    let (peers, joined) = join(candidate, has_waited).await;
    let pull = Pull::new(
        config,
        store.clone(),
        Arc::clone(&upstreams),
        Some(Arc::clone(&containerd)),
        peers.clone(),
        tasks.clone(),
        end.clone(),
    );
    let requests = Arc::new(AtomicU64::new(0));
    let mirror = Mirror::new(pull.clone(), Arc::clone(&canary), config.mirror.listen, Arc::clone(&requests));
    let mirror = Arc::new(mirror.inheriting(&left));
    drop(left);
    let taken_over = watch::Sender::new(Vec::new());
    let adoption = config.containerd.adopts().then(|| Arc::new(adoption(config, &upstreams, taken_over.clone())));
    if let Some(adoption) = adoption.clone() {
        // Before the first request; but a disk that hangs is no reason not to serve.
        let look = tokio::task::spawn_blocking(move || adoption.look());
        let _ = tokio::time::timeout(LOOK, look).await;
    }
    let identity = Arc::new(Identity::open(&config.cache.dir.join("tls"), config.mirror.listen)?);
    let listener = match door.map(|door| Listener::inherit(door, config.mirror.listen)) {
        Some(Ok(listener)) => listener,
        _ => takeover::bind(has_waited, || Listener::bind(config.mirror.listen)).await?,
    };
    let offer = listener.share().and_then(|door| Offer::open(&config.cache.dir, door));
    let mut offer = offer
        .inspect_err(|error| tracing::info!(%error, "the next agent can't take over from this one without a gap"))
        .ok();
    let unanswered = listener.unanswered();
    let serving = tokio::spawn(listener.serve(Arc::clone(&mirror), identity.server_config()?, stop.clone()));
    teller.say(Word::Serves);
    tasks.spawn(Arc::clone(&identity).keep_fresh(stop.clone()));
    let parts = keep::Parts {
        config: config.cache.clone(),
        store: store.clone(),
        pull: pull.clone(),
        upstreams: Arc::clone(&upstreams),
        containerd: Arc::clone(&containerd),
        inventory,
        peers: peers.clone(),
    };
    let keep = Keep::start(parts, &tasks, &end).await;
    let monitor = health::Parts {
        config: config.health.clone(),
        ignored: config.cache.ignore.clone(),
        catalog: keep.catalog(),
        store: store.clone(),
        upstreams: Arc::clone(&upstreams),
        peers: peers.clone(),
        grants,
        pull: pull.clone(),
    };
    let monitor = Monitor::start(monitor, &tasks, end.clone());

    // containerd is told of the mirror only now that it answers.
    let mut registry = Registry::default();
    let applied = watch::Sender::new(None);
    let changed = Arc::new(Notify::new());
    let ready = watch::Sender::new(config.containerd.registries.is_empty());
    if !config.containerd.registries.is_empty() {
        hosts_dir.metrics().register(&mut registry);
        let (applied, changed, ready) = (applied.clone(), Arc::clone(&changed), ready.clone());
        let told = move |outcome: &Result<Applied, HostsError>| {
            changed.notify_one();
            applied.send_replace(Some(view::hosts(outcome)));
            ready.send_replace(true);
        };
        let (containerd, stop) = (Arc::clone(&containerd), stop.clone());
        let (mirror, trusted) = (config.mirror.clone(), identity.trusted());
        tasks.spawn(async move {
            let reader = match Entry::depends_on_reader(mirror.listen) {
                true => stop.run_until_cancelled(version(&containerd)).await.flatten(),
                false => None,
            };
            let (entry, follow) = entries(&mirror, reader, trusted);
            tokio::join!(
                stop.run_until_cancelled(follow),
                hosts::watch(hosts_dir, entry, adoption, told, stop.clone()),
            );
        });
    }
    {
        let (canary, containerd, stop) = (Arc::clone(&canary), Arc::clone(&containerd), stop.clone());
        let interval = config.containerd.canary_interval.0;
        let mut ready = ready.subscribe();
        tasks.spawn(async move {
            // Before the entries stand, containerd can't come to us. An error would mean that the agent ends.
            let _ = stop.run_until_cancelled(ready.wait_for(|ready| *ready)).await;
            // That they stand now is what the first proof is about; it needs no second.
            let _ = changed.notified().now_or_never();
            canary.watch(&containerd, interval, &changed, &stop).await;
        });
    }

    let flows = Flows::of(&pull, &cluster.peers, &upstreams);
    tasks.spawn(flows.clone().watch(stop.clone()));
    let agent = Arc::new(Agent {
        config: config.clone(),
        started: Instant::now(),
        requests,
        store: store.clone(),
        pull: pull.clone(),
        keep: keep.clone(),
        peers,
        upstreams: Arc::clone(&upstreams),
        containerd,
        canary: Arc::clone(&canary),
        hosts: applied.subscribe(),
        adopted: taken_over.subscribe(),
        report: monitor.report(),
        flows,
    });
    pull.metrics().register(&mut registry);
    mirror.metrics().register(&mut registry);
    keep.metrics().register(&mut registry);
    monitor.metrics().register(&mut registry);
    watched.register(&mut registry);
    store.metrics().register(&mut registry);
    upstreams.metrics().register(&mut registry);
    upstreams.keyring().register(&mut registry);
    canary.register(&mut registry);
    if config.peers.is_on() {
        cluster.register(&mut registry);
    }
    let sharing = {
        let callers = if config.peers.cert.is_some() { Callers::Trusted } else { Callers::Named };
        let (catalog, report, pull, stop) = (keep.catalog(), monitor.report(), pull.clone(), stop.clone());
        tokio::spawn(async move {
            // An error: it ends without having joined, or there is no cluster.
            let Some(Ok((peers, port))) = stop.run_until_cancelled(joined).await else { return };
            let told = Arc::new(move || admin::told(&admin::images(&catalog, &report)));
            port.serve(Sharing::new(peers, pull, callers, stop).telling(told)).await;
        })
    };
    let figures = Figures::new(registry);
    if let Some(path) = config.admin.textfile.clone() {
        tasks.spawn(Textfile::new(figures.clone(), path).keep(stop.clone()));
    }
    // None is worth a failing pull: without them the agent serves on, and says so.
    match MetricsPort::bind(config.metrics.listen) {
        Ok(port) => drop(tasks.spawn(port.serve(figures, ready.subscribe(), stop.clone()))),
        Err(e) => tracing::error!(error = %e, "no metrics"),
    }
    match config.admin.page.map(Page::bind).transpose() {
        Ok(None) => {}
        Ok(Some(page)) => {
            let agent = Arc::clone(&agent);
            let look = Arc::new(move || {
                let agent = Arc::clone(&agent);
                async move { agent.sight().await }.boxed()
            });
            tasks.spawn(page.serve(look, stop.clone()));
        }
        Err(e) => tracing::error!(error = %e, "no status page"),
    }
    standing.send_replace(Standing::Serving { agent, is_ready: ready.subscribe() });
    if desk.is_err() {
        // It was the process's before; now it isn't any more.
        match takeover::bind(has_waited, || Socket::bind(&config.admin.socket)).await {
            Ok(socket) => drop(tasks.spawn(socket.serve(standing.subscribe(), stop.clone()))),
            Err(e) => tracing::error!(error = %e, "no admin socket: larder status and its like find no agent"),
        }
    }
    let mut entered = ready.subscribe();
    tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
        // Up is who has tried to tell containerd, with whatever outcome: that is said elsewhere, and peers are served.
        if entered.wait_for(|entered| *entered).await.is_ok() {
            teller.say(Word::Ready);
        }
    }));
    tracing::info!(mirror = %config.mirror.listen, cache = %config.cache.dir.display(), version = env!("CARGO_PKG_VERSION"), "serving");

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let is_followed = match &mut offer {
        Some(offer) => offer.end().await,
        None => false,
    };
    tracing::info!(is_followed, "ending: replies under way go on, hosts.toml stays");
    stop.cancel();
    let doors = async {
        serving.await.context("the mirror's listener")?;
        sharing.await.context("the listener for peers")
    };
    if is_followed {
        // At the door they wait for the one that follows, and it waits for the store. What arrives is suspended, and gone
        // on with by it; whoever reads along is cut short, and comes back.
        if tokio::time::timeout(ANSWERS, unanswered.none()).await.is_err() {
            tracing::warn!("requests without an answer are left behind");
        }
        end_work(&end, &tasks).await;
        store.close().await;
        if let Some(offer) = offer {
            offer.let_go(mirror.bequest()).await;
        }
        tracing::info!("the store is free");
        doors.await?;
    } else {
        doors.await?;
        end_work(&end, &tasks).await;
        store.close().await;
    }
    if tokio::time::timeout(END, upstreams.close()).await.is_err() {
        tracing::warn!("connections to upstreams are cut off");
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends what works behind the doors.
async fn end_work(end: &CancellationToken, tasks: &TaskTracker) {
    end.cancel();
    tasks.close();
    if tokio::time::timeout(END, tasks.wait()).await.is_err() {
        tracing::warn!(tasks = tasks.len(), "background work is cut off");
    }
}

/// Which containerd it is. Waits until it answers; `None`: what it says is no version.
async fn version(containerd: &Client) -> Option<Version> {
    loop {
        match containerd.version().await {
            Ok(release) => return release.version,
            Err(_) => tokio::time::sleep(ASK_AGAIN).await,
        }
    }
}

/// The folder that hosts.toml files are written to. With named registries alone, the canary gets an entry too: it has
/// to find its way to us.
pub(super) fn hosts_dir(config: &Config) -> anyhow::Result<HostsDir> {
    let mut targets = config.containerd.registries.clone();
    if !targets.contains(&HostsTarget::Default) {
        targets.push(HostsTarget::Registry(Canary::REGISTRY.parse()?));
    }
    Ok(HostsDir::new(config.containerd.hosts_dir.clone(), targets, config.containerd.templates.as_deref())?)
}

/// Makes the user's own mirrors upstreams, whenever their files change.
fn adoption(config: &Config, upstreams: &Arc<Upstreams>, shown: watch::Sender<Vec<view::Adopted>>) -> Adoption {
    let (upstreams, known) = (Arc::clone(upstreams), config.clone());
    let tell = move |adopted: &Adopted| {
        upstreams.adopt(adopted.mirrors());
        shown.send_replace(view::adopted(adopted, &known));
    };
    Adoption::new(config.containerd.hosts_dir.clone(), config.mirror.listen, tell)
}

/// What hosts.toml says of us, as it changes with the CAs that are `trusted`; and the task that follows those.
fn entries(
    mirror: &config::Mirror,
    reader: Option<Version>,
    mut trusted: watch::Receiver<String>,
) -> (watch::Receiver<Arc<Entry>>, impl Future<Output = ()> + use<>) {
    let (listen, tls) = (mirror.listen, mirror.tls);
    let entry = move |ca: &str| Arc::new(Entry { listen, ca_pem: tls.then(|| ca.to_owned()), reader });
    let (sender, receiver) = watch::channel(entry(&trusted.borrow_and_update()));
    let follow = async move {
        while trusted.changed().await.is_ok() {
            sender.send_replace(entry(&trusted.borrow_and_update()));
        }
    };
    (receiver, follow)
}
