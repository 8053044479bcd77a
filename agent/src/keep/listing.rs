//! What manifests and indexes list, as far as it matters here: read leniently, and bounded.

use serde::Deserialize;

use crate::image::{Digest, MediaType};

/// The longest manifest or index that is read, in bytes: containerd takes no longer one.
pub(super) const MAX_LISTING: u64 = 4 << 20;
/// The most entries of one; what has more is no image of anybody's.
const MAX_ENTRIES: usize = 4096;

/// The annotation by which buildkit marks what is no image, but says something of one.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// The content of a manifest or an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Listing {
    /// Manifests, by platform; or further indexes.
    Index(Vec<Child>),
    /// A config and layers, those left out that nobody hands out.
    Manifest(Vec<Descriptor>),
}

/// One entry of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Child {
    /// What it names.
    pub(super) blob: Descriptor,
    /// For which machines; `None` where it doesn't say.
    pub(super) platform: Option<Platform>,
}

/// A blob as a listing names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) digest: Digest,
    /// Bytes.
    pub(super) size: u64,
    pub(super) media_type: MediaType,
}

/// For which machines an image is, in Go's words.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Platform {
    pub(super) os: String,
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) variant: String,
}

impl Platform {
    /// This machine's, without its variant.
    pub(super) fn own() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: String::new() }
    }

    /// How well what is for `self` suits a machine of `own` platform; the best first, `None` for not at all.
    fn suits(&self, own: &Self) -> Option<u8> {
        if (&self.os, &self.architecture) != (&own.os, &own.architecture) {
            return None;
        }
        Some(match self.variant.as_str() {
            "" => 0,
            // What every machine of its kind runs, as containerd has it.
            "v8" | "v1" => 1,
            "v7" => 2,
            _ => 3,
        })
    }
}

impl Listing {
    /// Reads one; `None` for what is neither.
    pub(super) fn parse(content: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Text {
            config: Option<Entry>,
            layers: Option<Vec<Entry>>,
            manifests: Option<Vec<Entry>>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Entry {
            digest: String,
            size: u64,
            #[serde(default)]
            media_type: String,
            platform: Option<Platform>,
            #[serde(default)]
            annotations: Option<std::collections::HashMap<String, String>>,
        }
        impl Entry {
            fn blob(&self) -> Option<Descriptor> {
                let media_type = MediaType::new(&self.media_type).unwrap_or_else(MediaType::octet_stream);
                Some(Descriptor { digest: self.digest.parse().ok()?, size: self.size, media_type })
            }

            fn is_image(&self) -> bool {
                let says_of_another = self.annotations.as_ref().is_some_and(|notes| notes.contains_key(REFERENCE_TYPE));
                !says_of_another && self.platform.as_ref().is_none_or(|platform| platform.architecture != "unknown")
            }
        }
        if content.len() as u64 > MAX_LISTING {
            return None;
        }
        match serde_json::from_slice(content).ok()? {
            Text { manifests: Some(entries), .. } if entries.len() <= MAX_ENTRIES => {
                let images = entries.into_iter().filter(Entry::is_image);
                let children = images.map(|entry| Some(Child { blob: entry.blob()?, platform: entry.platform }));
                Some(Self::Index(children.collect::<Option<_>>()?))
            }
            Text { config: Some(config), layers: Some(layers), .. } if layers.len() <= MAX_ENTRIES => {
                let blobs = std::iter::once(config).chain(layers).map(|entry| entry.blob());
                let mut blobs: Vec<Descriptor> = blobs.collect::<Option<_>>()?;
                blobs.retain(|blob| !is_foreign(&blob.media_type));
                Some(Self::Manifest(blobs))
            }
            _ => None,
        }
    }

    /// All that it names.
    pub(super) fn digests(&self) -> impl Iterator<Item = &Descriptor> {
        let (children, blobs) = match self {
            Self::Index(children) => (children.as_slice(), &[][..]),
            Self::Manifest(blobs) => (&[][..], blobs.as_slice()),
        };
        children.iter().map(|child| &child.blob).chain(blobs)
    }
}

/// The entry of an index that a machine of this platform runs.
pub(super) fn best_for<'a>(children: &'a [Child], own: &Platform) -> Option<&'a Child> {
    let suiting = children.iter().filter_map(|child| Some((child.platform.as_ref()?.suits(own)?, child)));
    let best = suiting.min_by_key(|(rank, _)| *rank).map(|(_, child)| child);
    // An index of one entry, or one that doesn't say, means what it has.
    best.or_else(|| children.iter().find(|child| child.platform.is_none()))
}

/// Whether no registry hands it out: whoever runs it has it from elsewhere.
fn is_foreign(media_type: &MediaType) -> bool {
    let text = media_type.as_str();
    text.contains(".foreign.") || text.contains(".nondistributable.")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(n: u8, more: &str) -> String {
        format!(r#"{{"digest":"{}","size":{n}{more}}}"#, Digest::of(&[n]))
    }

    #[test]
    fn an_index_names_images_by_platform() {
        let arm = r#","platform":{"os":"linux","architecture":"arm64","variant":"v8"}"#;
        let amd = r#","platform":{"os":"linux","architecture":"amd64"}"#;
        let old = r#","platform":{"os":"linux","architecture":"amd64","variant":"v3"}"#;
        let attestation = r#","platform":{"os":"unknown","architecture":"unknown"}"#;
        let signed = r#","annotations":{"vnd.docker.reference.type":"attestation-manifest"}"#;
        let entries = [entry(1, arm), entry(2, old), entry(3, amd), entry(4, attestation), entry(5, signed)].join(",");
        let Some(Listing::Index(children)) = Listing::parse(format!(r#"{{"manifests":[{entries}]}}"#).as_bytes())
        else {
            panic!("no index");
        };
        assert_eq!(children.iter().map(|child| child.blob.size).collect::<Vec<_>>(), [1, 2, 3]);
        let own = |architecture: &str| Platform { architecture: architecture.to_owned(), ..Platform::own() };
        let best = |architecture| best_for(&children, &own(architecture)).map(|child| child.blob.size);
        assert_eq!((best("amd64"), best("arm64"), best("s390x")), (Some(3), Some(1), None));
    }

    #[test]
    fn a_manifest_names_what_a_registry_hands_out() {
        let foreign = r#","mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip""#;
        let text = format!(r#"{{"config":{},"layers":[{},{}]}}"#, entry(1, ""), entry(2, foreign), entry(3, ""));
        let listing = Listing::parse(text.as_bytes()).unwrap();
        assert_eq!(listing.digests().map(|blob| blob.size).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(Listing::parse(b"{}"), None);
        assert_eq!(Listing::parse(br#"{"config":{"digest":"x","size":1},"layers":[]}"#), None, "what it names is lost");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Listing::parse(&bytes);
        }

        #[test]
        fn whatever_json_comes_is_read_or_refused(
            key in "config|layers|manifests|x", value in r#"\[\]|\{\}|null|1|\[1\]|\[\{\}\]|"x""#,
        ) {
            prop_assert_eq!(Listing::parse(format!(r#"{{"{key}":{value}}}"#).as_bytes()).is_some(), value == "[]" && key == "manifests");
        }
    }
}
