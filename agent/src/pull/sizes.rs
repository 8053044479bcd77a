use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::Place;
use super::bounded::insert;
use crate::image::Digest;

/// Blobs of which the length is remembered; beyond, the oldest goes.
const BOUND: usize = 8192;

/// How long blobs are, by the manifests that name them: an upstream that says another length lies, and a reply whose
/// head has gone out with its word can't be mended.
///
/// By place: what one repository's manifest says is nothing to another.
#[derive(Default)]
pub(super) struct Sizes(Mutex<HashMap<(Place, Digest), Said>>);

/// Bytes, unless manifests contradict each other; and when one last said so.
type Said = (Option<u64>, Instant);

#[derive(serde::Deserialize)]
struct Manifest {
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(serde::Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
}

impl Sizes {
    /// Bytes; `None` where no manifest from there has said.
    pub(super) fn of(&self, place: &Place, digest: &Digest) -> Option<u64> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(place.clone(), *digest)).and_then(|(size, _)| *size)
    }

    /// Learns from a manifest, which has its digest. What is no manifest says nothing.
    pub(super) fn learn(&self, place: &Place, digest: &Digest, manifest: &[u8]) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        insert(&mut known, BOUND, (place.clone(), *digest), (Some(manifest.len() as u64), now), |(_, at)| *at);
        let Ok(Manifest { config, layers, manifests }) = serde_json::from_slice(manifest) else { return };
        for Descriptor { digest, size } in config.into_iter().chain(layers).chain(manifests) {
            let Ok(digest) = digest.parse() else { continue };
            let key = (place.clone(), digest);
            // Where manifests contradict each other, none is believed: one that is wrong must not keep the others' blobs.
            let agreed = known.get(&key).is_none_or(|(before, _)| *before == Some(size));
            insert(&mut known, BOUND, key, (agreed.then_some(size), now), |(_, at)| *at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_says_how_long_its_blobs_are() {
        let (sizes, blob) = (Sizes::default(), Digest::of(b"blob"));
        let place =
            |repository: &str| Place { registry: "reg.test".parse().unwrap(), repository: repository.parse().unwrap() };
        let here = place("acme/app");
        let text = format!(r#"{{"layers":[{{"digest":"{blob}","size":7}},{{"digest":"x","size":1}}]}}"#);
        let manifest = Digest::of(text.as_bytes());
        sizes.learn(&here, &manifest, text.as_bytes());
        assert_eq!(sizes.of(&here, &blob), Some(7));
        assert_eq!(sizes.of(&here, &manifest), Some(text.len() as u64));
        assert_eq!(sizes.of(&place("acme/other"), &blob), None);
        let other = text.replace(":7}", ":8}");
        sizes.learn(&here, &Digest::of(other.as_bytes()), other.as_bytes());
        assert_eq!(sizes.of(&here, &blob), None, "one of the two is wrong");
    }
}
