//! What a service manager is told that waits to hear it (systemd's `Type=notify`). Nobody else is told anything.
//!
//! The protocol is one datagram a message. What sends it must not wait: a manager that hangs would stop the watch over
//! the agent, so a message that finds no room is dropped, and the next one says the same.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The variable that says where the manager listens.
pub(super) const SOCKET: &str = "NOTIFY_SOCKET";

/// How often that we are ready is said again, where it couldn't be said: nobody would go on without it.
const AGAIN: Duration = Duration::from_millis(200);

/// The agent serves, and has tried to write hosts.toml. Where that fails it serves peers all the same, and says so.
pub(super) async fn ready() {
    let mut failed = false;
    while let Err(error) = tell("READY=1\nSTATUS=serving\n") {
        if !std::mem::replace(&mut failed, true) {
            tracing::warn!(%error, "the service manager can't be told that the agent is ready");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The mirror has answered just now.
pub(super) fn alive() {
    let _ = tell("WATCHDOG=1\n");
}

/// We were told to end, and are at it.
pub(super) fn stopping() {
    let _ = tell("STOPPING=1\nSTATUS=letting replies under way end\n");
}

fn tell(message: &str) -> io::Result<()> {
    env::var_os(SOCKET).map_or(Ok(()), |socket| send(&socket, message))
}

fn send(socket: &OsStr, message: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to_addr(message.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut message = [0; 64];
        let length = socket.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    }

    #[test]
    fn a_message_arrives_at_a_path_and_at_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "WATCHDOG=1\n").unwrap();
        assert_eq!(received(&manager), "WATCHDOG=1\n");

        let name = format!("larder-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(OsStr::new(&format!("@{name}")), "READY=1\n").unwrap();
        assert_eq!(received(&manager), "READY=1\n");
    }

    #[test]
    fn nobody_waits_for_a_manager_that_hangs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let _deaf = UnixDatagram::bind(&path).unwrap();
        let full = (0..100_000).find_map(|_| send(path.as_os_str(), "WATCHDOG=1\n").err());
        assert_eq!(full.map(|error| error.kind()), Some(io::ErrorKind::WouldBlock));
    }
}
