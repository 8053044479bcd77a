//! What is applied to a cluster, as values.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize as _;
use serde_json::Value;

use crate::{say, tool};

/// Where everything for kustomize is.
const KUSTOMIZE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../daemonset/kustomize");

/// What kustomize builds of a folder below `daemonset/kustomize`.
pub fn kustomize(folder: &str) -> Result<Vec<Value>> {
    let kustomize = tool("kustomize/usr/bin/kustomize")?;
    objects(&say(Command::new(kustomize).arg("build").arg(Path::new(KUSTOMIZE).join(folder)))?)
}

/// The objects of some YAML. Empty documents are none; one without a kind is an error.
pub fn objects(yaml: &str) -> Result<Vec<Value>> {
    let documents = yaml_serde::Deserializer::from_str(yaml).map(Value::deserialize);
    let documents: Vec<Value> = documents.collect::<Result<_, _>>().context("what was rendered is no YAML")?;
    let objects: Vec<Value> = documents.into_iter().filter(|document| !document.is_null()).collect();
    ensure!(objects.iter().all(|object| object["kind"].is_string()), "an object without a kind");
    Ok(objects)
}
