//! Names, tags, digests, media types and nodes: the words that every other part speaks in.
//!
//! Everything here is parsed once, at the edge, and strictly: a value of one of these types can be put into a path,
//! a URL or a log line as it is. The grammars are those of the OCI distribution and image specifications.

mod digest;
mod image_name;
mod media;
mod name;
mod node;
mod pattern;

pub use digest::{Digest, Hasher, InvalidDigest};
pub use image_name::ImageName;
pub use media::MediaType;
pub use name::{Access, InvalidName, Reference, Registry, Repository, Tag};
pub use node::{InvalidNode, InvalidZone, NodeId, Zone};
pub use pattern::{ImagePattern, InvalidPattern};
