//! Blobs on disk, and the index of them.
