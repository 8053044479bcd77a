//! A reply before it is sent: right at first, then as a fault makes it.

use std::time::Duration;

use bytes::Bytes;

use super::request::Request;
use super::script::{Cut, Face, Fault};
use crate::Blob;
use crate::image::gzip_stored;

/// What will be sent, how fast, and how it ends.
#[derive(Debug)]
pub(super) struct Plan {
    /// Before the head. `None`: for ever.
    pub(super) wait: Option<Duration>,
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Bytes,
    pub(super) framing: Framing,
    /// Bytes per second.
    pub(super) rate: Option<u64>,
    pub(super) ending: Ending,
    // Where the body starts in the blob, and all of the blob.
    offset: u64,
    whole: Option<Bytes>,
}

/// How a client knows where the body ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// By this `Content-Length`, true or not.
    Length(u64),
    Chunked,
    /// By the end of the connection.
    Close,
}

/// What happens after the body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The connection serves the next request.
    Keep,
    /// Nothing of this reply is sent, not even its head.
    NoReply(Cut),
    /// After so many bytes of the body.
    After(u64, Stop),
}

/// How a body stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// With nothing more.
    Stall,
    Cut(Cut),
    GoAway,
    StreamReset,
    /// With the connection, and new ones are met by this.
    Turn(Face),
}

impl Plan {
    pub(super) fn json(status: u16, body: &str) -> Self {
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Self::new(status, headers, Bytes::copy_from_slice(body.as_bytes()))
    }

    pub(super) fn error(status: u16, code: &str) -> Self {
        Self::json(status, &format!(r#"{{"errors":[{{"code":"{code}","message":"by the script of a test"}}]}}"#))
    }

    pub(super) fn content(request: &Request, blob: &Blob, media_type: &str) -> Self {
        let length = blob.bytes.len() as u64;
        let (status, start, end) = match request.range(length) {
            None => (200, 0, length),
            Some(Ok((start, end))) => (206, start, end),
            Some(Err(())) => {
                let mut plan = Self::error(416, "RANGE_INVALID");
                plan.set("content-range", &format!("bytes */{length}"));
                return plan;
            }
        };
        let mut plan = Self::new(status, Vec::new(), blob.bytes.slice(start as usize..end as usize));
        plan.set("content-type", media_type);
        plan.set("docker-content-digest", &blob.digest);
        plan.set("accept-ranges", "bytes");
        if status == 206 {
            plan.set("content-range", &format!("bytes {start}-{}/{length}", end - 1));
        }
        (plan.offset, plan.whole) = (start, Some(blob.bytes.clone()));
        plan
    }

    fn new(status: u16, headers: Vec<(String, String)>, body: Bytes) -> Self {
        let framing = Framing::Length(body.len() as u64);
        let (wait, rate, ending) = (Some(Duration::ZERO), None, Ending::Keep);
        Self { wait, status, headers, body, framing, rate, ending, offset: 0, whole: None }
    }

    /// Sets a header, in the place of one of that name.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.headers.retain(|(have, _)| have != name);
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    /// How much of the body is sent, and how it stops there, if it stops before its end.
    pub(super) fn limit(&self) -> (u64, Option<Stop>) {
        match self.ending {
            Ending::After(at, stop) => (at.min(self.body.len() as u64), Some(stop)),
            _ => (self.body.len() as u64, None),
        }
    }

    /// This reply with the fault.
    pub(super) fn with(mut self, fault: &Fault, request: &Request) -> Self {
        match fault {
            Fault::NoReply(cut) => self.ending = Ending::NoReply(*cut),
            Fault::Silent => self.wait = None,
            Fault::SlowHead(time) => self.wait = Some(*time),
            Fault::CutAt(at, cut) => self.ending = Ending::After(*at, Stop::Cut(*cut)),
            Fault::StallAt(at) => self.ending = Ending::After(*at, Stop::Stall),
            Fault::GoAway(at) => self.ending = Ending::After(*at, Stop::GoAway),
            Fault::StreamReset(at) => self.ending = Ending::After(*at, Stop::StreamReset),
            Fault::Turn(at, face) => self.ending = Ending::After(*at, Stop::Turn(*face)),
            Fault::Trickle(rate) => self.rate = Some(*rate),
            Fault::WrongByte(at) => self.flip(*at),
            Fault::Short(by) => self.resize(self.body.len().saturating_sub(*by as usize)),
            Fault::Long(by) => self.resize(self.body.len() + *by as usize),
            Fault::Length(by) => {
                self.framing = Framing::Length((self.body.len() as u64).saturating_add_signed(*by));
                self.ending = Ending::After(self.body.len() as u64, Stop::Cut(Cut::Close));
            }
            Fault::Status(status, headers) => {
                self = Self::error(*status, "DENIED");
                headers.iter().for_each(|(name, value)| self.set(name, value));
            }
            Fault::Redirect(location) => {
                self = Self::error(307, "MOVED");
                self.set("location", location);
            }
            Fault::RedirectTo(base) => {
                self = Self::error(307, "MOVED");
                self.set("location", &format!("{base}{}", request.path()));
            }
            Fault::Header(name, value) => self.set(name, value),
            Fault::Quota(limit, remaining) => {
                self.set("ratelimit-limit", &format!("{limit};w=21600"));
                self.set("ratelimit-remaining", &format!("{remaining};w=21600"));
            }
            Fault::Gzip => {
                self.body = gzip_stored(&self.body);
                self.framing = Framing::Length(self.body.len() as u64);
                self.set("content-encoding", "gzip");
            }
            Fault::NoRange => {
                if let Some(whole) = self.whole.take() {
                    self.body = whole;
                    (self.status, self.offset) = (200, 0);
                    self.framing = Framing::Length(self.body.len() as u64);
                    self.headers.retain(|(name, _)| name != "content-range" && name != "accept-ranges");
                }
            }
            Fault::Chunked => self.framing = Framing::Chunked,
            Fault::UntilClose => {
                self.framing = Framing::Close;
                self.ending = Ending::After(self.body.len() as u64, Stop::Cut(Cut::Close));
            }
        }
        self
    }

    // A byte of the blob, where it is in this reply.
    fn flip(&mut self, at: u64) {
        let Some(at) = at.checked_sub(self.offset).filter(|&at| at < self.body.len() as u64) else { return };
        let mut bytes = self.body.to_vec();
        bytes[at as usize] ^= 0xff;
        self.body = bytes.into();
    }

    fn resize(&mut self, length: usize) {
        let mut bytes = self.body.to_vec();
        bytes.resize(length, 0x5a);
        self.body = bytes.into();
        self.framing = Framing::Length(self.body.len() as u64);
    }
}
