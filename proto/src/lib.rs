//! The gRPC services that Larder speaks, generated from their .proto files: clients, and servers to test against.
//!
//! The .proto files beside this crate's manifest say what each message means.

#![forbid(unsafe_code)]

/// The container runtime interface, as kubelet speaks it to containerd: images, version and status.
pub mod cri {
    #![allow(missing_docs, unused_qualifications, clippy::all, clippy::use_self, clippy::semicolon_if_nothing_returned)]
    tonic::include_proto!("runtime.v1");
}

/// What agents say to each other: content, who has it, tags.
pub mod peers {
    #![allow(missing_docs, unused_qualifications, clippy::all, clippy::use_self, clippy::semicolon_if_nothing_returned)]
    tonic::include_proto!("larder.peers.v1");
}

/// What containerd asks of a snapshotter, for one that tests bring.
pub mod snapshots {
    #![allow(missing_docs, unused_qualifications, clippy::all, clippy::use_self, clippy::semicolon_if_nothing_returned)]
    tonic::include_proto!("containerd.services.snapshots.v1");
}
