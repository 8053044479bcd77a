//! Fixtures for Larder's tests, demo and benchmarks: real containerd, real registries, and one that misbehaves.
//!
//! A [`Node`] is a machine in a folder: a [`Containerd`] of one of four releases and an [`Agent`], each with its own
//! root, sockets and ports. A [`Registry`] is Debian's docker-registry; a [`FaultRegistry`] serves the same images
//! from memory and does wrong on request, and [`Failover`] puts a pair of these behind an agent. [`Image`]s are made
//! here, with content that is random and repeatable.
//!
//! A [`Cluster`] is several agents, each on a [`Host`] of a [`Network`]: namespaces on links that are as fast as they are
//! told to be.
//!
//! Everything runs as root on loopback or in such a network, in folders that go away; every process dies with the fixture that started it,
//! and with the test process if that is killed. With [`show_logs`], what a process logged is written to standard error
//! when its fixture ends, which the test harness shows for tests that fail.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod agent;
mod browser;
mod cluster;
mod containerd;
mod daemonset;
mod failover;
mod fault;
mod folder;
mod front;
mod http;
mod image;
mod kubernetes;
mod machine;
mod network;
mod nginx;
mod node;
mod packaging;
mod port;
mod process;
mod proxy;
mod puller;
mod registry;
mod tools;
mod wait;

pub use agent::{Agent, AgentConfig, Metrics, Upstream, program};
pub use browser::{Browser, Scheme};
pub use cluster::{Answer, Authority, Cluster, ClusterBuilder, Files, Member, NameServer, PEERS_PORT};
pub use containerd::{Containerd, ContainerdConfig, Ctr, HostMount, Labels, Login, Pod, RemoteSnapshotter, StartedPod};
pub use daemonset::DaemonSet;
pub use failover::{Failover, Ill, Outcome, Place, Summary, Trial};
pub use fault::{Challenge, Cut, Face, Fault, FaultRegistry, Request, Transport, When};
pub use folder::{Disk, Folder, listing, share_mounts};
pub use front::Front;
pub use http::{Http, Reply};
pub use image::{Blob, Image, ImageBuilder, digest_of};
pub use kubernetes::{
    Api, ClusterDns, ControlPlane, Joining, KubernetesNode, NodeMachine, Refusal, kustomize, objects,
};
pub use machine::{Machine, Trace};
pub use network::{Host, Namespace, Network, Rate};
pub use nginx::Nginx;
pub use node::{Node, NodeBuilder};
pub use packaging::LarderImage;
pub use port::free_port;
pub use process::{Process, say, show_logs};
pub use proxy::Proxy;
pub use puller::{Fetched, Puller};
pub use registry::Registry;
pub use tools::{Release, require_root, tool};
pub use wait::until;
