//! Connections: requests in, planned replies out, byte by byte where it matters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use bytes::BytesMut;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::plan::{Ending, Framing, Plan, Stop};
use super::request::Request;
use super::script::{Cut, Face};
use super::{Shared, auth, http2};

/// Bytes, of which the kernel makes twice as many.
const SEND_BUFFER: usize = 64 << 10;

/// Serves until it is dropped, and every connection with it.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        if shared.namespace.is_some() {
            // What the kernel holds counts as sent: on a slow link that should be little.
            setsockopt(&stream, SndBuf, &SEND_BUFFER)?;
        }
        let (open, face) = {
            let mut state = shared.state();
            state.connections += 1;
            (state.open.clone(), state.face)
        };
        let connection = connection(stream, shared.clone(), face);
        connections.spawn(async move { open.run_until_cancelled_owned(connection).await });
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>, face: Face) -> Result<()> {
    let Some(tls) = &shared.tls else { return converse(stream, |stream| stream, &shared).await };
    let stream = tls.acceptor(face).accept(stream).await?;
    match tls.is_http2 {
        true => http2::converse(stream, shared.clone()).await,
        false => converse(stream, |stream| stream.get_ref().0, &shared).await,
    }
}

async fn converse<S>(mut stream: S, tcp: impl Fn(&S) -> &TcpStream, shared: &Shared) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffer = BytesMut::new();
    loop {
        let mut request = match Request::read(&mut stream, &mut buffer).await {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(_) => {
                // A TLS hello among them: clients that try TLS first take this for "speak HTTP".
                return Ok(stream.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await?);
            }
        };
        request.from = tcp(&stream).peer_addr().ok().map(|address| address.ip());
        let head = request.method == "HEAD";
        let is_last = request.header("connection") == Some("close");
        let (mut plan, progress) = plan(shared, request);
        if is_last {
            plan.set("connection", "close");
        }
        match reply(&mut stream, &plan, head, &progress).await? {
            None if is_last => return Ok(stream.shutdown().await?),
            None => {}
            // What HTTP/2 has words for, HTTP/1.1 can only show.
            Some(Stop::Cut(Cut::Close) | Stop::GoAway) => return Ok(stream.shutdown().await?),
            Some(Stop::Cut(Cut::Reset) | Stop::StreamReset) => return Ok(tcp(&stream).set_zero_linger()?),
            Some(Stop::Stall) => std::future::pending().await,
            Some(Stop::Turn(face)) => {
                stream.shutdown().await?;
                shared.turn(face);
                return Ok(());
            }
        }
    }
}

/// Logs the request and decides on its reply.
pub(super) fn plan(shared: &Shared, mut request: Request) -> (Plan, Progress<'_>) {
    let mut state = shared.state();
    let is_unknown = state.headless && request.method == "HEAD";
    let fault = if is_unknown { None } else { state.script.fault(&request) };
    let plan = match auth::gate(shared, &mut state, &request) {
        Some(plan) => plan,
        None if is_unknown => Plan::error(405, "UNSUPPORTED"),
        None => state.content.answer(&request),
    };
    let mut plan = match fault {
        Some(fault) => {
            state.met += 1;
            plan.with(&fault, &request)
        }
        None => plan,
    };
    plan.rate = plan.rate.or(state.rate);
    let id = state.arrived;
    state.arrived += 1;
    request.id = id;
    request.at = jiff::Timestamp::now();
    state.log.push(request);
    (plan, Progress { shared, id, sends: AtomicBool::new(false) })
}

/// Sends a reply; says how the connection ends, unless it goes on.
async fn reply<S>(stream: &mut S, plan: &Plan, head: bool, progress: &Progress<'_>) -> Result<Option<Stop>>
where
    S: AsyncWrite + Unpin,
{
    match plan.wait {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
    if let Ending::NoReply(cut) = plan.ending {
        return Ok(Some(Stop::Cut(cut)));
    }
    stream.write_all(text(plan).as_bytes()).await?;
    progress.answered(plan.status);
    let (limit, stop) = plan.limit();
    if !head {
        send_body(stream, plan, limit, progress).await?;
    }
    match stop {
        // A body that was to be cut behind its end is whole.
        Some(stop) if !head && (limit < plan.body.len() as u64 || !keeps(plan)) => Ok(Some(stop)),
        _ => {
            progress.finished();
            Ok(None)
        }
    }
}

// Whether the client can tell where the body ended, so that the connection can go on.
fn keeps(plan: &Plan) -> bool {
    match plan.framing {
        Framing::Length(length) => length == plan.body.len() as u64,
        Framing::Chunked => true,
        Framing::Close => false,
    }
}

async fn send_body<S>(stream: &mut S, plan: &Plan, limit: u64, progress: &Progress<'_>) -> Result<()>
where
    S: AsyncWrite + Unpin,
{
    let mut pace = Pace::new(plan.rate);
    progress.sends_a_body();
    for piece in plan.body[..limit as usize].chunks(pace.piece()) {
        pace.wait_for(piece.len()).await;
        if plan.framing == Framing::Chunked {
            stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
        }
        stream.write_all(piece).await?;
        if plan.framing == Framing::Chunked {
            stream.write_all(b"\r\n").await?;
        }
        stream.flush().await?;
        progress.sent(piece.len());
    }
    if plan.framing == Framing::Chunked && limit == plan.body.len() as u64 {
        stream.write_all(b"0\r\n\r\n").await?;
    }
    Ok(stream.flush().await?)
}

fn text(plan: &Plan) -> String {
    let reason = http::StatusCode::from_u16(plan.status).ok().and_then(|status| status.canonical_reason());
    let mut text = format!("HTTP/1.1 {} {}\r\n", plan.status, reason.unwrap_or("Unknown"));
    for (name, value) in &plan.headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += &match plan.framing {
        Framing::Length(length) => format!("content-length: {length}\r\n\r\n"),
        Framing::Chunked => "transfer-encoding: chunked\r\n\r\n".to_owned(),
        Framing::Close => "connection: close\r\n\r\n".to_owned(),
    };
    text
}

/// When the next piece of a body may go.
pub(super) struct Pace {
    rate: Option<u64>,
    due: Instant,
}

impl Pace {
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self { rate, due: Instant::now() }
    }

    /// How large a piece is: a trickle goes in small ones, 20 in a second.
    pub(super) fn piece(&self) -> usize {
        self.rate.map_or(64 << 10, |rate| (rate / 20).clamp(1, 64 << 10)) as usize
    }

    pub(super) async fn wait_for(&mut self, bytes: usize) {
        if let Some(rate) = self.rate {
            self.due += Duration::from_secs_f64(bytes as f64 / rate as f64);
            tokio::time::sleep_until(self.due).await;
        }
    }
}

/// Where the log counts what was sent for a request.
pub(super) struct Progress<'a> {
    shared: &'a Shared,
    id: u64,
    sends: AtomicBool,
}

impl Progress<'_> {
    pub(super) fn answered(&self, status: u16) {
        self.update(|request| request.status = status);
    }

    pub(super) fn sends_a_body(&self) {
        self.sends.store(true, Ordering::Relaxed);
        let mut state = self.shared.state();
        state.sending += 1;
        state.most_at_once = state.most_at_once.max(state.sending);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.update(|request| request.sent += bytes as u64);
    }

    pub(super) fn finished(&self) {
        self.update(|request| request.finished = true);
    }

    fn update(&self, change: impl FnOnce(&mut Request)) {
        let mut state = self.shared.state();
        if let Some(request) = state.log.iter_mut().rfind(|request| request.id == self.id) {
            change(request);
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if self.sends.load(Ordering::Relaxed) {
            self.shared.state().sending -= 1;
        }
    }
}
