//! The DaemonSet as it is rendered, its Pod run by the containerd of a [`Node`] in the place of kubelet.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Containerd, HostMount, LarderImage, Node, Pod, StartedPod, free_port, kustomize, until};

/// How long a Pod may take to become ready.
const READY: Duration = Duration::from_secs(60);
/// What a Pod's variables may refer to.
const SERVICE_HOST: (&str, &str) = ("$(KUBERNETES_SERVICE_HOST)", "10.96.0.1");

/// A DaemonSet, for the one node of a test.
///
/// The node is a machine in a folder, so its distribution is one of its own: containerd's folders are there. All else is
/// as rendered.
#[derive(Debug)]
pub struct DaemonSet {
    spec: Value,
    /// What its ConfigMaps have, by the names of volumes.
    configuration: Vec<(String, Value)>,
    folder: PathBuf,
    environment: Vec<(String, String)>,
    added: String,
    mirror: u16,
}

impl DaemonSet {
    /// What kustomize builds of this folder below `daemonset/kustomize`, on `node`, for which its image is imported.
    pub async fn on(node: &Node, folder: &str) -> Result<Self> {
        LarderImage::shared().await?.import_into(&node.containerd).await?;
        let etc = node.folder().join("etc");
        std::fs::create_dir_all(&etc)?;
        std::fs::copy(node.containerd.config(), etc.join("config.toml"))?;
        let objects = placed(kustomize(folder)?, &places(node))?;
        let of_kind = |kind: &str| objects.iter().filter(|object| object["kind"] == kind).collect::<Vec<_>>();
        let sets = of_kind("DaemonSet");
        ensure!(sets.len() == 1, "{folder} has {} DaemonSets", sets.len());
        let spec = sets[0]["spec"]["template"]["spec"].clone();
        let maps = of_kind("ConfigMap");
        let data =
            |name: &Value| maps.iter().find(|map| map["metadata"]["name"] == *name).map(|map| map["data"].clone());
        let configuration = list(&spec["volumes"]).iter().filter_map(|volume| {
            let name = volume["name"].as_str()?.to_owned();
            Some((name, data(&volume["configMap"]["name"])?))
        });
        let (mirror, metrics) = (free_port()?, free_port()?);
        let environment = [
            ("LARDER__MIRROR__LISTEN", format!("127.0.0.1:{mirror}")),
            ("LARDER__METRICS__LISTEN", format!("127.0.0.1:{metrics}")),
            // The disk of a test machine may well be fuller than the default allows.
            ("LARDER__CACHE__MAX_DISK_PERCENT", "99".to_owned()),
            ("LARDER__LOG__LEVEL", "info,larder=debug".to_owned()),
        ];
        Ok(Self {
            configuration: configuration.collect(),
            spec,
            folder: node.folder().join("kubelet").join(folder.replace('/', "-")),
            environment: environment.map(|(name, value)| (name.to_owned(), value)).to_vec(),
            added: String::new(),
            mirror,
        })
    }

    /// Adds a registry at a place without TLS to the configuration.
    pub fn registry(&mut self, name: &str, url: &str) {
        self.added +=
            &format!("\n[[registry]]\nname = {name:?}\n[[registry.upstream]]\nurl = {url:?}\ninsecure = true\n");
    }

    /// Gives its container these capabilities, as `security.capabilities` of the chart does.
    pub fn add_capabilities(&mut self, capabilities: &[&str]) {
        self.spec["containers"][0]["securityContext"]["capabilities"]["add"] = capabilities.into();
    }

    /// The mirror's port.
    pub fn mirror_port(&self) -> u16 {
        self.mirror
    }

    /// How long a Pod has to end, in seconds.
    pub fn grace(&self) -> i64 {
        self.spec["terminationGracePeriodSeconds"].as_i64().unwrap_or(30)
    }

    /// Its Pod of this name, as kubelet asks for it. What kubelet makes for it is in a folder of that name.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        let container = self.container()?;
        let context = &container["securityContext"];
        let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
        let words = |value: &Value| list(value).iter().map(text).collect::<Result<Vec<_>>>();
        let is = |value: &Value| value.as_bool().unwrap_or(false);
        ensure!(is(&self.spec["hostNetwork"]) && !is(&context["privileged"]), "not what is run here");
        ensure!(list(&self.spec["containers"]).len() == 1 && self.spec.get("initContainers").is_none());
        let user = context["runAsUser"].as_i64().zip(context["runAsGroup"].as_i64());
        let seccomp = [context, &self.spec["securityContext"]].map(|context| &context["seccompProfile"]["type"]);
        let mounts = list(&container["volumeMounts"]).iter().map(|mount| self.mount(name, mount));
        Ok(Pod {
            namespace: "larder".to_owned(),
            name: name.to_owned(),
            image: text(&container["image"])?,
            arguments: words(&container["args"])?,
            environment: self.variables(container)?,
            mounts: mounts.collect::<Result<_>>()?,
            added: words(&context["capabilities"]["add"])?,
            dropped: words(&context["capabilities"]["drop"])?,
            user,
            has_read_only_root: is(&context["readOnlyRootFilesystem"]),
            has_no_new_privileges: context["allowPrivilegeEscalation"] == false,
            has_default_seccomp: seccomp.iter().any(|profile| **profile == "RuntimeDefault"),
            logs: self.folder.join(name).join("log"),
        })
    }

    /// Starts a Pod of this name, and waits until its probe says that it is ready.
    pub async fn start(&self, containerd: &Containerd, name: &str) -> Result<StartedPod> {
        let pod = containerd.start_pod(&self.pod(name)?).await?;
        let ready = async || self.probe(containerd, &pod, "readinessProbe").await.is_ok_and(|yes| yes).then_some(());
        let is_ready = until("the Pod is ready", READY, ready).await;
        is_ready.with_context(|| pod.log())?;
        Ok(pod)
    }

    /// What a probe of it says at the moment.
    pub async fn probe(&self, containerd: &Containerd, pod: &StartedPod, probe: &str) -> Result<bool> {
        let command = list(&self.container()?[probe]["exec"]["command"]).iter().filter_map(Value::as_str);
        let command: Vec<&str> = command.collect();
        ensure!(!command.is_empty(), "no {probe}");
        Ok(containerd.exec(pod, &command).await?.0 == 0)
    }

    fn container(&self) -> Result<&Value> {
        list(&self.spec["containers"]).first().context("no container")
    }

    fn variables(&self, container: &Value) -> Result<Vec<(String, String)>> {
        let mut variables = Vec::new();
        for variable in list(&container["env"]) {
            let name = variable["name"].as_str().context("a variable without a name")?;
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some("status.hostIP") => "192.0.2.1".to_owned(),
                Some(_) => String::new(),
                None => variable["value"].as_str().unwrap_or_default().replace(SERVICE_HOST.0, SERVICE_HOST.1),
            };
            variables.push((name.to_owned(), value));
        }
        variables.extend(self.environment.iter().cloned());
        Ok(variables)
    }

    fn mount(&self, pod: &str, mount: &Value) -> Result<HostMount> {
        let name = mount["name"].as_str().context("a mount without a name")?;
        let volume = list(&self.spec["volumes"]).iter().find(|volume| volume["name"] == name);
        let volume = volume.with_context(|| format!("no volume {name}"))?;
        let host = match volume["hostPath"]["path"].as_str() {
            Some(path) => {
                let path = PathBuf::from(path);
                if volume["hostPath"]["type"] == "DirectoryOrCreate" {
                    std::fs::create_dir_all(&path)?;
                }
                ensure!(path.is_dir(), "{} isn't a folder", path.display());
                path
            }
            None => {
                let folder = self.folder.join(pod).join(name);
                std::fs::create_dir_all(&folder)?;
                if let Some((_, data)) = self.configuration.iter().find(|(of, _)| of == name) {
                    self.write(data, &folder)?;
                }
                folder
            }
        };
        Ok(HostMount {
            host,
            container: mount["mountPath"].as_str().context("a mount without a place")?.into(),
            is_read_only: mount["readOnly"] == true,
            follows_host: mount["mountPropagation"] == "HostToContainer",
        })
    }

    fn write(&self, data: &Value, folder: &Path) -> Result<()> {
        for (file, text) in data.as_object().into_iter().flatten() {
            let text = text.as_str().unwrap_or_default();
            std::fs::write(folder.join(file), text.to_owned() + &self.added)?;
        }
        Ok(())
    }
}

/// Where the node has what is elsewhere on a machine: the longer paths first.
fn places(node: &Node) -> Vec<(&'static str, String)> {
    let folder = |path: &Path| path.display().to_string();
    vec![
        ("/etc/containerd/certs.d", folder(node.hosts_dir())),
        ("/etc/containerd", folder(&node.folder().join("etc"))),
        ("/var/lib/containerd", folder(&node.containerd.root())),
        ("/run/containerd", folder(&node.folder().join("containerd"))),
    ]
}

/// The objects with the node's places in them.
fn placed(objects: Vec<Value>, places: &[(&str, String)]) -> Result<Vec<Value>> {
    let mut text = Value::from(objects).to_string();
    for (path, place) in places {
        text = text.replace(path, place);
    }
    Ok(serde_json::from_str(&text)?)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
