//! Helm, and what it renders as values.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use larder_integration::{Folder, kustomize, objects, say, tool};
use serde_json::{Value, json};

/// Every preset, by its name in both ways.
pub(super) const PRESETS: [&str; 9] = ["plain", "eks", "aks", "gke", "k3s", "rke2", "kind", "talos", "microk8s"];

/// The Helms that the chart is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Helm {
    Three,
    Four,
}

impl Helm {
    /// Where it is.
    pub(super) fn program(self) -> Result<PathBuf> {
        tool(match self {
            Self::Three => "helm-3/usr/bin/helm",
            Self::Four => "helm/usr/bin/helm",
        })
    }

    /// Runs it, and gives what it printed. It finds no cluster.
    pub(super) fn run<S: AsRef<std::ffi::OsStr>>(self, arguments: &[S]) -> Result<String> {
        say(Command::new(self.program()?).env("KUBECONFIG", "/nonexistent").args(arguments))
    }

    /// What it renders of the chart with these arguments, in the namespace `larder`.
    pub(super) fn template(self, arguments: &[&str]) -> Result<Vec<Value>> {
        let chart = chart().to_string_lossy().into_owned();
        objects(&self.run(&[&["template", "larder", &chart, "--namespace", "larder"], arguments].concat())?)
    }
}

/// Helm 4's rendering of a preset, its Namespace included.
pub(super) fn chart_of(preset: &str) -> Result<Vec<Value>> {
    Helm::Four.template(&["--set", &format!("preset={preset},namespace.create=true")])
}

/// What a user's overlay of a folder of `daemonset/kustomize` is built to, with a component of these.
pub(super) fn overlay(resource: &str, component: &str) -> Result<Vec<Value>> {
    let folder = Folder::new()?;
    let here = folder.path().canonicalize()?;
    // kustomize takes no absolute paths.
    let up = "../".repeat(here.components().count() - 1);
    let place = |of: &str| -> Result<String> {
        let path = daemonset().join("kustomize").join(of).canonicalize()?;
        Ok(format!("{up}{}", path.strip_prefix("/")?.display()))
    };
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [place(resource)?],
        "components": [place(&format!("components/{component}"))?],
    });
    std::fs::write(here.join("kustomization.yaml"), kustomization.to_string())?;
    // A path from the root stays what it is below another.
    kustomize(&here.to_string_lossy())
}

/// The folder of all that is for Kubernetes.
pub(super) fn daemonset() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemonset")
}

/// The chart's folder.
pub(super) fn chart() -> PathBuf {
    daemonset().join("chart/larder")
}

/// The one object of this kind and name.
pub(super) fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    let is_it = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
    let found: Vec<&Value> = objects.iter().filter(is_it).collect();
    ensure!(found.len() == 1, "{} objects are {kind}/{name}", found.len());
    Ok(found[0])
}

/// The list at a JSON pointer; none is an empty one.
pub(super) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
