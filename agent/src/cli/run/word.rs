//! What the agent tells the process that watches it.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::time::timeout;

/// How long the agent may take to say something.
const SAYS_WITHIN: Duration = Duration::from_secs(60);

/// Up to when the mirror is not to be judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Word {
    /// It waits for the store, and is well. Said every few seconds: whoever answers at the mirror's port is another.
    Waits = b'w',
    /// It is at the door.
    Serves = b's',
    /// And writing hosts.toml has been tried, with whatever outcome.
    Ready = b'r',
}

/// The agent's end.
pub(super) struct Teller(Option<File>);

/// The end of the process that watches it.
pub(super) struct Hearer(Receiver);

/// A channel, and what the agent is started with as its standard input: it reads nothing, and has only to write there.
pub(super) fn channel() -> io::Result<(Hearer, Stdio)> {
    let (reader, writer) = io::pipe()?;
    Ok((Hearer(Receiver::from_owned_fd(reader.into())?), writer.into()))
}

impl Teller {
    /// Where there is nobody to hear it, nothing is said.
    pub(super) fn new(is_watched: bool) -> Self {
        Self(is_watched.then(|| io::stdin().as_fd().try_clone_to_owned().ok().map(File::from)).flatten())
    }

    /// Never waits: who hears it reads on, and a pipe holds days of it.
    pub(super) fn say(&mut self, word: Word) {
        if let Some(pipe) = &mut self.0 {
            // Who watches us takes us with it when it goes.
            let _ = pipe.write_all(&[word as u8]);
        }
    }
}

impl Hearer {
    /// Waits until the agent serves, however long it waits for the store. `false`: it says nothing at all any more.
    pub(super) async fn serves(&mut self) -> bool {
        loop {
            match timeout(SAYS_WITHIN, self.0.read_u8()).await {
                Ok(Ok(word)) if word == Word::Waits as u8 => {}
                Ok(Ok(_)) => return true,
                // It ends by itself, which is seen elsewhere.
                Ok(Err(_)) => std::future::pending().await,
                Err(_) => return false,
            }
        }
    }

    /// Waits until the agent serves and has tried to write hosts.toml.
    pub(super) async fn is_ready(&mut self) {
        loop {
            match self.0.read_u8().await {
                Ok(word) if word == Word::Ready as u8 => return,
                Ok(_) => {}
                Err(_) => std::future::pending().await,
            }
        }
    }
}
