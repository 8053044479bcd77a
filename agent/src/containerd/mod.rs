//! containerd: its hosts.toml files, its API, how it is set up, and the proof that it comes to us.

pub mod canary;
pub mod client;
pub mod hosts;
pub mod inventory;
pub mod setup;
