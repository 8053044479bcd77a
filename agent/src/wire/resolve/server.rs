use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use simple_dns::rdata::{OPT, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, TYPE};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// A datagram may be lost: the question is put again after this time, within the deadline of the whole.
const AGAIN: Duration = Duration::from_millis(500);
/// What fits into a packet of any network. What doesn't is asked for by TCP.
const UDP_MAX: u16 = 1232;

/// Why a server gave no addresses.
pub(super) enum Refusal {
    /// It can't be asked.
    Io(io::Error),
    /// It says no, in these words.
    Answer(String),
}

/// The addresses of one family. Empty for a name that has others alone.
pub(super) async fn ask(server: SocketAddr, name: &str, kind: TYPE) -> Result<Vec<IpAddr>, Refusal> {
    let id = rand::random();
    let question = question(id, name, kind)?;
    if let Some(found) = by_datagram(server, &question, id).await? {
        return Ok(found);
    }
    by_stream(server, &question, id).await
}

/// `None` when the answer doesn't fit into a datagram.
async fn by_datagram(server: SocketAddr, question: &[u8], id: u16) -> Result<Option<Vec<IpAddr>>, Refusal> {
    let local: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((local, 0)).await?;
    // What others send to this port is not even seen.
    socket.connect(server).await?;
    let mut buffer = [0; 4096];
    loop {
        socket.send(question).await?;
        let answered = timeout(AGAIN, async {
            loop {
                let length = socket.recv(&mut buffer).await?;
                // Of an earlier question, or nonsense: the answer may still come.
                if let Some(answer) = read(&buffer[..length], question, id) {
                    return answer;
                }
            }
        });
        if let Ok(answer) = answered.await {
            return answer;
        }
    }
}

async fn by_stream(server: SocketAddr, question: &[u8], id: u16) -> Result<Vec<IpAddr>, Refusal> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(|_| Refusal::Answer("a name that is too long".to_owned()))?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    match read(&answer, question, id) {
        Some(Ok(Some(found))) => Ok(found),
        Some(Err(refusal)) => Err(refusal),
        Some(Ok(None)) | None => Err(Refusal::Answer("an answer that is none".to_owned())),
    }
}

fn question(id: u16, name: &str, kind: TYPE) -> Result<Vec<u8>, Refusal> {
    let wrong = |e: simple_dns::SimpleDnsError| Refusal::Answer(format!("not a name: {e}"));
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(Question::new(Name::new(name).map_err(wrong)?, kind.into(), CLASS::IN.into(), false));
    *packet.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: UDP_MAX, version: 0 });
    packet.build_bytes_vec().map_err(wrong)
}

/// What an answer says: `Ok(None)` that it doesn't fit. `None` when it is no answer to this question.
fn read(answer: &[u8], question: &[u8], id: u16) -> Option<Result<Option<Vec<IpAddr>>, Refusal>> {
    let (packet, asked) = (Packet::parse(answer).ok()?, Packet::parse(question).ok()?);
    let is_ours = packet.id() == id
        && packet.has_flags(PacketFlag::RESPONSE)
        // An error may come without the question.
        && packet.questions.iter().all(|question| {
            asked.questions.iter().any(|asked| question.qname == asked.qname && question.qtype == asked.qtype)
        });
    if !is_ours {
        return None;
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Some(Ok(None));
    }
    if packet.rcode() != RCODE::NoError {
        return Some(Err(Refusal::Answer(format!("{:?}", packet.rcode()))));
    }
    // Behind aliases: the answer has the whole chain, and what it ends in.
    let found = packet.answers.iter().filter_map(|record| match &record.rdata {
        RData::A(a) => Some(IpAddr::V4(Ipv4Addr::from(a.address))),
        RData::AAAA(aaaa) => Some(IpAddr::V6(Ipv6Addr::from(aaaa.address))),
        _ => None,
    });
    Some(Ok(Some(found.collect())))
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
