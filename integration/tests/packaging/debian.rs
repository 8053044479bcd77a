//! The parts of the Debian package and of `make install`, and dpkg where no systemd runs.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use larder_integration::{Disk, Folder, program, require_root, say};

use super::package::{package, repository};
use crate::support::run;

const UNIT: &str = "systemd/larder.service";

#[test]
fn the_package_has_its_parts() {
    run(the_package_has_its_parts_or());
}

async fn the_package_has_its_parts_or() -> Result<()> {
    let package = package().await?;
    let field = |name: &str| say(Command::new("dpkg-deb").arg("--field").arg(package).arg(name));
    ensure!(field("Package")?.trim() == "larder");
    ensure!(field("Version")?.starts_with(concat!(env!("CARGO_PKG_VERSION"), "-")), "{}", field("Version")?);
    ensure!(field("Depends")?.contains("libc6 (>= "), "{}", field("Depends")?);

    let folder = Folder::new()?;
    let (data, control) = (folder.path().join("data"), folder.path().join("control"));
    say(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&data))?;
    say(Command::new("dpkg-deb").arg("--control").arg(package).arg(&control))?;
    let mut files = files_below(&data)?;
    let commands = files.iter().filter(|path| path.starts_with("usr/share/man/man1/larder-")).count();
    ensure!(commands > 10, "each command has a page of the manual: {files:?}");
    files.retain(|path| !path.starts_with("usr/share/man/man1/larder-"));
    // Made in haste, it leaves the manual as it is.
    let files: BTreeSet<&str> = files.iter().map(|path| path.trim_end_matches(".gz")).collect();
    let expected = [
        "etc/larder/larder.toml",
        "usr/bin/larder",
        "usr/lib/systemd/system/larder.service",
        "usr/share/bash-completion/completions/larder",
        "usr/share/doc/larder/README.md",
        "usr/share/doc/larder/copyright",
        "usr/share/fish/vendor_completions.d/larder.fish",
        "usr/share/man/man1/larder.1",
        "usr/share/zsh/vendor-completions/_larder",
    ];
    ensure!(files.iter().copied().eq(expected), "{files:?}");
    ensure!(std::fs::read_to_string(control.join("conffiles"))? == "/etc/larder/larder.toml\n");
    for script in ["postinst", "prerm", "postrm"] {
        say(Command::new("sh").arg("-n").arg(control.join(script)))?;
    }
    let version = say(Command::new(data.join("usr/bin/larder")).arg("--version"))?;
    ensure!(version.trim() == concat!("larder ", env!("CARGO_PKG_VERSION")), "{version}");
    let completes = format!(
        "source {}; complete -p larder; COMP_WORDS=(larder pre) COMP_CWORD=1; _larder larder pre larder; echo ${{COMPREPLY[*]}}",
        data.join("usr/share/bash-completion/completions/larder").display()
    );
    let completed = say(Command::new("bash").args(["-c", &completes]))?;
    ensure!(completed.lines().last() == Some("prefetch"), "{completed}");
    for paper in ["fish/vendor_completions.d/larder.fish", "zsh/vendor-completions/_larder", "man/man1/larder.1"] {
        let found =
            ["", ".gz"].map(|end| data.join(format!("usr/share/{paper}{end}"))).into_iter().find(|it| it.exists());
        // What isn't compressed is passed on as it is.
        let text = say(Command::new("gzip").args(["-dcf"]).arg(found.context(paper)?))?;
        ensure!(text.contains("prefetch"), "{paper} doesn't know all commands: {text}");
    }
    Ok(())
}

/// Each key at its default, none of them set: what is changed stands out, and defaults may change with a version.
#[test]
fn the_default_configuration_is_that_of_the_program() {
    let default = say(Command::new(program().unwrap()).args(["config", "default"])).unwrap();
    let is_key = |line: &str| {
        line.split_once(" = ").is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
    };
    let expected: String =
        default.lines().map(|line| if is_key(line) { format!("#{line}\n") } else { format!("{line}\n") }).collect();
    let file = repository().join("systemd/larder.toml");
    let is = std::fs::read_to_string(&file).unwrap();
    assert!(is == expected, "make it anew: larder config default | sed -E 's/^[a-z_]+ = /#&/' >systemd/larder.toml");
    say(Command::new(program().unwrap()).args(["config", "check", "--config"]).arg(&file)).unwrap();
}

/// systemd understands all of the unit, and counts little that a service could do and this one may.
#[test]
fn the_unit_is_sound_and_tight() {
    let folder = Folder::new().unwrap();
    let unit = folder.path().join("larder.service");
    let text = std::fs::read_to_string(repository().join(UNIT)).unwrap();
    // What it starts has to be there.
    std::fs::write(&unit, text.replace("/usr/bin/larder", program().unwrap().to_str().unwrap())).unwrap();
    let verify = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output().unwrap();
    let said = String::from_utf8_lossy(&verify.stderr);
    assert!(verify.status.success() && !said.contains("larder"), "{said}");
    // In tenths. Most of the rest is the network, root as the user, and what root's files are to be read with.
    let security = ["security", "--offline=true", "--threshold=19", "--no-pager"];
    say(Command::new("systemd-analyze").args(security).arg(&unit)).unwrap();
}

#[test]
fn make_install_goes_where_it_is_told_and_can_be_undone() {
    let folder = Folder::new().unwrap();
    let make = |target: &str| {
        let mut make = Command::new("make");
        make.arg("-C").arg(repository()).arg(target).arg(format!("DESTDIR={}", folder.path().display()));
        say(make.arg("PREFIX=/opt/larder").arg(format!("BINARY={}", program().unwrap().display()))).unwrap();
    };
    make("install");
    let unit = std::fs::read_to_string(folder.path().join("opt/larder/lib/systemd/system/larder.service")).unwrap();
    assert!(unit.contains("\nExecStart=/opt/larder/bin/larder run\n") && !unit.contains("/usr/bin/larder"));
    let installed = files_below(folder.path()).unwrap();
    for file in ["bin/larder", "share/man/man1/larder-run.1", "share/bash-completion/completions/larder"] {
        assert!(installed.contains(&format!("opt/larder/{file}")), "{installed:?}");
    }
    let config = folder.path().join("etc/larder/larder.toml");
    std::fs::write(&config, "# mine\n").unwrap();
    make("install");
    assert_eq!(std::fs::read_to_string(&config).unwrap(), "# mine\n", "a configuration that is there stays");
    make("uninstall");
    assert_eq!(files_below(folder.path()).unwrap(), BTreeSet::from(["etc/larder/larder.toml".to_owned()]));
}

/// In an image that is being made, or a container: nothing is started, and the package goes as it came.
#[test]
fn without_systemd_it_installs_and_purges_too() {
    run(without_systemd_it_installs_and_purges_too_or());
}

async fn without_systemd_it_installs_and_purges_too_or() -> Result<()> {
    require_root()?;
    let disk = Disk::small(1024)?;
    let inside = "set -eu; cd \"$1\"; mkdir root upper work; \
        mount -t overlay overlay -o \"lowerdir=/,upperdir=$1/upper,workdir=$1/work\" root; \
        mount -t tmpfs none root/run; mount --rbind /dev root/dev; mount -t tmpfs none root/tmp; cp \"$2\" root/tmp/larder.deb; \
        mkdir -p root/etc/containerd/certs.d/reg.test; echo 'server = \"https://mine\"' >root/etc/containerd/certs.d/reg.test/hosts.toml; \
        chroot root dpkg --install --force-depends /tmp/larder.deb; chroot root larder hosts apply; \
        grep -q 127.0.0.1:7439 root/etc/containerd/certs.d/reg.test/hosts.toml; \
        chroot root dpkg --purge larder; ! chroot root dpkg --status larder";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", inside, "-"]).arg(disk.path()).arg(package().await?);
    say(command.env("DEBIAN_FRONTEND", "noninteractive"))?;
    let left = files_below(&disk.path().join("upper"))?;
    // dpkg's own, and the file that was there before.
    let theirs = ["var/lib/dpkg/", "var/log/", "var/cache/man/", "var/cache/debconf/", "var/tmp/"];
    let left: Vec<_> = left.iter().filter(|path| !theirs.iter().any(|their| path.starts_with(their))).collect();
    ensure!(left == ["etc/containerd/certs.d/reg.test/hosts.toml"], "left: {left:?}");
    let hosts = disk.path().join("upper/etc/containerd/certs.d/reg.test/hosts.toml");
    ensure!(std::fs::read_to_string(hosts)? == "server = \"https://mine\"\n");
    Ok(())
}

/// All that isn't a folder, by its path below `folder`.
fn files_below(folder: &Path) -> Result<BTreeSet<String>> {
    let mut files = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).with_context(|| format!("listing {}", next.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                files.insert(entry.path().strip_prefix(folder)?.display().to_string());
            }
        }
    }
    Ok(files)
}
