//! Real files, and real programs: shell scripts in folders of the test's own.

mod files;
mod helpers;
mod plugins;
mod programs;

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tracing_subscriber::fmt::MakeWriter;

use super::{Credential, Keyring, Pace};
use crate::config::Credentials;

/// A folder with the files and programs of one test.
struct Node {
    dir: TempDir,
    pace: Pace,
}

impl Node {
    fn new() -> Self {
        // Every look is a real one, and what is to fail slowly fails soon.
        let pace = Pace { look: Duration::ZERO, ..Pace::USUAL };
        Self { dir: tempfile::tempdir().unwrap(), pace }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// A shell script, which starts in the test's folder.
    fn program(&self, name: &str, script: &str) {
        self.write(name, &format!("#!/bin/sh\ncd '{}'\n{script}\n", self.dir.path().display()));
        fs::set_permissions(self.path(name), Permissions::from_mode(0o755)).unwrap();
    }

    /// A keyring of `config.json`, of the helpers here, and, if there is a `providers.yaml`, of the plugins here.
    fn keyring(&self) -> Keyring {
        let kubelet = self.path("providers.yaml");
        let config = Credentials {
            docker_config: vec![self.path("config.json")],
            helpers_dir: Some(self.dir.path().to_owned()),
            kubelet_config: kubelet.exists().then_some(kubelet),
            kubelet_bin_dir: None,
        };
        Keyring::with_pace(&config, self.pace)
    }

    /// Waits until the file has something in it.
    async fn written(&self, name: &str) -> String {
        until(&format!("{name} is written"), || self.read(name).ends_with('\n')).await;
        self.read(name)
    }
}

/// `user:password`, or the token in angle brackets, of what is found for an image.
async fn found(keyring: &Keyring, image: &str) -> Vec<String> {
    let (registry, repository) = image.split_once('/').unwrap();
    let found = keyring.find(&registry.parse().unwrap(), &repository.parse().unwrap()).await;
    let shown = found.credentials.into_iter().map(|credential| match credential {
        Credential::Password { user, password } => format!("{user}:{}", *password),
        Credential::IdentityToken(token) => format!("<{}>", *token),
    });
    shown.collect()
}

/// Waits until a process is gone, or a zombie, which whoever its parent is will reap.
async fn gone(pid: &str) {
    let stat = Path::new("/proc").join(pid.trim()).join("stat");
    until(&format!("{pid} is gone"), || !fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "))).await;
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap_or_else(|_| panic!("not until {what}"));
}

/// The log of the thread, for as long as the guard lives.
fn log() -> (Log, tracing::subscriber::DefaultGuard) {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
    (log, tracing::subscriber::set_default(subscriber))
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    fn count(&self, part: &str) -> usize {
        self.text().matches(part).count()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
