//! Blobs on disk, and the index of them.
mod ingest;
pub use ingest::*;
