//! A listening socket on its way from one process to another.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// What goes along with the socket: in what way the two deal with each other.
const GREETING: &[u8] = b"larder takeover 1\n";
/// What whoever received it says.
pub(super) const RECEIVED: u8 = b'r';
/// What the process before says to it, when it counts on it.
pub(super) const AWAITED: u8 = b'a';
/// What the process before says when its end has come.
pub(super) const ENDING: u8 = b'e';
/// What the one that has the store says, and nobody else: it is given what the mirror leaves behind.
pub(super) const INHERITS: u8 = b'i';

/// Gives `door` to the process at the other end of `stream`, which has a copy of it then.
pub(super) fn send(stream: impl AsFd, door: impl AsFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let doors = [door.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&doors));
    let sent = sendmsg(stream, &[IoSlice::new(GREETING)], &mut control, SendFlags::NOSIGNAL)?;
    if sent == GREETING.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives it.
pub(super) fn receive(stream: impl AsFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut greeting = [0; GREETING.len()];
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut greeting)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let door = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut doors) => doors.next(),
        _ => None,
    });
    let is_whole = greeting == GREETING && !received.flags.contains(ReturnFlags::CTRUNC);
    door.filter(|_| is_whole).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not of this version"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_door_stays_open_while_it_changes_hands() {
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = door.local_addr().unwrap();
        let (one, other) = UnixStream::pair().unwrap();
        let mut early = TcpStream::connect(address).unwrap();
        early.write_all(b"x").unwrap();
        send(&one, &door).unwrap();
        drop(door);
        let door = TcpListener::from(receive(&other).unwrap());
        let late = TcpStream::connect(address).unwrap();
        let (accepted, from) = door.accept().unwrap();
        assert_eq!(from, early.local_addr().unwrap(), "who waited in the queue comes first");
        let mut byte = [0];
        io::Read::read_exact(&mut &accepted, &mut byte).unwrap();
        assert_eq!(door.accept().unwrap().1, late.local_addr().unwrap());
    }

    #[test]
    fn what_is_said_otherwise_is_not_believed() {
        let (mut one, other) = UnixStream::pair().unwrap();
        one.write_all(GREETING).unwrap();
        assert!(receive(&other).is_err(), "no door came along");
        one.write_all(b"larder takeover 2\n").unwrap();
        assert!(receive(&other).is_err());
        drop(one);
        assert!(receive(&other).is_err());
    }
}
