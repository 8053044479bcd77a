//! The disk dies before each change in turn. At every such point containerd reads something sound, doing it again
//! mends all, and restoring gives back every byte.

use super::super::disk::fuse;
use super::super::{HostsDir, HostsError};
use super::*;

const TARGETS: [&str; 3] = ["_default", "ghcr.io", "docker.io"];

/// Something that is done, and may be cut short.
type Work = fn(&Certs) -> Result<(), HostsError>;

/// What stands there before, and what is changed by others before the work that is cut short.
struct Scene {
    files: Option<&'static [(&'static str, &'static str)]>,
    before: Work,
    work: Work,
    /// The files that restoring gives at the end; `None`: those from the beginning.
    after: Option<&'static [(&'static str, &'static str)]>,
}

fn nothing(_: &Certs) -> Result<(), HostsError> {
    Ok(())
}

fn apply(certs: &Certs) -> Result<(), HostsError> {
    certs.hosts(&TARGETS).apply(&entry())?.folders.into_iter().try_for_each(|f| f.outcome.map(drop))
}

fn apply_plain(certs: &Certs) -> Result<(), HostsError> {
    certs.hosts(&TARGETS).apply(&plain())?.folders.into_iter().try_for_each(|f| f.outcome.map(drop))
}

fn restore(certs: &Certs) -> Result<(), HostsError> {
    HostsDir::restore(&certs.dir)?.folders.into_iter().try_for_each(|f| f.outcome.map(drop))
}

const USERS: &[(&str, &str)] = &[
    ("docker.io/hosts.toml", "server = \"https://s\"\n[host.a]\n"),
    ("link.io/hosts.toml -> ../docker.io/hosts.toml", ""),
    ("certs.io/ca.crt", "x"),
    ("bad.io/hosts.toml", "[host"),
];
const NEW: &[(&str, &str)] = &[
    ("docker.io/hosts.toml", "# new\n[host.b]\n"),
    ("link.io/hosts.toml -> ../docker.io/hosts.toml", ""),
    ("certs.io/ca.crt", "x"),
    ("bad.io/hosts.toml", "[host"),
];

/// Each folder that containerd would read has a sound file or none, or still the user's own; and no CA is missing.
fn sound(certs: &Certs, step: usize) {
    for folder in ["_default", "ghcr.io", "docker.io", "link.io", "certs.io", "bad.io"] {
        let file = certs.dir.join(folder).join(OURS);
        if file.exists() && fs::read(&file).unwrap() != b"[host" {
            certs.read(folder);
        } else if folder == "docker.io" && certs.has("docker.io") && certs.has("bad.io") {
            panic!("step {step}: the user's file is gone, and none is in its place");
        }
    }
}

/// What is half done is ours to take back, and is named.
fn named(certs: &Certs, original: &Tree, step: usize) {
    let traces = HostsDir::traces(&certs.dir).unwrap();
    assert_eq!(traces.is_empty(), certs.tree() == *original, "step {step}: {traces:?}");
}

fn at_each_step(scene: &Scene) {
    let mut steps = 0;
    for finish in [apply as Work, restore] {
        for step in 0.. {
            let certs = scene.files.map_or_else(Certs::missing, Certs::with);
            let original = scene.after.map_or_else(|| certs.tree(), |files| Certs::with(files).tree());
            (scene.before)(&certs).unwrap();
            let mut result = Ok(());
            let died = fuse::with(step, || result = (scene.work)(&certs));
            if !died {
                result.unwrap();
                steps += step;
                break;
            }
            sound(&certs, step);
            named(&certs, &original, step);
            // Cut short a second time, at another place.
            fuse::with(step / 2, || drop(finish(&certs)));
            sound(&certs, step);
            named(&certs, &original, step);
            finish(&certs).unwrap_or_else(|e| panic!("step {step}: {e}"));
            sound(&certs, step);
            restore(&certs).unwrap();
            assert_eq!(certs.tree(), original, "step {step}");
        }
    }
    assert!(steps > 8, "the fuse isn't in what was tested");
}

#[test]
fn while_making_everything() {
    at_each_step(&Scene { files: None, before: nothing, work: apply, after: None });
}

#[test]
fn while_putting_ours_in_the_users_place() {
    at_each_step(&Scene { files: Some(USERS), before: nothing, work: apply, after: None });
}

#[test]
fn while_restoring() {
    at_each_step(&Scene { files: Some(USERS), before: apply, work: restore, after: None });
    at_each_step(&Scene { files: None, before: apply, work: restore, after: None });
}

#[test]
fn while_leaving_tls() {
    at_each_step(&Scene { files: Some(USERS), before: apply, work: apply_plain, after: None });
    at_each_step(&Scene { files: Some(USERS), before: apply_plain, work: apply, after: None });
}

#[test]
fn while_taking_over_a_new_file() {
    fn replaced(certs: &Certs) -> Result<(), HostsError> {
        apply(certs)?;
        fs::remove_file(certs.dir.join("docker.io/hosts.toml")).unwrap();
        certs.put(NEW[0].0, NEW[0].1.as_bytes());
        Ok(())
    }
    at_each_step(&Scene { files: Some(USERS), before: replaced, work: apply, after: Some(NEW) });
    at_each_step(&Scene { files: Some(USERS), before: replaced, work: restore, after: Some(NEW) });
}

#[test]
fn while_taking_over_an_edit() {
    fn edited(certs: &Certs) -> Result<(), HostsError> {
        apply(certs)?;
        let text = certs.text("docker.io/hosts.toml");
        let text = text.replace("server = \"https://s\"\n", "# new\n").replace("[host.a]", "[host.b]");
        fs::write(certs.dir.join("docker.io/hosts.toml"), text).unwrap();
        Ok(())
    }
    for work in [apply as Work, restore] {
        let mut steps = 0;
        for step in 0.. {
            let certs = Certs::with(USERS);
            edited(&certs).unwrap();
            if !fuse::with(step, || drop(work(&certs))) {
                steps += step;
                break;
            }
            sound(&certs, step);
            apply(&certs).unwrap();
            restore(&certs).unwrap();
            assert_eq!(certs.text("docker.io/hosts.toml"), NEW[0].1, "step {step}");
            let names = |certs: &Certs| certs.tree().into_keys().collect::<Vec<_>>();
            assert_eq!(names(&certs), names(&Certs::with(NEW)), "step {step}");
        }
        assert!(steps > 4);
    }
}
