//! The blobs that containerd itself holds.

use bytes::Bytes;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::{Info, InfoRequest, ListContentRequest, ReadContentRequest, ReadContentResponse};
use tonic::metadata::AsciiMetadataValue;
use tonic::{Code, Streaming};

use super::{Client, ClientError, DEADLINE, within};
use crate::image::{Digest, Registry, Repository};

/// The labels by which containerd says where a blob came from: each names a registry, and lists its repositories.
const SOURCE: &str = "containerd.io/distribution.source.";
/// The most blobs that are listed of a namespace.
const MOST: usize = 200_000;

/// A blob that containerd holds whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    /// Its digest.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// The repositories of which containerd pulled something that names it. Which of them it came from isn't said, nor
    /// whether that was open to anybody: what containerd has, it doesn't ask for.
    pub sources: Vec<(Registry, Repository)>,
    namespace: AsciiMetadataValue,
}

#[cfg(test)]
impl Content {
    /// One from a repository, for tests.
    pub(crate) fn from_repository(digest: Digest, registry: &str, repository: &str) -> Self {
        let sources = vec![(registry.parse().unwrap(), repository.parse().unwrap())];
        Self { digest, size: 1, sources, namespace: AsciiMetadataValue::from_static("k8s.io") }
    }

    /// The same, of another namespace.
    pub(crate) fn in_namespace(self, namespace: &'static str) -> Self {
        Self { namespace: AsciiMetadataValue::from_static(namespace), ..self }
    }
}

/// The bytes of one of them.
#[derive(Debug)]
pub struct ContentReader {
    client: Client,
    stream: Streaming<ReadContentResponse>,
    at: u64,
    end: u64,
}

impl Client {
    /// The blob, if containerd holds it whole in one of the configured namespaces.
    ///
    /// # Errors
    /// No answer within 5 s, or a refusal.
    pub async fn content(&self, digest: &Digest) -> Result<Option<Content>, ClientError> {
        let mut client = ContentClient::new(self.channel.clone());
        for namespace in self.namespaces.iter() {
            let request = within(namespace, InfoRequest { digest: digest.to_string() });
            match self.call("Content.Info", DEADLINE, client.info(request)).await {
                Ok(answer) => {
                    if let Some(content) = answer.info.and_then(|info| Content::read(&info, namespace)) {
                        return Ok(Some(content));
                    }
                }
                Err(ClientError::Status { code: Code::NotFound, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// All blobs that containerd holds in the configured namespaces, at most 200,000 of each, one at a time: who has no use
    /// for a list needs no memory for one. A blob that two namespaces hold comes twice.
    ///
    /// # Errors
    /// 5 s without an answer or its continuation, or a refusal; some may have come by then.
    pub async fn each_content(&self, mut take: impl FnMut(Content)) -> Result<(), ClientError> {
        let mut client = ContentClient::new(self.channel.clone());
        for namespace in self.namespaces.iter() {
            let request = within(namespace, ListContentRequest { filters: Vec::new() });
            let mut parts = self.call("Content.List", DEADLINE, client.list(request)).await?;
            let mut left = MOST;
            while let Some(part) = self.part("Content.List", &mut parts).await? {
                let fitting = left.min(part.info.len());
                left -= fitting;
                part.info.iter().take(fitting).filter_map(|info| Content::read(info, namespace)).for_each(&mut take);
            }
        }
        Ok(())
    }

    /// Reads a part of a blob, which lies within it.
    ///
    /// # Errors
    /// No answer within 5 s, or a refusal: containerd may have dropped the blob since.
    pub async fn read(&self, content: &Content, from: u64, end: u64) -> Result<ContentReader, ClientError> {
        let mut client = ContentClient::new(self.channel.clone());
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let asked = ReadContentRequest {
            digest: content.digest.to_string(),
            offset: signed(from),
            size: signed(end.saturating_sub(from)),
        };
        let stream = self.call("Content.Read", DEADLINE, client.read(within(&content.namespace, asked))).await?;
        Ok(ContentReader { client: self.clone(), stream, at: from, end })
    }
}

impl Content {
    /// The registry that containerd names for it, where it names one alone. Of several, any may have no more than named
    /// what another gave.
    #[must_use]
    pub fn only_registry(&self) -> Option<&Registry> {
        let (first, _) = self.sources.first()?;
        self.sources.iter().all(|(registry, _)| registry == first).then_some(first)
    }

    /// Takes over what another namespace says of the same blob.
    pub(in crate::containerd) fn merge(&mut self, other: Self) {
        let fresh: Vec<_> = other.sources.into_iter().filter(|source| !self.sources.contains(source)).collect();
        self.sources.extend(fresh);
        self.sources.sort_unstable();
    }

    /// `None` for what has no digest of a kind that we know.
    fn read(info: &Info, namespace: &AsciiMetadataValue) -> Option<Self> {
        let sources = info.labels.iter().flat_map(|(label, repositories)| sources(label, repositories));
        let mut sources: Vec<_> = sources.collect();
        // Labels come in any order.
        sources.sort_unstable();
        let size = u64::try_from(info.size).ok()?;
        Some(Self { digest: info.digest.parse().ok()?, size, sources, namespace: namespace.clone() })
    }
}

impl ContentReader {
    /// The next bytes; `None` when all that was asked for came.
    ///
    /// # Errors
    /// 5 s without any, a refusal, or an end that is early.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        const CALL: &str = "Content.Read";
        if self.at >= self.end {
            return Ok(None);
        }
        let Some(part) = self.client.part(CALL, &mut self.stream).await? else {
            return Err(self.wrong("the blob ended early"));
        };
        if u64::try_from(part.offset).ok() != Some(self.at) || part.data.is_empty() {
            return Err(self.wrong("not the part that comes next"));
        }
        let mut data = Bytes::from(part.data);
        data.truncate(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        self.at += data.len() as u64;
        Ok(Some(data))
    }

    fn wrong(&self, what: &str) -> ClientError {
        let socket = self.client.socket.to_path_buf();
        ClientError::Status { socket, call: "Content.Read", code: Code::DataLoss, message: what.to_owned() }
    }
}

/// The places that a label names. What isn't a name is left out.
fn sources(label: &str, repositories: &str) -> Vec<(Registry, Repository)> {
    let registry = label.strip_prefix(SOURCE).and_then(|registry| registry.parse::<Registry>().ok());
    let Some(registry) = registry else { return Vec::new() };
    repositories.split(',').filter_map(|name| Some((registry.clone(), name.parse().ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_say_where_a_blob_came_from() {
        let places = |label, repositories| {
            let all = sources(label, repositories);
            all.iter().map(|(registry, repository)| format!("{registry}/{repository}")).collect::<Vec<_>>()
        };
        let label = "containerd.io/distribution.source.reg.corp:5000";
        assert_eq!(places(label, "a/b,c"), ["reg.corp:5000/a/b", "reg.corp:5000/c"]);
        assert_eq!(places(label, "a/../b,,c"), ["reg.corp:5000/c"]);
        assert!(places("containerd.io/uncompressed", "sha256:0").is_empty());
        assert!(places("containerd.io/distribution.source.", "a").is_empty());
    }
}
