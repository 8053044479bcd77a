//! One check: an image's manifest, asked for at one upstream.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::{Instant, timeout};

use super::purse::Purse;
use super::report::Status;
use super::schedule::Item;
use crate::config::{Budget, Method};
use crate::image::Digest;
use crate::peers::Granted;
use crate::upstream::{Answer, ErrorKind, Grant, Upstream, UpstreamError, Upstreams};

/// How long the programs that know our credentials may take.
const CREDENTIALS: Duration = Duration::from_secs(60);
/// The longest manifest that is read to learn its digest, in bytes.
const MAX_MANIFEST: usize = 4 << 20;
/// The most of an error's text that is kept, in characters.
const MOST_REMARK: usize = 200;

/// What is checked, and how.
pub(super) struct Order {
    pub(super) item: Item,
    pub(super) upstream: Arc<Upstream>,
    pub(super) budget: Budget,
    pub(super) method: Method,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Outcome {
    /// What the upstream said, and how long that took.
    Said(Said, Duration),
    /// It doesn't know HEAD. It is to be asked by GET.
    HeadUnknown,
    /// Nothing was asked: there is no leave before so long.
    NoLeave(Duration),
    /// Nothing was found out: all its connections were in use, say.
    Nothing,
}

/// What an upstream said.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) status: Status,
    pub(super) digest: Option<Digest>,
    pub(super) remark: Option<String>,
}

/// Makes a check, once there is leave for it.
pub(super) async fn check(order: &Order, upstreams: &Upstreams, purse: &Purse) -> Outcome {
    let image = &order.item.image;
    let of_it = std::slice::from_ref(&order.upstream);
    let own = timeout(CREDENTIALS, upstreams.own_grant_at(of_it, &image.repository)).await;
    // Without them, a refusal would say nothing.
    let Ok(own) = own else { return Outcome::Nothing };
    let registry = &image.registry;
    let asked = Instant::now();
    match purse.take(registry).await {
        Granted::Now(_) => {}
        Granted::Later(wait) => return Outcome::NoLeave(wait),
    }
    let is_late = purse.allowance(registry).is_none_or(|allowance| asked.elapsed() > allowance.life);
    if is_late {
        return Outcome::NoLeave(Duration::from_secs(1));
    }
    let began = Instant::now();
    let answered = timeout(order.budget.timeout, ask(order, own.as_ref().unwrap_or(&Grant::Anonymous))).await;
    let took = began.elapsed();
    let said = match answered {
        Ok(Ok(digest)) => Said { status: Status::Available, digest, remark: None },
        Ok(Err(error)) => match error.kind() {
            ErrorKind::Server(StatusCode::METHOD_NOT_ALLOWED) if order.method == Method::Head => {
                return Outcome::HeadUnknown;
            }
            ErrorKind::Busy(_) => return Outcome::Nothing,
            _ => refused(&error, own.is_some() || order.upstream.knows_us()),
        },
        Err(_) => {
            let remark = format!("no answer within {}", humantime::format_duration(order.budget.timeout));
            Said { status: Status::Unreachable, digest: None, remark: Some(remark) }
        }
    };
    Outcome::Said(said, took)
}

async fn ask(order: &Order, grant: &Grant) -> Result<Option<Digest>, UpstreamError> {
    let Order { item: Item { image, .. }, upstream, method, .. } = order;
    let answer = match method {
        Method::Head => upstream.head_manifest(grant, &image.repository, &image.reference).await?,
        Method::Get => upstream.manifest(grant, &image.repository, &image.reference).await?,
    };
    let Answer { media_type, digest, body, .. } = answer;
    if let Some(wrong) = media_type.filter(|media_type| !media_type.may_be_manifest()) {
        return Err(upstream.wrong_answer(format!("says that the manifest is {wrong}")));
    }
    match (digest, method) {
        (None, Method::Get) => Ok(Some(Digest::of(&body.whole(MAX_MANIFEST).await?))),
        (digest, _) => Ok(digest),
    }
}

/// What it means that an upstream gives nothing. `is_known`: it was told who we are.
fn refused(error: &UpstreamError, is_known: bool) -> Said {
    let status = match error.kind() {
        ErrorKind::NotFound => Status::NotFound,
        ErrorKind::Unauthorized | ErrorKind::Denied if is_known => Status::InvalidAuth,
        ErrorKind::Unauthorized | ErrorKind::Denied => Status::NoCredentials,
        ErrorKind::RateLimited { .. } => Status::QuotaExceeded,
        _ => Status::Unreachable,
    };
    let text = error.to_string();
    let remark = text.chars().filter(|c| !c.is_control()).take(MOST_REMARK).collect();
    Said { status, digest: None, remark: Some(remark) }
}
