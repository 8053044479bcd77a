//! Both ways say the same, preset by preset.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use larder_integration::kustomize;
use serde_json::{Value, json};

use super::render::{Helm, PRESETS, chart_of, object, overlay};

/// Labels that Helm wants on everything that it keeps.
const OF_HELM: [&str; 3] = ["app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart"];

/// Without what only one of the two ways can have, by kind and name.
fn normal(objects: Vec<Value>) -> Result<BTreeMap<String, Value>> {
    let is_hook = |object: &Value| !object["metadata"]["annotations"]["helm.sh/hook"].is_null();
    let mut normal = BTreeMap::new();
    for mut object in objects.into_iter().filter(|object| !is_hook(object)) {
        if let Some(labels) = object["metadata"]["labels"].as_object_mut() {
            labels.retain(|label, _| !OF_HELM.contains(&label.as_str()));
        }
        if object["kind"] == "ConfigMap" {
            // kustomize puts a hash behind the name, as the chart puts one into the Pods' annotations.
            object["metadata"]["name"] = json!("larder");
            let text = object["data"]["larder.toml"].as_str().context("a ConfigMap without larder.toml")?;
            object["data"]["larder.toml"] = serde_json::to_value(text.parse::<toml::Table>()?)?;
        }
        if object["kind"] == "DaemonSet" {
            let template = &mut object["spec"]["template"];
            let annotations = template["metadata"].as_object_mut().and_then(|metadata| metadata.remove("annotations"));
            ensure!(annotations.is_none_or(|a| a.as_object().is_some_and(|a| a.keys().eq(["checksum/config"]))));
            name_config(&mut template["spec"])?;
        }
        let key = format!("{}/{}", object["kind"], object["metadata"]["name"]);
        ensure!(normal.insert(key.clone(), object).is_none(), "{key} is there twice");
    }
    Ok(normal)
}

/// Gives the ConfigMap of a Pod the name that it has without a hash.
fn name_config(pod: &mut Value) -> Result<()> {
    let volumes = pod["volumes"].as_array_mut().context("no volumes")?;
    let config = volumes.iter_mut().find(|volume| volume["name"] == "config").context("no configuration")?;
    config["configMap"]["name"] = json!("larder");
    Ok(())
}

#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn chart_and_kustomize_render_the_same() {
    for preset in PRESETS {
        let (chart, plain) = (chart_of(preset).unwrap(), kustomize(&format!("presets/{preset}")).unwrap());
        let (chart, plain) = (normal(chart).unwrap(), normal(plain).unwrap());
        assert!(chart.keys().eq(plain.keys()), "{preset}: {:?} and {:?}", chart.keys(), plain.keys());
        for (key, object) in chart {
            assert_eq!(object, plain[&key], "{preset}: the chart's {key} (left) and kustomize's (right)");
        }
    }
    let base = normal(kustomize("base").unwrap()).unwrap();
    assert_eq!(base, normal(kustomize("presets/plain").unwrap()).unwrap());
}

/// What cleans up: its Pod and its configuration. It has no use for the peers' Secret.
fn cleaner(objects: &[Value]) -> Result<(Value, Value)> {
    let mut pod = object(objects, "DaemonSet", "larder-clean-up")?["spec"]["template"]["spec"].clone();
    name_config(&mut pod)?;
    for list in ["/volumes", "/containers/0/volumeMounts"] {
        let list = pod.pointer_mut(list).and_then(Value::as_array_mut).context("no volumes")?;
        list.retain(|part| part["name"] != "peers-ca");
    }
    let name = |object: &&Value| object["metadata"]["name"].as_str().is_some_and(|n| n.starts_with("larder-"));
    let config = objects.iter().filter(name).find(|object| object["kind"] == "ConfigMap");
    let text = config.and_then(|config| config["data"]["larder.toml"].as_str()).context("no configuration")?;
    Ok((pod, serde_json::to_value(text.parse::<toml::Table>()?)?))
}

#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn both_ways_clean_up_the_same() {
    for preset in PRESETS {
        let plain = kustomize(&format!("clean-up/{preset}")).unwrap();
        let (chart, plain) = (cleaner(&chart_of(preset).unwrap()).unwrap(), cleaner(&plain).unwrap());
        assert_eq!(chart, plain, "{preset}: the chart's (left) and kustomize's (right)");
    }
}

/// A component, in a user's overlay, is what a value is in the chart; and what cleans up needs it as much as the agent.
#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn the_component_for_selinux_is_the_charts_value() {
    // As it is, and where another component has changed the same container before.
    for preset in ["plain", "k3s"] {
        let values = format!("preset={preset},namespace.create=true,security.selinux.enabled=true");
        let chart = Helm::Four.template(&["--set", &values]).unwrap();
        let agents = overlay(&format!("presets/{preset}"), "selinux").unwrap();
        let agent = object(&agents, "DaemonSet", "larder").unwrap();
        let label = agent.pointer("/spec/template/spec/containers/0/securityContext/seLinuxOptions");
        assert_eq!(label, Some(&json!({"type": "spc_t"})), "{preset}");
        let cleaners = overlay(&format!("clean-up/{preset}"), "selinux").unwrap();
        assert_eq!(cleaner(&chart).unwrap(), cleaner(&cleaners).unwrap(), "{preset}: what cleans up");
        assert_eq!(normal(chart).unwrap(), normal(agents).unwrap(), "{preset}: the agent");
    }
}

#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn both_helms_render_the_same() {
    for preset in PRESETS {
        let choice = format!("preset={preset}");
        let [three, four] = [Helm::Three, Helm::Four].map(|helm| helm.template(&["--set", &choice]).unwrap());
        assert_eq!(three, four, "{preset}");
    }
}
