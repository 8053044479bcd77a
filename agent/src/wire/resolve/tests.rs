use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use simple_dns::rdata::{CNAME, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use super::*;

/// A small DNS server: what it says depends on the name that is asked for.
struct Dns {
    address: SocketAddr,
    by_stream: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Dns {
    async fn start() -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).await.unwrap();
        let by_stream = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut lost = false;
            let mut buffer = [0; 2048];
            loop {
                let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
                let question = &buffer[..length];
                if asks_for(question, "lossy") && !std::mem::replace(&mut lost, true) {
                    continue;
                }
                // Noise and an answer to somebody else's question come first.
                udp.send_to(b"noise", from).await.unwrap();
                let mut other = answer(question, false);
                other[0] ^= 1;
                udp.send_to(&other, from).await.unwrap();
                if !asks_for(question, "silent") {
                    udp.send_to(&answer(question, true), from).await.unwrap();
                }
            }
        });
        let count = Arc::clone(&by_stream);
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let mut question = vec![0; usize::from(stream.read_u16().await.unwrap())];
                stream.read_exact(&mut question).await.unwrap();
                let answer = answer(&question, false);
                stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        });
        Self { address, by_stream, _tasks: tasks }
    }

    async fn resolve(&self, name: &str) -> Result<Vec<SocketAddr>, ResolveError> {
        resolve(name, 7441, Some(self.address)).await
    }
}

fn asks_for(question: &[u8], name: &str) -> bool {
    Packet::parse(question).unwrap().questions[0].qname.to_string().starts_with(name)
}

fn answer(question: &[u8], is_datagram: bool) -> Vec<u8> {
    let question = Packet::parse(question).unwrap();
    let asked = &question.questions[0];
    let mut packet = Packet::new_reply(question.id());
    packet.questions.push(asked.clone());
    let name = asked.qname.to_string();
    let record = |name: &'static str, rdata| ResourceRecord::new(Name::new_unchecked(name), CLASS::IN, 5, rdata);
    let mut v4 = |n: u32| packet.answers.push(record("peers.cluster.local", RData::A(Ipv4Addr::from(n).into())));
    match (name.trim_end_matches('.'), &asked.qtype) {
        ("peers.cluster.local" | "lossy", QTYPE::TYPE(TYPE::A)) => (0x0a00_0001..0x0a00_0004).for_each(v4),
        ("peers.cluster.local", QTYPE::TYPE(TYPE::AAAA)) => {
            packet.answers.push(record("peers.cluster.local", RData::AAAA(Ipv6Addr::LOCALHOST.into())));
        }
        ("many", QTYPE::TYPE(TYPE::A)) if is_datagram => packet.set_flags(PacketFlag::TRUNCATION),
        ("many", QTYPE::TYPE(TYPE::A)) => (0x0a01_0000..0x0a01_0000 + 1000).for_each(v4),
        ("alias", QTYPE::TYPE(TYPE::A)) => {
            v4(0x0a00_0001);
            let to = CNAME(Name::new_unchecked("peers.cluster.local"));
            packet.answers.insert(0, record("alias", RData::CNAME(to)));
        }
        ("half", QTYPE::TYPE(TYPE::A)) => v4(0x0a00_0001),
        ("half", _) => *packet.rcode_mut() = RCODE::ServerFailure,
        ("nobody", _) => *packet.rcode_mut() = RCODE::NameError,
        _ => {}
    }
    packet.build_bytes_vec_compressed().unwrap()
}

#[tokio::test]
async fn every_address_of_both_families() {
    let dns = Dns::start().await;
    let found = dns.resolve("peers.cluster.local").await.unwrap();
    assert_eq!(found.len(), 4);
    assert!(found.contains(&SocketAddr::from(([10, 0, 0, 3], 7441))));
    assert!(found.contains(&SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 7441)));
    assert_eq!(dns.resolve("peers.cluster.local.").await.unwrap().len(), 4, "a name with its last dot");
    assert_eq!(dns.by_stream.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn what_does_not_fit_comes_by_stream() {
    let dns = Dns::start().await;
    assert_eq!(dns.resolve("many").await.unwrap().len(), 1000);
    assert_eq!(dns.by_stream.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn aliases_loss_and_half_an_answer() {
    let dns = Dns::start().await;
    assert_eq!(dns.resolve("alias").await.unwrap(), [SocketAddr::from(([10, 0, 0, 1], 7441))]);
    assert_eq!(dns.resolve("half").await.unwrap(), [SocketAddr::from(([10, 0, 0, 1], 7441))]);
    assert_eq!(dns.resolve("lossy").await.unwrap().len(), 3);
}

#[tokio::test]
async fn no_and_nothing() {
    let dns = Dns::start().await;
    let error = dns.resolve("nobody").await.unwrap_err();
    assert!(matches!(error, ResolveError::Refused { .. }) && error.to_string().contains("NameError"), "{error}");
    assert!(matches!(dns.resolve("empty").await, Err(ResolveError::Refused { .. })));
    let began = std::time::Instant::now();
    assert!(matches!(dns.resolve("silent").await, Err(ResolveError::Silent { .. })));
    assert!(began.elapsed() >= DEADLINE && began.elapsed() < 2 * DEADLINE);
}

#[tokio::test]
async fn the_nodes_own_resolver() {
    assert!(resolve("localhost", 1, None).await.unwrap().iter().all(|a| a.ip().is_loopback() && a.port() == 1));
    assert_eq!(resolve("127.0.0.1", 2, None).await.unwrap(), [SocketAddr::from(([127, 0, 0, 1], 2))]);
}
