//! The tables in `daemonset/README.md` are written by `LARDER_WRITE=1` from the chart; and one version holds for all.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use larder_integration::{Folder, kustomize};
use serde_json::Value;

use super::render::{PRESETS, chart, daemonset, object};

/// What stands between two marks in the README shall be this.
fn hold(name: &str, source: &str, shall: &str) -> Result<()> {
    let (begin, end) =
        (format!("<!-- {name}: written by LARDER_WRITE=1 from {source} -->\n"), format!("<!-- end of {name} -->"));
    let path = daemonset().join("README.md");
    let readme = std::fs::read_to_string(&path)?;
    let (before, rest) = readme.split_once(&begin).with_context(|| format!("README.md has no place for {name}"))?;
    let (there, after) = rest.split_once(&end).with_context(|| format!("the {name} in README.md have no end"))?;
    if there != shall && std::env::var_os("LARDER_WRITE").is_some() {
        std::fs::write(&path, format!("{before}{begin}{shall}{end}{after}"))?;
        return Ok(());
    }
    ensure!(there == shall, "daemonset/README.md has\n{there}\nand shall have\n{shall}\nLARDER_WRITE=1 mends it");
    Ok(())
}

/// A value as its comment describes it.
#[derive(Debug, PartialEq)]
struct Described {
    path: String,
    description: String,
}

/// Reads what stands behind `# --` before a key. Two spaces are a level.
fn described(text: &str) -> Vec<Described> {
    let (mut parents, mut found, mut comment) = (Vec::<&str>::new(), Vec::new(), String::new());
    for line in text.lines() {
        let (bare, depth) = (line.trim_start(), (line.len() - line.trim_start().len()) / 2);
        if let Some(first) = bare.strip_prefix("# -- ") {
            first.clone_into(&mut comment);
        } else if let Some(more) = bare.strip_prefix("# ").filter(|_| !comment.is_empty()) {
            comment = format!("{comment} {more}");
        } else if let Some((key, _)) = bare.split_once(':').filter(|_| !bare.starts_with(['#', '-'])) {
            parents.truncate(depth);
            parents.push(key);
            if !comment.is_empty() {
                found.push(Described { path: parents.join("."), description: std::mem::take(&mut comment) });
            }
        }
    }
    found
}

/// The values that no description covers: neither its own nor one of what it is a part of.
fn undescribed(value: &Value, at: &str, described: &[Described], found: &mut Vec<String>) {
    if described.iter().any(|described| described.path == at) {
        return;
    }
    match value.as_object().filter(|entries| !entries.is_empty()) {
        Some(entries) => {
            for (key, value) in entries {
                let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                undescribed(value, &path, described, found);
            }
        }
        None => found.push(at.to_owned()),
    }
}

fn every_value_is_described() -> Result<()> {
    let text = std::fs::read_to_string(chart().join("values.yaml"))?;
    let values: Value = yaml_serde::from_str(&text)?;
    let described = described(&text);
    let mut missing = Vec::new();
    undescribed(&values, "", &described, &mut missing);
    ensure!(missing.is_empty(), "values without a description: {missing:?}");
    let mut table = "| value | default | what it says |\n|---|---|---|\n".to_owned();
    for Described { path, description } in described {
        let value = values.pointer(&format!("/{}", path.replace('.', "/"))).context("it has no such value")?;
        let _ = writeln!(table, "| `{path}` | `{value}` | {} |", description.replace('|', "\\|"));
    }
    hold("values", "chart/larder/values.yaml", &table)
}

/// One test for both tables: `LARDER_WRITE=1` lets only one write at a time.
#[test]
fn the_readme_has_every_preset_and_every_value() {
    every_preset_is_described().unwrap();
    every_value_is_described().unwrap();
}

fn every_preset_is_described() -> Result<()> {
    let mut table =
        "| preset | containerd's root | its socket | the hosts folder | its configuration |\n|---|---|---|---|---|\n"
            .to_owned();
    for name in PRESETS {
        let file = std::fs::read(chart().join(format!("presets/{name}.yaml")))?;
        let preset: Value = yaml_serde::from_slice(&file)?;
        let cells =
            ["root", "socket", "hostsDir", "config"].map(|key| format!("`{}`", preset[key].as_str().unwrap_or("?")));
        let _ = writeln!(table, "| `{name}` | {} |", cells.join(" | "));
    }
    hold("presets", "chart/larder/presets", &table)
}

/// Word for word, beside the folder that it names; and over what cleans up, as it is told there.
#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn the_overlay_of_the_readme_names_another_registry() {
    let readme = std::fs::read_to_string(daemonset().join("README.md")).unwrap();
    let (_, overlay) = readme.split_once("```yaml\n# overlay/kustomization.yaml\n").unwrap();
    let (overlay, _) = overlay.split_once("```").unwrap();
    let folder = Folder::new().unwrap();
    let at = folder.path().join("overlay");
    std::fs::create_dir(&at).unwrap();
    std::os::unix::fs::symlink(daemonset(), folder.path().join("daemonset")).unwrap();
    for (text, name) in [(overlay, "larder"), (&overlay.replace("/presets/", "/clean-up/"), "larder-clean-up")] {
        std::fs::write(at.join("kustomization.yaml"), text).unwrap();
        let objects = kustomize(&at.to_string_lossy()).unwrap();
        let pod = &object(&objects, "DaemonSet", name).unwrap()["spec"]["template"]["spec"];
        assert_eq!(pod["containers"][0]["image"], concat!("reg.corp/larder:", env!("CARGO_PKG_VERSION")));
        let root =
            pod["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == "containerd-root").unwrap();
        assert_eq!(root["hostPath"]["path"], "/var/lib/rancher/k3s/agent/containerd");
    }
}

#[test]
fn descriptions_are_read_as_they_stand() {
    let text = "# About all.\n\n# -- One\n# and more.\na: 1\nb:\n  # -- Two.\n  c: {}\n  d: x\n";
    let of = |path: &str, description: &str| Described { path: path.to_owned(), description: description.to_owned() };
    assert_eq!(described(text), [of("a", "One and more."), of("b.c", "Two.")]);
    let mut missing = Vec::new();
    undescribed(&yaml_serde::from_str(text).unwrap(), "", &described(text), &mut missing);
    assert_eq!(missing, ["b.d"]);
}

#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn one_version_holds_for_all() {
    let version = env!("CARGO_PKG_VERSION");
    let about: Value = yaml_serde::from_slice(&std::fs::read(chart().join("Chart.yaml")).unwrap()).unwrap();
    assert_eq!((about["version"].as_str(), about["appVersion"].as_str()), (Some(version), Some(version)));
    for (folder, name) in [("base", "larder"), ("clean-up/base", "larder-clean-up")] {
        let objects = kustomize(folder).unwrap();
        let agent = object(&objects, "DaemonSet", name).unwrap();
        let image = format!("ghcr.io/larder/larder:{version}");
        assert_eq!(agent["spec"]["template"]["spec"]["containers"][0]["image"], image);
    }
}
