//! What containerd has and runs: images, who uses them, and the blobs that it holds.

mod words;

pub use words::{ImageUser, Inventory, RuntimeImage};
