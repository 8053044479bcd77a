//! A registry with one blob, which serves it as a test says and remembers what it sent.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::image::Digest;

/// How one request is answered. Offsets are those of the blob.
#[derive(Debug, Clone, Default)]
pub(super) struct Manner {
    /// Instead of the blob.
    pub(super) status: Option<u16>,
    /// Before anything is sent.
    pub(super) wait: Duration,
    /// Sends the whole, whatever is asked for.
    pub(super) no_ranges: bool,
    pub(super) cut_at: Option<u64>,
    pub(super) stall_at: Option<u64>,
    pub(super) wrong_byte: Option<u64>,
    /// Bytes a second, for each connection.
    pub(super) rate: Option<u64>,
    /// Bytes at a time.
    pub(super) piece: Option<u64>,
    /// Says that the blob, and sends of it, only so much.
    pub(super) length: Option<u64>,
    /// Doesn't say how long the whole is: it ends with the connection.
    pub(super) no_length: bool,
    /// Answers no HEAD.
    pub(super) no_head: bool,
    /// Says that what it sends has this digest.
    pub(super) says: Option<Digest>,
}

pub(super) struct Registry {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

struct Shared {
    blob: Bytes,
    usual: Mutex<Manner>,
    /// For the next requests, one each.
    next: Mutex<VecDeque<Manner>>,
    asked: Mutex<Vec<Range<u64>>>,
    heads: AtomicUsize,
    sent: AtomicU64,
    busy: AtomicUsize,
    busiest: AtomicUsize,
}

impl Registry {
    pub(super) async fn start(blob: &Bytes) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            blob: blob.clone(),
            usual: Mutex::default(),
            next: Mutex::default(),
            asked: Mutex::default(),
            heads: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            busy: AtomicUsize::new(0),
            busiest: AtomicUsize::new(0),
        });
        let mut accepting = JoinSet::new();
        let serving = Arc::clone(&shared);
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                connections.spawn(async move { serve(stream, &shared).await });
            }
        });
        Self { address, shared, _accepting: accepting }
    }

    /// From now on.
    pub(super) fn always(&self, manner: Manner) {
        *self.shared.usual.lock().unwrap() = manner;
    }

    /// For the next request that nothing is said about yet.
    pub(super) fn then(&self, manner: Manner) {
        self.shared.next.lock().unwrap().push_back(manner);
    }

    /// The parts that were asked for; the whole as it is.
    pub(super) fn asked(&self) -> Vec<Range<u64>> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// The part that was asked for in the one request that there was.
    pub(super) fn asked_once(&self) -> Range<u64> {
        let asked = self.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        asked[0].clone()
    }

    /// Questions that were no requests for bytes.
    pub(super) fn heads(&self) -> usize {
        self.shared.heads.load(Ordering::SeqCst)
    }

    /// Bytes that were given to the kernel.
    pub(super) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// The most replies at the same time.
    pub(super) fn busiest(&self) -> usize {
        self.shared.busiest.load(Ordering::SeqCst)
    }
}

async fn serve(mut stream: TcpStream, shared: &Shared) {
    let mut pending = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = pending.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read_buf(&mut pending).await {
                Ok(n) if n > 0 => {}
                _ => return,
            }
        };
        let head = String::from_utf8(pending.drain(..end).collect()).unwrap();
        let busy = shared.busy.fetch_add(1, Ordering::SeqCst) + 1;
        shared.busiest.fetch_max(busy, Ordering::SeqCst);
        let keep = answer(&mut stream, &head, shared).await;
        shared.busy.fetch_sub(1, Ordering::SeqCst);
        if keep.is_none() {
            return;
        }
    }
}

/// `None` when the connection is to be closed.
async fn answer(stream: &mut TcpStream, head: &str, shared: &Shared) -> Option<()> {
    if head.starts_with("HEAD") {
        shared.heads.fetch_add(1, Ordering::SeqCst);
        let usual = shared.usual.lock().unwrap().clone();
        let status = usual.status.unwrap_or(if usual.no_head { 405 } else { 200 });
        let (length, digest) = (shared.blob.len(), Digest::of(&shared.blob));
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let reply = format!(
            "HTTP/1.1 {status} As Told\r\nContent-Length: {length}\r\nContent-Type: {kind}\r\nDocker-Content-Digest: {digest}\r\n\r\n"
        );
        return stream.write_all(reply.as_bytes()).await.ok();
    }
    let manner = shared.next.lock().unwrap().pop_front();
    let manner = manner.unwrap_or_else(|| shared.usual.lock().unwrap().clone());
    let size = manner.length.unwrap_or(shared.blob.len() as u64);
    let range = head.lines().find_map(|line| line.strip_prefix("range: bytes="));
    let (from, to) = range.and_then(|range| range.split_once('-')).map_or((0, size), |(from, last)| {
        (from.parse().unwrap(), last.parse::<u64>().map_or(size, |last| size.min(last + 1)))
    });
    shared.asked.lock().unwrap().push(from..to);
    sleep(manner.wait).await;
    let status = manner.status.or((from >= size).then_some(416));
    if let Some(status) = status {
        let reply = format!("HTTP/1.1 {status} As Told\r\nContent-Length: 0\r\n\r\n");
        return stream.write_all(reply.as_bytes()).await.ok();
    }
    let (from, to) = if manner.no_ranges { (0, size) } else { (from, to) };
    let is_whole = range.is_none() || manner.no_ranges;
    let ends_with_connection = manner.no_length && is_whole;
    let says = manner.says.map(|digest| format!("Docker-Content-Digest: {digest}\r\n")).unwrap_or_default();
    let reply = if ends_with_connection {
        format!("HTTP/1.1 200 OK\r\n{says}Connection: close\r\n\r\n")
    } else if is_whole {
        format!("HTTP/1.1 200 OK\r\n{says}Content-Length: {size}\r\n\r\n")
    } else {
        let (length, last) = (to - from, to - 1);
        format!(
            "HTTP/1.1 206 Part\r\n{says}Content-Length: {length}\r\nContent-Range: bytes {from}-{last}/{size}\r\n\r\n"
        )
    };
    stream.write_all(reply.as_bytes()).await.ok()?;
    let begun = Instant::now();
    let mut at = from;
    if manner.cut_at == Some(at) {
        let _ = stream.shutdown().await;
        return None;
    }
    while at < to {
        let most = manner.rate.map_or(64 << 10, |rate| (rate / 10).clamp(1, 64 << 10));
        let most = manner.piece.unwrap_or(most);
        let end = to.min(at + most).min(manner.cut_at.filter(|&cut| cut > at).unwrap_or(to));
        let mut piece = shared.blob.slice(at as usize..end as usize).to_vec();
        if let Some(wrong) = manner.wrong_byte.filter(|wrong| (at..end).contains(wrong)) {
            piece[(wrong - at) as usize] ^= 0xff;
        }
        if manner.stall_at.is_some_and(|stall| stall <= at) {
            std::future::pending::<()>().await;
        }
        stream.write_all(&piece).await.ok()?;
        shared.sent.fetch_add(end - at, Ordering::SeqCst);
        at = end;
        if manner.cut_at == Some(at) {
            let _ = stream.shutdown().await;
            return None;
        }
        if let Some(rate) = manner.rate {
            sleep_until(begun + Duration::from_secs_f64((at - from) as f64 / rate as f64)).await;
        }
    }
    if ends_with_connection {
        let _ = stream.shutdown().await;
        return None;
    }
    Some(())
}
