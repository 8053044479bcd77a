//! Who the peers are, who owns a digest, who has it and who may fetch it: machines without IO.
//!
//! Nothing in this room opens a socket, reads a clock or throws dice. Time comes in as a [`Duration`](std::time::Duration)
//! since the process began, chance as a generator, messages as values; what a machine wants sent comes out of it. The
//! same machines therefore run over real sockets (`peers`) and a thousand at a time under an event queue.
//!
//! - [`Members`]: SWIM membership by `foca`, with a roll that is called besides gossip.
//! - [`Ring`]: which two members own which of the 128 [`Bucket`]s that digests fall into.
//! - [`directory`]: an owner's table of who has what, who reads from whom, and who fetches.
//! - [`follow`]: one blob's reading on this node: whose turn it is, and what to do when somebody fails.
//! - [`copies`]: who holds copies of images that others run.
//! - [`rights`]: who keeps what registries said of who may pull what.
//! - [`serve`]: who reads a blob from this node.
//! - [`Delays`]: how long an answer may take at present.
//! - [`Intake`]: what this node's link has room for.
//! - [`chain`]: the words that these three have in common.
//! - [`checks`]: how often registries may be asked after images, by whom, and what came of it.
//! - `sim`: these machines simulated, under an event queue.

pub mod chain;
pub mod checks;
pub mod copies;
mod delays;
pub mod directory;
pub mod follow;
mod intake;
mod members;
mod mix;
pub mod rights;
mod ring;
pub mod serve;
#[cfg(test)]
mod sim;

pub use delays::Delays;
pub use intake::Intake;
pub use members::{BadPacket, Effect, Identity, Member, Members, Run, Search};
pub use ring::{Bucket, Owners, Ring};
