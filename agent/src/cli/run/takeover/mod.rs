//! From one process to the next on the same node, without a moment in which nobody is at the door.
//!
//! In an upgrade the new process is started beside the old one. Only one can have the store, so the new one gets ready as
//! far as it can, and waits ([`take`]); it asks the old one for a copy of the mirror's listening socket ([`before`]). When
//! the old one is told to end ([`offer`]), it lets nobody in any more, answers those who are in, suspends what arrives,
//! and lets go of the store; replies under way from whole blobs go on meanwhile. The new one takes the store and lets in
//! those who wait in the socket's queue, which has been open all the time: they have waited for some tens of milliseconds,
//! and nobody was refused. What tells the tokens that the old one gave goes along, from memory to memory, so that pulls of
//! private images go on too.
//!
//! With `SO_REUSEPORT`, by which both processes would listen on sockets of their own, that can't be had: the kernel
//! spreads connections over all that listen, also to the one that has no store, and resets those that wait at a socket
//! when it closes. It would also let any other process of the same user in beside us. A socket that is handed over is one
//! queue, and goes only to whom we give it. (Whoever else gets hold of the port has no certificate that containerd would
//! accept.)
//!
//! The place where they meet is a Unix socket in the store's folder, which is the one folder that two Pods of a node have
//! in common, and open to root alone. Where it can't be used (another version, a sandbox that forbids it), or the old
//! process was killed, or listens elsewhere since `mirror.listen` has changed, the new one binds the port when it has the
//! store: connections are refused for a moment, on which containerd goes to its next host.

mod before;
mod door;
mod offer;

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::watch;
use zeroize::Zeroizing;

use self::before::Ahead;
pub(super) use self::offer::Offer;
use super::watch::answers;
use super::word::{Teller, Word};
use crate::admin::Standing;
use crate::config::Config;
use crate::store::{OpenError, Options, Store};

/// The name of the Unix socket in the store's folder.
pub(in crate::cli) const NAME: &str = "takeover";
/// How long the other process may take for what it does at once. One that is stopped accepts, and says nothing.
const DEADLINE: Duration = Duration::from_secs(2);
/// How long a door is held for a process that has left without the store coming free: who knocks gets no answer meanwhile.
const HOLD: Duration = Duration::from_secs(10);
/// How often it is said again that it is waited.
const AGAIN: Duration = Duration::from_secs(60);
/// How long ports may take to come free after the store did.
const PORTS: Duration = Duration::from_secs(2);

/// What a process takes over.
pub(super) struct Taken {
    /// The store is ours.
    pub(super) store: Store,
    /// The mirror's port, where the process before handed it over.
    pub(super) door: Option<TcpListener>,
    /// What its mirror left behind; nothing otherwise.
    pub(super) left: Zeroizing<Vec<u8>>,
    /// Whether another process had the store until now.
    pub(super) has_waited: bool,
}

/// Takes the store, for which it waits as long as another process has it.
pub(super) async fn take(
    config: &Config,
    standing: &watch::Sender<Standing>,
    teller: &mut Teller,
) -> anyhow::Result<Taken> {
    let (dir, listen) = (&config.cache.dir, config.mirror.listen);
    let mut ahead = Ahead::find(dir, listen).await;
    let (mut has_waited, mut said) = (!matches!(ahead, Ahead::Nobody), None::<Instant>);
    loop {
        let options = Options::from(&config.cache);
        // It tries for a second, so this is also what paces the loop.
        match tokio::task::spawn_blocking(move || Store::open(options)).await? {
            Ok(store) => {
                let (door, left) = match ahead {
                    Ahead::Before(before) => Some(before.into_inheritance().await).unzip(),
                    // It binds its own.
                    Ahead::Elsewhere(_) | Ahead::Nobody => (None, None),
                };
                return Ok(Taken { store, door, left: left.unwrap_or_default(), has_waited });
            }
            Err(OpenError::Locked { .. }) => has_waited = true,
            Err(error) => return Err(error).with_context(|| format!("the cache in {}", dir.display())),
        }
        ahead = ahead.again(dir, listen).await;
        let is_served = match ahead {
            Ahead::Before(_) => true,
            Ahead::Elsewhere(at) => answers(at).await,
            Ahead::Nobody => answers(listen).await,
        };
        standing.send_replace(Standing::Waiting { is_served });
        teller.say(Word::Waits);
        if said.is_none_or(|said| said.elapsed() >= AGAIN) {
            said = Some(Instant::now());
            say(dir, &ahead, is_served);
        }
    }
}

/// The socket's path, as long as `folder`, the store's, is open: a socket's path is short, and the folder's may be long.
fn socket(folder: &File) -> String {
    format!("/proc/self/fd/{}/{NAME}", folder.as_raw_fd())
}

fn say(dir: &Path, ahead: &Ahead, is_served: bool) {
    let cache = dir.display();
    match ahead {
        Ahead::Before(_) => {
            tracing::info!(%cache, "another agent serves this node: waiting to take over when it ends");
        }
        Ahead::Elsewhere(at) if is_served => {
            tracing::info!(%cache, %at, "another agent serves this node at another address: waiting for its end");
        }
        Ahead::Nobody if is_served => {
            tracing::info!(%cache, "another process serves this node, and hands nothing over: waiting for its end");
        }
        Ahead::Elsewhere(_) | Ahead::Nobody => {
            tracing::warn!(%cache, "another process holds the cache, and nobody serves containerd: waiting for its end");
        }
    }
}

/// Binds what the process before is about to let go of.
pub(super) async fn bind<T, E>(has_waited: bool, mut bind: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let until = Instant::now() + if has_waited { PORTS } else { Duration::ZERO };
    loop {
        match bind() {
            Err(_) if Instant::now() < until => tokio::time::sleep(Duration::from_millis(5)).await,
            bound => return bound,
        }
    }
}
