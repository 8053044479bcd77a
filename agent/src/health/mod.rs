//! The images that run here, checked and judged: could each still be pulled, from where, and what if its registry died now?

mod report;

pub use report::{Check, ImageHealth, Report, Status, Verdict};
