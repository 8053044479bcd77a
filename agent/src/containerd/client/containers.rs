//! The containers that containerd has, running or not.

use std::sync::Arc;
use std::time::SystemTime;

use containerd_client::services::v1::ListContainersRequest;
use containerd_client::services::v1::containers_client::ContainersClient;

use super::{Client, ClientError, DEADLINE, MAX_MESSAGE, within};

/// What the runtime says of a container of a Pod: `container`, or `sandbox`.
const KIND: &str = "io.cri-containerd.kind";
/// What kubelet says of it. A sandbox has no container's name.
const KUBELET: [&str; 3] = ["io.kubernetes.pod.namespace", "io.kubernetes.pod.name", "io.kubernetes.container.name"];

/// A container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// containerd's namespace.
    pub namespace: Arc<str>,
    /// Its id there.
    pub id: String,
    /// The name or id of the image that it was made from, as it was then.
    pub image: String,
    /// `namespace/pod/container`, or `namespace/pod` of a sandbox, where kubelet says so; else the id.
    pub shown: String,
    /// Kubelet runs it, as part of a Pod.
    pub is_of_pod: bool,
    /// It is a Pod's sandbox.
    pub is_sandbox: bool,
    /// When it was made.
    pub created: Option<SystemTime>,
}

impl Client {
    /// All containers in the configured namespaces.
    ///
    /// # Errors
    /// 5 s without an answer or its continuation, or a refusal.
    pub async fn containers(&self) -> Result<Vec<Container>, ClientError> {
        const CALL: &str = "Containers.ListStream";
        let mut client = ContainersClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let mut all = Vec::new();
        for (namespace, shown) in self.namespaces() {
            // One by one: each comes with its whole specification, which in one message could exceed every bound.
            let request = within(namespace, ListContainersRequest { filters: Vec::new() });
            let mut parts = self.call(CALL, DEADLINE, client.list_stream(request)).await?;
            while let Some(part) = self.part(CALL, &mut parts).await? {
                all.extend(part.container.map(|container| Container::read(container, &shown)));
            }
        }
        Ok(all)
    }
}

impl Container {
    fn read(container: containerd_client::services::v1::Container, namespace: &Arc<str>) -> Self {
        let label = |name: &str| container.labels.get(name).map(String::as_str);
        let said: Vec<&str> = KUBELET.iter().map_while(|name| label(name).filter(|value| !value.is_empty())).collect();
        // A namespace alone names nothing.
        let shown = if said.len() < 2 { container.id.clone() } else { said.join("/") };
        Self {
            namespace: Arc::clone(namespace),
            shown,
            is_of_pod: label(KIND).is_some(),
            is_sandbox: label(KIND) == Some("sandbox"),
            created: container.created_at.and_then(|time| time.try_into().ok()),
            id: container.id,
            image: container.image,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(labels: &[(&str, &str)]) -> (String, bool) {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let raw = containerd_client::services::v1::Container { id: "c0ffee".to_owned(), labels, ..Default::default() };
        let container = Container::read(raw, &"k8s.io".into());
        (container.shown, container.is_sandbox)
    }

    #[test]
    fn is_shown_as_kubelet_calls_it() {
        let pod = [(KUBELET[0], "shop"), (KUBELET[1], "web-0")];
        let container = [pod[0], pod[1], (KUBELET[2], "nginx"), (KIND, "container")];
        assert_eq!(shown(&container), ("shop/web-0/nginx".to_owned(), false));
        assert_eq!(shown(&[pod[0], pod[1], (KIND, "sandbox")]), ("shop/web-0".to_owned(), true));
        for labels in [&[][..], &pod[..1], &[(KUBELET[0], ""), pod[1]]] {
            assert_eq!(shown(labels), ("c0ffee".to_owned(), false));
        }
    }
}
