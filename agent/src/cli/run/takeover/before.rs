//! The process before, as the one that will follow it sees it.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use zeroize::Zeroizing;

use super::{DEADLINE, HOLD, door, socket};
use crate::mirror::MOST_LEFT;

/// Who has the store that is waited for.
pub(super) enum Ahead {
    /// A process that hands its door over.
    Before(Before),
    /// One whose door is at another address, where it serves until its end: `mirror.listen` has changed.
    Elsewhere(SocketAddr),
    /// Nobody who says so.
    Nobody,
}

/// The process that serves now, and the copy of its door.
pub(super) struct Before {
    door: TcpListener,
    stream: UnixStream,
    left: Option<Instant>,
}

impl Ahead {
    /// Asks the process that serves from the store in `dir` for its door at `listen`.
    pub(super) async fn find(dir: &Path, listen: SocketAddr) -> Self {
        let dir: PathBuf = dir.to_owned();
        let asked = tokio::task::spawn_blocking(move || Self::ask(&dir, listen));
        match tokio::time::timeout(2 * DEADLINE, asked).await {
            Ok(Ok(Ok(found))) => found,
            Ok(Ok(Err(error))) => {
                tracing::debug!(%error, "no agent hands its door over");
                Self::Nobody
            }
            _ => Self::Nobody,
        }
    }

    /// Asks again, unless the one whose door we hold is there still.
    pub(super) async fn again(self, dir: &Path, listen: SocketAddr) -> Self {
        let held = match self {
            Self::Before(mut before) => match before.has_left() {
                false => return Self::Before(before),
                true => Some(before),
            },
            Self::Elsewhere(_) | Self::Nobody => None,
        };
        match (Self::find(dir, listen).await, held) {
            (Self::Nobody, Some(before)) if before.is_awaited() => Self::Before(before),
            (found, _) => found,
        }
    }

    fn ask(dir: &Path, listen: SocketAddr) -> io::Result<Self> {
        let folder = File::open(dir)?;
        let mut stream = UnixStream::connect(socket(&folder))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let door = TcpListener::from(door::receive(&stream)?);
        // The socket itself tells, whichever agent it comes from.
        let at = door.local_addr()?;
        if at != listen {
            return Ok(Self::Elsewhere(at));
        }
        stream.write_all(&[door::RECEIVED])?;
        // Its end may come at any moment, and from here on it knows of us.
        let mut said = [0];
        stream.read_exact(&mut said)?;
        if said != [door::AWAITED] {
            return Err(io::ErrorKind::InvalidData.into());
        }
        stream.set_nonblocking(true)?;
        Ok(Self::Before(Before { door, stream, left: None }))
    }
}

impl Before {
    /// Whether it lets nobody in any more: it ends, or was killed. Nobody answers at the door then until we have the
    /// store.
    pub(super) fn has_left(&mut self) -> bool {
        if self.left.is_some() {
            return true;
        }
        let says = (&self.stream).read(&mut [0]);
        let is_silent = matches!(says, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        if !is_silent {
            self.left = Some(Instant::now());
        }
        self.left.is_some()
    }

    /// Whether its door is worth holding: for a while after it left. A door behind which nobody is makes containerd wait,
    /// where a closed one sends it to its next host.
    pub(super) fn is_awaited(&self) -> bool {
        self.left.is_none_or(|left| left.elapsed() < HOLD)
    }

    /// The door, to be opened, and what its mirror left behind; nothing, where it was killed.
    pub(super) async fn into_inheritance(self) -> (TcpListener, Zeroizing<Vec<u8>>) {
        let Self { door, stream, left } = self;
        let read = tokio::task::spawn_blocking(move || inherit(&stream, left.is_some()));
        let left = match tokio::time::timeout(2 * DEADLINE, read).await {
            Ok(Ok(Ok(left))) => left,
            _ => Zeroizing::default(),
        };
        (door, left)
    }
}

fn inherit(mut stream: &UnixStream, has_said_so: bool) -> io::Result<Zeroizing<Vec<u8>>> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(DEADLINE))?;
    if !has_said_so {
        stream.read_exact(&mut [0])?;
    }
    stream.write_all(&[door::INHERITS])?;
    // Of a fixed size: one that grows leaves copies of secrets behind.
    let mut left = Zeroizing::new(vec![0; MOST_LEFT]);
    let mut length = 0;
    loop {
        match stream.read(&mut left[length..])? {
            0 => break,
            some => length += some,
        }
    }
    left.truncate(length);
    Ok(left)
}
