//! What users install, made from the binary under test by the very scripts that make the real thing.

mod image;

pub use image::LarderImage;
