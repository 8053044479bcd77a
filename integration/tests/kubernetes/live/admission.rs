//! Documents at the apiserver's door: types, fields, Pod Security.

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use larder_integration::tool;
use serde_json::{Value, json};

use super::{NAMESPACE, Site, chart, daemonset, documents, names_in};
use crate::support::run;

/// What others define that the chart can make objects of, as far as it takes for the apiserver to know the kind.
const MONITORING: [(&str, &str); 3] =
    [("PodMonitor", "podmonitors"), ("ServiceMonitor", "servicemonitors"), ("PrometheusRule", "prometheusrules")];

/// What the chart renders for a preset, with everything in it that can be switched on.
async fn rendered_by_helm(site: &Site, preset: &str) -> Result<Vec<Value>> {
    let preset = format!("preset={preset}");
    let mut arguments = vec!["template", "larder", "--set", &preset, "--set", "namespace.create=true"];
    for switch in ["serviceMonitor", "podMonitor", "prometheusRule", "dashboard"] {
        arguments.extend(["--set", ["metrics", switch, "enabled=true"].join(".").leak()]);
    }
    let chart = chart();
    arguments.push(&chart);
    documents(&site.helm(&arguments).await?)
}

async fn rendered_by_kustomize(site: &Site, overlay: &str) -> Result<Vec<Value>> {
    let folder = daemonset().join("kustomize").join(overlay).display().to_string();
    documents(&site.say(&tool("kustomize/usr/bin/kustomize")?, &["build", &folder]).await?)
}

/// Everything that can be installed, by the name of how.
async fn everything(site: &Site) -> Result<Vec<(String, Vec<Value>)>> {
    let mut all = Vec::new();
    for preset in names_in(&daemonset().join("chart/larder/presets"))? {
        let preset = preset.trim_end_matches(".yaml");
        all.push((format!("the chart for {preset}"), rendered_by_helm(site, preset).await?));
    }
    for folder in ["presets", "clean-up"] {
        for preset in names_in(&daemonset().join("kustomize").join(folder))? {
            let overlay = format!("{folder}/{preset}");
            all.push((overlay.clone(), rendered_by_kustomize(site, &overlay).await?));
        }
    }
    Ok(all)
}

/// The apiserver knows these kinds from now on.
async fn define_monitoring(site: &Site) -> Result<()> {
    for (kind, plural) in MONITORING {
        let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        let version = json!({ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema } });
        let group = "monitoring.coreos.com";
        let names = json!({ "kind": kind, "plural": plural, "singular": kind.to_lowercase() });
        site.apply(&json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": { "name": format!("{plural}.{group}") },
            "spec": { "group": group, "scope": "Namespaced", "names": names, "versions": [version] },
        }))
        .await?;
        let list = format!("/apis/{group}/v1/namespaces/default/{plural}");
        site.until("a kind is served", &list, |_| true).await?;
    }
    Ok(())
}

async fn namespace(site: &Site, name: &str, level: &str) -> Result<()> {
    let labels = json!({ "pod-security.kubernetes.io/enforce": level });
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } });
    site.apply(&namespace).await.map(drop)
}

/// The accounts that Pods are refused without; controllers make the one, which don't run here.
async fn accounts(site: &Site, namespace: &str) -> Result<()> {
    for name in ["default", "larder"] {
        let metadata = json!({ "name": name, "namespace": namespace });
        site.apply(&json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata })).await?;
    }
    Ok(())
}

#[test]
#[cfg_attr(not(kubernetes), ignore = "Kubernetes isn't built: Go isn't here")]
fn the_apiserver_takes_everything_that_can_be_installed() {
    run(async {
        let site = Site::new().await?;
        define_monitoring(&site).await?;
        namespace(&site, NAMESPACE, "privileged").await?;
        accounts(&site, NAMESPACE).await?;
        for (how, documents) in everything(&site).await? {
            ensure!(documents.iter().any(|document| document["kind"] == "DaemonSet"), "{how} has no DaemonSet");
            for document in documents {
                let taken = site.control.api().try_apply(&document).await.with_context(|| how.clone())?;
                taken.with_context(|| format!("{how}: {} {}", document["kind"], document["metadata"]["name"]))?;
            }
        }
        Ok(())
    });
}

#[test]
#[cfg_attr(not(kubernetes), ignore = "Kubernetes isn't built: Go isn't here")]
fn the_apiserver_refuses_what_has_a_mistake() {
    run(async {
        let site = Site::new().await?;
        namespace(&site, NAMESPACE, "privileged").await?;
        let documents = rendered_by_kustomize(&site, "presets/plain").await?;
        let right = documents.into_iter().find(|document| document["kind"] == "DaemonSet").context("no DaemonSet")?;
        site.control.api().try_apply(&right).await??;
        let mistakes: [(&str, Value); 3] = [
            ("/spec/template/spec/hostNetworks", json!(true)),
            ("/spec/updateStrategy/rollingUpdate/maxSurge", json!("one")),
            ("/spec/template/spec/containers/0/volumeMounts/0/mountPropagation", json!("FromHost")),
        ];
        for (at, value) in mistakes {
            let mut wrong = right.clone();
            let (parent, field) = at.rsplit_once('/').context("a path")?;
            wrong.pointer_mut(parent).with_context(|| format!("no {parent}"))?[field] = value;
            let refused = site.control.api().try_apply(&wrong).await?.err().with_context(|| format!("{at} is taken"))?;
            ensure!(refused.message.contains(field), "{at}: {refused}");
        }
        Ok(())
    });
}

/// The namespace's label is needed, and it is all that is needed: the agent's Pod is admitted by the namespace as it is
/// installed, and refused by the next stricter level; the Pod that only waits is admitted by the strictest.
#[test]
#[cfg_attr(not(kubernetes), ignore = "Kubernetes isn't built: Go isn't here")]
fn pod_security_admits_the_agent_by_the_label_of_its_namespace() {
    run(async {
        let site = Site::new().await?;
        for level in ["baseline", "restricted"] {
            namespace(&site, level, level).await?;
            accounts(&site, level).await?;
        }
        let documents = rendered_by_kustomize(&site, "presets/plain").await?;
        let of_kind = |kind: &str| documents.iter().find(|document| document["kind"] == kind).context("missing");
        site.apply(of_kind("Namespace")?).await?;
        accounts(&site, NAMESPACE).await?;
        let template = &of_kind("DaemonSet")?["spec"]["template"];
        let agent = pod_in(NAMESPACE, template);
        site.control.api().try_apply(&agent).await??;
        for level in ["baseline", "restricted"] {
            let refused = site.control.api().try_apply(&pod_in(level, template)).await?.err().context(level)?;
            ensure!(refused.status == StatusCode::FORBIDDEN, "{level}: {refused}");
            for what in ["violates PodSecurity", "host namespaces", "hostPath volumes"] {
                ensure!(refused.message.contains(what), "{level}: {refused}");
            }
            // All that is privileged about it: no capability, no flag, no profile.
            for what in ["privileged (", "non-default capabilities", "seccompProfile"] {
                ensure!(!refused.message.contains(what), "{level}: {refused}");
            }
        }

        let hooks = rendered_by_helm(&site, "plain").await?;
        let waits = hooks.into_iter().find(|document| document["kind"] == "Pod").context("no Pod waits")?;
        site.control.api().try_apply(&pod_in("restricted", &waits)).await??;
        Ok(())
    });
}

/// A Pod of a template, or like another one.
fn pod_in(namespace: &str, template: &Value) -> Value {
    let mut pod = template.clone();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"] = json!({ "name": "pod", "namespace": namespace, "labels": template["metadata"]["labels"] });
    pod
}
