//! What people see of the cluster from one node.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::image::Digest;

/// A node's part in its cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ShownPart {
    /// It is one of the nodes.
    Joined(Shown),
    /// It isn't, for now.
    Apart {
        /// Why.
        apart: String,
    },
    /// No cluster is configured.
    Off,
}

/// The cluster, as one node sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Shown {
    /// This node.
    pub node: String,
    /// Where others reach it.
    pub addr: Option<SocketAddr>,
    /// Where it stands; empty where nobody says.
    pub zone: String,
    /// Blobs that peers may have from here.
    pub announced: usize,
    /// Holdings of others that it knows of as an owner.
    pub known: usize,
    /// Every member that is up, this one among them.
    pub members: Vec<ShownMember>,
    /// Blobs that are fetched together with others.
    pub reading: Vec<ShownReading>,
    /// Blobs that others read from here.
    pub uploads: Vec<ShownUpload>,
}

/// A member of the cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShownMember {
    /// Which node.
    pub node: String,
    /// Where it is reached.
    pub addr: SocketAddr,
    /// Where it stands.
    pub zone: String,
    /// It has been a member for long enough to own a part of the directory.
    pub settled: bool,
    /// Parts of the directory, of 128, that it is the first or the second owner of.
    pub owns: usize,
}

/// This node's part in the one download of a blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShownReading {
    /// The blob.
    pub digest: Digest,
    /// For which registry.
    pub registry: String,
    /// The pull that began it, as logs name it.
    pub pull: String,
    /// `waits`, `fetches` or `reads`.
    pub turn: String,
    /// How far it may fetch, in bytes; absent where there is no bound.
    pub upto: Option<u64>,
    /// Its place in the chain.
    pub ticket: Option<u64>,
    /// Whom it reads from.
    pub parent: Option<String>,
    /// Who owns the blob's part of the directory.
    pub owner: Option<String>,
    /// Every byte before this one is here.
    pub frontier: u64,
    /// In bytes, if it is known.
    pub size: Option<u64>,
}

/// A blob that another node reads from here.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShownUpload {
    /// The blob.
    pub digest: Digest,
    /// Who reads.
    pub node: String,
    /// The reader's pull, as logs name it.
    pub pull: String,
    /// Its place in the chain; absent for what is whole.
    pub ticket: Option<u64>,
    /// Bytes sent so far.
    pub sent: u64,
}
