//! Clusters simulated: the machines of this room over links with rates and delays, under an event queue.
//!
//! [`Cluster`] says what there is, [`Fault`] what goes wrong and when, and [`run`] what came of it. Bytes flow in pieces
//! over each node's two directions, which all its streams share; small messages have a delay and no size. Everything comes
//! from the seed: the same one gives the same run.

mod announce;
mod events;
mod faults;
mod figures;
mod links;
mod node;
mod owners;
mod peers;
mod plan;
mod published;
mod tests;
mod views;
mod watch;
mod world;

use figures::Figure;
use plan::{Cluster, Fault, Outcome, When};
use world::run;
