//! What the kernel says about processes and sockets, parsed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::facts::Proxies;

/// The state of a socket that listens, as the tables write it.
const LISTEN: &str = "0A";

/// What names the file that containerd is started with, as Go's flags may be written.
const CONFIG: [&str; 4] = ["--config", "-config", "-c", "--c"];

/// The listening sockets in the text of `/proc/net/tcp` or `tcp6`, each with its inode.
pub(super) fn listening(table: &str) -> Vec<(SocketAddr, u64)> {
    let parse = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?.parse().ok()?;
        (state == LISTEN).then_some((address(local)?, inode))
    };
    table.lines().skip(1).filter_map(parse).collect()
}

/// `0100007F:1D0F`: words in the machine's order, port in the network's.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(host.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip: IpAddr = match host.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for (at, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(at * 8)?);
            }
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The inode in the target of a link below `/proc/<pid>/fd`, where it is a socket.
pub(super) fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The proxy variables in `/proc/<pid>/environ`.
pub(super) fn proxies(environ: &[u8]) -> Proxies {
    Proxies::of(|name| {
        let mut values = environ.split(|b| *b == 0).filter_map(|entry| {
            let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(String::from_utf8_lossy(value).into_owned())
        });
        values.next()
    })
}

/// Whether `/proc/<pid>/status` is that of root without `CAP_DAC_OVERRIDE`.
pub(super) fn is_bound_root(status: &str) -> bool {
    const DAC_OVERRIDE: u64 = 1 << 1;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    // Real, effective, saved, and of the file system.
    let user = field("Uid:").and_then(|users| users.split_ascii_whitespace().nth(1));
    let effective = field("CapEff:").and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    user == Some("0") && effective.is_some_and(|set| set & DAC_OVERRIDE == 0)
}

/// The file that a containerd was started with, by `/proc/<pid>/cmdline`; `None`: it takes its own default.
pub(super) fn config_argument(command_line: &[u8]) -> Option<PathBuf> {
    let mut words = command_line.split(|b| *b == 0).map(String::from_utf8_lossy).skip(1);
    while let Some(word) = words.next() {
        let value = match word.split_once('=') {
            Some((name, value)) => CONFIG.contains(&name).then(|| value.to_owned()),
            None if CONFIG.contains(&&*word) => words.next().map(std::borrow::Cow::into_owned),
            None => None,
        };
        if let Some(value) = value {
            return Some(value.into());
        }
    }
    None
}

impl Proxies {
    /// By variable. Upper case wins, as Go has it.
    pub(super) fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let find = |name: &str| set(name).or_else(|| set(&name.to_ascii_lowercase()));
        Self { http: find("HTTP_PROXY"), https: find("HTTPS_PROXY"), no: find("NO_PROXY") }
    }

    /// Whether there is a proxy at all.
    pub(super) const fn is_any(&self) -> bool {
        self.http.is_some() || self.https.is_some()
    }

    /// Whether a request to this address would be sent to a proxy. Go sends none to loopback addresses.
    pub(super) fn catch(&self, address: SocketAddr, plain: bool) -> Option<&str> {
        let proxy = if plain { &self.http } else { &self.https };
        let goes = !address.ip().is_loopback() && !self.excepts(address);
        proxy.as_deref().filter(|_| goes)
    }

    fn excepts(&self, address: SocketAddr) -> bool {
        let matches = |entry: &str| {
            if entry == "*" {
                return true;
            }
            if let Some((network, bits)) = entry.split_once('/') {
                return contains(network, bits, address.ip()).unwrap_or(false);
            }
            entry.parse() == Ok(address.ip()) || entry.parse() == Ok(address)
        };
        self.no.as_deref().unwrap_or_default().split(',').map(str::trim).any(matches)
    }
}

fn contains(network: &str, bits: &str, ip: IpAddr) -> Option<bool> {
    let bits: u32 = bits.parse().ok()?;
    let (network, ip, width) = match (network.parse().ok()?, ip) {
        (IpAddr::V4(network), IpAddr::V4(ip)) => (u128::from(network.to_bits()), u128::from(ip.to_bits()), 32),
        (IpAddr::V6(network), IpAddr::V6(ip)) => (network.to_bits(), ip.to_bits(), 128),
        _ => return Some(false),
    };
    let host_bits = u32::checked_sub(width, bits)?;
    // Nothing is left to compare of `::/0`, and a shift by the whole width isn't allowed.
    Some((network ^ ip).checked_shr(host_bits).unwrap_or(0) == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1D0F 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 34567 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1D0F 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 34568 1 0000000000000000 20 4 30 10 -1
";
    const TCP6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:1D0F 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 77 1 0000000000000000 100 0 0 10 0
   1: 0000000000000000FFFF00000100007F:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 78 1 0000000000000000 100 0 0 10 0
";

    #[test]
    fn root_is_bound_without_its_capability() {
        let status = |user: u32, set: u64| {
            format!("Name:\tlarder\nUid:\t{user}\t{user}\t{user}\t{user}\nCapPrm:\t{set:016x}\nCapEff:\t{set:016x}\n")
        };
        assert!(is_bound_root(&status(0, 0)) && is_bound_root(&status(0, 0b1001)));
        assert!(!is_bound_root(&status(0, 0x1ff_ffff_ffff)) && !is_bound_root(&status(0, 0b1011)));
        // What another user may do is said by owners and modes that aren't looked at; what can't be read says nothing.
        assert!(!is_bound_root(&status(1000, 0)) && !is_bound_root("") && !is_bound_root("Uid:\nCapEff:\tx\n"));
    }

    #[test]
    fn listening_sockets() {
        assert_eq!(listening(TCP), [("127.0.0.1:7439".parse().unwrap(), 34567)]);
        let v6 = [("[::]:7439".parse().unwrap(), 77), ("127.0.0.1:80".parse().unwrap(), 78)];
        assert_eq!(listening(TCP6), v6);
        assert_eq!(socket_inode("socket:[77]"), Some(77));
        assert_eq!(socket_inode("/dev/null"), None);
    }

    #[test]
    fn a_real_listener_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = listening(&std::fs::read_to_string("/proc/net/tcp").unwrap());
        assert!(found.iter().any(|(address, _)| *address == listener.local_addr().unwrap()));
    }

    #[test]
    fn which_proxy_catches_what() {
        let proxies =
            proxies(b"A=b\0https_proxy=http://p\0NO_PROXY=.corp, 10.0.0.0/8,192.168.1.1,[::2]:80\0HTTP_PROXY=\0");
        assert_eq!(proxies.https.as_deref(), Some("http://p"));
        assert_eq!(proxies.http, None);
        let catch = |address: &str| proxies.catch(address.parse().unwrap(), false).is_some();
        assert!(catch("172.16.0.1:1") && catch("11.0.0.1:1") && catch("[::2]:81") && catch("192.168.1.2:1"));
        assert!(!catch("127.0.0.1:1") && !catch("[::1]:1") && !catch("10.1.2.3:1") && !catch("192.168.1.1:1"));
        assert!(!catch("[::2]:80"));
        assert_eq!(proxies.catch("172.16.0.1:1".parse().unwrap(), true), None);
    }

    #[test]
    fn what_containerd_was_started_with() {
        let of =
            |line: &str| config_argument(line.replace(' ', "\0").as_bytes()).map(|path| path.display().to_string());
        assert_eq!(of("/usr/bin/containerd"), None);
        assert_eq!(of("containerd --log-level info --config /a.toml").as_deref(), Some("/a.toml"));
        assert_eq!(of("containerd -c /a.toml -a /sock").as_deref(), Some("/a.toml"));
        assert_eq!(of("containerd --config=/a.toml").as_deref(), Some("/a.toml"));
    }

    #[test]
    fn networks() {
        let within = |network, bits, ip: &str| contains(network, bits, ip.parse().unwrap());
        assert_eq!(within("0.0.0.0", "0", "1.2.3.4"), Some(true));
        assert_eq!(within("1.2.3.4", "32", "1.2.3.5"), Some(false));
        assert_eq!(within("::", "0", "fe80::1"), Some(true));
        assert_eq!(within("fe80::", "10", "fe90::1"), Some(true));
        assert_eq!(within("1.2.3.4", "33", "1.2.3.4"), None);
        assert_eq!(within("::", "0", "1.2.3.4"), Some(false));
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,80}", bytes: Vec<u8>) {
            let _ = listening(&format!("header\n{text}"));
            let _ = address(&text);
            let found = proxies(&bytes);
            let _ = Proxies { https: Some(text.clone()), no: Some(text), ..found }.catch("10.0.0.1:1".parse().unwrap(), false);
        }
    }
}
