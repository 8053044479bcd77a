//! Which requests meet which fault.

use std::time::Duration;

use super::request::Request;
use crate::Blob;

/// What goes wrong with a reply. Offsets count the bytes of that reply's body, unless it says otherwise.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The connection ends before the head; over HTTP/2, a reset is one of the stream alone.
    NoReply(Cut),
    /// Nothing ever comes.
    Silent,
    /// The head comes late.
    SlowHead(Duration),
    /// The connection ends at a byte of the body.
    CutAt(u64, Cut),
    /// Nothing comes from a byte of the body on; the connection stays.
    StallAt(u64),
    /// So many bytes per second.
    Trickle(u64),
    /// HTTP/2 says at a byte of the body that the connection ends, and ends it. At 0: before the head.
    GoAway(u64),
    /// HTTP/2 resets the stream at a byte of the body, and the connection stays. At 0: before the head.
    StreamReset(u64),
    /// The connection ends at a byte of the body, and from then on the registry shows this face.
    Turn(u64, Face),
    /// This byte of the *blob* is wrong, whatever range was asked for.
    WrongByte(u64),
    /// The last so many bytes are missing, and the length agrees with that.
    Short(u64),
    /// So many bytes too many, and the length agrees with that.
    Long(u64),
    /// The length header is off by so many; then the connection is closed.
    Length(i64),
    /// An error of this status, with these headers.
    Status(u16, Vec<(String, String)>),
    /// 307 to there.
    Redirect(String),
    /// 307 to the same path behind this URL: at another registry, at a port where nobody listens, at this one for ever.
    RedirectTo(String),
    /// This header, in the place of the true one of that name (in lower case).
    Header(String, String),
    /// The reply says how many pulls there are in all, and how many are left of them, as Docker Hub does.
    Quota(u32, u32),
    /// The body as gzip, and a Content-Encoding that says so.
    Gzip,
    /// All of the blob and 200, whatever range was asked for.
    NoRange,
    /// No length: chunked.
    Chunked,
    /// No length: the body ends with the connection.
    UntilClose,
}

impl Fault {
    /// An error of this status.
    pub fn status(status: u16) -> Self {
        Self::Status(status, Vec::new())
    }

    /// An error of this status, with one header.
    pub fn status_with(status: u16, name: &str, value: &str) -> Self {
        Self::Status(status, vec![(name.to_owned(), value.to_owned())])
    }
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// FIN.
    Close,
    /// RST; over HTTP/2 no more than a connection closed without a word.
    Reset,
}

/// How new connections are met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Face {
    /// As they should be.
    #[default]
    Right,
    /// Refused.
    Refusing,
    /// With a certificate of an authority that nobody knows.
    UnknownCa,
    /// With a certificate that expired years ago.
    Expired,
}

/// Which requests: of a method, with something in their path, and which of those, in the order of arrival.
#[derive(Debug, Clone)]
pub struct When {
    method: Option<&'static str>,
    path: String,
    skipped: usize,
    times: usize,
}

impl When {
    /// All with `path` somewhere in their path or query.
    pub fn path(path: &str) -> Self {
        Self { method: None, path: path.to_owned(), skipped: 0, times: usize::MAX }
    }

    /// All.
    pub fn any() -> Self {
        Self::path("")
    }

    /// Each GET of this blob or manifest by its digest.
    pub fn get(blob: &Blob) -> Self {
        Self::path(&blob.digest).method("GET")
    }

    /// Only those of this method.
    pub fn method(mut self, method: &'static str) -> Self {
        self.method = Some(method);
        self
    }

    /// Only the first so many of them.
    pub fn first(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// Not the first so many of them.
    pub fn after(mut self, skipped: usize) -> Self {
        self.skipped = skipped;
        self
    }

    fn matches(&self, request: &Request) -> bool {
        self.method.is_none_or(|method| method == request.method) && request.target.contains(&self.path)
    }
}

#[derive(Debug, Default)]
pub(super) struct Script(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    when: When,
    fault: Fault,
    met: usize,
}

impl Script {
    pub(super) fn add(&mut self, when: When, fault: Fault) {
        self.0.push(Rule { when, fault, met: 0 });
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The fault that this request meets. Counts it for every rule that it matches.
    pub(super) fn fault(&mut self, request: &Request) -> Option<Fault> {
        let mut found = None;
        for rule in self.0.iter_mut().filter(|rule| rule.when.matches(request)) {
            let turn = rule.met.checked_sub(rule.when.skipped);
            rule.met += 1;
            if found.is_none() && turn.is_some_and(|turn| turn < rule.when.times) {
                found = Some(rule.fault.clone());
            }
        }
        found
    }
}
