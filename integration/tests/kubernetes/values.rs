//! The chart's schema: it knows every value and every key of the configuration, and nothing else.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::Value;

use super::configuration::defaults_with_examples;
use super::render::{Helm, PRESETS, chart};

fn schema() -> Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(chart().join("values.schema.json"))?)?)
}

/// The paths of all that a table has, with those of the tables in its lists.
fn paths(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                found.insert(path.clone());
                paths(value, &path, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| paths(item, at, found)),
        _ => {}
    }
}

/// The same of a schema.
fn allowed(schema: &Value, at: &str, found: &mut BTreeSet<String>) {
    allowed_of_items(&schema["items"], at, found);
    for (key, value) in schema["properties"].as_object().into_iter().flatten() {
        let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        found.insert(path.clone());
        allowed(value, &path, found);
    }
}

fn allowed_of_items(items: &Value, at: &str, found: &mut BTreeSet<String>) {
    if items.is_object() {
        allowed(items, at, found);
    }
}

#[test]
fn the_schema_knows_every_key_of_the_configuration() {
    let mut there = BTreeSet::new();
    paths(&serde_json::to_value(defaults_with_examples().unwrap()).unwrap(), "", &mut there);
    // More that exclude what the examples show, and what a registry's own budget may say.
    there.extend(["peers.cert", "peers.cert_key", "peers.secret", "peers.allowed_ids"].map(str::to_owned));
    there.extend(["parallel", "timeout", "method"].map(|key| format!("health.registry.{key}")));
    // Names of headers are the user's.
    there.retain(|path| !path.starts_with("registry.upstream.headers."));
    let mut known = BTreeSet::new();
    allowed(&schema().unwrap()["properties"]["config"], "", &mut known);
    assert_eq!(known, there);
}

#[test]
fn the_schema_knows_every_value_and_every_preset() {
    let values: Value = yaml_serde::from_slice(&std::fs::read(chart().join("values.yaml")).unwrap()).unwrap();
    let (mut there, mut known) = (BTreeSet::new(), BTreeSet::new());
    paths(&values, "", &mut there);
    let schema = schema().unwrap();
    allowed(&schema, "", &mut known);
    let unknown: Vec<_> = there.difference(&known).filter(|path| !is_free(path)).collect();
    assert!(unknown.is_empty(), "values that the schema refuses: {unknown:?}");
    let is_described = |path: &&String| is_free(path) || path.as_str() == "global" || is_below(path, &there);
    let undescribed: Vec<_> = known.difference(&there).filter(|path| !is_described(path)).collect();
    assert!(undescribed.is_empty(), "the schema has what values.yaml lacks: {undescribed:?}");
    let mut presets: Vec<String> = std::fs::read_dir(chart().join("presets"))
        .unwrap()
        .map(|file| file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let mut named = PRESETS.map(str::to_owned).to_vec();
    let offered: Vec<String> = serde_json::from_value(schema["properties"]["preset"]["enum"].clone()).unwrap();
    assert_eq!(offered, named);
    presets.sort();
    named.sort();
    assert_eq!(presets, named);
}

/// What Kubernetes or the user defines.
fn is_free(path: &str) -> bool {
    ["resources.", "nodeSelector.", "tolerations.", "metrics.dashboard.labels.", "env."]
        .iter()
        .any(|free| path.starts_with(free))
}

/// Whether it is a part of something that is an empty list or table in the values.
fn is_below(path: &str, there: &BTreeSet<String>) -> bool {
    let mut at = path;
    while let Some((parent, _)) = at.rsplit_once('.') {
        if ["config", "host.certificates", "host.paths", "imagePullSecrets", "resources"].contains(&parent) {
            return there.contains(parent);
        }
        at = parent;
    }
    false
}

#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn what_is_no_value_is_refused_by_name() {
    for (setting, named) in [
        ("presets=k3s", "presets"),
        ("preset=k4s", "preset"),
        ("image.tags=1", "tags"),
        ("config.cache.max_byte=1", "max_byte"),
        ("config.cahce.max_bytes=1", "cahce"),
        ("config.cache.max_disk_percent=101", "max_disk_percent"),
        ("config.registry[0].name=a.b,config.registry[0].upstream[0].uri=https://m", "uri"),
        ("config.health.interval=often", "interval"),
        ("config.peers.listen=0.0.0.0", "listen"),
        ("peers.dnsserver=10.43.0.10", "dnsserver"),
        ("containerd.root=relative", "root"),
        ("host.paths[0].path=/etc/x", "type"),
        ("metrics.serviceMonitor.enable=true", "enable"),
        ("maxSurge=0", "maxSurge"),
    ] {
        for helm in [Helm::Three, Helm::Four] {
            let error = helm.template(&["--set", setting]).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("schema"), "{helm:?}, {setting}: {error}");
        }
    }
}

#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn helm_lints_the_chart() {
    for helm in [Helm::Three, Helm::Four] {
        for preset in PRESETS {
            let chart = chart().to_string_lossy().into_owned();
            helm.run(&["lint", "--strict", &chart, "--set", &format!("preset={preset},namespace.create=true")])
                .unwrap();
        }
    }
}
