//! A forward proxy: CONNECT, and plain requests by their whole URL. It can demand a name and a password.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use bytes::BytesMut;
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::Request;
use crate::fault::base64;

const REFUSAL: &str = "HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Basic realm=\"proxy\"\r\n\
                       content-length: 0\r\nconnection: close\r\n\r\n";

/// The proxy. Dropped, it is gone, with its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _running: DropGuard,
}

#[derive(Debug, Default)]
struct State {
    // The header that opens it, and how many more requests pass without.
    demanded: Option<(String, usize)>,
    names: HashMap<String, Ipv4Addr>,
    log: Vec<Request>,
}

impl Proxy {
    /// One that lets everything pass.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (state, stop) = (Arc::<Mutex<State>>::default(), CancellationToken::new());
        let accept = accept(listener, state.clone());
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(accept).await });
        Ok(Self { address, state, _running: stop.drop_guard() })
    }

    /// After so many more requests, lets pass only who shows this name and password.
    pub fn demand(&self, user: &str, password: &str, after: usize) {
        let header = format!("Basic {}", base64(format!("{user}:{password}").as_bytes()));
        lock(&self.state).demanded = Some((header, after));
    }

    /// From now on, finds this name at this address; others are looked up as the test's machine does.
    pub fn look_up(&self, name: &str, address: Ipv4Addr) {
        lock(&self.state).names.insert(name.to_owned(), address);
    }

    /// Lets everything pass again, and forgets the requests so far.
    pub fn demand_nothing(&self) {
        lock(&self.state).demanded = None;
        lock(&self.state).log.clear();
    }

    /// Whether it has refused a request.
    pub fn has_refused(&self) -> bool {
        lock(&self.state).log.iter().any(|request| request.status == 407)
    }

    /// `http://127.0.0.1:…`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The same, with a name and a password in it.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!("http://{user}:{password}@{}", self.address)
    }

    /// Every request so far; those that were refused have the status 407.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.state).log.clone()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await?;
        client.set_nodelay(true)?;
        connections.spawn(pass(client, state.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// One request of a connection, and everything after it where it is a CONNECT.
async fn pass(mut client: TcpStream, state: Arc<Mutex<State>>) -> Result<()> {
    let mut buffer = BytesMut::new();
    let Some(mut request) = Request::read(&mut client, &mut buffer).await? else { return Ok(()) };
    let admitted = lock(&state).admits(&request);
    request.status = if admitted { 200 } else { 407 };
    lock(&state).log.push(request.clone());
    if !admitted {
        client.write_all(REFUSAL.as_bytes()).await?;
        return Ok(client.shutdown().await?);
    }
    let mut server = if request.method == "CONNECT" {
        let (host, port) = request.target.rsplit_once(':').context("a CONNECT names a port")?;
        let server = connect(&state, host, port.parse()?).await?;
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
        server
    } else {
        let url: http::Uri = request.target.parse()?;
        let authority = url.authority().context("a request for this proxy names a host")?;
        let mut server = connect(&state, authority.host(), authority.port_u16().unwrap_or(80)).await?;
        server.write_all(forwarded(&request, &url).as_bytes()).await?;
        server.write_all(&request.body).await?;
        server
    };
    server.write_all(&buffer).await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

async fn connect(state: &Mutex<State>, host: &str, port: u16) -> Result<TcpStream> {
    let known = lock(state).names.get(host).copied();
    Ok(match known {
        Some(address) => TcpStream::connect((address, port)).await?,
        None => TcpStream::connect((host.trim_matches(['[', ']']), port)).await?,
    })
}

/// The request as a server gets it. The connection serves no other: its client would expect the next to pass here.
fn forwarded(request: &Request, url: &http::Uri) -> String {
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let mut head = format!("{} {path} HTTP/1.1\r\nconnection: close\r\n", request.method);
    for (name, value) in &request.headers {
        if !matches!(name.as_str(), "connection" | "proxy-connection" | "proxy-authorization") {
            head += &format!("{name}: {value}\r\n");
        }
    }
    head + "\r\n"
}

impl State {
    fn admits(&mut self, request: &Request) -> bool {
        let Some((header, left)) = &mut self.demanded else { return true };
        if request.header("proxy-authorization") == Some(header.as_str()) {
            return true;
        }
        let admits = *left > 0;
        *left = left.saturating_sub(1);
        admits
    }
}
