//! What a peer sends in answer to a request for content, message by message.

use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use larder_proto::peers::ReadRequest;
use tokio::time::{Instant, timeout};
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::ServiceExt as _;

use super::PeerError;
use super::calls::NODE_HEADER;
use super::frames::{Frames, Malformed, Part, framed};
use super::pulse::Pulse;
use crate::image::NodeId;

/// A peer sends something every 200 ms. How long it may be silent, by how long answers take at present, is for the machine
/// to say ([`Follow`](crate::cluster::follow::Follow)), which leaves it sooner; no stream waits longer. Also to connect, and
/// to the head of an answer.
const SILENCE: Duration = Duration::from_secs(5);

/// Messages of one peer.
pub(super) struct Incoming {
    node: NodeId,
    body: Body,
    frames: Frames,
    pulse: Pulse,
    /// What the machines count time from.
    started: Instant,
}

impl Incoming {
    /// Asks. That `node` answers doesn't say yet that it gives anything.
    pub(super) async fn open(
        node: NodeId,
        own: NodeId,
        channel: Channel,
        ask: &ReadRequest,
        (pulse, started): (Pulse, Instant),
    ) -> Result<Self, PeerError> {
        let unreachable = |why: String| PeerError::Unreachable { node, why };
        // Scheme and authority are for HTTP's sake: where the connection leads is settled already.
        let request = Request::post("http://peer/larder.peers.v1.Content/Read")
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header(NODE_HEADER, own.to_string())
            .body(Body::new(Full::new(framed(ask))))
            .map_err(|e| unreachable(e.to_string()))?;
        let response = timeout(SILENCE, channel.oneshot(request)).await.map_err(|_| PeerError::Silent { node })?;
        let response = response.map_err(|e| unreachable(chain_of(&e)))?;
        if let Some(status) = Status::from_header_map(response.headers()) {
            return Err(unreachable(said(&status)));
        }
        if response.status() != StatusCode::OK {
            return Err(unreachable(format!("HTTP status {}", response.status())));
        }
        pulse.beats(started.elapsed());
        Ok(Self { node, body: response.into_body(), frames: Frames::default(), pulse, started })
    }

    /// The next message; `None` when the peer ended in order. Cancelling it loses nothing.
    pub(super) async fn part(&mut self) -> Result<Option<Part>, PeerError> {
        let node = self.node;
        loop {
            match self.frames.message() {
                Ok(Some(part)) => return Ok(Some(part)),
                Ok(None) => {}
                Err(Malformed::Damaged) => return Err(PeerError::Damaged { node }),
                Err(Malformed::Senseless(what)) => return Err(PeerError::Senseless { node, what }),
            }
            let frame = timeout(SILENCE, self.body.frame()).await.map_err(|_| PeerError::Silent { node })?;
            self.pulse.beats(self.started.elapsed());
            let Some(frame) = frame else {
                let is_orderly = self.frames.is_empty();
                return if is_orderly { Ok(None) } else { Err(self.broke("in the middle of a message".to_owned())) };
            };
            match frame.map_err(|status| self.broke(said(&status)))?.into_data() {
                Ok(bytes) => self.frames.push(bytes),
                Err(trailers) => self.judge(&trailers.into_trailers().unwrap_or_default())?,
            }
        }
    }

    fn judge(&self, trailers: &http::HeaderMap) -> Result<(), PeerError> {
        match Status::from_header_map(trailers) {
            Some(status) if status.code() != Code::Ok => Err(self.broke(said(&status))),
            _ => Ok(()),
        }
    }

    fn broke(&self, why: String) -> PeerError {
        PeerError::Unreachable { node: self.node, why }
    }
}

fn said(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// An error with its causes: tonic's own says "transport error" and no more.
pub(super) fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
