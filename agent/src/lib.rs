//! Larder: an agent that runs on every node and makes container image pulls survive.
//!
//! The folders are rooms with one-way doors: `mirror`, `sharing`, `admin` and `cli` take requests; `pull`, `keep`, `health` and `peers` do the work;
//! `store`, `containerd`, `upstream`, `cluster` and `wire` are the rooms, which don't know each other; `image` and `config` are the words.
//! ARCHITECTURE.md has the whole picture.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod admin;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod containerd;
pub mod health;
pub mod image;
pub mod keep;
pub mod mirror;
pub mod peers;
pub mod pull;
pub mod sharing;
pub mod store;
pub mod upstream;
pub mod wire;
