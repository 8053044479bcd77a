//! The monitor with a registry that is asked, and a store.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{ImageHealth, Monitor, Parts, Report, Status};
use crate::config::Config;
use crate::image::{Access, Digest, MediaType};
use crate::keep::{Catalog, Held, Known, Part, Why};
use crate::peers::{Grants, Membership};
use crate::pull::{Place, Pull};
use crate::store::{Options, Store};
use crate::upstream::{Grant, Upstreams};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers every request with one status, and with the digest of "manifest".
struct Registry {
    address: SocketAddr,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

struct Shared {
    /// To HEAD, and to GET.
    statuses: Mutex<(u16, u16)>,
    /// What it says is left of a hundred pulls.
    left: Mutex<Option<u32>>,
    asked: Mutex<Vec<String>>,
}

impl Registry {
    async fn start(head: u16, get: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (left, asked) = (Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { statuses: Mutex::new((head, get)), left, asked });
        let mut accepting = JoinSet::new();
        let serving = Arc::clone(&shared);
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                connections.spawn(async move { serve(stream, &shared).await });
            }
        });
        Self { address, shared, _accepting: accepting }
    }

    /// The requests for manifests so far, by method.
    fn asked(&self, method: &str) -> usize {
        let asked = self.shared.asked.lock().unwrap();
        asked.iter().filter(|line| line.starts_with(method) && line.contains("/manifests/")).count()
    }

    fn says(&self, status: u16) {
        *self.shared.statuses.lock().unwrap() = (status, status);
    }

    fn has_left(&self, pulls: u32) {
        *self.shared.left.lock().unwrap() = Some(pulls);
    }
}

async fn serve(mut stream: TcpStream, shared: &Shared) -> Option<()> {
    let mut pending = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = pending.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut pending).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8(pending.drain(..end).collect()).unwrap();
        let is_head = head.starts_with("HEAD");
        shared.asked.lock().unwrap().push(head.lines().next()?.to_owned());
        let (to_head, to_get) = *shared.statuses.lock().unwrap();
        let status = if is_head { to_head } else { to_get };
        let body = if is_head || status != 200 { "" } else { "manifest" };
        let length = if status == 200 { 8 } else { 0 };
        let digest =
            if is_head { format!("Docker-Content-Digest: {}\r\n", Digest::of(b"manifest")) } else { String::new() };
        let left = *shared.left.lock().unwrap();
        let quota = left.map(|left| format!("RateLimit-Limit: 100;w=21600\r\nRateLimit-Remaining: {left};w=21600\r\n"));
        let quota = quota.unwrap_or_default();
        let reply = format!(
            "HTTP/1.1 {status} As Told\r\nContent-Length: {length}\r\nContent-Type: {MANIFEST}\r\n{digest}{quota}\r\n{body}"
        );
        stream.write_all(reply.as_bytes()).await.ok()?;
    }
}

/// A node with a monitor.
struct Node {
    config: Config,
    store: Store,
    pull: Pull,
    upstreams: Arc<Upstreams>,
    catalog: watch::Sender<Arc<Catalog>>,
    report: watch::Receiver<Arc<Report>>,
    stop: CancellationToken,
    _dir: TempDir,
}

impl Node {
    /// Of these registries, one the mirror of the other, with these lines under `[health]`.
    fn new(registries: &[SocketAddr], health: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut text = format!(
            "[cache]\ndir = {:?}\nmax_disk_percent = 100\n[health]\n{health}\n[[registry]]\nname = \"reg.test\"\n",
            dir.path()
        );
        for address in registries {
            text += &format!("[[registry.upstream]]\nurl = \"http://{address}\"\ninsecure = true\n");
        }
        let config: Config = toml::from_str(&text).unwrap();
        let store = Store::open(Options::from(&config.cache)).unwrap();
        let upstreams = Arc::new(Upstreams::new(&config).unwrap());
        let pull = Pull::new(
            &config,
            store.clone(),
            Arc::clone(&upstreams),
            None,
            Membership::off(),
            TaskTracker::new(),
            CancellationToken::new(),
        );
        let (catalog, report, stop) = (watch::Sender::default(), watch::Sender::default(), CancellationToken::new());
        let report = report.subscribe();
        let mut node = Self { config, store, pull, upstreams, catalog, report, stop, _dir: dir };
        node.start();
        node
    }

    fn start(&mut self) {
        self.stop = CancellationToken::new();
        let parts = Parts {
            config: self.config.health.clone(),
            ignored: Vec::new(),
            catalog: self.catalog.subscribe(),
            store: self.store.clone(),
            upstreams: Arc::clone(&self.upstreams),
            peers: Membership::off(),
            grants: Grants::alone(self.store.clone(), self.config.health.clone()),
            pull: self.pull.clone(),
        };
        self.report = Monitor::start(parts, &TaskTracker::new(), self.stop.clone()).report();
    }

    /// Its monitor dies, and another begins.
    fn restart(&mut self) {
        self.stop.cancel();
        self.start();
    }

    /// These run here.
    fn runs(&self, images: Vec<Known>) {
        let images = images.into_iter().map(Arc::new).collect();
        self.catalog.send_replace(Arc::new(Catalog { images, is_complete: true }));
    }

    /// Waits until the first image is so.
    async fn until(&mut self, is_so: impl Fn(&ImageHealth) -> bool) -> Arc<ImageHealth> {
        let wait = self.report.wait_for(|report| report.images.first().is_some_and(|image| is_so(image)));
        let image = timeout(PATIENCE, wait).await.ok().map(|report| report.unwrap().images[0].clone());
        image.unwrap_or_else(|| panic!("{:?}", self.report.borrow().images))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// An image whose target is made of these bytes.
fn image(tag: &str, target: &[u8], held: Held) -> Known {
    let digest = Digest::of(target);
    let part = Part { digest, size: target.len() as u64, media_type: MediaType::new(MANIFEST).unwrap(), held };
    Known {
        name: format!("reg.test/acme/app:{tag}").parse().unwrap(),
        target: digest,
        why: Why::InUse,
        used_by: Vec::new(),
        last_used: Timestamp::now(),
        parts: vec![part],
        is_listed: true,
    }
}

const OFTEN: &str = "interval = \"10s\"\ntimeout = \"1s\"";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_says_is_the_status() {
    for (said, status) in [
        (200, Status::Available),
        (404, Status::NotFound),
        (401, Status::NoCredentials),
        (403, Status::NoCredentials),
        (429, Status::QuotaExceeded),
        (500, Status::Unreachable),
    ] {
        let registry = Registry::start(said, said).await;
        let mut node = Node::new(&[registry.address], OFTEN);
        node.runs(vec![image("v1", b"manifest", Held::Missing)]);
        let image = node.until(|image| image.status() != Status::Scheduled).await;
        assert_eq!(image.status(), status, "after {said}: {:?}", image.checks);
        let check = &image.checks[0];
        assert_eq!(check.upstream, format!("http://{}", registry.address));
        assert_eq!(check.available_at.is_some(), status == Status::Available);
        assert!(check.at.is_some() && check.remark.is_some() == (status != Status::Available));
        assert_eq!((image.verdict.drifted, image.verdict.lost), (false, status == Status::NotFound));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_best_of_several_upstreams_counts() {
    let (gone, there) = (Registry::start(404, 404).await, Registry::start(200, 200).await);
    let mut node = Node::new(&[gone.address, there.address], OFTEN);
    node.runs(vec![image("v1", b"another", Held::Missing)]);
    let image = node.until(|image| image.checks.iter().all(|check| check.at.is_some())).await;
    let statuses: Vec<Status> = image.checks.iter().map(|check| check.status).collect();
    assert_eq!(statuses, [Status::NotFound, Status::Available]);
    assert_eq!(image.status(), Status::Available);
    assert!(image.verdict.drifted && !image.verdict.lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_answers_it_is_unreachable() {
    let nowhere = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    let mut node = Node::new(&[nowhere], OFTEN);
    node.runs(vec![image("v1", b"manifest", Held::Missing)]);
    let image = node.until(|image| image.status() != Status::Scheduled).await;
    assert_eq!(image.status(), Status::Unreachable);
    assert!(!image.verdict.lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_knows_no_head_is_asked_by_get() {
    let registry = Registry::start(405, 200).await;
    let mut node = Node::new(&[registry.address], OFTEN);
    node.runs(vec![image("v1", b"another", Held::Missing)]);
    let image = node.until(|image| image.status() != Status::Scheduled).await;
    assert_eq!((image.status(), image.checks[0].digest), (Status::Available, Some(Digest::of(b"manifest"))));
    assert!(image.verdict.drifted);
    assert_eq!((registry.asked("HEAD"), registry.asked("GET")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_succeeds_is_evidence() {
    let registry = Registry::start(200, 200).await;
    let mut node = Node::new(&[registry.address], "interval = \"0s\"");
    node.runs(vec![image("v1", b"manifest", Held::Missing)]);
    node.until(|image| image.status() == Status::Scheduled).await;
    let place = Place { registry: "reg.test".parse().unwrap(), repository: "acme/app".parse().unwrap() };
    node.pull.resolve(&place, &Grant::Anonymous, &"v1".parse().unwrap()).await.unwrap();
    let image = node.until(|image| image.status() == Status::Available).await;
    assert_eq!(image.checks[0].digest, Some(Digest::of(b"manifest")));
    assert_eq!(registry.asked("HEAD"), 1, "by the pull; none by the monitor, which is off");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_and_open_to_anybody_is_protected() {
    let registry = Registry::start(404, 404).await;
    let mut node = Node::new(&[registry.address], OFTEN);
    let (known, digest) = (image("v1", b"manifest", Held::Own), Digest::of(b"manifest"));
    let (name, media_type) = (known.name.clone(), MediaType::new(MANIFEST));
    let stored =
        node.store.put(&digest, "manifest".into(), media_type, &name.registry, &name.repository, Access::Authorized);
    stored.await.unwrap();
    node.runs(vec![known]);
    let image = node.until(|image| image.status() == Status::NotFound).await;
    assert_eq!((image.verdict.copies, image.verdict.protected, image.verdict.lost), (1, false, false));
    // It opens to anybody now, and the tag is known to mean what is here.
    node.store.delivered(&digest, &name.registry, &name.repository, Access::Anonymous).await;
    registry.says(200);
    let image = node.until(|image| image.verdict.protected).await;
    assert_eq!(image.status(), Status::Available);
    let tag = node.store.tag(&name.registry, &name.repository, name.tag().unwrap()).await;
    assert_eq!(tag.unwrap().digest, digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_frees_no_budget_and_forgets_no_result() {
    let registry = Registry::start(200, 200).await;
    let mut node = Node::new(&[registry.address], "interval = \"100s\"\nmax_per_interval = 3");
    let images = ["v1", "v2", "v3", "v4", "v5"].map(|tag| image(tag, b"manifest", Held::Missing)).to_vec();
    node.runs(images);
    let checked = |report: &Report| report.images.iter().filter(|image| image.status() != Status::Scheduled).count();
    timeout(PATIENCE, node.report.wait_for(|report| checked(report) == 3)).await.unwrap().unwrap();
    node.restart();
    timeout(PATIENCE, node.report.wait_for(|report| checked(report) == 3)).await.unwrap().unwrap();
    // Longer than the first checks of what was never checked take to begin.
    assert!(timeout(Duration::from_secs(6), node.report.wait_for(|report| checked(report) > 3)).await.is_err());
    assert_eq!(registry.asked("HEAD"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_quota_is_left_to_pulls() {
    let registry = Registry::start(200, 200).await;
    registry.has_left(20);
    let mut node = Node::new(&[registry.address], "interval = \"100s\"");
    node.runs(["v1", "v2", "v3", "v4", "v5"].map(|tag| image(tag, b"manifest", Held::Missing)).to_vec());
    let checked = |report: &Report| report.images.iter().filter(|image| image.status() != Status::Scheduled).count();
    timeout(PATIENCE, node.report.wait_for(|report| checked(report) == 1)).await.unwrap().unwrap();
    // Longer than it takes until all were checked that were never before.
    assert!(timeout(Duration::from_secs(7), node.report.wait_for(|report| checked(report) > 1)).await.is_err());
    assert_eq!(registry.asked("HEAD"), 1);
    // A pull brings news of the quota.
    registry.has_left(90);
    let place = Place { registry: "reg.test".parse().unwrap(), repository: "acme/app".parse().unwrap() };
    node.pull.resolve(&place, &Grant::Anonymous, &"other".parse().unwrap()).await.unwrap();
    timeout(PATIENCE, node.report.wait_for(|report| checked(report) == 5)).await.unwrap().unwrap();
}
