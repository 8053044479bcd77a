//! What stays in the store, and what goes when room is needed.
//!
//! One task holds the store within its bounds while it serves: woken by what arrives and by a clock, it removes what
//! was used least recently, until the low mark is reached. Nothing waits for it: a blob that is being read when it goes
//! stays readable to its end.

mod catalog;
mod listing;
mod plan;
mod sweep;
mod walk;

pub use catalog::{Catalog, Held, Known, Part, User, Why};
pub use sweep::{collect, hold_bounds};
