//! Documents at the apiserver's door: types, fields, Pod Security.

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use larder_integration::kustomize;
use serde_json::{Value, json};

use super::super::render::{Helm, PRESETS, object, overlay};
use super::{NAMESPACE, Site};
use crate::support::run;

/// What others define that the chart can make objects of, as far as it takes for the apiserver to know the kind.
const MONITORING: [(&str, &str); 3] =
    [("PodMonitor", "podmonitors"), ("ServiceMonitor", "servicemonitors"), ("PrometheusRule", "prometheusrules")];

/// Everything in the chart that can be switched on.
const SWITCHES: &str = "namespace.create=true,metrics.serviceMonitor.enabled=true,metrics.podMonitor.enabled=true,\
    metrics.prometheusRule.enabled=true,metrics.dashboard.enabled=true";

/// What the Pod can be given besides; each has its own rules at the apiserver.
const RIGHTS: &str = "security.selinux.enabled=true,security.capabilities={CHOWN,DAC_OVERRIDE,FOWNER},\
    security.appArmorProfile.type=Localhost,security.appArmorProfile.localhostProfile=larder,\
    host.paths[0].path=/etc/pki/ca-trust/extracted,host.paths[0].type=Directory,\
    host.paths[1].path=/etc/corp/ca.pem,host.paths[1].type=File,\
    env[0].name=HTTPS_PROXY,env[0].value=http://proxy.corp:3128,env[1].name=NODE,\
    env[1].valueFrom.fieldRef.fieldPath=spec.nodeName,imagePullSecrets[0].name=reg-corp,resourceQuota=true";

/// Everything that can be installed, by the name of how.
fn everything() -> Result<Vec<(String, Vec<Value>)>> {
    let mut all = Vec::new();
    for preset in PRESETS {
        let values = format!("preset={preset},{SWITCHES}");
        for helm in [Helm::Three, Helm::Four] {
            all.push((format!("the chart for {preset} by {helm:?}"), helm.template(&["--set", &values])?));
        }
        for folder in ["presets", "clean-up"] {
            let overlay = format!("{folder}/{preset}");
            all.push((format!("kustomize/{overlay}"), kustomize(&overlay)?));
        }
    }
    for helm in [Helm::Three, Helm::Four] {
        all.push((format!("the chart with all rights by {helm:?}"), helm.template(&["--set", RIGHTS])?));
    }
    for folder in ["presets", "clean-up"] {
        all.push((format!("kustomize/{folder}/plain for SELinux"), overlay(&format!("{folder}/plain"), "selinux")?));
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
        for (how, documents) in everything()? {
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
        let documents = kustomize("presets/plain")?;
        let right = object(&documents, "DaemonSet", "larder")?;
        site.control.api().try_apply(right).await??;
        let mistakes: [(&str, Value); 4] = [
            ("/spec/template/spec/hostNetworks", json!(true)),
            ("/spec/updateStrategy/rollingUpdate/maxSurge", json!("one")),
            ("/spec/template/spec/containers/0/volumeMounts/0/mountPropagation", json!("FromHost")),
            ("/spec/template/spec/containers/0/securityContext/appArmorProfile", json!({ "type": "Local" })),
        ];
        for (at, value) in mistakes {
            let mut wrong = right.clone();
            let (parent, field) = at.rsplit_once('/').context("a path")?;
            wrong.pointer_mut(parent).with_context(|| format!("no {parent}"))?[field] = value;
            let refused =
                site.control.api().try_apply(&wrong).await?.err().with_context(|| format!("{at} is taken"))?;
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
        let documents = kustomize("presets/plain")?;
        site.apply(object(&documents, "Namespace", NAMESPACE)?).await?;
        accounts(&site, NAMESPACE).await?;
        let template = &object(&documents, "DaemonSet", "larder")?["spec"]["template"];
        let agent = pod_in(NAMESPACE, template);
        site.control.api().try_apply(&agent).await??;
        for level in ["baseline", "restricted"] {
            let refused = site.control.api().try_apply(&pod_in(level, template)).await?.err().context(level)?;
            ensure!(refused.status == StatusCode::FORBIDDEN, "{level}: {refused}");
            for what in ["violates PodSecurity", "host namespaces", "hostPath"] {
                ensure!(refused.message.contains(what), "{level}: {refused}");
            }
            // All that is privileged about it: no capability, no flag, no profile.
            for what in ["privileged (", "non-default capabilities", "seccompProfile"] {
                ensure!(!refused.message.contains(what), "{level}: {refused}");
            }
        }

        let hooks = Helm::Four.template(&[])?;
        let waits = object(&hooks, "Pod", "larder-clean-up-await")?;
        site.control.api().try_apply(&pod_in("restricted", waits)).await??;
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
