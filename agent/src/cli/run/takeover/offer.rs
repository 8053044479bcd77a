//! What a process that serves offers to the one that will follow it.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use super::{DEADLINE, NAME, door, socket};

/// The mirror's door, for whoever waits for our end.
pub(in super::super) struct Offer {
    path: PathBuf,
    followers: Arc<AtomicUsize>,
    ending: CancellationToken,
    left: watch::Sender<Option<Left>>,
    offering: JoinHandle<()>,
    following: TaskTracker,
}

/// What is left behind.
type Left = Arc<Zeroizing<Vec<u8>>>;

/// One who follows, as long as it is there.
struct Follower(Arc<AtomicUsize>);

impl Offer {
    /// Offers `door` in the store's folder, which is ours. Needs a runtime.
    ///
    /// # Errors
    /// When the folder takes no socket. Whoever follows has to bind the port itself then.
    pub(in super::super) fn open(dir: &Path, door: OwnedFd) -> io::Result<Self> {
        let path = dir.join(NAME);
        // One of a process that is gone: the folder is ours.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let folder = File::open(dir)?;
        let listener = UnixListener::bind(socket(&folder))?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        let (ending, left) = (CancellationToken::new(), watch::Sender::new(None));
        let (followers, following) = (Arc::new(AtomicUsize::new(0)), TaskTracker::new());
        let offering = tokio::spawn({
            let (ending, left) = (ending.clone(), left.subscribe());
            let (followers, following) = (Arc::clone(&followers), following.clone());
            let door = Arc::new(door);
            async move {
                while let Some(accepted) = ending.run_until_cancelled(listener.accept()).await {
                    match accepted {
                        Ok((stream, _)) => {
                            let (door, followers) = (Arc::clone(&door), Arc::clone(&followers));
                            following.spawn(follow(stream, door, followers, ending.clone(), left.clone()));
                        }
                        Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                    }
                }
            }
        });
        Ok(Self { path, followers, ending, left, offering, following })
    }

    /// The end has come. Whether somebody takes over: the door is its own from now on.
    pub(in super::super) async fn end(&mut self) -> bool {
        self.ending.cancel();
        // It only accepts, and has just been told to stop.
        let _ = (&mut self.offering).await;
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "the socket for who follows is left behind");
        }
        self.followers.load(Ordering::Relaxed) > 0
    }

    /// The store is free. Whoever takes it is given `left`: from memory to memory, it is written nowhere.
    pub(in super::super) async fn let_go(self, left: Zeroizing<Vec<u8>>) {
        self.left.send_replace(Some(Arc::new(left)));
        self.following.close();
        self.following.wait().await;
    }
}

async fn follow(
    mut stream: UnixStream,
    door: Arc<OwnedFd>,
    followers: Arc<AtomicUsize>,
    ending: CancellationToken,
    mut left: watch::Receiver<Option<Left>>,
) {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == nix::unistd::geteuid().as_raw() => {}
        _ => return tracing::warn!("somebody else than this agent's user asked for its door; it stays closed to him"),
    }
    let handing = async {
        stream.async_io(Interest::WRITABLE, || door::send(&stream, &*door)).await?;
        stream.read_u8().await
    };
    let handed = timeout(DEADLINE, handing).await;
    drop(door);
    if !matches!(handed, Ok(Ok(door::RECEIVED))) {
        return;
    }
    let _counts = Follower::new(followers);
    if !matches!(timeout(DEADLINE, stream.write_u8(door::AWAITED)).await, Ok(Ok(()))) {
        return;
    }
    tracing::info!("another agent waits to take over");
    // Nothing more is said by who follows: whatever comes is its end.
    tokio::select! {
        _ = stream.read_u8() => return tracing::info!("the agent that waited to take over has gone"),
        () = ending.cancelled() => {}
    }
    let leaving = async {
        timeout(DEADLINE, stream.write_u8(door::ENDING)).await??;
        let left = left.wait_for(Option::is_some).await.map(|left| left.clone());
        if let (door::INHERITS, Ok(Some(left))) = (timeout(DEADLINE, stream.read_u8()).await??, left) {
            timeout(DEADLINE, stream.write_all(&left)).await??;
        }
        io::Result::Ok(())
    };
    if let Err(error) = leaving.await {
        tracing::debug!(%error, "one that followed has inherited nothing");
    }
}

impl Follower {
    fn new(all: Arc<AtomicUsize>) -> Self {
        all.fetch_add(1, Ordering::Relaxed);
        Self(all)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use super::super::before::{Ahead, Before};
    use super::*;

    async fn who_hands_over(dir: &Path, listen: SocketAddr) -> Before {
        match Ahead::find(dir, listen).await {
            Ahead::Before(before) => before,
            Ahead::Elsewhere(at) => panic!("a door at {at}"),
            Ahead::Nobody => panic!("no door"),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_door_changes_hands() {
        let dir = tempfile::tempdir().unwrap();
        // Longer than the path of a socket may be.
        let dir = dir.path().join("a".repeat(120));
        fs::create_dir(&dir).unwrap();
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = door.local_addr().unwrap();
        assert!(matches!(Ahead::find(&dir, address).await, Ahead::Nobody));
        let mut offer = Offer::open(&dir, door.into()).unwrap();
        let other = Ahead::find(&dir, "127.0.0.1:1".parse().unwrap()).await;
        assert!(matches!(other, Ahead::Elsewhere(at) if at == address), "that is another door");
        let mut before = who_hands_over(&dir, address).await;
        assert!(!before.has_left());
        assert!(offer.end().await, "somebody follows");
        assert!(!dir.join(NAME).exists());
        while !before.has_left() {
            tokio::task::yield_now().await;
        }
        assert!(before.is_awaited());
        let (inherited, ()) = tokio::join!(before.into_inheritance(), offer.let_go(b"secret".to_vec().into()));
        let (door, left) = inherited;
        assert_eq!((door.local_addr().unwrap(), left.as_slice()), (address, b"secret".as_slice()));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_follows_may_leave_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NAME), "left by a process that was killed").unwrap();
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = door.local_addr().unwrap();
        let mut offer = Offer::open(dir.path(), door.into()).unwrap();
        drop(who_hands_over(dir.path(), address).await);
        while offer.followers.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
        assert!(!offer.end().await);
        TcpListener::bind(address).expect("the door is closed");
        offer.let_go(Zeroizing::default()).await;
    }
}
