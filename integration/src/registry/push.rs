//! Pushing, as the distribution spec has it: each blob in one piece, then the manifests.

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, StatusCode};

use crate::{Blob, Http, Image};

/// Pushes `image` to the registry at `url` under a tag.
pub(super) async fn push(http: &Http, url: &str, image: &Image, repository: &str, tag: &str) -> Result<()> {
    let base = format!("{url}/v2/{repository}");
    for blob in image.blobs() {
        push_blob(http, url, &base, blob).await.with_context(|| format!("pushing the blob {}", blob.digest))?;
    }
    let (root, children) = (image.root(), &image.manifests()[..image.manifests().len() - 1]);
    let named = children.iter().map(|child| (child.digest.as_str(), child)).chain([(tag, root)]);
    for (reference, manifest) in named {
        let headers = [("content-type", manifest.media_type.as_str())];
        let target = format!("{base}/manifests/{reference}");
        let reply = http.send(Method::PUT, &target, &headers, manifest.bytes.clone()).await?;
        reply.expect(StatusCode::CREATED).with_context(|| format!("pushing the manifest {reference}"))?;
    }
    Ok(())
}

async fn push_blob(http: &Http, url: &str, base: &str, blob: &Blob) -> Result<()> {
    if http.head(&format!("{base}/blobs/{}", blob.digest)).await?.status == StatusCode::OK {
        return Ok(());
    }
    let upload = http.send(Method::POST, &format!("{base}/blobs/uploads/"), &[], Bytes::new()).await?;
    let upload = upload.expect(StatusCode::ACCEPTED)?;
    let location = upload.header("location");
    let location = if location.starts_with('/') { format!("{url}{location}") } else { location.to_owned() };
    let joint = if location.contains('?') { '&' } else { '?' };
    let target = format!("{location}{joint}digest={}", blob.digest);
    let headers = [("content-type", "application/octet-stream")];
    http.send(Method::PUT, &target, &headers, blob.bytes.clone()).await?.expect(StatusCode::CREATED)?;
    Ok(())
}
