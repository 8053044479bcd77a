//! What runs on nodes.

use anyhow::Result;
use larder_integration::Image;
use serde_json::json;

use super::Site;
use crate::support::run;

#[test]
#[cfg_attr(not(kubernetes), ignore = "Kubernetes isn't built: Go isn't here")]
fn a_pod_runs() {
    run(async {
        let site = Site::with_nodes(1).await?;
        site.registry.add(&Image::runnable(1)?, "acme/app", "v1");
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": "app", "namespace": "default" },
            "spec": {
                "hostNetwork": true,
                "containers": [{ "name": "app", "image": "reg.test/acme/app:v1" }],
            },
        });
        until_account(&site).await?;
        site.control.api().apply(&pod).await??;
        let is_running = |pod: &serde_json::Value| pod["status"]["phase"] == "Running";
        site.until("the Pod runs", "/api/v1/namespaces/default/pods/app", is_running).await?;
        Ok(())
    });
}

/// Pods are refused until the controllers have made the namespace's account.
async fn until_account(site: &Site) -> Result<()> {
    site.until("an account", "/api/v1/namespaces/default/serviceaccounts/default", |_| true).await.map(drop)
}
