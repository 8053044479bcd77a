//! Names, tags, digests, media types and nodes: the words that every other part speaks in.
//!
//! Everything here is parsed once, at the edge, and strictly: a value of one of these types can be put into a path,
//! a URL or a log line as it is. The grammars are those of the OCI distribution and image specifications.

mod digest;
mod media;
mod name;
mod node;

pub use digest::{Digest, Hasher, InvalidDigest};
pub use media::MediaType;
pub use name::{Access, InvalidName, Reference, Registry, Repository, Tag};
pub use node::{InvalidNode, InvalidZone, NodeId, Zone};
