//! The same replies over HTTP/2, with its own ways to break off.

use std::future::poll_fn;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::Response;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Shared;
use super::plan::{Ending, Framing, Plan, Stop};
use super::request::Request;
use super::script::Cut;
use super::serve::{Pace, Progress, plan};

/// Serves one connection until either side ends it.
pub(super) async fn converse<S>(stream: S, shared: Arc<Shared>) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = h2::server::handshake(stream).await?;
    let (stops, mut stopped) = mpsc::channel(1);
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(accepted) = accepted else { return Ok(()) };
                let (request, respond) = accepted?;
                streams.spawn(answer(request, respond, shared.clone(), stops.clone()));
            }
            Some(stop) = stopped.recv() => {
                match stop {
                    Stop::GoAway => {
                        connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                        poll_fn(|context| connection.poll_closed(context)).await?;
                    }
                    Stop::Turn(face) => shared.turn(face),
                    Stop::Cut(_) | Stop::Stall | Stop::StreamReset => {}
                }
                return Ok(());
            }
            Some(_) = streams.join_next() => {}
        }
    }
}

async fn answer(
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    shared: Arc<Shared>,
    stops: mpsc::Sender<Stop>,
) -> Result<()> {
    let request = read(request).await?;
    let head = request.method == "HEAD";
    let (plan, progress) = plan(&shared, request);
    match plan.wait {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
    let (limit, stop) = plan.limit();
    // Where there is no body to stop in, it stops before the head.
    let at_once = match (&plan.ending, stop) {
        (Ending::NoReply(Cut::Reset), _) => Some(Stop::StreamReset),
        (Ending::NoReply(Cut::Close), _) => Some(Stop::Cut(Cut::Close)),
        (_, Some(stop @ (Stop::GoAway | Stop::StreamReset))) if head || limit == 0 => Some(stop),
        _ => None,
    };
    match at_once {
        Some(Stop::StreamReset) => {
            respond.send_reset(Reason::INTERNAL_ERROR);
            return Ok(());
        }
        Some(stop) => return Ok(stops.send(stop).await?),
        None => {}
    }
    let mut body = respond.send_response(head_of(&plan)?, head)?;
    progress.answered(plan.status);
    if !head {
        send(&mut body, &plan, limit, &progress).await?;
    }
    match stop {
        Some(Stop::Stall) if !head => std::future::pending().await,
        Some(Stop::StreamReset) if !head => body.send_reset(Reason::INTERNAL_ERROR),
        Some(stop) if !head => stops.send(stop).await?,
        _ => {
            if !head {
                body.send_data(Bytes::new(), true)?;
            }
            progress.finished();
        }
    }
    Ok(())
}

async fn read(request: http::Request<RecvStream>) -> Result<Request> {
    let (head, mut incoming) = request.into_parts();
    let mut body = Vec::new();
    while let Some(data) = incoming.data().await {
        let data = data?;
        incoming.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    Ok(Request {
        method: head.method.to_string(),
        target: head.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        headers: head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        body: body.into(),
        ..Request::default()
    })
}

fn head_of(plan: &Plan) -> Result<Response<()>> {
    let mut response = Response::builder().status(plan.status);
    for (name, value) in &plan.headers {
        response = response.header(name, value);
    }
    // The end of the stream is the end of the body: other framings need no header.
    if let Framing::Length(length) = plan.framing {
        response = response.header("content-length", length);
    }
    Ok(response.body(())?)
}

async fn send(body: &mut SendStream<Bytes>, plan: &Plan, limit: u64, progress: &Progress<'_>) -> Result<()> {
    let mut pace = Pace::new(plan.rate);
    progress.sends_a_body();
    let mut rest = plan.body.slice(..limit as usize);
    while !rest.is_empty() {
        body.reserve_capacity(rest.len().min(pace.piece()));
        let capacity = poll_fn(|context| body.poll_capacity(context)).await.context("the client has left")??;
        let piece = rest.split_to(capacity.min(rest.len()).min(pace.piece()));
        pace.wait_for(piece.len()).await;
        let length = piece.len();
        body.send_data(piece, false)?;
        progress.sent(length);
    }
    Ok(())
}
