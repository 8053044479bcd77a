//! The entries in containerd's `hosts_dir`: written, kept as they should be, shown, and taken back.
//!
//! containerd looks for a registry's folder (`reg.corp_5000_`, `reg.corp:5000`, `_default`; the first that exists wins)
//! and reads `hosts.toml` in it at every pull. We put our mirror before the hosts that stand there. The file that was
//! there before lies beside ours as `hosts.toml.before-larder`, the very same inode, so that neither a lost cache nor a
//! lost configuration can lose it; that there was none is said in the first line of ours. Nothing else is remembered:
//! what a folder holds says what is to be done, so that a crash between any two steps is mended by doing it again.
//!
//! `compose` makes a file's text from the user's (`reading` says how containerd understands it, `marker` which lines
//! are ours, `template` what our table looks like), `folder` changes one folder, `root` finds and locks them all,
//! `watch` does it again when somebody else changes something. `adopt` reads the user's mirrors for our own use.

mod adopt;
mod certs;
mod compose;
mod dir;
mod disk;
mod error;
mod folder;
mod marker;
mod metrics;
mod pace;
mod reading;
mod root;
mod show;
mod sight;
mod targets;
mod template;
#[cfg(test)]
mod tests;
mod watch;

pub use adopt::{Adopted, AdoptedFolder, Adoption, LeftOut};
pub use dir::{Applied, AppliedFolder, Entry, HostsDir, Outcome, Restored, RestoredFolder};
pub use error::{HostsError, NotAdopted, Warning};
pub use folder::Undone;
pub use metrics::Metrics;
pub use show::{Original, Shown, State};
pub use watch::watch;
