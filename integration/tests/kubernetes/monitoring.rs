//! What the chart makes for Prometheus and Grafana is what lies in `daemonset/`, in a packaged chart too.

use std::process::Command;

use anyhow::{Result, ensure};
use larder_integration::{Folder, objects};
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
