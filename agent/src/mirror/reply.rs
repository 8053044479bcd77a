//! Replies, and what an error becomes for each caller.
//!
//! A body that must end short of its announced length (the source is gone, the digest doesn't hold) errs; hyper then
//! closes the connection, which containerd meets as an early end, and asks again from where it stood. It must never be
//! a reset, which fails its pull, nor silence.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderValue};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use oci_spec::distribution::{ErrorCode, ErrorInfoBuilder, ErrorResponseBuilder};

use super::caller::Caller;
use super::request::Refused;
use crate::image::Digest;
use crate::pull::{EndedShort, Kind, PullError, Reader};

/// A reply's body: a few bytes, or a reader's.
pub(super) type Body = UnsyncBoxBody<Bytes, EndedShort>;

pub(super) const DOCKER_CONTENT_DIGEST: &str = "docker-content-digest";

pub(super) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

pub(super) fn streamed(reader: Reader) -> Body {
    let frames = stream::try_unfold(reader, |mut reader| async move {
        Ok(reader.next().await?.map(|bytes| (Frame::data(bytes), reader)))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// The headers that every reply with content has.
pub(super) fn content(
    status: StatusCode,
    digest: &Digest,
    media_type: &str,
    length: Option<u64>,
    body: Body,
) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if let Ok(media_type) = HeaderValue::from_str(media_type) {
        headers.insert(CONTENT_TYPE, media_type);
    }
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, length.into());
    }
    let digest = digest.to_string();
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{digest}\"")) {
        headers.insert(ETAG, etag);
    }
    if let Ok(digest) = HeaderValue::from_str(&digest) {
        headers.insert(DOCKER_CONTENT_DIGEST, digest);
    }
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    response
}

pub(super) fn unsatisfiable(size: u64) -> Response<Body> {
    let mut response =
        error(StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::SizeInvalid, "the range lies outside of the blob");
    if let Ok(range) = HeaderValue::from_str(&format!("bytes */{size}")) {
        response.headers_mut().insert(CONTENT_RANGE, range);
    }
    response
}

/// An error body as the distribution specification has it.
pub(super) fn error(status: StatusCode, code: ErrorCode, message: &str) -> Response<Body> {
    let info = ErrorInfoBuilder::default().code(code).message(message).build();
    let body = info.and_then(|info| ErrorResponseBuilder::default().errors(vec![info]).build());
    // Both builders have all their fields; were one to refuse, the status says enough.
    let json = body.ok().and_then(|body| serde_json::to_vec(&body).ok()).unwrap_or_default();
    let mut response = Response::new(whole(json));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn refused(refused: &Refused) -> Response<Body> {
    let (status, code) = match refused {
        Refused::Method => (StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported),
        Refused::Path => (StatusCode::NOT_FOUND, ErrorCode::Unsupported),
        Refused::Name(_) => (StatusCode::BAD_REQUEST, ErrorCode::NameInvalid),
        Refused::Digest(_) => (StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid),
    };
    let mut response = error(status, code, &refused.to_string());
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(http::header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

/// What makes this caller go on to its next host, and show its user the truth. 408 and 429 are never said: containerd
/// would ask again, here, at once.
pub(super) fn failed(failure: &PullError, kind: Kind, caller: Caller) -> Response<Body> {
    let unknown = match kind {
        Kind::Manifest => ErrorCode::ManifestUnknown,
        Kind::Blob => ErrorCode::BlobUnknown,
    };
    let (status, code) = match failure {
        PullError::NotFound(_) => (StatusCode::NOT_FOUND, unknown),
        // A miss as well: the caller's own credentials may open it at the next host.
        PullError::Denied(_) => (StatusCode::NOT_FOUND, ErrorCode::Denied),
        _ if caller == Caller::ContainerdOne => (StatusCode::NOT_FOUND, unknown),
        _ => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unsupported),
    };
    error(status, code, &failure.to_string())
}
