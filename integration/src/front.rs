//! A TCP front before a server: it counts bytes, holds them to a rate, and can be taken away.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Passes connections on to a server. Dropped, it closes them all.
#[derive(Debug)]
pub struct Front {
    address: SocketAddr,
    counts: Arc<Counts>,
    _running: DropGuard,
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    // From the server to clients.
    bytes: AtomicU64,
}

impl Front {
    /// Listens before `server`. All connections together get `bytes_per_second` of what the server sends, if given.
    pub async fn start(server: SocketAddr, bytes_per_second: Option<u64>) -> Result<Self> {
        let pace = Pace::of_all(bytes_per_second);
        Self::start_paced(server, move || pace.clone()).await
    }

    /// The same, but each connection gets so many by itself.
    pub async fn start_limiting_each(server: SocketAddr, bytes_per_second: u64) -> Result<Self> {
        Self::start_paced(server, move || Pace::of_all(Some(bytes_per_second))).await
    }

    async fn start_paced(
        server: SocketAddr,
        pace: impl Fn() -> Arc<Mutex<Pace>> + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let counts = Arc::new(Counts::default());
        let stop = CancellationToken::new();
        let accept = accept(listener, server, counts.clone(), pace);
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(accept).await });
        Ok(Self { address, counts, _running: stop.drop_guard() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://` and its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// Bytes, heads included, that the server has sent to clients so far.
    pub fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::Relaxed)
    }
}

async fn accept(
    listener: TcpListener,
    server: SocketAddr,
    counts: Arc<Counts>,
    pace: impl Fn() -> Arc<Mutex<Pace>>,
) -> Result<()> {
    // Dropped with this future, and every connection with it.
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await?;
        counts.connections.fetch_add(1, Ordering::Relaxed);
        connections.spawn(pass(client, server, counts.clone(), pace()));
        while connections.try_join_next().is_some() {}
    }
}

async fn pass(
    client: TcpStream,
    server: SocketAddr,
    counts: Arc<Counts>,
    pace: Arc<Mutex<Pace>>,
) -> std::io::Result<()> {
    let server = TcpStream::connect(server).await?;
    // A last piece that isn't full would wait until the one before it is acknowledged, which takes up to 40 ms.
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        tokio::io::copy(&mut from_client, &mut to_server).await?;
        to_server.shutdown().await
    };
    let down = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = from_server.read(&mut buffer).await?;
            if length == 0 {
                return to_client.shutdown().await;
            }
            pace.lock().await.spend(length).await;
            to_client.write_all(&buffer[..length]).await?;
            counts.bytes.fetch_add(length as u64, Ordering::Relaxed);
        }
    };
    tokio::try_join!(up, down).map(|_| ())
}

/// When the next bytes may go.
#[derive(Debug)]
struct Pace {
    rate: Option<u64>,
    next: Instant,
}

impl Pace {
    // What wasn't sent in time is made up for over 10 ms, no more: a pause earns no burst.
    const SLACK: Duration = Duration::from_millis(10);

    fn of_all(rate: Option<u64>) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { rate, next: Instant::now() }))
    }

    async fn spend(&mut self, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let earliest = Instant::now().checked_sub(Self::SLACK).unwrap_or(self.next);
        self.next = self.next.max(earliest) + Duration::from_secs_f64(bytes as f64 / rate as f64);
        tokio::time::sleep_until(self.next).await;
    }
}
