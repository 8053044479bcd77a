use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LINK, RETRY_AFTER};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;

use super::body::{Body, Extent};
use super::error::{ErrorKind, UpstreamError};
use super::exchange::{Exchange, Part, Reply};
use crate::image::{Access, Digest, MediaType};

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// Headers that mean something to who lists tags and referrers.
const PASSED: [HeaderName; 3] = [CONTENT_TYPE, LINK, HeaderName::from_static("oci-filters-applied")];
/// The longest Retry-After that is believed.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A registry's answer that is yes: what it says of the content, and the content.
#[derive(Debug)]
pub struct Answer {
    /// The size of the whole blob in bytes, if it said so.
    pub size: Option<u64>,
    /// The offset in the blob of the body's first byte: what was asked for, or 0 from an upstream that knows no ranges.
    pub offset: u64,
    /// Its media type, if it gave one that can be passed on.
    pub media_type: Option<MediaType>,
    /// The digest that it says this has. Unverified, but never another than was asked for.
    pub digest: Option<Digest>,
    /// Headers to pass on with a list of tags or referrers: Content-Type, Link, OCI-Filters-Applied.
    pub headers: HeaderMap,
    /// Whether anybody would have got it: [`Access::Authorized`] where credentials, or a token for them, were sent.
    pub access: Access,
    /// The bytes; none for HEAD.
    pub body: Body,
}

/// What an answer is held against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) digest: Option<&'a Digest>,
    pub(super) part: Part,
}

impl Answer {
    pub(super) fn read(
        asked: Asked<'_>,
        method: &Method,
        reply: Reply,
        exchange: &Arc<Exchange>,
    ) -> Result<Self, UpstreamError> {
        let (head, incoming) = reply.response.into_parts();
        let wrong = |kind| exchange.error(&reply.uri, kind);
        judge(head.status, &head.headers, reply.is_home).map_err(wrong)?;
        check_encoding(&head.headers).map_err(wrong)?;
        let digest = read_digest(&head.headers, asked.digest).map_err(wrong)?;
        let is_head = *method == Method::HEAD;
        let length = if is_head { read_length(&head.headers).map_err(wrong)? } else { incoming.size_hint().exact() };
        let (offset, extent) = read_extent(head.status, &head.headers, asked.part, length).map_err(wrong)?;
        let promised = match asked.part.to {
            _ if is_head => Extent::default(),
            // It ends where it was asked to; of what goes to the blob's end, an earlier end is a cut.
            Some(to) if extent.announced == Some(to) => Extent { whole: None, ..extent },
            _ => extent,
        };
        Ok(Self {
            size: extent.whole,
            offset,
            media_type: head.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).and_then(MediaType::new),
            digest,
            headers: passed_on(&head.headers),
            access: Access::Anonymous,
            body: Body::new(incoming, Arc::clone(exchange), reply.uri, offset, promised),
        })
    }
}

/// What a status means. Where a redirect led elsewhere, a refusal is no word of the registry's: storage behind it says
/// 403 for a link that ended, and for what is missing.
pub(super) fn judge(status: StatusCode, headers: &HeaderMap, is_home: bool) -> Result<(), ErrorKind> {
    Err(match status.as_u16() {
        200 | 206 => return Ok(()),
        401 if is_home => ErrorKind::Unauthorized,
        403 | 451 if is_home => ErrorKind::Denied,
        404 | 410 => ErrorKind::NotFound,
        429 => ErrorKind::RateLimited { retry_after: retry_after(headers, Timestamp::now()) },
        _ => ErrorKind::Server(status),
    })
}

/// Seconds, or a date.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let after = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = DateTimeParser::new().parse_timestamp(text).ok()?;
            Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO)
        }
    };
    Some(after.min(DAY))
}

fn check_encoding(headers: &HeaderMap) -> Result<(), ErrorKind> {
    match headers.get(CONTENT_ENCODING).map(|v| v.as_bytes()) {
        None => Ok(()),
        Some(encoding) if encoding.eq_ignore_ascii_case(b"identity") => Ok(()),
        Some(encoding) => Err(ErrorKind::Protocol(format!(
            "the body is encoded as {}, which nobody asked for",
            encoding.escape_ascii()
        ))),
    }
}

fn read_digest(headers: &HeaderMap, asked: Option<&Digest>) -> Result<Option<Digest>, ErrorKind> {
    let Some(value) = headers.get(DOCKER_CONTENT_DIGEST) else { return Ok(None) };
    let digest: Digest = value
        .to_str()
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| ErrorKind::Protocol("its Docker-Content-Digest is no digest".to_owned()))?;
    match asked {
        // The same bytes may go by another algorithm's name.
        Some(asked) if digest != *asked && digest.algorithm() == asked.algorithm() => {
            Err(ErrorKind::Protocol(format!("it is {digest}, not what was asked for")))
        }
        _ => Ok(Some(digest)),
    }
}

fn read_length(headers: &HeaderMap) -> Result<Option<u64>, ErrorKind> {
    let Some(value) = headers.get(CONTENT_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    match length.and_then(|text| text.parse().ok()) {
        Some(length) => Ok(Some(length)),
        None => Err(ErrorKind::Protocol("its Content-Length is no number".to_owned())),
    }
}

/// Where the body starts and ends in the blob.
fn read_extent(
    status: StatusCode,
    headers: &HeaderMap,
    part: Part,
    length: Option<u64>,
) -> Result<(u64, Extent), ErrorKind> {
    let wrong = |what: String| Err(ErrorKind::Protocol(what));
    if status != StatusCode::PARTIAL_CONTENT {
        return Ok((0, Extent { announced: length, whole: length }));
    }
    let from = part.from;
    if part == Part::WHOLE {
        return wrong("a part, though the whole was asked for".to_owned());
    }
    let text = headers.get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let Some(range) = ContentRange::parse(text) else {
        return wrong(format!("its Content-Range is {text:?}"));
    };
    let end = range.last + 1;
    if range.first != from {
        return wrong(format!("it starts at byte {}, not at {from} as asked", range.first));
    }
    if part.to.is_some_and(|to| end > to) {
        return wrong(format!("it ends at byte {end}, beyond what was asked for"));
    }
    if length.is_some_and(|length| length != end - from) {
        return wrong("its Content-Length and its Content-Range contradict each other".to_owned());
    }
    Ok((from, Extent { announced: Some(end), whole: range.total }))
}

/// `bytes first-last/total`, where the total may be unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ContentRange {
    first: u64,
    last: u64,
    total: Option<u64>,
}

impl ContentRange {
    /// `None` for what is malformed, or empty, or goes beyond its total. `last` is below `u64::MAX`.
    fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
        let (unit, range) = text.trim().split_once(' ')?;
        let (range, total) = range.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let total = if total == "*" { None } else { Some(number(total)?) };
        let sound = unit.eq_ignore_ascii_case("bytes")
            && first <= last
            && last < u64::MAX
            && total.is_none_or(|total| last < total);
        sound.then_some(Self { first, last, total })
    }
}

fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let mut passed = HeaderMap::new();
    for name in PASSED {
        for value in headers.get_all(&name) {
            passed.append(name.clone(), value.clone());
        }
    }
    passed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn content_ranges() {
        let range = |first, last, total| Some(ContentRange { first, last, total });
        assert_eq!(ContentRange::parse("bytes 5-9/10"), range(5, 9, Some(10)));
        assert_eq!(ContentRange::parse("Bytes 5-9/*"), range(5, 9, None));
        for bad in [
            "",
            "bytes",
            "bytes */10",
            "bytes 5-9",
            "bytes 9-5/10",
            "bytes 5-10/10",
            "bytes +5-9/10",
            "items 5-9/10",
            "bytes 5-18446744073709551615/*",
            "bytes 5-99999999999999999999/*",
            "bytes -9/10",
            "bytes 5-/10",
        ] {
            assert_eq!(ContentRange::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn retry_after_in_both_forms() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("30", Some(30)),
            ("Thu, 01 Jan 2026 00:01:00 GMT", Some(60)),
            ("Wed, 01 Jan 2025 00:01:00 GMT", Some(0)),
            ("99999999999", Some(24 * 3600)),
            ("soon", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            assert_eq!(retry_after(&headers, now), expected.map(Duration::from_secs), "{text}");
        }
    }

    proptest! {
        #[test]
        fn ranges_written_and_read_back(first: u32, length in 1..u32::MAX, more: u32, unknown: bool) {
            let (first, last) = (u64::from(first), u64::from(first) + u64::from(length) - 1);
            let total = (!unknown).then(|| last + 1 + u64::from(more));
            let text = format!("bytes {first}-{last}/{}", total.map_or("*".to_owned(), |t| t.to_string()));
            prop_assert_eq!(ContentRange::parse(&text), Some(ContentRange { first, last, total }));
        }

        #[test]
        fn ranges_never_panic(text in "(bytes|items)? ?[0-9]{0,21}-?[0-9*]{0,21}/?[0-9*]{0,21}") {
            if let Some(range) = ContentRange::parse(&text) {
                prop_assert!(range.first <= range.last && range.total.is_none_or(|t| range.last < t));
            }
        }
    }
}
