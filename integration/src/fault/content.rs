//! What the registry has.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::plan::Plan;
use super::request::Request;
use crate::{Blob, Image};

#[derive(Debug, Default)]
pub(super) struct Content {
    // By digest: all repositories have all content, but for what is hidden from them.
    blobs: HashMap<String, Blob>,
    // Repository and digest.
    hidden: HashSet<(String, String)>,
    tags: BTreeMap<(String, String), String>,
}

impl Content {
    pub(super) fn add(&mut self, image: &Image, repository: &str, tag: &str) {
        for blob in image.blobs().iter().chain(image.manifests()) {
            self.blobs.insert(blob.digest.clone(), blob.clone());
        }
        self.tags.insert((repository.to_owned(), tag.to_owned()), image.root().digest.clone());
    }

    pub(super) fn remove_tag(&mut self, repository: &str, tag: &str) {
        self.tags.remove(&(repository.to_owned(), tag.to_owned()));
    }

    pub(super) fn remove(&mut self, blob: &Blob) {
        self.blobs.remove(&blob.digest);
    }

    pub(super) fn hide(&mut self, repository: &str, digest: &str) {
        self.hidden.insert((repository.to_owned(), digest.to_owned()));
    }

    /// What a faultless registry answers.
    pub(super) fn answer(&self, request: &Request) -> Plan {
        let Some(path) = request.registry_path() else { return Plan::error(404, "NAME_UNKNOWN") };
        if !matches!(request.method.as_str(), "GET" | "HEAD") {
            return Plan::error(405, "UNSUPPORTED");
        }
        if path.is_empty() {
            return Plan::json(200, "{}");
        }
        let parts: Vec<&str> = path.rsplitn(3, '/').collect();
        let [name, kind, repository] = parts[..] else { return Plan::error(404, "NAME_UNKNOWN") };
        match (kind, name) {
            ("tags", "list") => self.tag_list(repository),
            ("referrers", _) => Plan::json(
                200,
                r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#,
            ),
            ("manifests", name) => {
                let tagged = self.tags.get(&(repository.to_owned(), name.to_owned()));
                match self.blobs.get(tagged.map_or(name, String::as_str)) {
                    Some(blob) => Plan::content(request, blob, &blob.media_type),
                    None => Plan::error(404, "MANIFEST_UNKNOWN"),
                }
            }
            ("blobs", digest) => match self.blobs.get(digest) {
                Some(_) if self.hidden.contains(&(repository.to_owned(), digest.to_owned())) => {
                    Plan::error(404, "BLOB_UNKNOWN")
                }
                Some(blob) => Plan::content(request, blob, "application/octet-stream"),
                None => Plan::error(404, "BLOB_UNKNOWN"),
            },
            _ => Plan::error(404, "NAME_UNKNOWN"),
        }
    }

    fn tag_list(&self, repository: &str) -> Plan {
        let tags: Vec<&String> = self.tags.keys().filter(|(name, _)| name == repository).map(|(_, tag)| tag).collect();
        Plan::json(200, &serde_json::json!({ "name": repository, "tags": tags }).to_string())
    }
}
