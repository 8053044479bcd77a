//! What this node keeps, and why.
//!
//! A [`Catalog`] says which images the node knows (those that containerd has, those that it had, those that somebody
//! wants to be here) and what is here of each. It is made anew when containerd or the store has changed (`survey`), by
//! walking from each image's target through the listings that are here (`walk`, `listing`). What is remembered of images
//! over restarts is little (`memory`): what a name meant, and when it was last used.
//!
//! By the catalog, tasks do the rest. What containerd holds is taken into the store without a second copy, and given up
//! when containerd gives it up (`adopt`); its registries are asked whether they give it to anybody (`openness`). What
//! should be whole is made whole in the background (`background`, `fetch`), copies of what other nodes run among it
//! (`copies`). And the store is held within its bounds (`collect`), by a plan that is made without looking at anything
//! (`plan`): images go whole, unused ones first.
//!
//! No pull waits for any of it. A blob that is being read when it goes stays readable to its end.

mod adopt;
mod background;
mod candidates;
mod catalog;
mod collect;
mod copies;
mod fetch;
mod handle;
mod listing;
mod memory;
mod metrics;
mod openness;
mod plan;
mod scrub;
mod survey;
#[cfg(test)]
mod tests;
mod walk;

pub use catalog::{Catalog, Held, Known, Part, User, Why};
pub use collect::Collected;
pub use fetch::{FetchError, Progress};
pub use handle::{Keep, Parts, Rest, Shelf};
pub use metrics::Metrics;
pub use plan::{Going, Plan, Subject};
