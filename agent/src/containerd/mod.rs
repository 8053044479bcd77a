//! containerd: its hosts.toml files, its API, and the proof that it comes to us.

pub mod canary;
pub mod client;
pub mod setup;
