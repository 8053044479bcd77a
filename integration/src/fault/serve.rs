//! Connections: requests in, planned replies out, byte by byte where it matters.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::plan::{Ending, Framing, Plan};
use super::request::Request;
use super::script::Cut;
use super::{Shared, auth};

/// Serves until it is dropped, and every connection with it.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>, tls: Option<TlsAcceptor>) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        connections.spawn(connection(stream, shared.clone(), tls.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>, tls: Option<TlsAcceptor>) -> Result<()> {
    let Some(tls) = tls else { return converse(stream, |stream| stream, &shared).await };
    converse(tls.accept(stream).await?, |stream| stream.get_ref().0, &shared).await
}

async fn converse<S>(mut stream: S, tcp: impl Fn(&S) -> &TcpStream, shared: &Shared) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffer = BytesMut::new();
    loop {
        let request = match Request::read(&mut stream, &mut buffer).await {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(_) => {
                // A TLS hello among them: clients that try TLS first take this for "speak HTTP".
                return Ok(stream.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await?);
            }
        };
        let head = request.method == "HEAD";
        let (id, plan) = plan(shared, request);
        match reply(&mut stream, &plan, head, Progress { shared, id }).await? {
            None => {}
            Some(Cut::Close) => return Ok(stream.shutdown().await?),
            Some(Cut::Reset) => return Ok(tcp(&stream).set_zero_linger()?),
        }
    }
}

/// Logs the request and decides on its reply.
fn plan(shared: &Shared, mut request: Request) -> (u64, Plan) {
    let mut state = shared.state();
    let fault = state.script.fault(&request);
    let plan = match auth::gate(shared, &mut state, &request) {
        Some(plan) => plan,
        None => state.content.answer(&request),
    };
    let plan = match fault {
        Some(fault) => plan.with(&fault),
        None => plan,
    };
    let id = state.arrived;
    state.arrived += 1;
    request.id = id;
    state.log.push(request);
    (id, plan)
}

/// Sends a reply; says how the connection ends, unless it goes on.
async fn reply<S>(stream: &mut S, plan: &Plan, head: bool, progress: Progress<'_>) -> Result<Option<Cut>>
where
    S: AsyncWrite + Unpin,
{
    match plan.wait {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
    if let Ending::NoReply(cut) = plan.ending {
        return Ok(Some(cut));
    }
    stream.write_all(text(plan).as_bytes()).await?;
    progress.answered(plan.status);
    let (limit, cut) = match plan.ending {
        Ending::After(at, cut) => (at.min(plan.body.len() as u64), Some(cut)),
        _ => (plan.body.len() as u64, None),
    };
    if !head {
        send_body(stream, plan, limit, &progress).await?;
    }
    match cut {
        // A body that was to be cut behind its end is whole.
        Some(None) if !head && limit < plan.body.len() as u64 => std::future::pending().await,
        Some(Some(cut)) if !head && (limit < plan.body.len() as u64 || !keeps(plan)) => Ok(Some(cut)),
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
    // A trickle goes in small pieces, 20 in a second.
    let piece = plan.rate.map_or(64 << 10, |rate| (rate / 20).clamp(1, 64 << 10)) as usize;
    let mut due = Instant::now();
    for piece in plan.body[..limit as usize].chunks(piece) {
        if let Some(rate) = plan.rate {
            due += Duration::from_secs_f64(piece.len() as f64 / rate as f64);
            tokio::time::sleep_until(due).await;
        }
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

/// Where the log counts what was sent for a request.
struct Progress<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Progress<'_> {
    fn answered(&self, status: u16) {
        self.update(|request| request.status = status);
    }

    fn sent(&self, bytes: usize) {
        self.update(|request| request.sent += bytes as u64);
    }

    fn finished(&self) {
        self.update(|request| request.finished = true);
    }

    fn update(&self, change: impl FnOnce(&mut Request)) {
        let mut state = self.shared.state();
        if let Some(request) = state.log.iter_mut().rfind(|request| request.id == self.id) {
            change(request);
        }
    }
}
