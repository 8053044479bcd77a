//! The cluster's CA as the chart makes it: by Helm's own means, and not by `larder certs`.

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use larder_integration::{Cluster, Folder, Network, objects};

use super::render::{Helm, chart, object};
use crate::support::run;

/// What the chart asks to learn whether Helm sees a cluster.
const SEES_A_CLUSTER: &str = r#"(lookup "v1" "Namespace" "" "kube-system")"#;

/// The Secret that is made where there is none, as (certificate, key). Helm sees no cluster here and would make none, so
/// that its question is answered in a copy of the chart.
fn made() -> Result<(Vec<u8>, Vec<u8>)> {
    let folder = Folder::new()?;
    let copy = folder.path().join("larder");
    std::fs::create_dir_all(copy.join("templates"))?;
    std::fs::create_dir_all(copy.join("presets"))?;
    for file in ["Chart.yaml", "values.yaml", "presets/plain.yaml", "templates/_helpers.tpl"] {
        std::fs::copy(chart().join(file), copy.join(file))?;
    }
    let template = std::fs::read_to_string(chart().join("templates/secret.yaml"))?;
    ensure!(template.contains(SEES_A_CLUSTER), "the chart asks otherwise");
    std::fs::write(copy.join("templates/secret.yaml"), template.replace(SEES_A_CLUSTER, "true"))?;
    let rendered =
        objects(&Helm::Four.run(&["template", "larder", &copy.to_string_lossy(), "--namespace", "larder"])?)?;
    let secret = object(&rendered, "Secret", "larder-peers-ca")?;
    let part = |name: &str| -> Result<Vec<u8>> {
        Ok(STANDARD.decode(secret["data"][name].as_str().with_context(|| format!("{name} is missing"))?)?)
    };
    Ok((part("ca.pem")?, part("ca.key")?))
}

#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn agents_find_each_other_by_the_charts_authority() {
    run(async {
        let folder = Folder::new()?;
        let (certificate, key) = made()?;
        let [ca_file, key_file] = ["ca.pem", "ca.key"].map(|name| folder.path().join(name));
        std::fs::write(&ca_file, certificate)?;
        std::fs::write(&key_file, key)?;
        let network = Network::new()?;
        let believe = move |_: usize, agent: &mut larder_integration::AgentConfig| {
            agent.set_path("peers", "ca", &ca_file).set_path("peers", "key", &key_file);
        };
        // It is there once all of them know each other.
        Cluster::builder(&network, 2, None)?.configure(believe).start().await?;
        Ok(())
    });
}

#[test]
#[cfg_attr(not(renderers), ignore = "helm and kustomize aren't built: Go isn't here")]
fn without_a_cluster_none_is_made() {
    for helm in [Helm::Three, Helm::Four] {
        let rendered = helm.template(&[]).unwrap();
        assert!(rendered.iter().all(|object| object["kind"] != "Secret"));
    }
}
