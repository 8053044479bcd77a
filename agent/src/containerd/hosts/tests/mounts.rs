//! Folders that even root can't write: in a mount namespace of their own, by running this very test in it.

use std::process::Command;

use super::super::{HostsError, State};
use super::*;

const INSIDE: &str = "LARDER_TEST_MOUNTS";

/// Runs `test` (its path) again where `setup` was run before by a shell, with the folder as `$1`.
fn inside(test: &str, setup: &str, dir: &Path) {
    let root = nix::unistd::geteuid().is_root();
    let script = format!("set -e; {setup}; shift; exec \"$@\"");
    let output = Command::new("unshare")
        .args([if root { "-m" } else { "-rm" }, "--", "sh", "-c", &script, "sh"])
        .arg(dir)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("containerd::hosts::tests::mounts::{test}"), "--nocapture"])
        .env(INSIDE, dir)
        .output()
        .expect("unshare, of util-linux");
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

/// The folder, when this is the run inside.
fn here() -> Option<PathBuf> {
    std::env::var_os(INSIDE).map(PathBuf::from)
}

#[test]
fn a_read_only_folder_is_told_and_left_as_it_is() {
    let Some(dir) = here() else {
        let certs = Certs::with(&[("a.io/hosts.toml", "[host.a]\n"), ("b.io/", "")]);
        inside(
            "a_read_only_folder_is_told_and_left_as_it_is",
            "mount --bind \"$1/a.io\" \"$1/a.io\"; mount -o remount,ro,bind \"$1/a.io\"",
            &certs.dir,
        );
        // The other folder got its entry, and this one is as it was.
        assert_eq!(certs.read("b.io"), [URL]);
        assert_eq!(certs.text("a.io/hosts.toml"), "[host.a]\n");
        return;
    };
    let applied = HostsDir::new(dir, vec![target("_default")], None).unwrap().apply(&entry()).unwrap();
    let failures: Vec<_> = applied.failures().collect();
    assert!(matches!(failures[..], [("a.io", HostsError::ReadOnly { .. })]), "{failures:?}");
    assert!(failures[0].1.to_string().contains("mount it writable"));
}

#[test]
fn a_read_only_hosts_dir_is_told() {
    let Some(dir) = here() else {
        let certs = Certs::with(&[("a.io/hosts.toml", "[host.a]\n")]);
        let before = certs.tree();
        inside(
            "a_read_only_hosts_dir_is_told",
            "mount --bind \"$1\" \"$1\"; mount -o remount,ro,bind \"$1\"",
            &certs.dir,
        );
        assert_eq!(certs.tree(), before);
        return;
    };
    let hosts = HostsDir::new(dir.clone(), vec![target("_default")], None).unwrap();
    let applied = hosts.apply(&entry()).unwrap();
    assert!(applied.failures().all(|(_, e)| matches!(e, HostsError::ReadOnly { .. })), "{applied:?}");
    assert_eq!(applied.failures().count(), 2);
    assert!(HostsDir::restore(&dir).unwrap().folders.is_empty());
    assert_eq!(HostsDir::show(&dir).unwrap()[0].state, State::NotOurs);

    let below = HostsDir::new(dir.join("more/certs.d"), vec![target("_default")], None).unwrap();
    assert!(matches!(below.apply(&entry()), Err(HostsError::ReadOnly { .. })));
}

#[test]
fn a_file_that_is_a_mount_is_told() {
    let Some(dir) = here() else {
        let certs = Certs::with(&[("a.io/hosts.toml", "[host.a]\n")]);
        let before = certs.tree();
        inside(
            "a_file_that_is_a_mount_is_told",
            "mount --bind \"$1/a.io/hosts.toml\" \"$1/a.io/hosts.toml\"",
            &certs.dir,
        );
        certs.restore();
        assert_eq!(certs.tree(), before);
        return;
    };
    let applied = HostsDir::new(dir, vec![target("a.io")], None).unwrap().apply(&entry()).unwrap();
    assert!(matches!(applied.folders[0].outcome, Err(HostsError::MountPoint { .. })), "{applied:?}");
}

#[test]
fn a_hosts_dir_that_is_a_mount_stays_when_all_is_restored() {
    let Some(dir) = here() else {
        let certs = Certs::missing();
        certs.apply(&["_default"]);
        inside("a_hosts_dir_that_is_a_mount_stays_when_all_is_restored", "mount --bind \"$1\" \"$1\"", &certs.dir);
        assert_eq!(certs.tree().into_keys().collect::<Vec<_>>(), ["certs.d"]);
        return;
    };
    assert!(!HostsDir::restore(&dir).unwrap().removed_dir);
}
