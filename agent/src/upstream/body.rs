use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::Uri;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use tokio::time::{Instant, timeout_at};

use super::error::{ErrorKind, UpstreamError};
use super::exchange::Exchange;
use super::places::Place;

/// The bytes of an answer. Dropping it gives up the rest.
#[derive(Debug)]
pub struct Body {
    incoming: Received,
    exchange: Arc<Exchange>,
    uri: Uri,
    /// The offset in the blob of the next byte.
    at: u64,
    extent: Extent,
    ended: Option<Result<(), UpstreamError>>,
}

/// What comes over the wire, and the place among an upstream's `max_connections` that it takes until it is dropped.
#[derive(Debug)]
pub(super) struct Received {
    incoming: Incoming,
    _place: Option<Place>,
}

/// What the head said of the body's end, as offsets in the blob.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Extent {
    /// Where this body ends.
    pub(super) announced: Option<u64>,
    /// Where the blob ends: a partial answer may stop before.
    pub(super) whole: Option<u64>,
}

impl Received {
    pub(super) const fn new(incoming: Incoming, place: Option<Place>) -> Self {
        Self { incoming, _place: place }
    }

    pub(super) async fn frame(&mut self) -> Option<Result<Frame<Bytes>, hyper::Error>> {
        self.incoming.frame().await
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Body {
    pub(super) const fn new(incoming: Received, exchange: Arc<Exchange>, uri: Uri, at: u64, extent: Extent) -> Self {
        Self { incoming, exchange, uri, at, extent, ended: None }
    }

    /// The offset in the blob of the next byte.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.at
    }

    /// The next bytes, about 100 KiB at line rate and at most 512 KiB, never none; `None` after the last. Cancelling loses no bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Stalled`] when no byte comes for `stall_timeout`; [`ErrorKind::Cut`] when the body ends before the
    /// blob does; [`ErrorKind::Protocol`] when more comes than was announced. The same again when asked again.
    pub async fn frame(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        if let Some(ended) = &self.ended {
            return ended.clone().map(|()| None);
        }
        let next = self.next().await;
        match next {
            Ok(Some(bytes)) => {
                self.at += bytes.len() as u64;
                self.exchange.record.received(bytes.len());
                Ok(Some(bytes))
            }
            Ok(None) => {
                self.exchange.record.delivered();
                self.ended = Some(Ok(()));
                Ok(None)
            }
            Err(kind) => {
                let error = self.exchange.error(&self.uri, kind);
                self.exchange.record.failed(&error);
                self.ended = Some(Err(error.clone()));
                Err(error)
            }
        }
    }

    /// All that is left, for bodies known to be small: manifests, lists.
    ///
    /// # Errors
    /// Those of [`Body::frame`], and [`ErrorKind::Protocol`] for more than `limit` bytes.
    pub async fn whole(mut self, limit: usize) -> Result<Bytes, UpstreamError> {
        let mut whole = BytesMut::new();
        while let Some(bytes) = self.frame().await? {
            if whole.len() + bytes.len() > limit {
                return Err(self.exchange.error(&self.uri, ErrorKind::Protocol(format!("more than {limit} bytes"))));
            }
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.freeze())
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ErrorKind> {
        let stall = self.exchange.stall_timeout;
        let deadline = Instant::now() + stall;
        loop {
            let frame = timeout_at(deadline, self.incoming.frame()).await.map_err(|_| ErrorKind::Stalled(stall))?;
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    // Trailers and empty frames are no bytes: they don't push the deadline.
                    Ok(bytes) if !bytes.is_empty() => return self.fits(bytes).map(Some),
                    _ => {}
                },
                Some(Err(error)) => {
                    tracing::debug!(upstream = %self.exchange.name, at = self.at, %error, "a body broke off");
                    return Err(ErrorKind::Cut { at: self.at });
                }
                None if self.ends_early() => return Err(ErrorKind::Cut { at: self.at }),
                None => return Ok(None),
            }
        }
    }

    fn fits(&self, bytes: Bytes) -> Result<Bytes, ErrorKind> {
        match self.extent.announced {
            Some(end) if self.at + bytes.len() as u64 > end => {
                Err(ErrorKind::Protocol(format!("more bytes than the {end} that were announced")))
            }
            _ => Ok(bytes),
        }
    }

    fn ends_early(&self) -> bool {
        self.extent.announced.max(self.extent.whole).is_some_and(|end| self.at < end)
    }
}
