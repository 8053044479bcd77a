//! The ways in which registries fail.

use std::fmt;
use std::time::Duration;

use crate::{Cut, Fault, Transport};

/// Where a token server should be.
pub(super) const NO_TOKENS: &str = "/nobody";
/// Where the upstream says nothing, though it does elsewhere.
pub(super) const SLOW: &str = "/slow";
/// A name that no resolver knows.
pub(super) const NOWHERE: &str = "https://nowhere.invalid";

/// A way in which an upstream fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it; where they don't, there is a line")]
pub enum Ill {
    /// Nobody listens.
    Refuses,
    ClosesBeforeTheHead,
    ResetsBeforeTheHead,
    /// The head comes after 8 s.
    SlowHead,
    /// Accepts connections and says nothing.
    Silent,
    /// 401, and a token server that gives nothing.
    WantsToken,
    WantsPassword,
    Forbidden,
    NotFound,
    RequestTimeout,
    TooManyRequests,
    TooManyRequestsForNow,
    InternalError,
    BadGateway,
    Unavailable,
    /// To a name that isn't known.
    RedirectsToNobody,
    /// To where it says nothing.
    RedirectsToTheSlow,
    RedirectsForEver,
    CutByFin,
    CutByRst,
    Stalls,
    /// 20 KiB in a second; of a manifest, 40 bytes.
    Trickles,
    WrongByte,
    TooShort,
    TooLong,
    WrongLength,
    WrongContentType,
    WrongDigestHeader,
    Gzip,
    Http2GoesAway,
    Http2StreamReset,
    UnknownCa,
    ExpiredCertificate,
    NoSuchName,
    ProxyWantsPassword,
}

/// Where in a pull the upstream begins to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// What does the tag mean?
    Resolve,
    /// The same, where the upstream knows no HEAD: the manifest, by its tag.
    Tagged,
    /// The manifest, by its digest.
    Manifest,
    /// From the first byte of the layer.
    Start,
    /// Somewhere in the layer; what fails as a whole does so when the rest of the layer is asked for.
    Middle,
}

/// What takes the place of the upstream's answers.
#[derive(Debug, Clone)]
pub(super) enum Illness {
    /// Each answer that it touches is like this.
    Answer(Fault),
    /// The body fails at a byte of it.
    Body(Fault),
    /// New connections fail.
    Door,
    /// The proxy before it demands what nobody gave us.
    Proxy,
    /// It can't be reached in any way, ever.
    Nowhere,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Resolve, Self::Tagged, Self::Manifest, Self::Start, Self::Middle];
}

impl Ill {
    /// All of them.
    pub const ALL: [Self; 35] = [
        Self::Refuses,
        Self::ClosesBeforeTheHead,
        Self::ResetsBeforeTheHead,
        Self::SlowHead,
        Self::Silent,
        Self::WantsToken,
        Self::WantsPassword,
        Self::Forbidden,
        Self::NotFound,
        Self::RequestTimeout,
        Self::TooManyRequests,
        Self::TooManyRequestsForNow,
        Self::InternalError,
        Self::BadGateway,
        Self::Unavailable,
        Self::RedirectsToNobody,
        Self::RedirectsToTheSlow,
        Self::RedirectsForEver,
        Self::CutByFin,
        Self::CutByRst,
        Self::Stalls,
        Self::Trickles,
        Self::WrongByte,
        Self::TooShort,
        Self::TooLong,
        Self::WrongLength,
        Self::WrongContentType,
        Self::WrongDigestHeader,
        Self::Gzip,
        Self::Http2GoesAway,
        Self::Http2StreamReset,
        Self::UnknownCa,
        Self::ExpiredCertificate,
        Self::NoSuchName,
        Self::ProxyWantsPassword,
    ];

    /// Whether there is such a failure there: the answer to HEAD has no body, and a name is looked up for all of a
    /// connection.
    pub fn occurs_in(self, place: Place) -> bool {
        match place {
            Place::Resolve => !matches!(
                self,
                Self::CutByFin
                    | Self::CutByRst
                    | Self::Stalls
                    | Self::Trickles
                    | Self::WrongByte
                    | Self::TooShort
                    | Self::TooLong
                    | Self::WrongLength
                    | Self::Gzip
            ),
            // What is met before the HEAD is another place's.
            Place::Tagged => !matches!(
                self,
                Self::Refuses
                    | Self::UnknownCa
                    | Self::ExpiredCertificate
                    | Self::NoSuchName
                    | Self::ProxyWantsPassword
            ),
            Place::Manifest | Place::Start | Place::Middle => true,
        }
    }

    /// Within what time the head of each reply has to come, and all of a 64 MiB blob.
    pub fn bounds(self) -> (Duration, Duration) {
        let (head, whole) = match self {
            // Known by the time that passes.
            Self::SlowHead | Self::Silent | Self::RedirectsToTheSlow => (6, 12),
            Self::Stalls => (6, 12),
            // Known by the rate, over seconds; and a small blob comes as a whole.
            Self::Trickles => (12, 24),
            _ => (4, 10),
        };
        (Duration::from_secs(head), Duration::from_secs(whole))
    }

    /// Whether the first reader of a large blob may see the failure: bytes are known to be wrong when all are there.
    pub fn shows_once_in_large_blobs(self) -> bool {
        self == Self::WrongByte
    }

    /// Whether it shows at some byte of a body, and not before.
    pub(super) fn begins_in_a_body(self) -> bool {
        matches!(
            self,
            Self::CutByFin
                | Self::CutByRst
                | Self::Stalls
                | Self::WrongByte
                | Self::Http2GoesAway
                | Self::Http2StreamReset
        )
    }

    pub(super) fn transport(self) -> Transport {
        match self {
            Self::Http2GoesAway | Self::Http2StreamReset => Transport::Http2,
            Self::UnknownCa | Self::ExpiredCertificate => Transport::Tls,
            _ => Transport::Plain,
        }
    }

    /// The illness of an upstream at this URL that begins at byte `at` of a body.
    pub(super) fn at(self, at: u64, place: Place, own: &str) -> Illness {
        let answer = Illness::Answer;
        match self {
            Self::Refuses => Illness::Door,
            Self::UnknownCa => Illness::Door,
            Self::ExpiredCertificate => Illness::Door,
            Self::NoSuchName => Illness::Nowhere,
            Self::ProxyWantsPassword => Illness::Proxy,

            Self::ClosesBeforeTheHead => answer(Fault::NoReply(Cut::Close)),
            Self::ResetsBeforeTheHead => answer(Fault::NoReply(Cut::Reset)),
            Self::SlowHead => answer(Fault::SlowHead(Duration::from_secs(8))),
            Self::Silent => answer(Fault::Silent),
            Self::WantsToken => {
                let realm = format!("Bearer realm=\"{own}{NO_TOKENS}\",service=\"nobody\"");
                answer(Fault::status_with(401, "www-authenticate", &realm))
            }
            Self::WantsPassword => answer(Fault::status_with(401, "www-authenticate", "Basic realm=\"nobody\"")),
            Self::Forbidden => answer(Fault::status(403)),
            Self::NotFound => answer(Fault::status(404)),
            Self::RequestTimeout => answer(Fault::status(408)),
            Self::TooManyRequests => answer(Fault::status(429)),
            Self::TooManyRequestsForNow => answer(Fault::status_with(429, "retry-after", "2")),
            Self::InternalError => answer(Fault::status(500)),
            Self::BadGateway => answer(Fault::status(502)),
            Self::Unavailable => answer(Fault::status(503)),
            Self::RedirectsToNobody => answer(Fault::RedirectTo(NOWHERE.to_owned())),
            Self::RedirectsToTheSlow => answer(Fault::RedirectTo(format!("{own}{SLOW}"))),
            Self::RedirectsForEver => answer(Fault::RedirectTo(own.to_owned())),
            // A manifest has some hundred bytes.
            Self::Trickles if matches!(place, Place::Tagged | Place::Manifest) => answer(Fault::Trickle(40)),
            Self::Trickles => answer(Fault::Trickle(20 << 10)),
            Self::TooShort => answer(Fault::Short(10)),
            Self::TooLong => answer(Fault::Long(10)),
            Self::WrongLength => answer(Fault::Length(10)),
            Self::Gzip => answer(Fault::Gzip),
            Self::WrongContentType => answer(Fault::Header("content-type".into(), "text/html".into())),
            // A HEAD that lies with a digest that could be one can't be told from the truth.
            Self::WrongDigestHeader if place == Place::Resolve => {
                answer(Fault::Header("docker-content-digest".into(), "sha256:none".into()))
            }
            Self::WrongDigestHeader => {
                answer(Fault::Header("docker-content-digest".into(), format!("sha256:{:064x}", 7)))
            }

            Self::CutByFin => Illness::Body(Fault::CutAt(at, Cut::Close)),
            Self::CutByRst => Illness::Body(Fault::CutAt(at, Cut::Reset)),
            Self::Stalls => Illness::Body(Fault::StallAt(at)),
            Self::WrongByte => Illness::Body(Fault::WrongByte(at)),
            Self::Http2GoesAway => Illness::Body(Fault::GoAway(at)),
            Self::Http2StreamReset => Illness::Body(Fault::StreamReset(at)),
        }
    }
}

impl fmt::Display for Ill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As Debug, in the lower case that names of registries have.
        write!(f, "{}", format!("{self:?}").to_lowercase())
    }
}
