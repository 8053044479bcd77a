use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::figures::Figures;

/// How often it is written anew.
const EVERY: Duration = Duration::from_secs(15);
/// At the end, a disk that takes longer isn't waited for.
const DEADLINE: Duration = Duration::from_secs(3);

/// What `/metrics` says, as a file that node-exporter's textfile collector reads. Whoever reads it sees all of one
/// moment: it is replaced by a rename. At the end it is removed, so that nobody takes old figures for new ones.
#[derive(Debug)]
pub struct Textfile {
    figures: Figures,
    path: PathBuf,
}

impl Textfile {
    /// At this path, whose folder exists.
    #[must_use]
    pub const fn new(figures: Figures, path: PathBuf) -> Self {
        Self { figures, path }
    }

    /// Where it is written before it gets its own name, which is `path`.
    #[must_use]
    pub fn draft(path: &Path) -> PathBuf {
        // Not `….prom`, by which node-exporter finds files.
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        path.with_file_name(name)
    }

    /// Writes it until `stop`. What goes wrong is logged once until it goes well again.
    pub async fn keep(self, stop: CancellationToken) {
        let mut is_failing = false;
        loop {
            let (figures, path) = (self.figures.clone(), self.path.clone());
            let written = on_disk(&stop, move || {
                let text = figures.prometheus().map_err(io::Error::other)?;
                write(&path, &text)
            });
            match written.await {
                Some(Err(error)) if !is_failing => {
                    tracing::warn!(path = %self.path.display(), %error, "admin.textfile can't be written");
                    is_failing = true;
                }
                Some(Ok(())) if is_failing => {
                    tracing::info!(path = %self.path.display(), "admin.textfile is written again");
                    is_failing = false;
                }
                _ => {}
            }
            if stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
                break;
            }
        }
        let path = self.path.clone();
        match on_disk(&stop, move || fs::remove_file(path)).await {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "admin.textfile is left behind");
            }
            Some(_) => {}
            None => tracing::warn!(path = %self.path.display(), "admin.textfile is left behind: its disk hangs"),
        }
    }
}

/// Where it may block; `None` when `stop` came and the disk didn't let go of it in time.
async fn on_disk(
    stop: &CancellationToken,
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Option<io::Result<()>> {
    let mut work = tokio::task::spawn_blocking(work);
    let finished = match stop.run_until_cancelled(&mut work).await {
        Some(finished) => finished,
        None => tokio::time::timeout(DEADLINE, work).await.ok()?,
    };
    Some(finished.unwrap_or_else(|panicked| Err(io::Error::other(panicked))))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let new = Textfile::draft(path);
    // One that a process left when it was killed; or a link that leads elsewhere, which is not followed.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).open(&new)?;
    fill(file, text).and_then(|()| fs::rename(&new, path)).inspect_err(|_| {
        // It would be in the way of nobody but its disk.
        let _ = fs::remove_file(&new);
    })
}

fn fill(mut file: File, text: &str) -> io::Result<()> {
    file.write_all(text.as_bytes())?;
    file.set_permissions(Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::registry::Registry;

    use super::*;

    fn figures(value: i64) -> Figures {
        let gauge: Gauge = Gauge::default();
        gauge.set(value);
        let mut registry = Registry::default();
        registry.register("larder_test", "A figure", gauge);
        Figures::new(registry)
    }

    #[test]
    fn a_reader_always_sees_all_of_one_moment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("larder.prom");
        write(&path, &figures(0).prometheus().unwrap()).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut reads = 0;
                while !done.load(Ordering::Relaxed) {
                    let text = fs::read_to_string(&path).unwrap();
                    let value = text.lines().find_map(|line| line.strip_prefix("larder_test "));
                    let filler = text.lines().filter(|line| line.starts_with("filler ")).count();
                    assert_eq!(value.unwrap().parse::<usize>().unwrap(), filler, "half of a file");
                    reads += 1;
                }
                reads
            });
            for n in 1..500 {
                let text = figures(n).prometheus().unwrap();
                let filler: String = (0..n).map(|line| format!("filler {line}\n")).collect();
                write(&path, &(text + &filler)).unwrap();
            }
            done.store(true, Ordering::Relaxed);
            assert!(reader.join().unwrap() > 10);
        });
    }

    #[test]
    fn it_is_readable_by_all_and_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let (path, victim) = (dir.path().join("larder.prom"), dir.path().join("victim"));
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join("larder.prom.new")).unwrap();
        write(&path, "larder_test 1\n").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert_eq!(fs::read_to_string(&path).unwrap(), "larder_test 1\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left behind");
    }

    #[tokio::test]
    async fn it_goes_with_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("larder.prom");
        let stop = CancellationToken::new();
        let keeping = tokio::spawn(Textfile::new(figures(7), path.clone()).keep(stop.clone()));
        while !path.exists() {
            tokio::task::yield_now().await;
        }
        assert!(fs::read_to_string(&path).unwrap().contains("\nlarder_test 7\n"));
        stop.cancel();
        keeping.await.unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
