//! A machine on the network, as far as the network goes: its namespace, its address, its link.

use std::fmt::Write;
use std::net::Ipv4Addr;

use anyhow::Result;

use super::Namespace;

/// How many bits a link passes in a second, in each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

impl Rate {
    /// So many million bits a second.
    pub const fn mbit(millions: u64) -> Self {
        Self(millions * 1_000_000)
    }

    /// The same in bytes, frames' heads and all: TCP gets 95 % of it.
    pub const fn bytes_per_second(self) -> u64 {
        self.0 / 8
    }

    /// How long so many bytes take at the least, in seconds.
    pub fn seconds(self, bytes: u64) -> f64 {
        bytes as f64 / self.bytes_per_second() as f64
    }

    /// A token bucket: 5 ms at once, which is what the kernel's clock needs, and a queue of 50 ms, or at least one of
    /// the large pieces that TCP hands over.
    fn tbf(self, device: &str) -> String {
        let (rate, bytes) = (self.0, self.bytes_per_second());
        let (burst, limit) = ((bytes / 200).max(32 << 10), (bytes / 20).max(64 << 10));
        format!("qdisc replace dev {device} root tbf rate {rate} burst {burst} limit {limit}\n")
    }
}

/// Whatever the machine has. The one that any namespace may take, and close to what Linux does by itself over links like
/// these; BBR sends two segments at a time, each by a timer.
const CONGESTION: &str = "reno";

/// What TCP hands over at once, in segments at least and in bytes at most. Each piece that waits at a limited link costs a
/// timer's interrupt, and what is larger than a link lets pass at once is cut into single segments: eight links took a third
/// of two cores.
const PIECE: &str = "16";
const LARGEST_PIECE: u64 = 24 << 10;

/// A machine of a [`super::Network`].
#[derive(Debug, Clone)]
pub struct Host {
    namespace: Namespace,
    address: Ipv4Addr,
    hub: Namespace,
    /// The hub's end of the link; the host's is `eth0`.
    port: String,
}

impl Host {
    pub(super) fn new(hub: &Namespace, number: u16, rate: Option<Rate>) -> Result<Self> {
        let namespace = Namespace::new()?;
        let [high, low] = number.to_be_bytes();
        let address = Ipv4Addr::new(10, 77, high, low);
        let port = format!("port{number}");
        let mut lines = String::new();
        let _ = writeln!(lines, "link add {port} type veth peer name eth0 netns {}", namespace.path().display());
        let _ = writeln!(lines, "link set {port} master hub up");
        hub.ip(&lines)?;
        namespace.ip(&format!("addr add {address}/16 dev eth0\nlink set eth0 gso_max_size {LARGEST_PIECE} up\n"))?;
        namespace.set("net/ipv4/tcp_congestion_control", CONGESTION)?;
        namespace.set("net/ipv4/tcp_min_tso_segs", PIECE)?;
        let host = Self { namespace, address, hub: hub.clone(), port };
        if rate.is_some() {
            host.set_rate(rate)?;
        }
        Ok(host)
    }

    /// Where its sockets are and its programs run.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its address, in a network of /16.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// One more address of it.
    pub fn add_address(&self, address: Ipv4Addr) -> Result<()> {
        self.namespace.ip(&format!("addr add {address}/32 dev eth0\n"))
    }

    /// Gives it another address in the place of its own, as DHCP may.
    pub fn move_to(&mut self, address: Ipv4Addr) -> Result<()> {
        let lines = format!("addr delete {}/16 dev eth0\naddr add {address}/16 dev eth0\n", self.address);
        self.namespace.ip(&lines)?;
        self.address = address;
        Ok(())
    }

    /// From now on, it finds the addresses of a network, `10.96.0.0/16`, on its link.
    pub fn add_route(&self, network: &str) -> Result<()> {
        self.namespace.ip(&format!("route add {network} dev eth0\n"))
    }

    /// From now on, its link passes so much in each direction; `None`: all.
    pub fn set_rate(&self, rate: Option<Rate>) -> Result<()> {
        let lines = |device: &str| match rate {
            Some(rate) => rate.tbf(device),
            None => format!("qdisc delete dev {device} root\n"),
        };
        self.namespace.batch("tc", &lines("eth0"))?;
        self.hub.batch("tc", &lines(&self.port))
    }

    /// Cuts its link: nothing passes, and nobody is told.
    pub fn cut(&self) -> Result<()> {
        self.hub.ip(&format!("link set {} down\n", self.port))
    }

    /// Mends its link.
    pub fn mend(&self) -> Result<()> {
        self.hub.ip(&format!("link set {} up\n", self.port))
    }

    /// From now on, nothing that it sends arrives at the other one.
    pub fn shun(&self, other: &Self) -> Result<()> {
        // A hardware address that nobody has.
        let nobody = "lladdr 02:00:00:00:00:01 dev eth0 nud permanent";
        self.namespace.ip(&format!("neigh replace {} {nobody}\n", other.address))
    }

    /// Ends [`Host::shun`].
    pub fn heed(&self, other: &Self) -> Result<()> {
        self.namespace.ip(&format!("neigh delete {} dev eth0\n", other.address))
    }

    /// Bytes that it has sent and received so far, with the heads of their frames.
    pub fn traffic(&self) -> Result<(u64, u64)> {
        let counters = self.namespace.inside(|| std::fs::read_to_string("/proc/thread-self/net/dev"))?;
        let line = counters.lines().find_map(|line| line.trim_start().strip_prefix("eth0:")).unwrap_or_default();
        let counts: Vec<u64> = line.split_whitespace().filter_map(|count| count.parse().ok()).collect();
        // Receiving has eight columns, then sending.
        Ok((counts.get(8).copied().unwrap_or_default(), counts.first().copied().unwrap_or_default()))
    }
}
