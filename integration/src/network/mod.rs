//! Machines on a network of their own: namespaces, joined by links to a bridge that is in a namespace itself.
//!
//! Nothing of it is seen from outside, and the links are as fast as they are told to be, in both directions. Programs run
//! in a [`Host`]'s [`Namespace`]; the test's own sockets are made there too, so that what the test listens on or asks
//! goes over the same links.

mod host;
mod namespace;
mod overhear;

use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, ensure};

pub use host::{Host, Rate};
pub use namespace::Namespace;

/// A switch with nothing connected to it, at first.
#[derive(Debug)]
pub struct Network {
    hub: Namespace,
    hosts: AtomicU16,
}

impl Network {
    /// An empty one. Fails, and says what is missing, where namespaces can't be had.
    pub fn new() -> Result<Self> {
        require_namespaces()?;
        let hub = Namespace::new()?;
        hub.ip("link add hub type bridge mcast_snooping 0\nlink set hub up\n")?;
        // Where the machine has the module for it, its filters would see each packet at the switch.
        if Path::new("/proc/sys/net/bridge").exists() {
            hub.set("net/bridge/bridge-nf-call-iptables", "0")?;
        }
        Ok(Self { hub, hosts: AtomicU16::new(0) })
    }

    /// One more machine, on a link of this rate; `None`: without a limit.
    pub fn host(&self, rate: Option<Rate>) -> Result<Host> {
        Host::new(&self.hub, self.hosts.fetch_add(1, Ordering::Relaxed) + 1, rate)
    }
}

fn require_namespaces() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this test makes network namespaces, which takes root");
    for (program, package) in [("ip", "iproute2"), ("tc", "iproute2"), ("nsenter", "util-linux")] {
        let folders = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(Path::new);
        let found = folders.into_iter().any(|folder| folder.join(program).exists());
        ensure!(found, "this test needs {program} of the package {package}: run integration/setup");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    use super::*;

    /// A plain transfer is as fast as the links: the figures of the scenarios can be believed.
    #[test]
    fn a_link_is_as_fast_as_it_is_told_to_be() {
        const BYTES: usize = 6 << 20;
        let rate = Rate::mbit(50);
        let network = Network::new().unwrap();
        let (one, other) = (network.host(Some(rate)).unwrap(), network.host(Some(rate)).unwrap());
        let listener = other.namespace().inside(|| TcpListener::bind("0.0.0.0:80")).unwrap();
        let address = (other.address(), 80);
        let mut sender = one.namespace().inside(|| TcpStream::connect(address)).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        let begun = Instant::now();
        let writer = std::thread::spawn(move || sender.write_all(&vec![0; BYTES]).unwrap());
        let received = receiver.read_to_end(&mut Vec::new()).unwrap();
        writer.join().unwrap();
        assert_eq!(received, BYTES);
        let ratio = begun.elapsed().as_secs_f64() / rate.seconds(BYTES as u64);
        assert!((0.95..1.25).contains(&ratio), "{ratio} of the time that it should take");
        assert!(other.traffic().unwrap().1 > BYTES as u64);
    }
}
