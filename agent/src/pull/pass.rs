//! What is passed on as upstream says it: tag lists and referrers; and whether a blob is there at all.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use http::header::LINK;
use tokio::time::timeout;

use super::direct::Opened;
use super::error::Said;
use super::word::is_last_word;
use super::{Kind, Place, Pull, PullError, Wanted};
use crate::image::{Digest, MediaType};
use crate::upstream::{Grant, Upstream, UpstreamError};

/// The longest answer that is passed on, in bytes.
const MAX_ANSWER: u64 = 8 << 20;

/// An upstream's answer.
pub struct Passed {
    /// What it is.
    pub media_type: MediaType,
    /// Where the next page is, as upstream says; relative to this same host.
    pub link: Option<HeaderValue>,
    /// The answer, at most 8 MiB.
    pub body: Bytes,
}

impl Pull {
    /// The answer of the first upstream that has one. `suffix` is what stands behind the repository, as it was asked:
    /// `tags/list?n=10`, `referrers/sha256:…`.
    ///
    /// # Errors
    /// When no upstream gives one within the reply deadline.
    pub async fn pass(&self, place: &Place, grant: &Grant, suffix: &str) -> Result<Passed, PullError> {
        let ask = async {
            self.0.may_ask(place, grant).await?;
            let chain = self.0.upstreams.of(&place.registry);
            // Nothing is learnt from it: who may list need not be who may pull.
            let asked = chain.first(is_last_word, |upstream| pass_one(upstream, place, grant, suffix));
            let (_, passed) = asked.await.map_err(|said| PullError::from_all(said).for_grant(grant))?;
            Ok(passed)
        };
        timeout(self.0.options.reply_deadline, ask).await.unwrap_or_else(|_| Err(PullError::Late(Said::default())))
    }

    /// The length of a blob in bytes, without fetching it.
    ///
    /// # Errors
    /// When nothing has it, or nothing answers within the reply deadline.
    pub async fn stat(&self, place: &Place, grant: &Grant, digest: &Digest) -> Result<u64, PullError> {
        let wanted = Wanted { place: place.clone(), grant: grant.clone(), digest: *digest, kind: Kind::Blob };
        let ask = async {
            if let Some(blob) = self.0.held(&wanted).await? {
                return Ok(blob.size());
            }
            self.0.may_ask(place, grant).await?;
            let chain = self.0.upstreams.of(&place.registry);
            let asked = self.0.across(&chain, place, grant, |upstream| async move {
                let answer = upstream.head_blob(grant, &place.repository, digest).await?;
                let size = answer.size.ok_or_else(|| upstream.wrong_answer("gives no length"))?;
                Ok((size, answer.access))
            });
            let (_, size) = asked.await.map_err(|said| PullError::from_all(said).for_grant(grant))?;
            Ok(size)
        };
        timeout(self.0.options.reply_deadline, ask).await.unwrap_or_else(|_| Err(PullError::Late(Said::default())))
    }
}

async fn pass_one(
    upstream: Arc<Upstream>,
    place: &Place,
    grant: &Grant,
    suffix: &str,
) -> Result<Passed, UpstreamError> {
    let answer = upstream.pass(grant, &place.repository, suffix).await?;
    let link = answer.headers.get(LINK).cloned();
    let mut opened = Opened::from(&upstream, answer);
    opened.read_ahead(MAX_ANSWER).await?;
    if opened.read().len() as u64 > MAX_ANSWER {
        return Err(upstream.wrong_answer("sends an answer of more than 8 MiB"));
    }
    Ok(Passed { media_type: opened.media_type.clone(), link, body: opened.into_read() })
}
