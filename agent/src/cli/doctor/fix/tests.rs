//! Files of each kind, and what becomes of them.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use proptest::prelude::*;

use super::plan::{Plan, Refusal, plan, plan_of};
use super::write::Draft;
use super::*;
use crate::cli::doctor::checks::tests::{release, runs, sound};
use crate::cli::doctor::facts::{Folder, Root, Unlisted};
use crate::cli::doctor::hosts_file::HostsFile;
use crate::cli::doctor::platform::Platform;
use crate::containerd::setup::{InMemory, Setup};

const CONFIG: &str = "/etc/containerd/config.toml";
const DEBIAN: &str = include_str!("fixtures/debian.toml");
const DOCKER: &str = include_str!("fixtures/docker.toml");
const DOCKER_AS_SHIPPED: &str = include_str!("fixtures/docker-as-shipped.toml");
const DEFAULT_1_7: &str = include_str!("fixtures/default-1.7.toml");
const DEFAULT_2_1: &str = include_str!("fixtures/default-2.1.toml");
const LIST_2_2: &str = include_str!("fixtures/list-2.2.toml");
const MIRRORS: &str = include_str!("fixtures/mirrors.toml");
const CONTAINERD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/doctor/fix/fixtures/containerd.sh");
const EKS: &str = include_str!("fixtures/eks.toml");

/// What is planned for a file of a containerd, with what else there is beside it.
fn planned(version: &str, text: Option<&str>, others: &[(&str, &str)]) -> Result<Option<Plan>, String> {
    let mut facts = sound();
    facts.runtime.release = release(version);
    let files = InMemory::new(text.map(|text| (CONFIG, text)).into_iter().chain(others.iter().copied()));
    facts.setup = Setup::read(&files, Path::new(CONFIG), facts.version());
    plan_of(&facts, text.map(str::to_owned), &files).map_err(|Refusal(why)| why)
}

#[track_caller]
fn difference(version: &str, text: Option<&str>) -> Vec<String> {
    planned(version, text, &[]).unwrap().expect("a plan").difference()
}

#[test]
fn what_packages_bring() {
    let section = "+     [plugins.\"io.containerd.grpc.v1.cri\".registry]";
    let line = "+       config_path = \"/etc/containerd/certs.d\"";
    for version in ["1.6.20", "1.7.24", "2.1.9", "2.4.2"] {
        assert_eq!(difference(version, Some(DEBIAN)), ["+ ", section, line], "{version}");
    }
    // With comments and no format.
    let docker = planned("1.7.24", Some(DOCKER), &[]).unwrap().unwrap();
    assert!(
        docker.after.starts_with("# What Docker's package brings") && docker.after.contains("[plugins.cri.registry]")
    );
    assert!(docker.after.contains("#  level = \"info\""), "{}", docker.after);
}

#[test]
fn what_containerd_prints_as_its_defaults() {
    assert_eq!(
        difference("1.7.24", Some(DEFAULT_1_7)),
        ["-       config_path = \"\" # nothing yet", "+       config_path = \"/etc/containerd/certs.d\" # nothing yet"]
    );
    for version in ["2.0.5", "2.1.9", "2.2.0", "2.4.2"] {
        assert_eq!(
            difference(version, Some(DEFAULT_2_1)),
            ["-       config_path = ''", "+       config_path = \"/etc/containerd/certs.d\""],
            "{version}"
        );
    }
}

#[test]
fn there_is_no_file() {
    let text = |version| planned(version, None, &[]).unwrap().unwrap().after;
    assert_eq!(
        text("1.7.24"),
        "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/etc/containerd/certs.d\"\n"
    );
    assert!(text("2.1.9").starts_with("version = 3\n\n[plugins.\"io.containerd.cri.v1.images\".registry]\n"));
    // The default of 2.2 and later is a list, which the transfer service doesn't understand.
    assert!(text("2.4.2").contains("config_path = \"/etc/containerd/certs.d\""));
}

#[test]
fn a_list_becomes_one_folder() {
    assert_eq!(difference("2.2.0", Some(LIST_2_2)).len(), 2);
    // Where it is understood it stays.
    assert!(
        planned(
            "1.7.24",
            Some(
                &LIST_2_2
                    .replace("version = 3", "version = 2")
                    .replace("io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri")
            ),
            &[]
        )
        .unwrap()
        .is_none()
    );
    // The other folder has an entry, which would be lost.
    let mut facts = sound();
    runs(&mut facts, "2.2.0", LIST_2_2);
    let folder = Folder { name: "docker.io".to_owned(), file: HostsFile::Absent };
    facts.roots.push(Root { path: "/etc/docker/certs.d".into(), folders: Ok(vec![folder]) });
    let files = InMemory::new([(CONFIG, LIST_2_2)]);
    let refused = plan_of(&facts, Some(LIST_2_2.to_owned()), &files).unwrap_err();
    assert!(refused.0.contains("/etc/docker/certs.d has entries"), "{}", refused.0);
    facts.roots[1].folders = Err(Unlisted::Missing);
    assert!(plan_of(&facts, Some(LIST_2_2.to_owned()), &files).unwrap().is_some());
}

#[test]
fn what_is_left_alone() {
    let set = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/c\"\n";
    let imports = "version = 2\nimports = [\"/etc/containerd/more.toml\"]\n";
    let cri = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"x\"\n";
    for (version, text, others, said) in [
        ("1.7.24", "version = 2\n[plugins", vec![], "no TOML"),
        ("1.7.24", DOCKER_AS_SHIPPED, vec![], "disabled_plugins"),
        ("1.7.24", MIRRORS, vec![], "registry.mirrors"),
        ("2.1.9", MIRRORS, vec![], "registry.mirrors"),
        ("1.7.24", set, vec![], "by somebody"),
        // Up to 1.7 the imported section replaces the whole one.
        ("1.7.24", imports, vec![("/etc/containerd/more.toml", cri)], "imported"),
        ("1.7.24", imports, vec![], "doesn't exist"),
        ("1.7.24", "version = 2\nplugins = 1\n", vec![], "no table"),
    ] {
        let why = planned(version, Some(text), &others).expect_err(text);
        assert!(why.contains(said), "{said:?} isn't in {why:?}");
    }
    // From 2.0 on it is merged.
    assert!(planned("2.1.9", Some(imports), &[("/etc/containerd/more.toml", cri)]).unwrap().is_some());
    assert!(planned("1.7.24", Some(&set.replace("/c", "/etc/containerd/certs.d")), &[]).unwrap().is_none());
}

#[test]
fn files_that_others_make() {
    let files = InMemory::new([(CONFIG, DEBIAN)]);
    let refused = |facts: &Facts| plan_of(facts, Some(DEBIAN.to_owned()), &files).unwrap_err().0;
    let mut facts = sound();
    runs(&mut facts, "1.7.24", DEBIAN);
    for (platform, name) in [
        (Platform::K3s, "k3s"),
        (Platform::Rke2, "RKE2"),
        (Platform::Microk8s, "microk8s"),
        (Platform::Talos, "Talos"),
        (Platform::Eks, "EKS"),
        (Platform::Aks, "AKS"),
        (Platform::Gke, "GKE"),
        (Platform::Kind, "kind"),
    ] {
        facts.platform = platform;
        let why = refused(&facts);
        assert!(why.to_lowercase().contains(&name.to_lowercase()), "{why}");
    }
    facts.platform = Platform::Plain;
    facts.runtime.config_argument = Some("/elsewhere.toml".into());
    assert!(refused(&facts).contains("started with /elsewhere.toml"));
    facts.runtime.config_argument = Some(CONFIG.into());
    facts.surroundings.is_pod = true;
    assert!(refused(&facts).contains("this is a Pod"));
    facts.surroundings.is_pod = false;
    assert!(plan_of(&facts, Some(DEBIAN.to_owned()), &files).unwrap().is_some());
    let mut eks = sound();
    runs(&mut eks, "2.1.9", EKS);
    assert!(
        plan_of(&eks, Some(EKS.to_owned()), &InMemory::new([(CONFIG, EKS)])).unwrap().is_none(),
        "it works as it is"
    );
}

/// Facts of a plain node whose file is this one.
fn on_disk(file: &Path) -> Facts {
    let mut facts = sound();
    facts.runtime.release = release("1.7.24");
    facts.setup_file = file.to_owned();
    facts.setup = Setup::read(&crate::containerd::setup::Disk, file, facts.version());
    facts
}

#[test]
fn the_old_file_stays_beside_it() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("config.toml");
    fs::write(&file, DEBIAN).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let inode = fs::metadata(&file).unwrap().ino();
    let plan = plan(&on_disk(&file)).unwrap().unwrap();
    let backup = Draft::write(&plan).unwrap().commit(&plan).unwrap().unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), plan.after);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o640);
    assert_eq!((fs::read_to_string(&backup).unwrap().as_str(), fs::metadata(&backup).unwrap().ino()), (DEBIAN, inode));
    assert!(!backup.to_str().unwrap().ends_with(".toml"), "an import would find it");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    // Once more in the same second: the first backup stays.
    fs::write(&file, DEBIAN).unwrap();
    let second = Draft::write(&plan).unwrap().commit(&plan).unwrap().unwrap();
    assert_ne!(backup, second);
    // Somebody was faster.
    fs::write(&file, "version = 2\n").unwrap();
    assert!(Draft::write(&plan).unwrap().commit(&plan).is_err());
    assert_eq!(fs::read_to_string(&file).unwrap(), "version = 2\n");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "no draft stays");
}

/// What comes of `--fix` on a file, and what is said meanwhile.
async fn fixed(file: &Path, consent: Consent<&[u8]>) -> (anyhow::Result<bool>, String) {
    let mut facts = on_disk(file);
    facts.runtime.program = Some(CONTAINERD.into());
    let mut out = Vec::new();
    let outcome = fix(&facts, consent, &mut out).await;
    (outcome, String::from_utf8(out).unwrap())
}

#[tokio::test]
async fn it_is_asked_before_anything_is_written() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("config.toml");
    fs::write(&file, DEBIAN).unwrap();
    for answer in ["n\n", "\n", "", "yesterday\n", "no\ny\n"] {
        let (outcome, said) = fixed(&file, Consent::Asked(answer.as_bytes())).await;
        assert_eq!(outcome.unwrap_err().to_string(), "nothing was changed", "{answer:?}");
        assert!(said.contains("+       config_path = ") && said.ends_with("Write it? [y/N] "), "{said}");
    }
    let (outcome, said) = fixed(&file, Consent::Nobodys).await;
    assert!(outcome.unwrap_err().to_string().contains("add --yes") && !said.contains("[y/N]"), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap(), DEBIAN);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft and no backup");

    let (outcome, said) = fixed(&file, Consent::Asked(b" Yes\n")).await;
    assert!(outcome.unwrap() && said.contains("[y/N] ") && said.contains("config dump agrees"), "{said}");
    let changed = fs::read_to_string(&file).unwrap();
    assert!(changed.contains("config_path = "), "{changed}");
    // A second time nobody is asked.
    let (outcome, said) = fixed(&file, Consent::Nobodys).await;
    assert!(!outcome.unwrap() && said.contains("nothing to do"), "{said}");
    fs::write(&file, DEBIAN).unwrap();
    let (outcome, said) = fixed(&file, Consent::Given).await;
    assert!(outcome.unwrap() && !said.contains("[y/N]"), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap(), changed);
}

#[test]
fn a_new_file_is_nobodys_place() {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("not/yet/config.toml");
    let plan = plan(&on_disk(&file)).unwrap().unwrap();
    assert_eq!(Draft::write(&plan).unwrap().commit(&plan).unwrap(), None);
    assert_eq!(fs::read_to_string(&file).unwrap(), plan.after);
    assert!(Draft::write(&plan).unwrap().commit(&plan).is_err(), "it is there by now");
}

#[test]
fn a_link_is_not_followed() {
    let folder = tempfile::TempDir::new().unwrap();
    let (file, real) = (folder.path().join("config.toml"), folder.path().join("real.toml"));
    fs::write(&real, DEBIAN).unwrap();
    std::os::unix::fs::symlink(&real, &file).unwrap();
    assert!(plan(&on_disk(&file)).unwrap_err().0.contains("symbolic link"));
}

proptest! {
    /// Whatever the file, it either stays or says the same and one thing more.
    #[test]
    fn nothing_else_changes(
        before in "(version = 2\n)?(#[a-z ]{0,9}\n|a = 1\n)?(\\[plugins\\]\n)?( {0,4}\\[plugins\\.\"io\\.containerd\\.grpc\\.v1\\.cri\"(\\.(cni|registry))?\\]\n( {0,6}(x|config_path) = \"\" ?(# c)?\n)?){0,2}",
    ) {
        if let Ok(Some(plan)) = planned("1.7.24", Some(&before), &[]) {
            let changed: Vec<_> = plan.difference();
            prop_assert!(changed.iter().filter(|line| line.starts_with('-')).count() <= 1, "{}", plan.after);
            prop_assert!(plan.after.contains("config_path = \"/etc/containerd/certs.d\""));
        }
    }
}
