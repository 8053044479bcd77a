//! The images that run here, checked and judged: could each still be pulled, from where, and what if its registry died now?
//!
//! The [`Monitor`] asks each upstream of each image after its manifest, with the agent's own credentials, as often as the
//! registry's budget allows: the longest unasked first. In a cluster one node asks for all that run the image, and one
//! budget holds for all nodes. What pulls through this node find out counts too. [`Report`] is what it comes to.

mod check;
mod findings;
mod metrics;
mod monitor;
mod purse;
mod report;
mod schedule;
mod verdict;
mod work;

#[cfg(test)]
mod tests;

pub use metrics::HealthMetrics;
pub use monitor::{Monitor, Parts};
pub use report::{Check, ImageHealth, Report, Status, Verdict};
