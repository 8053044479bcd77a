use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::super::{Adopted, Adoption};
use super::*;

/// Long enough for a busy machine, and shorter than the 10 s after which we look without having been told.
const SOON: Duration = Duration::from_secs(8);

struct Watching {
    certs: Certs,
    hosts: Arc<HostsDir>,
    entry: watch::Sender<Arc<Entry>>,
    changed: mpsc::UnboundedReceiver<Vec<String>>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Watching {
    /// Watches, and waits for the first time that all is applied.
    async fn start(certs: Certs) -> Self {
        Self::start_with(certs, None).await
    }

    async fn start_with(certs: Certs, adoption: Option<Arc<Adoption>>) -> Self {
        let hosts = Arc::new(certs.hosts(&["_default"]));
        let (sender, receiver) = watch::channel(Arc::new(entry()));
        let (told, changed) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let task = tokio::spawn(super::super::watch(
            Arc::clone(&hosts),
            receiver,
            adoption,
            move |result| {
                let folders = result.as_ref().map(|applied| applied.folders.as_slice()).unwrap_or_default();
                let written = folders.iter().filter(|f| matches!(f.outcome, Ok(Outcome::Written)));
                let _ = told.send(written.map(|f| f.name.clone()).collect());
            },
            stop.clone(),
        ));
        let mut watching = Self { certs, hosts, entry: sender, changed, stop, task };
        watching.told().await;
        watching
    }

    async fn told(&mut self) -> Vec<String> {
        tokio::time::timeout(SOON, self.changed.recv()).await.expect("nothing was told").unwrap()
    }

    /// Waits until `folder` is told to be written, and then says these hosts.
    async fn written(&mut self, folder: &str, hosts: &[&str]) {
        while !self.told().await.contains(&folder.to_owned()) || self.certs.read(folder) != hosts {}
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(SOON, self.task).await.expect("it doesn't end").unwrap();
    }
}

#[tokio::test]
async fn whatever_others_change_is_mended() {
    let mut watching = Watching::start(Certs::with(&[("docker.io/hosts.toml", "[host.a]\n")])).await;
    let dir = watching.certs.dir.clone();

    watching.certs.put("docker.io/hosts.toml", b"[host.b]\n");
    watching.written("docker.io", &[URL, "b"]).await;

    fs::write(dir.join("docker.io/.new"), "[host.c]\n").unwrap();
    fs::rename(dir.join("docker.io/.new"), dir.join("docker.io/hosts.toml")).unwrap();
    watching.written("docker.io", &[URL, "c"]).await;

    fs::remove_file(dir.join("docker.io").join(CA)).unwrap();
    watching.written("docker.io", &[URL, "c"]).await;

    watching.certs.put("ghcr.io/hosts.toml", b"[host.d]\n");
    watching.written("ghcr.io", &[URL, "d"]).await;

    // A folder that appeared is watched as the others are.
    fs::remove_file(dir.join("ghcr.io/hosts.toml")).unwrap();
    watching.written("ghcr.io", &[URL, "d"]).await;

    fs::remove_dir_all(dir.join("_default")).unwrap();
    watching.written("_default", &[URL]).await;

    assert!(watching.hosts.metrics().rewrites.get() >= 5);
    watching.end().await;
}

#[tokio::test]
async fn mirrors_are_told_before_ours_is_written_and_when_they_change() {
    let certs = Certs::with(&[("docker.io/hosts.toml", "[host.a]\n")]);
    let file = certs.dir.join("docker.io/hosts.toml");
    let (told, mut adopted) = mpsc::unbounded_channel();
    let tell = move |all: &Adopted| {
        let urls = all.folders.iter().flat_map(|one| &one.upstreams).map(|one| one.url.to_string()).collect::<Vec<_>>();
        let _ = told.send((urls, fs::read_to_string(&file).unwrap()));
    };
    let adoption = Adoption::new(certs.dir.clone(), entry().listen, tell);
    let watching = Watching::start_with(certs, Some(Arc::new(adoption))).await;
    let mut next = async || tokio::time::timeout(SOON, adopted.recv()).await.expect("nothing was told").unwrap();
    assert_eq!(next().await, (vec!["https://a".to_owned()], "[host.a]\n".to_owned()));
    watching.certs.put("docker.io/hosts.toml", b"[host.b]\n");
    assert_eq!(next().await.0, ["https://b"]);
    watching.certs.put("_default/hosts.toml", b"[host.c]\n");
    assert_eq!(next().await.0, ["https://c", "https://b"]);
    watching.end().await;
}

#[tokio::test]
async fn a_new_entry_is_written_at_once() {
    let mut watching = Watching::start(Certs::missing()).await;
    watching.entry.send_replace(Arc::new(plain()));
    watching.written("_default", &["http://127.0.0.1:7439"]).await;
    assert_eq!(watching.hosts.metrics().rewrites.get(), 0);
    watching.end().await;
}

#[tokio::test]
async fn a_hosts_dir_removed_and_made_by_us_is_watched_again() {
    let mut watching = Watching::start(Certs::missing()).await;
    for _ in 0..2 {
        fs::remove_dir_all(&watching.certs.dir).unwrap();
        watching.written("_default", &[URL]).await;
    }
    watching.end().await;
}

#[tokio::test]
async fn it_is_not_woken_by_its_own_writing() {
    let mut watching = Watching::start(Certs::with(&[("docker.io/hosts.toml", "[host.a]\n")])).await;
    watching.certs.put("docker.io/hosts.toml", b"[host.b]\n");
    watching.written("docker.io", &[URL, "b"]).await;
    let stood = fs::metadata(watching.certs.dir.join("docker.io/hosts.toml")).unwrap().modified().unwrap();
    // Longer than it would take to answer to its own writing.
    let quiet = tokio::time::timeout(Duration::from_millis(1500), watching.changed.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    assert_eq!(fs::metadata(watching.certs.dir.join("docker.io/hosts.toml")).unwrap().modified().unwrap(), stood);
    assert_eq!(watching.hosts.metrics().rewrites.get(), 1);
    watching.end().await;
}

#[tokio::test]
async fn a_fight_slows_down() {
    let mut watching = Watching::start(Certs::with(&[("docker.io/hosts.toml", "[host.a]\n")])).await;
    let mut gaps = Vec::new();
    let mut last = Instant::now();
    for round in 0..6 {
        watching.certs.put("docker.io/hosts.toml", format!("[host.a{round}]\n").as_bytes());
        watching.written("docker.io", &[URL, &format!("a{round}")]).await;
        gaps.push(last.elapsed());
        last = Instant::now();
    }
    assert!(gaps[5] >= Duration::from_millis(1500) && gaps[1] < gaps[5], "{gaps:?}");
    watching.end().await;
}

#[tokio::test]
async fn it_ends_in_the_middle_of_a_wait() {
    let watching = Watching::start(Certs::missing()).await;
    let began = Instant::now();
    watching.end().await;
    assert!(began.elapsed() < Duration::from_secs(5));
}
