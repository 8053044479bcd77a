//! The configuration that is rendered is one that the agent takes, and says what the values said.

use std::path::Path;

use anyhow::{Context as _, Result};
use larder::config::{Config, commented_default};
use larder_integration::{Folder, kustomize};
use serde_json::{Value, json};

use super::render::{Helm, PRESETS, chart_of, list, object};

/// The defaults as `larder config default` prints them; with the examples in it, every key.
pub(super) fn defaults_with_examples() -> Result<toml::Table> {
    let uncommented = |line: &str| line.strip_prefix("#| ").unwrap_or(line).to_owned();
    Ok(commented_default().lines().map(uncommented).collect::<Vec<_>>().join("\n").parse()?)
}

/// Lets the agent judge a configuration, in an environment, as `larder config check` does.
fn check(folder: &Path, text: &str, environment: &[(String, String)]) -> Result<()> {
    let file = folder.join("larder.toml");
    std::fs::write(&file, text)?;
    Config::load(Some(&file), environment.iter().cloned()).with_context(|| text.to_owned())?;
    Ok(())
}

/// The environment of the agent's container as kubelet makes it, on a node in a zone or in none.
fn environment(pod: &Value, api: &str, zone: &str) -> Vec<(String, String)> {
    let variable = |variable: &Value| {
        let field = variable.pointer("/valueFrom/fieldRef/fieldPath").and_then(Value::as_str);
        let value = match field {
            Some("status.hostIP") if api.contains(':') => "fd00::7".to_owned(),
            Some("status.hostIP") => "192.168.7.7".to_owned(),
            Some("metadata.labels['topology.kubernetes.io/zone']") => zone.to_owned(),
            Some(other) => panic!("{other} isn't known here"),
            None => variable["value"].as_str().unwrap().replace("$(KUBERNETES_SERVICE_HOST)", api),
        };
        (variable["name"].as_str().unwrap().to_owned(), value)
    };
    list(pod, "/containers/0/env").iter().map(variable).collect()
}

fn text(objects: &[Value]) -> Result<&str> {
    let of_agent =
        |object: &&Value| object["kind"] == "ConfigMap" && object["metadata"]["annotations"]["helm.sh/hook"].is_null();
    let config = objects.iter().find(of_agent).context("no ConfigMap")?;
    config["data"]["larder.toml"].as_str().context("no larder.toml")
}

#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn the_agent_takes_every_presets_configuration() {
    let folder = Folder::new().unwrap();
    for preset in PRESETS {
        for objects in [chart_of(preset).unwrap(), kustomize(&format!("presets/{preset}")).unwrap()] {
            let pod = &object(&objects, "DaemonSet", "larder").unwrap()["spec"]["template"]["spec"];
            let text = text(&objects).unwrap();
            for (api, zone) in [("10.96.0.1", "eu-1a"), ("10.96.0.1", ""), ("fd00:10:96::1", "")] {
                check(folder.path(), text, &environment(pod, api, zone)).unwrap();
            }
            // What it names is mounted, and the cache lies below containerd's root.
            let config: toml::Table = text.parse().unwrap();
            let path = |section: &str, key: &str| config[section][key].as_str().unwrap().to_owned();
            let mounts: Vec<&str> =
                list(pod, "/containers/0/volumeMounts").iter().filter_map(|m| m["mountPath"].as_str()).collect();
            let is_within = |path: &str| mounts.iter().any(|mount| Path::new(path).parent() == Some(Path::new(mount)));
            assert!(mounts.contains(&path("containerd", "hosts_dir").as_str()), "{preset}");
            for (section, key) in [
                ("cache", "dir"),
                ("containerd", "socket"),
                ("containerd", "config"),
                ("peers", "ca"),
                ("peers", "key"),
            ] {
                assert!(is_within(&path(section, key)), "{preset}: {section}.{key} = {}", path(section, key));
            }
        }
    }
}

/// Every key of the configuration goes through the values as it is.
#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn every_key_can_be_a_value() {
    let folder = Folder::new().unwrap();
    let mut all = serde_json::to_value(defaults_with_examples().unwrap()).unwrap();
    all["registry"][0]["upstream"][0]["headers"]["X-Odd \"key\""] = json!("tab\tquote\" back\\slash <&> \u{e9}");
    let values = folder.path().join("values.json");
    std::fs::write(&values, json!({ "config": all }).to_string()).unwrap();
    for helm in [Helm::Three, Helm::Four] {
        let objects = helm.template(&["--values", &values.to_string_lossy()]).unwrap();
        let rendered: toml::Table = text(&objects).unwrap().parse().unwrap();
        assert_eq!(serde_json::to_value(rendered).unwrap(), all, "{helm:?}");
    }
    // What is empty, zero or false is said too.
    let odd = json!({
        "mirror": {"tls": false},
        "cache": {"dir": "/elsewhere", "copies": 0, "keep": [], "max_bytes": 1_099_511_627_776_u64},
        "containerd": {"registries": [], "hosts_dir": "/etc/containerd/other.d"},
        "peers": {"seeds": [], "zone": ""},
    });
    std::fs::write(&values, json!({ "config": odd }).to_string()).unwrap();
    let objects = Helm::Four.template(&["--values", &values.to_string_lossy()]).unwrap();
    check(folder.path(), text(&objects).unwrap(), &[]).unwrap();
    let rendered: toml::Table = text(&objects).unwrap().parse().unwrap();
    let rendered = serde_json::to_value(rendered).unwrap();
    for (section, keys) in odd.as_object().unwrap() {
        for (key, value) in keys.as_object().unwrap() {
            assert_eq!(&rendered[section][key], value, "{section}.{key}");
        }
    }
}

/// Who has given the agent other ports finds it there: other agents, and Prometheus.
#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn other_ports_are_told_to_everyone() {
    let found = |settings: &str| {
        let all = format!("metrics.serviceMonitor.enabled=true,metrics.podMonitor.enabled=true,{settings}");
        let objects = Helm::Four.template(&["--set", &all]).unwrap();
        let config: toml::Table = text(&objects).unwrap().parse().unwrap();
        let ports = |name: &str| -> Vec<i64> {
            let service = object(&objects, "Service", name).unwrap();
            list(service, "/spec/ports").iter().map(|port| port["port"].as_i64().unwrap()).collect()
        };
        let monitor = object(&objects, "PodMonitor", "larder").unwrap();
        let relabelings = list(monitor, "/spec/podMetricsEndpoints/0/relabelings");
        let addresses: Vec<&str> = relabelings.iter().filter_map(|rule| rule["replacement"].as_str()).collect();
        json!([config["peers"]["seeds"][0].as_str(), ports("larder-peers"), ports("larder-metrics"), addresses])
    };
    let expected = |peers: u16, metrics: u16| {
        let seed = format!("dns:larder-peers.larder.svc.cluster.local:{peers}");
        json!([seed, [peers, peers], [metrics], [format!("${{1}}:{metrics}"), format!("[${{1}}]:{metrics}")]])
    };
    assert_eq!(found("preset=plain"), expected(7441, 7442));
    assert_eq!(found("config.peers.listen=[::]:7541,config.metrics.listen=0.0.0.0:7542"), expected(7541, 7542));
    assert_eq!(found("config.peers.zone=a,config.log.level=debug"), expected(7441, 7442));
}

#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn a_changed_configuration_rolls_out() {
    let checksum = |settings: &str| {
        let objects = Helm::Four.template(&["--set", settings]).unwrap();
        let agent = object(&objects, "DaemonSet", "larder").unwrap();
        agent["spec"]["template"]["metadata"]["annotations"]["checksum/config"].as_str().unwrap().to_owned()
    };
    let (one, other) = (checksum("config.cache.max_bytes=50GiB"), checksum("config.cache.max_bytes=60GiB"));
    assert_ne!(one, other);
    assert_eq!(one, checksum("config.cache.max_bytes=50GiB,maxSurge=2"));
}
