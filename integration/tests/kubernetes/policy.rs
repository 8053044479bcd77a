//! What the manifests ask of a cluster: no more than the agent needs.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use larder_integration::kustomize;
use serde_json::{Value, json};

use super::render::{Helm, PRESETS, chart_of, list, object};

/// All kinds that are made by default. None of them gives a right in the API.
const KINDS: [&str; 7] = ["Namespace", "ServiceAccount", "Service", "ConfigMap", "DaemonSet", "ResourceQuota", "Pod"];

/// Every folder of a host that is mounted by any preset, and whether it is written to.
const FOLDERS: [(&str, bool); 20] = [
    ("/etc/containerd", false),
    ("/etc/containerd/certs.d", true),
    ("/etc/containerd/hosts.d", true),
    ("/etc/cri", false),
    ("/etc/cri/conf.d/hosts", true),
    ("/etc/pki/ca-trust/extracted", false),
    ("/etc/ssl/certs", false),
    ("/run/containerd", false),
    ("/run/k3s/containerd", false),
    ("/var/lib/containerd", true),
    ("/var/lib/rancher/k3s/agent/containerd", true),
    ("/var/lib/rancher/k3s/agent/etc/containerd", false),
    ("/var/lib/rancher/k3s/agent/etc/containerd/certs.d", true),
    ("/var/lib/rancher/rke2/agent/containerd", true),
    ("/var/lib/rancher/rke2/agent/etc/containerd", false),
    ("/var/lib/rancher/rke2/agent/etc/containerd/certs.d", true),
    ("/var/snap/microk8s/common/run", false),
    ("/var/snap/microk8s/common/var/lib/containerd", true),
    ("/var/snap/microk8s/current/args", false),
    ("/var/snap/microk8s/current/args/certs.d", true),
];

/// All that is installed and all that cleans up, in both ways, with where it comes from.
fn everything() -> Result<Vec<(String, Vec<Value>)>> {
    let mut all = Vec::new();
    for preset in PRESETS {
        all.push((format!("chart, {preset}"), chart_of(preset)?));
        for folder in [format!("presets/{preset}"), format!("clean-up/{preset}")] {
            let objects = kustomize(&folder)?;
            all.push((folder, objects));
        }
    }
    Ok(all)
}

/// Every Pod in them, by its specification.
fn pods(objects: &[Value]) -> impl Iterator<Item = &Value> {
    objects.iter().filter_map(|object| match object["kind"].as_str() {
        Some("Pod") => Some(&object["spec"]),
        Some("DaemonSet") => Some(&object["spec"]["template"]["spec"]),
        _ => None,
    })
}

/// What is wrong with a Pod's rights.
fn faults(pod: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let mut expect = |what: &str, is: &Value, shall: Value| {
        if *is != shall {
            faults.push(format!("{what} is {is}, not {shall}"));
        }
    };
    expect("automountServiceAccountToken", &pod["automountServiceAccountToken"], json!(false));
    for shared in ["hostPID", "hostIPC", "shareProcessNamespace", "initContainers", "ephemeralContainers"] {
        expect(shared, &pod[shared], Value::Null);
    }
    expect("the seccomp profile", &pod["securityContext"]["seccompProfile"]["type"], json!("RuntimeDefault"));
    if pod["hostNetwork"] == true {
        expect("dnsPolicy", &pod["dnsPolicy"], json!("Default"));
    } else {
        expect("runAsNonRoot", &pod["securityContext"]["runAsNonRoot"], json!(true));
    }
    expect("the number of containers", &json!(list(pod, "/containers").len()), json!(1));
    for container in list(pod, "/containers") {
        let rights = &container["securityContext"];
        expect("privileged", &rights["privileged"], json!(false));
        expect("allowPrivilegeEscalation", &rights["allowPrivilegeEscalation"], json!(false));
        expect("readOnlyRootFilesystem", &rights["readOnlyRootFilesystem"], json!(true));
        expect("capabilities", &rights["capabilities"], json!({"drop": ["ALL"]}));
        expect("ports", &container["ports"], Value::Null);
        expect("the limit of CPU", &container["resources"]["limits"]["cpu"], Value::Null);
        let requests = &container["resources"]["requests"];
        expect("that it requests", &json!(requests["cpu"].is_string() && requests["memory"].is_string()), json!(true));
    }
    faults.extend(mounts(pod).unwrap_or_else(|e| vec![e.to_string()]));
    faults
}

/// What is wrong with a Pod's mounts.
fn mounts(pod: &Value) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let text = |value: &Value| value.as_str().map(str::to_owned).context("not a text");
    for volume in list(pod, "/volumes") {
        let name = text(&volume["name"])?;
        let of_it = |mount: &&Value| mount["name"] == name;
        let mount = list(pod, "/containers/0/volumeMounts").iter().find(of_it);
        let mount = mount.with_context(|| format!("nothing mounts {name}"))?;
        let kinds: Vec<&str> =
            volume.as_object().into_iter().flatten().map(|(kind, _)| kind.as_str()).filter(|k| *k != "name").collect();
        match kinds[..] {
            ["hostPath"] => {
                let path = text(&volume["hostPath"]["path"])?;
                ensure!(!text(&volume["hostPath"]["type"])?.is_empty(), "{path} has no type");
                let known = FOLDERS.iter().find(|(folder, _)| *folder == path);
                let (_, is_written) =
                    known.with_context(|| format!("{path} isn't among the folders that are needed"))?;
                if mount["mountPath"] != path {
                    faults.push(format!("{path} is mounted elsewhere"));
                }
                if *is_written == (mount["readOnly"] == true) {
                    faults.push(format!("{path}: readOnly is {}", mount["readOnly"]));
                }
                // What the host mounts below these has to go with it.
                let follows = mount["mountPropagation"] == "HostToContainer";
                if follows != ["containerd-root", "containerd-run"].contains(&name.as_str()) {
                    faults.push(format!("{path}: mountPropagation is {}", mount["mountPropagation"]));
                }
            }
            ["configMap" | "secret"] if mount["readOnly"] == true => {}
            ["emptyDir"] => {}
            _ => faults.push(format!("{name} is a {kinds:?}, readOnly {}", mount["readOnly"])),
        }
    }
    Ok(faults)
}

#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn nothing_more_is_asked_for_than_is_needed() {
    let mut used = BTreeSet::new();
    for (place, objects) in everything().unwrap() {
        for object in &objects {
            let kind = object["kind"].as_str().unwrap();
            assert!(KINDS.contains(&kind), "{place}: a {kind}");
            let is_in_larder = object["metadata"]["namespace"] == "larder" || kind == "Namespace";
            assert!(is_in_larder, "{place}: {kind}/{} is in no namespace", object["metadata"]["name"]);
            if kind == "ServiceAccount" {
                assert_eq!(object["automountServiceAccountToken"], false, "{place}");
            }
        }
        let namespace = object(&objects, "Namespace", "larder").unwrap();
        assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "privileged", "{place}");
        assert!(pods(&objects).count() > 0, "{place}");
        for pod in pods(&objects) {
            assert_eq!(faults(pod), Vec::<String>::new(), "{place}");
            used.extend(list(pod, "/volumes").iter().filter_map(|v| v["hostPath"]["path"].as_str().map(str::to_owned)));
        }
    }
    let known: BTreeSet<String> = FOLDERS.iter().map(|(folder, _)| (*folder).to_owned()).collect();
    assert_eq!(used, known, "folders that are mounted, and those that this test knows");
}

#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn what_is_asked_for_beyond_that_is_found() {
    let objects = chart_of("plain").unwrap();
    let sound = &object(&objects, "DaemonSet", "larder").unwrap()["spec"]["template"]["spec"];
    let changes = [
        ("/hostPID", json!(true)),
        ("/automountServiceAccountToken", json!(true)),
        ("/dnsPolicy", json!("ClusterFirstWithHostNet")),
        ("/containers/0/securityContext/privileged", json!(true)),
        ("/containers/0/securityContext/capabilities", json!({"drop": ["ALL"], "add": ["SYS_ADMIN"]})),
        ("/containers/0/ports", json!([{"containerPort": 7439}])),
        ("/containers/0/volumeMounts/0/mountPropagation", json!("Bidirectional")),
        ("/containers/0/volumeMounts/1/readOnly", json!(false)),
        ("/volumes/0/hostPath/path", json!("/var/lib")),
        ("/volumes/0/hostPath/path", json!("/var/lib/kubelet")),
        ("/volumes/0/hostPath/type", Value::Null),
    ];
    for (place, value) in changes {
        let mut pod = sound.clone();
        let (parent, key) = place.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[key] = value.clone();
        assert!(!faults(&pod).is_empty(), "{place} = {value} wasn't found");
    }
}

#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn the_agent_runs_everywhere_and_gives_way_to_itself() {
    for objects in [chart_of("plain").unwrap(), kustomize("presets/plain").unwrap()] {
        let agent = &object(&objects, "DaemonSet", "larder").unwrap()["spec"];
        let pod = &agent["template"]["spec"];
        assert_eq!(pod["hostNetwork"], true);
        assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
        assert_eq!(pod["priorityClassName"], "system-node-critical");
        let update = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        assert_eq!(agent["updateStrategy"], update);
        assert!(pod["containers"][0]["readinessProbe"]["exec"].is_object());
        assert!(pod["containers"][0]["livenessProbe"]["exec"].is_object());
        let peers = &object(&objects, "Service", "larder-peers").unwrap()["spec"];
        assert_eq!((&peers["clusterIP"], &peers["publishNotReadyAddresses"]), (&json!("None"), &json!(true)));
        assert_eq!(peers["selector"], agent["selector"]["matchLabels"]);
    }
}

#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn what_cleans_up_leaves_nothing_of_itself() {
    let objects = chart_of("gke").unwrap();
    let hooks: Vec<&Value> =
        objects.iter().filter(|o| o["metadata"]["annotations"]["helm.sh/hook"] == "post-delete").collect();
    assert_eq!(hooks.len(), 6);
    let weight = |kind: &str| {
        let hook = hooks.iter().find(|hook| hook["kind"] == kind).unwrap();
        hook["metadata"]["annotations"]["helm.sh/hook-weight"].as_str().unwrap().parse::<i32>().unwrap()
    };
    for hook in &hooks {
        let policy = hook["metadata"]["annotations"]["helm.sh/hook-delete-policy"].as_str().unwrap();
        for moment in ["before-hook-creation", "hook-succeeded", "hook-failed"] {
            assert!(policy.contains(moment), "{}: {policy}", hook["metadata"]["name"]);
        }
        // The release's own objects are gone when hooks run.
        let account =
            hook.pointer("/spec/template/spec/serviceAccountName").or(hook.pointer("/spec/serviceAccountName"));
        assert_eq!(account, None);
    }
    assert!(weight("ConfigMap") < weight("DaemonSet") && weight("DaemonSet") < weight("Pod"));
    // Its log goes with it, and says which nodes weren't done: Helm shows it.
    let annotations = &object(&objects, "Pod", "larder-clean-up-await").unwrap()["metadata"]["annotations"];
    assert_eq!(annotations["helm.sh/hook-output-log-policy"], "hook-succeeded,hook-failed");
    // Where nodes are down, everything that tolerates all would wait there.
    let awaits = |settings: &str| {
        let objects = Helm::Four.template(&["--set", settings]).unwrap();
        object(&objects, "Pod", "larder-clean-up-await").unwrap()["spec"]["tolerations"].clone()
    };
    let never = |taint: &str| json!({"key": format!("node.kubernetes.io/{taint}"), "operator": "Equal", "value": "never", "effect": "NoExecute"});
    let kept_off = [never("unreachable"), never("not-ready")];
    let everywhere = json!({"operator": "Exists", "effect": "NoSchedule"});
    assert_eq!(awaits("preset=plain"), json!([everywhere, kept_off[0], kept_off[1]]));
    let settings = "tolerations[0].key=ours,tolerations[0].operator=Exists,\
                    tolerations[1].operator=Exists,tolerations[1].effect=NoExecute";
    assert_eq!(awaits(settings), json!([{"key": "ours", "operator": "Exists"}, kept_off[0], kept_off[1]]));
    let agent = object(&objects, "DaemonSet", "larder").unwrap();
    let after = object(&objects, "DaemonSet", "larder-clean-up").unwrap();
    assert_ne!(agent["spec"]["selector"], after["spec"]["selector"]);
    for (service, all) in [("larder-clean-up", false), ("larder-clean-up-all", true)] {
        let service = &object(&objects, "Service", service).unwrap()["spec"];
        assert_eq!(service["publishNotReadyAddresses"], all);
        assert_eq!(service["selector"], after["spec"]["selector"]["matchLabels"]);
    }
    let none = Helm::Four.template(&["--set", "cleanUp.enabled=false"]).unwrap();
    assert!(none.iter().all(|object| object["metadata"]["annotations"]["helm.sh/hook"].is_null()));
}

#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn switches_change_what_they_say() {
    let agent = |settings: &str| {
        let objects = Helm::Four.template(&["--set", settings]).unwrap();
        object(&objects, "DaemonSet", "larder").unwrap()["spec"]["template"]["spec"].clone()
    };
    let rights = |pod: &Value, key: &str| pod["containers"][0]["securityContext"][key].clone();
    assert_eq!(rights(&agent("security.selinux.enabled=true"), "seLinuxOptions"), json!({"type": "spc_t"}));
    assert_eq!(rights(&agent("peers.enabled=true"), "seLinuxOptions"), Value::Null);
    let added = rights(&agent("security.capabilities={DAC_OVERRIDE}"), "capabilities");
    assert_eq!(added, json!({"drop": ["ALL"], "add": ["DAC_OVERRIDE"]}));
    let alone = Helm::Four.template(&["--set", "peers.enabled=false"]).unwrap();
    assert!(object(&alone, "Service", "larder-peers").is_err());
    let pod = agent("peers.enabled=false");
    assert!(list(&pod, "/volumes").iter().all(|volume| volume["secret"].is_null()));
    assert_eq!(pod["containers"][0]["env"], Value::Null);
    let pod = agent("host.paths[0].path=/etc/docker/certs.d,host.paths[0].type=Directory");
    let mount = json!({"name": "etc-docker-certs-d", "mountPath": "/etc/docker/certs.d", "readOnly": true});
    assert!(list(&pod, "/containers/0/volumeMounts").contains(&mount));
    let pod = agent("image.digest=sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert!(pod["containers"][0]["image"].as_str().unwrap().contains("larder@sha256:e3b0"));
    let zoned = agent("config.peers.zone=a,peers.dnsServer=10.43.0.10");
    let variables = list(&zoned, "/containers/0/env");
    assert!(variables.iter().all(|variable| variable["name"] != "LARDER__PEERS__ZONE"));
    assert!(variables.contains(&json!({"name": "LARDER__PEERS__DNS_SERVER", "value": "10.43.0.10"})));
}
