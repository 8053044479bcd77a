//! containerd: its hosts.toml files, its API, and the proof that it comes to us.

pub mod hosts;
