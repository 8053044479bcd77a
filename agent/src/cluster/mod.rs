//! Who the peers are, who owns a digest, who has it and who may fetch it: machines without IO.
//!
//! Nothing in this room opens a socket, reads a clock or throws dice. Time comes in as a [`Duration`](std::time::Duration)
//! since the process began, chance as a generator, messages as values; what a machine wants sent comes out of it. The
//! same machines therefore run over real sockets (`peers`) and a thousand at a time under an event queue.
//!
//! - [`Members`]: SWIM membership by `foca`, with a roll call that tells a newcomer everybody within a second.
//! - [`Ring`]: which two members own which of the 128 [`Bucket`]s that digests fall into.

mod members;
mod ring;

pub use members::{BadPacket, Effect, Identity, Member, Members, Run, Search};
pub use ring::{Bucket, Owners, Ring};
