//! What the chart makes for Prometheus and Grafana is what lies in `daemonset/`, in a packaged chart too.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Result, ensure};
use larder_integration::{Folder, objects, say, tool};
use serde_json::{Value, json};

use super::render::{Helm, chart, daemonset, object};

const ALL: &str = "metrics.serviceMonitor.enabled=true,metrics.podMonitor.enabled=true,\
                   metrics.prometheusRule.enabled=true,metrics.dashboard.enabled=true";

/// What of the chart is made of files outside of it, against these.
fn is_theirs(rendered: &[Value]) -> Result<()> {
    let rules: Value = yaml_serde::from_slice(&std::fs::read(daemonset().join("alerts/larder.yaml"))?)?;
    ensure!(object(rendered, "PrometheusRule", "larder")?["spec"] == rules, "the alerts differ");
    let dashboard = object(rendered, "ConfigMap", "larder-dashboard")?["data"]["larder.json"].as_str();
    let dashboard: Value = serde_json::from_str(dashboard.unwrap_or_default())?;
    let theirs: Value = serde_json::from_slice(&std::fs::read(daemonset().join("dashboards/larder.json"))?)?;
    ensure!(dashboard == theirs, "the dashboard differs");
    Ok(())
}

#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn alerts_and_dashboard_are_those_of_the_files() {
    let rendered = Helm::Four.template(&["--set", ALL]).unwrap();
    is_theirs(&rendered).unwrap();
    // The alerts ask for the job "larder": the name that both monitors take over.
    for (kind, selected) in [("ServiceMonitor", "Service"), ("PodMonitor", "DaemonSet")] {
        let monitor = object(&rendered, kind, "larder").unwrap();
        assert_eq!(monitor["spec"]["jobLabel"], "app.kubernetes.io/name");
        let wanted = monitor["spec"]["selector"]["matchLabels"].as_object().unwrap();
        let labels = match selected {
            "Service" => &object(&rendered, "Service", "larder-metrics").unwrap()["metadata"]["labels"],
            _ => &object(&rendered, "DaemonSet", "larder").unwrap()["spec"]["template"]["metadata"]["labels"],
        };
        assert!(wanted.iter().all(|(name, value)| labels[name] == *value), "{kind} selects nothing");
        assert_eq!(labels["app.kubernetes.io/name"], "larder");
    }
    let port = &object(&rendered, "Service", "larder-metrics").unwrap()["spec"]["ports"][0]["port"];
    assert_eq!(*port, json!(7442));
}

/// Rules of the operator's kinds as Prometheus itself has them: the same by other spellings.
fn as_prometheus_has(relabelings: &Value) -> Value {
    let spelled = |key: &str| match key {
        "sourceLabels" => "source_labels".to_owned(),
        "targetLabel" => "target_label".to_owned(),
        same => same.to_owned(),
    };
    let rule =
        |rule: &Value| rule.as_object().unwrap().iter().map(|(key, value)| (spelled(key), value.clone())).collect();
    relabelings.as_array().unwrap().iter().map(rule).map(Value::Object).collect()
}

/// Where Prometheus finds an agent, and how it calls it: the Pod declares no port, and an address may be either family's.
#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn prometheus_finds_agents_at_either_familys_addresses() {
    let folder = Folder::new().unwrap();
    let rendered = Helm::Four.template(&["--set", ALL]).unwrap();
    let rules = |kind: &str, endpoints: &str| {
        as_prometheus_has(&object(&rendered, kind, "larder").unwrap()["spec"][endpoints][0]["relabelings"])
    };
    // As found: what a Pod without ports and what a Service's endpoints are to the operator's discovery.
    let found = |address: &str, ip: &str, node: &str| {
        let labels = json!({ "__meta_kubernetes_pod_ip": ip, "__meta_kubernetes_pod_node_name": node });
        json!({ "targets": [address], "labels": labels })
    };
    let pods = [found("10.0.0.1", "10.0.0.1", "node-1"), found("fd00::1", "fd00::1", "node-2")];
    let endpoints = [found("10.0.0.1:7442", "10.0.0.1", "node-1"), found("[fd00::1]:7442", "fd00::1", "node-2")];
    let jobs = [
        ("pods", rules("PodMonitor", "podMetricsEndpoints"), pods),
        ("endpoints", rules("ServiceMonitor", "endpoints"), endpoints),
    ];
    let jobs_in_config: Vec<Value> = jobs
        .iter()
        .map(|(job, rules, found)| json!({ "job_name": job, "static_configs": found, "relabel_configs": rules }))
        .collect();
    let config = folder.path().join("prometheus.json");
    std::fs::write(&config, json!({ "scrape_configs": jobs_in_config }).to_string()).unwrap();
    for (job, ..) in jobs {
        let mut promtool = Command::new(tool("prometheus/usr/bin/promtool").unwrap());
        // It always takes that long.
        promtool.args(["check", "service-discovery", "--timeout=3s"]).arg(&config).arg(job);
        let targets: Value = serde_json::from_str(&say(&mut promtool).unwrap()).unwrap();
        let targets = targets.as_array().unwrap().iter().map(|target| &target["labels"]);
        let targets: BTreeSet<_> =
            targets.map(|labels| ["__address__", "instance"].map(|label| labels[label].as_str().unwrap())).collect();
        assert_eq!(targets, BTreeSet::from([["10.0.0.1:7442", "node-1"], ["[fd00::1]:7442", "node-2"]]), "{job}");
    }
}

/// The files are links out of the chart's folder. A package has to have what they lead to.
#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn a_package_has_all_of_it() {
    let folder = Folder::new().unwrap();
    let at = folder.path().to_string_lossy().into_owned();
    let source = chart().to_string_lossy().into_owned();
    for helm in [Helm::Three, Helm::Four] {
        helm.run(&["package", &source, "--destination", &at]).unwrap();
        let package = format!("{at}/larder-{}.tgz", env!("CARGO_PKG_VERSION"));
        let listing = Command::new("tar").args(["--list", "--verbose", "--file", &package]).output().unwrap();
        let listing = String::from_utf8(listing.stdout).unwrap();
        assert!(
            listing.contains("larder/files/alerts.yaml") && listing.contains("larder/presets/k3s.yaml"),
            "{listing}"
        );
        assert!(listing.lines().all(|line| line.starts_with('-')), "not only files:\n{listing}");
        let arguments = ["template", "larder", &package, "--namespace", "larder", "--set", ALL];
        let packaged = objects(&helm.run(&arguments).unwrap()).unwrap();
        is_theirs(&packaged).unwrap();
        assert_eq!(packaged, helm.template(&["--set", ALL]).unwrap());
    }
}
