use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::certificate_id::CertificateId;
use super::units::Bytes;
use crate::image::Zone;

/// The port that agents speak to each other on, TCP and UDP.
const PORT: u16 = 7441;
/// Less than this a second, and a pull through peers would be slower than any upstream.
const LEAST_RATE: u64 = 64 << 10;
/// The longest name in the DNS.
const NAME_MAX: usize = 253;

/// `[peers]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Peers {
    /// Where other nodes reach us: TCP and UDP.
    pub listen: SocketAddr,
    /// The address that others are told to reach us at. `None`: the source address of the route to the first seed. See
    /// [`Peers::advertised`].
    #[serde(deserialize_with = "some_place")]
    advertise: Option<Place>,
    /// Whom a node asks who else is there. One or several in TOML.
    #[serde(deserialize_with = "one_or_many")]
    pub seeds: Vec<Seed>,
    /// Asked for the seeds' names in place of the node's resolver. See [`Peers::dns_server`].
    #[serde(deserialize_with = "some_place")]
    dns_server: Option<Place>,
    /// Certificates of the authorities whose nodes are peers. `None`: there are no peers.
    pub ca: Option<PathBuf>,
    /// Private keys of these authorities: the node issues its own certificate.
    pub key: Option<PathBuf>,
    /// This node's certificate, where somebody else issues it.
    pub cert: Option<PathBuf>,
    /// The file with its key. `None`: the key is in `cert` too.
    pub cert_key: Option<PathBuf>,
    /// Whose given certificates are peers', of all that the authorities have signed. Empty: all. One or several in TOML.
    #[serde(deserialize_with = "one_or_many")]
    pub allowed_ids: Vec<CertificateId>,
    /// What datagrams are sealed with: lines of at least 32 bytes, the same on every node. `None`: it is derived from
    /// `key`.
    pub secret: Option<PathBuf>,
    /// Where this node stands: nodes of the same zone are read from first.
    #[serde(deserialize_with = "zone")]
    pub zone: Zone,
    /// Bytes a second that this node sends to peers, in all. `None`: no limit.
    pub max_upload: Option<Bytes>,
    /// Bytes a second that this node receives from peers, in all. `None`: no limit.
    pub max_download: Option<Bytes>,
    /// Bytes a second to one peer. `None`: no limit.
    pub max_upload_per_peer: Option<Bytes>,
    /// Bytes a second from one peer. `None`: no limit.
    pub max_download_per_peer: Option<Bytes>,
}

/// One of `peers.seeds`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Seed {
    /// Every address that a name has: `dns:larder-peers:7441`.
    Name {
        /// The name.
        name: String,
        /// The port, at each of its addresses.
        port: u16,
    },
    /// One address: `10.0.0.7:7441`, `[fd00::7]:7441`.
    Address(SocketAddr),
}

/// An address whose port has a default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    ip: IpAddr,
    port: Option<u16>,
}

impl Default for Peers {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, PORT)),
            advertise: None,
            seeds: Vec::new(),
            dns_server: None,
            ca: None,
            key: None,
            cert: None,
            cert_key: None,
            allowed_ids: Vec::new(),
            secret: None,
            zone: Zone::default(),
            max_upload: None,
            max_download: None,
            max_upload_per_peer: None,
            max_download_per_peer: None,
        }
    }
}

impl Peers {
    /// Whether there is a cluster at all.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.ca.is_some()
    }

    /// The address that others are told to reach us at, where one is configured.
    #[must_use]
    pub fn advertised(&self) -> Option<SocketAddr> {
        self.advertise.map(|place| place.or_port(self.listen.port()))
    }

    /// The DNS server to ask for the seeds' names, where it isn't the node's resolver.
    #[must_use]
    pub fn dns_server(&self) -> Option<SocketAddr> {
        self.dns_server.map(|place| place.or_port(53))
    }

    /// What the types can't say: a text that stands in the file where it is wrong, and why.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        if self.listen.port() == 0 {
            let port = "listen in [peers] needs a port that stays, not 0: other nodes remember it";
            return Err(("listen".to_owned(), port.to_owned()));
        }
        if let Some(place) = self.advertise
            && (place.ip.is_unspecified() || place.port == Some(0))
        {
            let nowhere = "advertise names no address that others could reach; leave it out to let the agent find it";
            return Err(("advertise".to_owned(), nowhere.to_owned()));
        }
        let files = [
            ("ca", &self.ca),
            ("key", &self.key),
            ("cert", &self.cert),
            ("cert_key", &self.cert_key),
            ("secret", &self.secret),
        ];
        for (key, path) in files {
            let Some(path) = path else { continue };
            let shown = path.display();
            if !path.is_absolute() {
                return Err((shown.to_string(), format!("{key} = \"{shown}\" is not an absolute path")));
            }
            if self.ca.is_none() {
                return Err((
                    shown.to_string(),
                    format!("{key} = \"{shown}\" needs ca beside it: whose nodes are peers"),
                ));
            }
        }
        self.check_identity()?;
        let rates = [
            ("max_upload", self.max_upload),
            ("max_download", self.max_download),
            ("max_upload_per_peer", self.max_upload_per_peer),
            ("max_download_per_peer", self.max_download_per_peer),
        ];
        for (key, rate) in rates {
            if let Some(rate) = rate
                && rate.0 < LEAST_RATE
            {
                let least = Bytes(LEAST_RATE);
                return Err((
                    format!("{key} "),
                    format!("{key} = \"{rate}\" is too little; at least {least} a second"),
                ));
            }
        }
        Ok(())
    }

    /// Which files must stand beside which.
    fn check_identity(&self) -> Result<(), (String, String)> {
        let Some(ca) = &self.ca else { return Ok(()) };
        let at = |path: &PathBuf| path.display().to_string();
        if let (Some(key), [id, ..]) = (&self.key, &self.allowed_ids[..]) {
            let why = format!(
                "allowed_ids = [\"{id}\"] needs cert in the place of key = \"{}\": who issues its own certificate is let in \
                 as the node that it names",
                key.display()
            );
            return Err(("allowed_ids".to_owned(), why));
        }
        match (&self.key, &self.cert, &self.cert_key, &self.secret) {
            (None, None, Some(cert_key), _) => {
                Err((at(cert_key), format!("cert_key = \"{}\" needs cert beside it", cert_key.display())))
            }
            (None, None, None, _) => Err((
                at(ca),
                format!(
                    "ca = \"{}\" needs beside it key (this node issues its own certificate; `larder certs` makes both), \
                     or cert, cert_key and secret",
                    ca.display()
                ),
            )),
            (Some(key), Some(_), ..) | (Some(key), None, Some(_), _) => Err((
                at(key),
                format!(
                    "key = \"{}\" issues this node's certificate; leave out key, or cert and cert_key",
                    key.display()
                ),
            )),
            (None, Some(cert), _, None) => Err((
                at(cert),
                format!(
                    "cert = \"{}\" needs secret beside it, a file that is the same on every node: datagrams are \
                     sealed with it (openssl rand -hex 32)",
                    cert.display()
                ),
            )),
            _ => Ok(()),
        }
    }
}

impl Place {
    fn or_port(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.port.unwrap_or(port))
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { ip: address.ip(), port: Some(address.port()) });
        }
        text.parse()
            .map(|ip| Self { ip, port: None })
            .map_err(|_| format!("{text:?} is no address; write it as 10.0.0.7, 10.0.0.7:7441 or [fd00::7]:7441"))
    }
}

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no seed; write it as dns:NAME:{PORT}, 10.0.0.7:{PORT} or [fd00::7]:{PORT}");
        let Some(rest) = text.strip_prefix("dns:") else {
            return text.parse::<Place>().map(|place| Self::Address(place.or_port(PORT))).map_err(|_| wrong());
        };
        let (name, port) = match rest.split_once(':') {
            Some((name, port)) => (name, port.parse().map_err(|_| wrong())?),
            None => (rest, PORT),
        };
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        let labels = name.strip_suffix('.').unwrap_or(name);
        let is_name = name.len() <= NAME_MAX && labels.split('.').all(is_label);
        if is_name && port != 0 { Ok(Self::Name { name: name.to_owned(), port }) } else { Err(wrong()) }
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name { name, port } => write!(f, "dns:{name}:{port}"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(Error::custom)
    }
}

fn some_place<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Place>, D::Error> {
    String::deserialize(deserializer)?.parse().map(Some).map_err(Error::custom)
}

fn zone<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Zone, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|e| Error::custom(format!("{text:?}: {e}")))
}

/// A string, or a list of them.
fn one_or_many<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: FromStr<Err = String> + Deserialize<'de>,
    D: Deserializer<'de>,
{
    struct List<T>(PhantomData<T>);
    impl<'de, T: FromStr<Err = String> + Deserialize<'de>> Visitor<'de> for List<T> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("one in quotes, or a list of them")
        }
        fn visit_str<E: Error>(self, one: &str) -> Result<Self::Value, E> {
            one.parse().map(|one| vec![one]).map_err(E::custom)
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = list.next_element()? {
                all.push(one);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_any(List(PhantomData))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Peers, String> {
        let peers: Peers = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        peers.check().map_err(|(at, why)| {
            assert!(text.contains(&at), "{at:?} does not stand in {text:?}");
            why
        })?;
        Ok(peers)
    }

    #[test]
    fn seeds_as_people_write_them() {
        let name = |name: &str, port| Seed::Name { name: name.to_owned(), port };
        assert_eq!("dns:larder-peers:7441".parse(), Ok(name("larder-peers", 7441)));
        assert_eq!("dns:larder-peers.larder.svc.cluster.local.".parse(), {
            Ok(name("larder-peers.larder.svc.cluster.local.", PORT))
        });
        assert_eq!("10.0.0.7:1".parse(), Ok(Seed::Address(SocketAddr::from(([10, 0, 0, 7], 1)))));
        assert_eq!("10.0.0.7".parse(), Ok(Seed::Address(SocketAddr::from(([10, 0, 0, 7], PORT)))));
        assert_eq!("[fd00::7]:1".parse::<Seed>().unwrap().to_string(), "[fd00::7]:1");
        for wrong in ["", "dns:", "dns::1", "dns:a..b:1", "dns:a:0", "dns:a:x", "dns:a b", "host:7441", "10.0.0.7:"] {
            assert!(wrong.parse::<Seed>().is_err(), "{wrong}");
        }
        let long = "x".repeat(64);
        assert!(format!("dns:{long}").parse::<Seed>().is_err());
        assert_eq!(read("seeds = \"dns:a:1\"").unwrap().seeds, [name("a", 1)]);
        assert_eq!(read("seeds = [\"dns:a:1\", \"10.0.0.7:1\"]").unwrap().seeds.len(), 2);
    }

    proptest! {
        #[test]
        fn a_seed_is_read_as_it_is_written(text in "(dns:)?[a-z0-9.:\\[\\]-]{0,30}") {
            if let Ok(seed) = text.parse::<Seed>() {
                prop_assert_eq!(seed.to_string().parse(), Ok(seed));
            }
        }
    }

    #[test]
    fn addresses_have_default_ports() {
        let peers = read("listen = \"0.0.0.0:1\"\nadvertise = \"10.0.0.7\"\ndns_server = \"10.96.0.10\"").unwrap();
        assert_eq!(peers.advertised(), Some(SocketAddr::from(([10, 0, 0, 7], 1))));
        assert_eq!(peers.dns_server(), Some(SocketAddr::from(([10, 96, 0, 10], 53))));
        let peers = read("advertise = \"[fd00::7]:2\"\ndns_server = \"10.96.0.10:54\"").unwrap();
        assert_eq!(peers.advertised().unwrap().port(), 2);
        assert_eq!(peers.dns_server().unwrap().port(), 54);
    }

    #[test]
    fn what_does_not_fit_together() {
        for (text, part) in [
            ("listen = \"[::]:0\"", "port"),
            ("advertise = \"0.0.0.0\"", "reach"),
            ("ca = \"ca.pem\"\nkey = \"/k\"", "absolute"),
            ("key = \"/k\"", "needs ca"),
            ("secret = \"/s\"", "needs ca"),
            ("ca = \"/ca\"", "larder certs"),
            ("ca = \"/ca\"\ncert_key = \"/k\"", "needs cert beside"),
            ("ca = \"/ca\"\nkey = \"/k\"\ncert = \"/c\"", "leave out"),
            ("ca = \"/ca\"\ncert = \"/c\"\ncert_key = \"/k\"", "needs secret"),
            ("ca = \"/ca\"\nkey = \"/k\"\nallowed_ids = [\"spiffe://corp/larder/\"]", "needs cert"),
            ("allowed_ids = [\"larder\"]", "spiffe://"),
            ("zone = \"a b\"", "zone"),
            ("max_upload = \"1KiB\"", "at least"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(read("ca = \"/ca\"\nkey = \"/k\"").unwrap().is_on());
        let given = "ca = \"/ca\"\ncert = \"/c\"\nsecret = \"/s\"";
        assert!(read(given).unwrap().is_on());
        assert_eq!(read(&format!("{given}\nallowed_ids = \"spiffe://corp/larder/\"")).unwrap().allowed_ids.len(), 1);
        assert!(!Peers::default().is_on());
    }
}
