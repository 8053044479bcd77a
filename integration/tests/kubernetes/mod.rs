//! The manifests for Kubernetes as Helm and kustomize render them: that both say the same, that they ask for nothing
//! that the agent doesn't need, and that the documentation describes them; and on a real cluster (`live`), that it takes them and what becomes of them.

mod authority;
mod configuration;
mod documented;
mod live;
mod monitoring;
mod policy;
mod presets;
mod render;
mod same;
mod values;
