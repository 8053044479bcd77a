//! A pull without containerd: the same requests in the same order, three layers at a time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::StatusCode;
use serde_json::Value;

use crate::{Puller, digest_of};

/// How often a body that ended early is taken up again without a byte of progress, as containerd does.
const TAKEN_UP: usize = 3;
const AT_ONCE: usize = 3;

/// What a pull got, all of it held against its digests.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// What the tag meant.
    pub root: String,
    /// Of manifests, configs and layers.
    pub bytes: u64,
    /// From the first request to the last byte.
    pub took: Duration,
    /// From the first request to the tag's answer.
    pub resolved: Duration,
}

/// Pulls an image by tag, or by digest.
pub(super) async fn fetch(puller: &Puller, repository: &str, reference: &str) -> Result<Fetched> {
    let begun = Instant::now();
    let head = puller.head(repository, &format!("manifests/{reference}")).await?.expect(StatusCode::OK)?;
    let root = head.header("docker-content-digest").to_owned();
    let resolved = begun.elapsed();
    let mut manifest = json(puller, repository, &root).await?;
    let mut bytes = manifest.1;
    if let Some(platforms) = manifest.0["manifests"].as_array() {
        let ours = platforms.iter().find(|entry| entry["platform"]["architecture"] == "amd64");
        let digest = ours.and_then(|entry| entry["digest"].as_str()).context("an index without our platform")?;
        manifest = json(puller, repository, digest).await?;
        bytes += manifest.1;
    }
    let layers = manifest.0["layers"].as_array().context("a manifest without layers")?;
    let blobs =
        std::iter::once(&manifest.0["config"]).chain(layers).map(|entry| entry["digest"].as_str().map(str::to_owned));
    // Owned: the compiler can't see that borrowed ones may go to another thread.
    let blobs: Vec<String> = blobs.collect::<Option<_>>().context("an entry without a digest")?;
    let lengths = stream::iter(blobs).map(|digest| blob(puller, repository, digest)).buffer_unordered(AT_ONCE);
    bytes += lengths.try_fold(0, |sum, length| async move { Ok(sum + length) }).await?;
    Ok(Fetched { root, bytes, took: begun.elapsed(), resolved })
}

async fn json(puller: &Puller, repository: &str, digest: &str) -> Result<(Value, u64)> {
    let reply = puller.get(repository, &format!("manifests/{digest}")).await?.expect(StatusCode::OK)?;
    ensure!(digest_of(&reply.body) == digest, "a wrong manifest was given for {digest}");
    Ok((serde_json::from_slice(&reply.body)?, reply.body.len() as u64))
}

/// The length of a blob that is right.
async fn blob(puller: &Puller, repository: &str, digest: String) -> Result<u64> {
    let what = format!("blobs/{digest}");
    let (mut body, mut in_vain) = (BytesMut::new(), 0);
    loop {
        let reply = if body.is_empty() {
            puller.get(repository, &what).await?.expect(StatusCode::OK)
        } else {
            let range = format!("bytes={}-", body.len());
            puller.get_range(repository, &what, &range).await?.expect(StatusCode::PARTIAL_CONTENT)
        };
        let reply = reply.with_context(|| format!("{digest} from {}", body.len()))?;
        in_vain = if reply.body.is_empty() { in_vain + 1 } else { 0 };
        if body.is_empty() && reply.cut.is_none() {
            // The whole in one piece isn't copied.
            body = reply.body.into();
        } else {
            body.extend_from_slice(&reply.body);
        }
        match reply.cut {
            None => break,
            Some(cut) if in_vain == TAKEN_UP => bail!("{digest} is cut at {}: {cut}", body.len()),
            Some(_) => {}
        }
    }
    let length = body.len() as u64;
    let found = tokio::task::spawn_blocking(move || digest_of(&body)).await?;
    ensure!(found == digest, "wrong bytes were given for {digest}: {found}");
    Ok(length)
}
