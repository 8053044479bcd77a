//! The manifests for Kubernetes as Helm and kustomize render them: that both say the same, that they ask for nothing
//! that the agent doesn't need, and that the documentation describes them. Without a cluster.

mod authority;
mod configuration;
mod documented;
mod monitoring;
mod policy;
mod render;
mod same;
mod values;
