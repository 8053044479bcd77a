//! A real Kubernetes: etcd and kube-apiserver, and on request the controllers, the scheduler and nodes with kubelet.
//!
//! A [`ControlPlane`] runs on a [`Host`](crate::Host) of a network, at the ports that everybody uses; the test asks it
//! through its [`Api`], or has other programs do so by its kubeconfig. [`ClusterDns`] answers for headless Services. A [`KubernetesNode`] is a [`NodeMachine`] with a
//! containerd and a kubelet, whose Pods see that machine's folders in the places where nodes have them.

mod api;
mod authority;
mod control;
mod dns;
mod machine;
mod node;
mod objects;

pub use api::{Api, Refusal};
pub use control::ControlPlane;
pub use dns::ClusterDns;
pub use machine::NodeMachine;
pub use node::{Joining, KubernetesNode};
pub use objects::{kustomize, objects};
